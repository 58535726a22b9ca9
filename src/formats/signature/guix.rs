//! Keys and signatures of the Guix dialect: S-expressions around deterministic ECDSA on Ed25519.
//!
//! This is not `EdDSA`, although the curve is the same: keys have no `(flags eddsa)`, and the
//! secret is a number rather than a seed. The texts are those of `guix archive --generate-key`,
//! `/etc/guix/acl` and `guix authenticate`. Source: Guix `guix/pki.scm`, `guix/narinfo.scm`,
//! guile-gcrypt `gcrypt/pk-crypto.scm`; for the numbers see [`ecdsa`].

mod ecdsa;

use super::sexp::{Sexp, SexpError};
use crate::core::hash::Sha256;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use curve25519_dalek::{
    Scalar,
    edwards::{CompressedEdwardsY, EdwardsPoint},
};
use ecdsa::{Numbers, SecretNumber};
use std::fmt;
use zeroize::{Zeroize as _, Zeroizing};

/// The one curve that keys may be on, as libgcrypt calls it.
const CURVE: &str = "Ed25519";
/// The version of the signatures in narinfos.
const NARINFO_VERSION: &str = "1";
/// Stands before the signature in a narinfo.
pub const NARINFO_SIGNATURE_FIELD: &str = "Signature";

/// A secret key. It is wiped from memory when dropped, and `Debug` shows only the public half.
pub struct GuixSecretKey {
    number: SecretNumber,
    public: GuixPublicKey,
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GuixPublicKey {
    compressed: CompressedEdwardsY,
    point: EdwardsPoint,
}

/// Why a text is not a key. The text is never part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuixKeyError {
    /// It is no S-expression.
    #[error("the key is no S-expression")]
    Sexp(#[from] SexpError),
    /// It is an S-expression of something else, or of the other half.
    #[error("this is no ‘({0} …)’, as ‘guix archive --generate-key’ writes it")]
    Kind(&'static str),
    /// It is a key for another algorithm, such as RSA, or on another curve.
    #[error(
        "the key is of an unsupported kind: make one on Ed25519 with ‘guix archive --generate-key’"
    )]
    Unsupported,
    /// The bytes are no point of the curve, or the public half does not belong to the secret one.
    #[error("the key is damaged: its bytes do not belong together")]
    Damaged,
}

impl GuixSecretKey {
    /// Makes a key from 32 random bytes.
    #[must_use]
    pub fn generate(seed: [u8; 32]) -> Self {
        let mut bytes = Zeroizing::new(seed);
        // As libgcrypt does it: a multiple of the curve's cofactor, with a fixed highest bit.
        if let [first, .., last] = bytes.as_mut_slice() {
            *first = (*first & 0x7f) | 0x40;
            *last &= 0xf8;
        }
        let number = SecretNumber::new(bytes);
        let compressed = number.point();
        // What is a multiple of the base point can always be read back.
        let point = compressed.decompress().unwrap_or_default();
        Self { number, public: GuixPublicKey { compressed, point } }
    }

    /// Reads the text of a file like `/etc/guix/signing-key.sec`.
    ///
    /// # Errors
    /// A [`GuixKeyError`].
    pub fn parse(text: &str) -> Result<Self, GuixKeyError> {
        let mut key = Sexp::parse(text.as_bytes())?;
        let result = Self::from_sexp(&key);
        wipe(&mut key);
        result
    }

    fn from_sexp(key: &Sexp) -> Result<Self, GuixKeyError> {
        let parts = key_parts(key, "private-key")?;
        let public = GuixPublicKey::from_parts(parts)?;
        let number = Sexp::value(parts, "d").and_then(number).ok_or(GuixKeyError::Damaged)?;
        let number = SecretNumber::new(number);
        if number.point() == public.compressed {
            Ok(Self { number, public })
        } else {
            Err(GuixKeyError::Damaged)
        }
    }

