//! Certificates: keys that an authority of the keydir vouches for, and those that are revoked.
//!
//! A user certificate of OpenSSH (PROTOCOL.certkeys) is believed when one of its principals is
//! `role/name`, its authority is listed in `ca/` and may give that role, it holds at this moment,
//! nothing in `revoked` speaks against it, and every critical option is understood. The options in
//! front of the authority's key are those of every key that it certifies.

use super::{
    authorize::{Certified, Credential, Principal, Role},
    key_line::{self, KeyOptions, LineError},
};
use crate::core::{id::Name, time::Timestamp};
use russh::keys::{
    Algorithm, Certificate, HashAlg,
    ssh_key::{Fingerprint, public::KeyData},
};
use std::{
    collections::HashSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// The most lines of the list of what is revoked.
const REVOKED_MAX: usize = 100_000;

/// Somebody who vouches for keys.
#[derive(Debug)]
pub(super) struct Authority {
    /// What holds of every key that it certifies.
    pub(super) options: KeyOptions,
    /// Which roles it may give.
    pub(super) roles: Vec<Role>,
    /// Where it is listed.
    pub(super) path: PathBuf,
    /// On which line.
    pub(super) line: usize,
}

/// Why a certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("it is no user certificate: sign without -h")]
    NotForUsers,
    #[error("its signature is not the authority's")]
    Signature,
    #[error("its authority signs with SHA-1: sign with -t rsa-sha2-512")]
    Sha1,
    #[error("the certified key: {0}")]
    Key(#[from] LineError),
    #[error("it does not hold now")]
    Validity,
    #[error("the authority has expired")]
    AuthorityExpired,
    #[error("it is revoked")]
    Revoked,
    #[error("the list of what is revoked cannot be read: mend it")]
    RevocationsUnknown,
    #[error("none of its principals is role/name: sign with -n agent/NAME, for example")]
    NoPrincipal,
    #[error("several of its principals are role/name: sign one certificate for each")]
    ManyPrincipals,
    #[error("its authority may not make anybody {0}: add it to roles= in ca/")]
    Role(Role),
    #[error("the critical option ‘{0}’ is not understood")]
    CriticalOption(String),
    #[error("it does not hold for the address of this connection")]
    Address,
}

/// Returns who somebody is that proved to hold the key of a certificate.
pub(super) fn principal(
    certificate: &Certificate,
    authority: &Authority,
    revocations: &Revocations,
    now: Timestamp,
    peer: IpAddr,
) -> Result<Principal, Refused> {
    if !certificate.cert_type().is_user() {
        return Err(Refused::NotForUsers);
    }
    let signer = certificate.signature_key().fingerprint(HashAlg::Sha256);
    verify(certificate, &signer, now)?;
    key_line::accept(certificate.public_key())?;
    if authority.options.expires.is_some_and(|end| end <= now) {
        return Err(Refused::AuthorityExpired);
    }
    revocations.allow(certificate, &signer)?;
    let forced = heed_options(certificate, peer)?;
    let (role, name) = role_and_name(certificate)?;
    if !authority.roles.contains(&role) {
        return Err(Refused::Role(role));
    }
    let options = &authority.options;
    Ok(Principal {
        name,
        role,
        fingerprint: certificate.public_key().fingerprint(HashAlg::Sha256).to_string(),
        systems: options.systems.clone(),
        tags: options.tags.clone(),
        max_priority: options.max_priority,
        trusted_import: options.trusted_import,
        quotas: options.quotas,
        credential: Credential::Certificate(Certified {
            serial: certificate.serial(),
            key_id: certificate.key_id().chars().take(256).collect(),
            authority: signer.to_string(),
            expires_s: Some(certificate.valid_before()).filter(|end| *end != u64::MAX),
            forced,
        }),
    })
}

fn verify(certificate: &Certificate, signer: &Fingerprint, now: Timestamp) -> Result<(), Refused> {
    if let Algorithm::Rsa { hash: None } | Algorithm::Dsa = certificate.signature().algorithm() {
        return Err(Refused::Sha1);
    }
    let seconds = u64::try_from(now.as_ms().div_euclid(1_000)).unwrap_or(0);
    if seconds < certificate.valid_after() || seconds >= certificate.valid_before() {
        return Err(Refused::Validity);
    }
    certificate.validate_at(seconds, [signer]).map_err(|_| Refused::Signature)
}

/// Heeds the critical options, all of which must be understood. Returns the command line that is
/// forced.
fn heed_options(certificate: &Certificate, peer: IpAddr) -> Result<Option<String>, Refused> {
    let mut forced = None;
    for (name, value) in certificate.critical_options().iter() {
        match name.as_str() {
            "force-command" => forced = Some(value.clone()),
            "source-address" => match is_within(peer.to_canonical(), value) {
                Some(true) => {}
                Some(false) => return Err(Refused::Address),
                None => return Err(Refused::CriticalOption(name.clone())),
            },
            other => {
                return Err(Refused::CriticalOption(
                    other.chars().filter(|c| !c.is_control()).take(64).collect(),
                ));
            }
        }
    }
    Ok(forced)
}

/// Returns whether an address is in one of the networks of a list such as
/// `192.0.2.0/24,2001:db8::1`; `None` when the list is none.
fn is_within(address: IpAddr, networks: &str) -> Option<bool> {
    let mut within = false;
    for network in networks.split(',') {
        let (base, bits) = match network.split_once('/') {
            Some((base, bits)) => (base, Some(bits.parse::<u32>().ok()?)),
            None => (network, None),
        };
        let base: IpAddr = base.parse().ok()?;
        let (one, other, width): (u128, u128, u32) = match (base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                (u128::from(base.to_bits()), u128::from(address.to_bits()), 32)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits(), address.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) if bits.is_none_or(|bits| bits <= 32) => continue,
            (IpAddr::V6(_), IpAddr::V4(_)) if bits.is_none_or(|bits| bits <= 128) => continue,
            (IpAddr::V4(_) | IpAddr::V6(_), _) => return None,
        };
        let host_bits = width.checked_sub(bits.unwrap_or(width))?;
        let differ = (one ^ other).checked_shr(host_bits).unwrap_or(0);
        within |= differ == 0;
    }
    Some(within)
}

