//! Keys and signatures of the Nix dialect: named Ed25519.
//!
//! A secret key is `NAME:base64(seed ‖ public)`, a public key `NAME:base64(public)`, a signature
//! `NAME:base64(signature)`. Source: Nix `src/libutil/signature/local-keys.cc`, RFC 8032.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use std::fmt;

/// The longest name of a key, in bytes: that of a domain and a number.
pub const KEY_NAME_BYTES_MAX: usize = 255;

/// The name of a key: 1 to [`KEY_NAME_BYTES_MAX`] visible ASCII characters, no colon.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyName(String);

impl KeyName {
    fn parse(name: &str) -> Result<Self, NixKeyError> {
        let visible = name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
        if visible && (1..=KEY_NAME_BYTES_MAX).contains(&name.len()) {
            Ok(Self(name.to_owned()))
        } else {
            Err(NixKeyError::Name)
        }
    }
}

/// A secret key. It is wiped from memory when dropped, and `Debug` shows only its name.
pub struct NixSecretKey {
    name: KeyName,
    key: SigningKey,
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct NixPublicKey {
    name: KeyName,
    key: VerifyingKey,
}

/// Why a text is not a key. The text is never part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NixKeyError {
    /// The name is empty, too long, or has a colon or invisible characters.
    #[error(
        "a key's name must be 1 to 255 visible ASCII characters without a colon, such as ‘farm.example.org-1’"
    )]
    Name,
    /// There is no colon between name and key.
    #[error("a key must read NAME:BASE64, as ‘nix-store --generate-binary-cache-key’ writes it")]
    NoName,
    /// What follows the colon is not the base64 of as many bytes as the key must have.
    #[error(
        "what follows the key's name is not the base64 of {0} bytes: is the file cut off, or the other half of the key?"
    )]
    Length(usize),
    /// The bytes are no point of the curve, or the public half does not belong to the secret one.
    #[error("the key is damaged: its bytes do not belong together")]
    Damaged,
}

impl NixSecretKey {
    /// Makes the key of this name from 32 random bytes.
    ///
    /// # Errors
    /// [`NixKeyError::Name`].
    pub fn generate(name: &str, mut seed: [u8; 32]) -> Result<Self, NixKeyError> {
        let name = KeyName::parse(name);
        let key = SigningKey::from_bytes(&seed);
        wipe(&mut seed);
        Ok(Self { name: name?, key })
    }

    /// Reads the text of a key file; blanks around it are not part of the key.
    ///
    /// # Errors
    /// A [`NixKeyError`].
    pub fn parse(text: &str) -> Result<Self, NixKeyError> {
        let (name, digits) = split(text)?;
        let mut bytes = decode::<64>(digits)?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| NixKeyError::Damaged);
        wipe(&mut bytes);
        Ok(Self { name, key: key? })
    }

    /// Returns the text of the key file. It is the secret: keep it nowhere else.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = self.key.to_keypair_bytes();
        let text = format!("{}:{}", self.name.0, BASE64.encode(bytes));
        wipe(&mut bytes);
        text
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name.0
    }

    /// Returns the public key that verifies what this one signs.
    #[must_use]
    pub fn public(&self) -> NixPublicKey {
        NixPublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs a [`fingerprint`](crate::formats::narinfo::fingerprint).
    #[must_use]
    pub fn sign(&self, fingerprint: &str) -> String {
        let signature = self.key.sign(fingerprint.as_bytes());
        format!("{}:{}", self.name.0, BASE64.encode(signature.to_bytes()))
    }
}

impl fmt::Debug for NixSecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NixSecretKey({}, …)", self.name.0)
    }
}

impl NixPublicKey {
    /// Reads the text of a key; blanks around it are not part of the key.
    ///
    /// # Errors
    /// A [`NixKeyError`].
    pub fn parse(text: &str) -> Result<Self, NixKeyError> {
        let (name, digits) = split(text)?;
        let bytes = decode::<32>(digits)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| NixKeyError::Damaged)?;
        Ok(Self { name, key })
    }

    /// Returns the text, as `trusted-public-keys` has it.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{}:{}", self.name.0, BASE64.encode(self.key.as_bytes()))
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name.0
    }

    /// Tells whether `signature` is this key's over `fingerprint`.
    ///
    /// A signature under another name, or that cannot be read, is none.
    #[must_use]
    pub fn verify(&self, fingerprint: &str, signature: &str) -> bool {
        let Some((name, digits)) = signature.split_once(':') else {
            return false;
        };
        name == self.name.0
            && decode::<64>(digits).is_ok_and(|bytes| {
                let signature = Signature::from_bytes(&bytes);
                self.key.verify_strict(fingerprint.as_bytes(), &signature).is_ok()
            })
    }
}