    /// Returns the text of the key file. It is the secret: keep it nowhere else.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let d = Sexp::field("d", self.number.as_bytes());
        let mut key = self.public.key_sexp("private-key", Some(d));
        let text = Zeroizing::new(key.to_text());
        wipe(&mut key);
        text
    }

    /// Returns the public key that verifies what this one signs.
    #[must_use]
    pub const fn public(&self) -> &GuixPublicKey {
        &self.public
    }

    /// Signs a digest, and returns the text that export streams bear.
    #[must_use]
    pub fn sign(&self, digest: &Sha256) -> String {
        let Numbers { r, s } = self.number.sign(digest);
        let numbers = Sexp::list(["ecdsa".into(), numeric("r", r), numeric("s", s)]);
        let hash = ["hash".into(), "sha256".into(), Sexp::Atom(digest.as_bytes().to_vec())];
        let data = ["data".into(), Sexp::field("flags", b"rfc6979"), Sexp::list(hash)];
        Sexp::list([
            "signature".into(),
            Sexp::list(data),
            Sexp::list(["sig-val".into(), numbers]),
            self.public.key_sexp("public-key", None),
        ])
        .to_text()
    }

    /// Signs what a narinfo says of a path, and returns the value of its `Signature` field. `host`
    /// is for people only: whose signature it is follows from the key in it.
    #[must_use]
    pub fn sign_narinfo(&self, host: &str, facts: &str) -> String {
        let plain = |c: char| if c.is_ascii_graphic() && c != ';' { c } else { '-' };
        let host: String = host.chars().map(plain).collect();
        let signature = self.sign(&Sha256::of(facts.as_bytes()));
        format!("{NARINFO_VERSION};{host};{}", BASE64.encode(signature))
    }
}

impl fmt::Debug for GuixSecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuixSecretKey({:?}, …)", self.public)
    }
}

impl GuixPublicKey {
    /// Reads the text of a file like `/etc/guix/signing-key.pub`.
    ///
    /// # Errors
    /// A [`GuixKeyError`].
    pub fn parse(text: &str) -> Result<Self, GuixKeyError> {
        Self::from_parts(key_parts(&Sexp::parse(text.as_bytes())?, "public-key")?)
    }

    /// Reads the keys that an access list such as `/etc/guix/acl` allows to bring store paths, but
    /// for those that are of an unsupported kind.
    ///
    /// # Errors
    /// A [`GuixKeyError`] when the list or one of its keys is damaged.
    pub fn parse_acl(text: &str) -> Result<Vec<Self>, GuixKeyError> {
        let list = Sexp::parse(text.as_bytes())?;
        let entries = list.after("acl").ok_or(GuixKeyError::Kind("acl"))?;
        let import = Sexp::list(["tag".into(), Sexp::field("guix", b"import")]);
        let mut keys = Vec::new();
        for entry in entries {
            let Some([key, tag]) = entry.after("entry") else {
                return Err(GuixKeyError::Kind("acl"));
            };
            if *tag != import {
                continue;
            }
            match key_parts(key, "public-key").and_then(Self::from_parts) {
                Ok(key) => keys.push(key),
                Err(GuixKeyError::Unsupported) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    /// Returns the text, as `guix archive --authorize` takes it.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.key_sexp("public-key", None).to_text()
    }

    /// Tells whether `signature` is this key's over `digest`.
    ///
    /// A signature with another key in it, or that cannot be read, is none.
    #[must_use]
    pub fn verify(&self, digest: &Sha256, signature: &[u8]) -> bool {
        Sexp::parse(signature).is_ok_and(|signature| {
            signed_numbers(&signature, digest)
                .filter(|(key, _)| key == self)
                .is_some_and(|(_, numbers)| ecdsa::verify(&self.point, digest, &numbers))
        })
    }

    /// Tells whether the value of a narinfo's `Signature` field is this key's over the facts.
    #[must_use]
    pub fn verify_narinfo(&self, facts: &str, signature: &str) -> bool {
        let mut parts = signature.split(';');
        let (Some(NARINFO_VERSION), Some(_), Some(digits), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let digest = Sha256::of(facts.as_bytes());
        BASE64.decode(digits).is_ok_and(|signature| self.verify(&digest, &signature))
    }

    fn from_parts(parts: &[Sexp]) -> Result<Self, GuixKeyError> {
        let q = Sexp::value(parts, "q").ok_or(GuixKeyError::Damaged)?;
        let compressed = CompressedEdwardsY::from_slice(q).map_err(|_| GuixKeyError::Damaged)?;
        let point = compressed.decompress().ok_or(GuixKeyError::Damaged)?;
        // A text that reads as the same point as another would be another key.
        if point.compress() != compressed {
            return Err(GuixKeyError::Damaged);
        }
        Ok(Self { compressed, point })
    }

    fn key_sexp(&self, kind: &str, secret: Option<Sexp>) -> Sexp {
        let public = [
            "ecc".into(),
            Sexp::field("curve", CURVE.as_bytes()),
            Sexp::field("q", self.compressed.as_bytes()),
        ];
        Sexp::list([kind.into(), Sexp::list(public.into_iter().chain(secret))])
    }
}

impl fmt::Debug for GuixPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::core::hash::hex(self.compressed.as_bytes()))
    }
}