/// Returns the one principal that is one of ours; others are for other services.
fn role_and_name(certificate: &Certificate) -> Result<(Role, Name), Refused> {
    let ours = certificate.valid_principals().iter().filter_map(|principal| {
        let (role, name) = principal.split_once('/')?;
        Some((Role::of_word(role)?, name.parse::<Name>().ok()?))
    });
    let ours: Vec<(Role, Name)> = ours.take(2).collect();
    match <[_; 1]>::try_from(ours) {
        Ok([one]) => Ok(one),
        Err(none) if none.is_empty() => Err(Refused::NoPrincipal),
        Err(_) => Err(Refused::ManyPrincipals),
    }
}

/// What is worth nothing any more, whoever lists or certifies it.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    fingerprints: HashSet<String>,
    /// Serial numbers, of one authority or of all.
    serials: HashSet<(u64, Option<String>)>,
    /// Whether something in the list could not be read: it may have been any certificate.
    pub(super) is_unknown: bool,
}

impl Revocations {
    /// Reads a line: empty, a comment, a fingerprint, or `serial N` with the fingerprint of an
    /// authority behind it or none.
    pub(super) fn add_line(&mut self, line: &str) -> Result<(), &'static str> {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        if self.fingerprints.len().saturating_add(self.serials.len()) >= REVOKED_MAX {
            return Err("there are more than 100,000 lines: make a new authority instead");
        }
        let wrong = "write a fingerprint as ‘ssh-keygen -l’ prints it, SHA256:…, or ‘serial \
                     NUMBER’ with the fingerprint of an authority behind it or none";
        let fingerprint =
            |text: &str| text.parse::<Fingerprint>().map(|it| it.to_string()).map_err(|_| wrong);
        match words.as_slice() {
            [] => {}
            ["serial", number] => {
                self.serials.insert((number.parse().map_err(|_| wrong)?, None));
            }
            ["serial", number, authority] => {
                let number = number.parse().map_err(|_| wrong)?;
                self.serials.insert((number, Some(fingerprint(authority)?)));
            }
            [one] => {
                self.fingerprints.insert(fingerprint(one)?);
            }
            _ => return Err(wrong),
        }
        Ok(())
    }

    /// Returns whether a key is revoked, listed or not.
    pub(super) fn names(&self, key: &KeyData) -> bool {
        !self.fingerprints.is_empty()
            && self.fingerprints.contains(&key.fingerprint(HashAlg::Sha256).to_string())
    }

    fn allow(&self, certificate: &Certificate, signer: &Fingerprint) -> Result<(), Refused> {
        let serial = certificate.serial();
        let is_revoked = self.names(certificate.public_key())
            || self.names(certificate.signature_key())
            || self.serials.contains(&(serial, None))
            || self.serials.contains(&(serial, Some(signer.to_string())));
        match () {
            () if is_revoked => Err(Refused::Revoked),
            () if self.is_unknown => Err(Refused::RevocationsUnknown),
            () => Ok(()),
        }
    }
}

/// Returns where the list of what is revoked stands in a keydir.
pub(super) fn revoked_file(keydir: &Path) -> PathBuf {
    keydir.join("revoked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_looked_for_in_networks() {
        let within = |address: &str, list: &str| is_within(address.parse().unwrap(), list);
        for (address, list, answer) in [
            ("192.0.2.7", "192.0.2.0/24", Some(true)),
            ("192.0.3.7", "192.0.2.0/24", Some(false)),
            ("192.0.3.7", "192.0.2.0/24,192.0.3.7", Some(true)),
            ("192.0.3.7", "0.0.0.0/0", Some(true)),
            ("192.0.3.7", "2001:db8::/32", Some(false)),
            ("2001:db8::1", "2001:db8::/32", Some(true)),
            ("2001:db9::1", "2001:db8::/32", Some(false)),
            ("2001:db9::1", "::/0", Some(true)),
            ("192.0.2.7", "192.0.2.7/33", None),
            ("2001:db9::1", "192.0.2.7/33", None),
            ("192.0.2.7", "192.0.2.7/x", None),
            ("192.0.2.7", "", None),
            ("192.0.2.7", "!192.0.2.7", None),
            ("192.0.2.7", "192.0.2.7,nonsense", None),
        ] {
            assert_eq!(within(address, list), answer, "{address} {list}");
        }
    }

    #[test]
    fn lines_of_the_list_are_read_or_refused() {
        const PRINT: &str = "SHA256:uNiVztksCsDhcc0u9e8BrrkdDzYX6xM1vBJxkVYpyAk";
        let mut revocations = Revocations::default();
        for line in [
            "",
            "# all",
            &format!("{PRINT} # lost laptop"),
            "serial 7",
            &format!("  serial 8 {PRINT}"),
        ] {
            assert_eq!(revocations.add_line(line), Ok(()), "{line}");
        }
        assert_eq!(revocations.fingerprints.len(), 1);
        assert_eq!(revocations.serials.len(), 2);
        for line in ["SHA256:x", "serial", "serial x", "serial 7 8", "MD5:00", "ssh-ed25519 AAAA"] {
            assert!(revocations.add_line(line).is_err(), "{line}");
        }
    }
}