impl fmt::Debug for NixPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

/// Splits a key's text at the colon.
fn split(text: &str) -> Result<(KeyName, &str), NixKeyError> {
    let (name, digits) = text.trim_ascii().split_once(':').ok_or(NixKeyError::NoName)?;
    Ok((KeyName::parse(name)?, digits))
}

/// Decodes the base64 of exactly `N` bytes.
fn decode<const N: usize>(digits: &str) -> Result<[u8; N], NixKeyError> {
    // The decoder wants room for its estimate, which is up to two bytes over.
    let mut buffer = [0u8; 72];
    let decoded = match BASE64.decode_slice(digits, &mut buffer) {
        Ok(len) if len == N => buffer.first_chunk::<N>().copied(),
        _ => None,
    };
    wipe(&mut buffer);
    decoded.ok_or(NixKeyError::Length(N))
}

/// Overwrites a secret that would otherwise stay on the stack.
fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    // Without this the compiler may see that nobody reads the zeros, and leave them out.
    std::hint::black_box(secret);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> NixSecretKey {
        NixSecretKey::generate("farm-1", [7; 32]).unwrap()
    }

    #[test]
    fn keys_read_back() {
        let secret = NixSecretKey::parse(&format!("{}\n", key().to_text())).unwrap();
        assert_eq!(secret.to_text(), key().to_text());
        let public = NixPublicKey::parse(&secret.public().to_text()).unwrap();
        assert_eq!(public, key().public());
        assert_eq!(public.name(), "farm-1");
    }

    #[test]
    fn signatures_are_those_of_rfc_8032() {
        // RFC 8032, section 7.1, test 1: the empty message.
        let seed = crate::core::hash::unhex(
            b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        );
        let key = NixSecretKey::generate("k", seed.unwrap()).unwrap();
        let expected: [u8; 64] = crate::core::hash::unhex(
            b"e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        )
        .unwrap();
        assert_eq!(key.sign(""), format!("k:{}", BASE64.encode(expected)));
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", key()), "NixSecretKey(farm-1, …)");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let (secret, public) = (key().to_text(), key().public().to_text());
        assert_eq!(NixSecretKey::parse("").unwrap_err(), NixKeyError::NoName);
        assert_eq!(NixSecretKey::parse(":AAAA").unwrap_err(), NixKeyError::Name);
        assert_eq!(NixSecretKey::parse("a b:AAAA").unwrap_err(), NixKeyError::Name);
        assert_eq!(NixSecretKey::parse(&public).unwrap_err(), NixKeyError::Length(64));
        assert_eq!(NixPublicKey::parse(&secret).unwrap_err(), NixKeyError::Length(32));
        assert_eq!(NixPublicKey::parse("a:*").unwrap_err(), NixKeyError::Length(32));
        let mixed = format!("a:{}", BASE64.encode([7; 64]));
        assert_eq!(NixSecretKey::parse(&mixed).unwrap_err(), NixKeyError::Damaged);
        assert_eq!(NixSecretKey::generate("a:b", [0; 32]).unwrap_err(), NixKeyError::Name);
    }

    #[test]
    fn only_the_keys_own_signature_over_the_same_text_counts() {
        let signature = key().sign("1;text");
        let public = key().public();
        assert!(public.verify("1;text", &signature));
        assert!(!public.verify("1;texts", &signature));
        assert!(!public.verify("1;text", &signature.replace("farm-1", "farm-2")));
        assert!(!public.verify("1;text", "farm-1:"));
        assert!(!public.verify("1;text", "farm-1"));
        let other = NixSecretKey::generate("farm-1", [8; 32]).unwrap();
        assert!(!public.verify("1;text", &other.sign("1;text")));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z:]{0,9}[A-Za-z0-9+/=]{0,100}") {
            if let Ok(key) = NixPublicKey::parse(&text) {
                prop_assert_eq!(key.to_text(), text.as_str());
            }
            prop_assert!(!key().public().verify("", &text));
        }
    }
}