/// Returns what a key on the one curve consists of.
fn key_parts<'a>(key: &'a Sexp, kind: &'static str) -> Result<&'a [Sexp], GuixKeyError> {
    let Some([inner]) = key.after(kind) else { return Err(GuixKeyError::Kind(kind)) };
    let parts = inner.after("ecc").ok_or(GuixKeyError::Unsupported)?;
    let is_ours = Sexp::value(parts, "curve") == Some(CURVE.as_bytes());
    // With flags such as `eddsa` the same bytes would be another key.
    let plain = !parts.iter().any(|part| part.after("flags").is_some());
    if is_ours && plain { Ok(parts) } else { Err(GuixKeyError::Unsupported) }
}

/// Returns the key and the numbers of a signature whose text says that it is over `digest`.
fn signed_numbers(signature: &Sexp, digest: &Sha256) -> Option<(GuixPublicKey, Numbers)> {
    let parts = signature.after("signature")?;
    let data = Sexp::find(parts, "data")?;
    let [algorithm, hash] = Sexp::find(data, "hash")? else { return None };
    if algorithm.atom()? != b"sha256" || hash.atom()? != digest.as_bytes() {
        return None;
    }
    let [numbers] = Sexp::find(parts, "sig-val")? else { return None };
    let numbers = numbers.after("ecdsa")?;
    let [r, s] = ["r", "s"].map(|name| {
        let mut bytes = number(Sexp::value(numbers, name)?)?;
        bytes.reverse();
        Option::<Scalar>::from(Scalar::from_canonical_bytes(*bytes))
    });
    let numbers = Numbers { r: r?, s: s? };
    let key = parts.iter().find(|part| part.after("public-key").is_some())?;
    let key = key_parts(key, "public-key").and_then(GuixPublicKey::from_parts).ok()?;
    Some((key, numbers))
}

/// Returns a number without leading zeros: `(r #…#)`.
fn numeric(name: &str, number: Scalar) -> Sexp {
    let mut bytes = number.to_bytes();
    bytes.reverse();
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Sexp::field(name, bytes.get(zeros..).unwrap_or_default())
}

/// Returns big-endian bytes as 32 of them; nothing when the number is larger.
fn number(bytes: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = bytes.get(zeros..)?;
    let mut number = Zeroizing::new([0; 32]);
    let start = number.len().checked_sub(digits.len())?;
    number.get_mut(start..)?.copy_from_slice(digits);
    Some(number)
}

/// Overwrites every atom.
fn wipe(expression: &mut Sexp) {
    match expression {
        Sexp::Atom(bytes) => bytes.zeroize(),
        Sexp::List(items) => items.iter_mut().for_each(wipe),
    }
}

#[cfg(test)]
mod tests;
