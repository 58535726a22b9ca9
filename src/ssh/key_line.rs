//! One line of a key file: options in front, as in `authorized_keys`, then a public key.
//!
//! The grammar is that of `sshd(8)` for `authorized_keys` files: options separated by commas,
//! values in double quotes (`\"` inside them is a quote), then key type, base64 and comment. Only
//! our own options exist; an unknown one refuses the key, since it may have been a restriction.

use super::authorize::{Quotas, Role};
use crate::core::time::Timestamp;
use jiff::{civil::DateTime, tz::TimeZone};
use russh::keys::{
    Algorithm, PublicKey,
    ssh_key::public::{KeyData, RsaPublicKey},
};

/// The smallest RSA key of a person that is believed, in bits.
const RSA_BITS_MIN: u32 = 2048;

/// The most systems or tags on one line.
const VALUES_MAX: usize = 64;

/// What the options in front of a key say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct KeyOptions {
    pub(super) systems: Option<Vec<String>>,
    pub(super) tags: Vec<(String, String)>,
    pub(super) max_priority: Option<i32>,
    /// From this moment on the key is refused.
    pub(super) expires: Option<Timestamp>,
    pub(super) trusted_import: bool,
    pub(super) quotas: Quotas,
    /// The roles that an authority may give; only its lines have that.
    pub(super) roles: Option<Vec<Role>>,
}

/// Why a line names no key that may come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("not a public key: write ‘[options] ssh-ed25519 AAAA… comment’ on one line")]
    NotAKey,
    #[error("‘{0}’ keys are not accepted: use ssh-ed25519, or ecdsa, sk- or rsa keys")]
    Algorithm(String),
    #[error("an RSA key of {0} bits is too small: make one of at least {RSA_BITS_MIN} bits")]
    SmallRsa(u32),
    #[error("a quote is not closed: values are written as name=\"value\"")]
    Quote,
    #[error(
        "unknown option ‘{0}’: there are systems, tags, max-priority, max-open-builds, \
         max-submissions-per-hour, expiry-time, trusted-import, and roles for authorities"
    )]
    UnknownOption(String),
    #[error("option ‘{0}’ is given twice: keep one")]
    TwiceGiven(String),
    #[error("{0}")]
    Value(&'static str),
}

/// Returns the key of one line with its options; `None` for an empty line or a comment.
pub(super) fn parse(line: &str) -> Result<Option<(PublicKey, KeyOptions)>, LineError> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (options, key) = if starts_with_key_type(line) {
        (KeyOptions::default(), line)
    } else {
        let end = options_end(line)?;
        let (options, key) = line.split_at(end);
        // A first word that is no option at all is a malformed key rather than a bad option.
        if !starts_with_key_type(key.trim_start()) {
            return Err(LineError::NotAKey);
        }
        (parse_options(options)?, key.trim_start())
    };
    Ok(Some((parse_key(key)?, options)))
}

fn starts_with_key_type(text: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-", "rsa-"].iter().any(|prefix| text.starts_with(prefix))
}

/// Returns where the options end: at the first space outside quotes.
fn options_end(line: &str) -> Result<usize, LineError> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, character) in line.char_indices() {
        match character {
            '"' if !escaped => quoted = !quoted,
            ' ' | '\t' if !quoted => return Ok(at),
            _ => {}
        }
        escaped = character == '\\' && !escaped;
    }
    if quoted { Err(LineError::Quote) } else { Err(LineError::NotAKey) }
}

fn parse_key(text: &str) -> Result<PublicKey, LineError> {
    let key = PublicKey::from_openssh(text).map_err(|_| {
        let kind = text.split_whitespace().next().unwrap_or_default();
        if kind == "ssh-dss" || kind.contains("-cert-") {
            LineError::Algorithm(kind.to_owned())
        } else {
            LineError::NotAKey
        }
    })?;
    accept(key.key_data()).map(|()| key)
}

/// Tells whether a key is of a kind that is believed.
pub(super) fn accept(key: &KeyData) -> Result<(), LineError> {
    match key.algorithm() {
        Algorithm::Ed25519
        | Algorithm::Ecdsa { .. }
        | Algorithm::SkEd25519
        | Algorithm::SkEcdsaSha2NistP256 => Ok(()),
        Algorithm::Rsa { .. } => match key.rsa().map_or(0, RsaPublicKey::key_size) {
            bits if bits < RSA_BITS_MIN => Err(LineError::SmallRsa(bits)),
            _ => Ok(()),
        },
        other => Err(LineError::Algorithm(other.to_string())),
    }
}

fn parse_options(text: &str) -> Result<KeyOptions, LineError> {
    let mut options = KeyOptions::default();
    let mut seen = Vec::new();
    for option in split_outside_quotes(text) {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(unquote(value)?)),
            None => (option, None),
        };
        if seen.contains(&name) {
            return Err(LineError::TwiceGiven(name.to_owned()));
        }
        seen.push(name);
        match (name, value) {
            ("systems", Some(value)) => options.systems = Some(parse_systems(&value)?),
            ("tags", Some(value)) => options.tags = parse_tags(&value)?,
            ("max-priority", Some(value)) => {
                let priority = value.parse().map_err(|_| {
                    LineError::Value("max-priority takes a whole number, as in max-priority=100")
                })?;
                options.max_priority = Some(priority);
            }
            ("max-open-builds", Some(value)) => {
                options.quotas.open_builds = Some(parse_count(
                    &value,
                    "max-open-builds takes a number of builds, as in max-open-builds=500",
                )?);
            }
            ("max-submissions-per-hour", Some(value)) => {
                options.quotas.submissions_per_hour = Some(parse_count(
                    &value,
                    "max-submissions-per-hour takes a number, as in max-submissions-per-hour=60",
                )?);
            }
            ("roles", Some(value)) => options.roles = Some(parse_roles(&value)?),
            ("expiry-time", Some(value)) => options.expires = Some(parse_expiry(&value)?),
            ("trusted-import", None) => options.trusted_import = true,
            ("trusted-import", Some(_)) => {
                return Err(LineError::Value("trusted-import takes no value: write it alone"));
            }
            (
                "systems"
                | "tags"
                | "max-priority"
                | "max-open-builds"
                | "max-submissions-per-hour"
                | "roles"
                | "expiry-time",
                None,
            ) => {
                return Err(LineError::Value("an option lacks its value: write name=\"value\""));
            }
            (unknown, _) => {
                return Err(LineError::UnknownOption(unknown.chars().take(64).collect()));
            }
        }
    }
    Ok(options)
}

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(|character| {
        if character == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = character == '\\' && !escaped;
        character == ',' && !quoted
    })
    .collect()
}

/// Returns a value without its quotes; a value without quotes is taken as it is.
fn unquote(value: &str) -> Result<String, LineError> {
    match value.strip_prefix('"') {
        Some(rest) => {
            let inner = rest.strip_suffix('"').ok_or(LineError::Quote)?;
            Ok(inner.replace("\\\"", "\""))
        }
        None if value.contains('"') => Err(LineError::Quote),
        None => Ok(value.to_owned()),
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:+/".contains(&byte))
}

fn parse_systems(value: &str) -> Result<Vec<String>, LineError> {
    let systems: Vec<String> = value.split(',').map(|one| one.trim().to_owned()).collect();
    if systems.len() > VALUES_MAX || !systems.iter().all(|system| is_word(system)) {
        return Err(LineError::Value(
            "systems takes names separated by commas, as in systems=\"x86_64-linux,i686-linux\"",
        ));
    }
    Ok(systems)
}

fn parse_tags(value: &str) -> Result<Vec<(String, String)>, LineError> {
    let wrong = LineError::Value(
        "tags takes different names with values, as in tags=\"site=lab,speed=fast\"",
    );
    let mut tags: Vec<(String, String)> = Vec::new();
    for tag in value.split(',') {
        let (name, value) = tag.trim().split_once('=').ok_or_else(|| wrong.clone())?;
        let known = tags.iter().any(|(other, _)| other == name);
        if known || !is_word(name) || !is_word(value) || tags.len() >= VALUES_MAX {
            return Err(wrong);
        }
        tags.push((name.to_owned(), value.to_owned()));
    }
    Ok(tags)
}

fn parse_count(value: &str, wrong: &'static str) -> Result<u32, LineError> {
    // Without a sign, which the standard library would take.
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or(LineError::Value(wrong))
}

fn parse_roles(value: &str) -> Result<Vec<Role>, LineError> {
    let roles: Option<Vec<Role>> = value.split(',').map(|one| Role::of_word(one.trim())).collect();
    roles.ok_or(LineError::Value(
        "roles takes agent, viewer, submitter, operator and admin, as in \
         roles=\"agent,submitter\"",
    ))
}

/// Reads `YYYYMMDD` or `YYYYMMDDHHMM`, with or without a final `Z`: always UTC, so that a keydir
/// means the same on every machine (`sshd` would take the local time zone without `Z`).
fn parse_expiry(value: &str) -> Result<Timestamp, LineError> {
    let wrong = LineError::Value(
        "expiry-time takes YYYYMMDD or YYYYMMDDHHMM in UTC, as in expiry-time=\"20271231\"",
    );
    let digits = value.strip_suffix('Z').unwrap_or(value);
    let full = match digits.len() {
        8 => format!("{digits}0000"),
        12 => digits.to_owned(),
        _ => return Err(wrong),
    };
    if !full.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong);
    }
    let moment = DateTime::strptime("%Y%m%d%H%M", &full)
        .and_then(|civil| civil.to_zoned(TimeZone::UTC))
        .map_err(|_| wrong)?;
    Ok(Timestamp::from_ms(moment.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF+pbSznYZqx+3avtmKQYH36Tzs+GMkRQoT0Stg3OtSH";

    fn options(front: &str) -> Result<KeyOptions, LineError> {
        parse(&format!("{front} {KEY} someone@somewhere")).map(|line| line.unwrap().1)
    }

    #[test]
    fn empty_lines_and_comments_name_no_key() {
        for line in ["", "   ", "# a comment", "\t# another"] {
            assert_eq!(parse(line), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn a_plain_key_has_no_options() {
        for line in [KEY.to_owned(), format!("  {KEY} a comment with spaces\r")] {
            assert_eq!(parse(&line).unwrap().unwrap().1, KeyOptions::default(), "{line:?}");
        }
    }

    #[test]
    fn every_option_is_read() {
        let all = r#"systems="x86_64-linux, i686-linux",tags="site=lab,speed=fast",max-priority=-5,expiry-time="202701311230",trusted-import,max-open-builds=500,max-submissions-per-hour="60",roles="agent, viewer""#;
        let read = options(all).unwrap();
        assert_eq!(read.systems.unwrap(), ["x86_64-linux", "i686-linux"]);
        let tags = [("site", "lab"), ("speed", "fast")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(read.tags, tags);
        assert_eq!(read.max_priority, Some(-5));
        assert_eq!(read.expires, Some(Timestamp::from_ms(1_801_398_600_000)));
        assert!(read.trusted_import);
        let quotas = Quotas { open_builds: Some(500), submissions_per_hour: Some(60) };
        assert_eq!(read.quotas, quotas);
        assert_eq!(read.roles.unwrap(), [Role::Agent, Role::Viewer]);
    }

    #[test]
    fn times_of_expiry_are_utc_with_and_without_z() {
        let midnight = Some(Timestamp::from_ms(1_801_353_600_000));
        for text in ["20270131", "20270131Z", "\"202701310000\"", "\"202701310000Z\""] {
            assert_eq!(
                options(&format!("expiry-time={text}")).unwrap().expires,
                midnight,
                "{text}"
            );
        }
    }

    #[test]
    fn whatever_is_malformed_is_refused() {
        for front in [
            "restrict",
            "no-pty,trusted-import",
            "command=\"true\"",
            "trusted-import=yes",
            "trusted-import,trusted-import",
            "systems",
            "systems=\"\"",
            "systems=\"a,,b\"",
            "systems=\"a b\"",
            "systems=\"a",
            "systems=a\"b\"",
            "tags=\"site\"",
            "tags=\"site=a,site=b\"",
            "tags=\"=a\"",
            "max-priority=many",
            "max-priority=99999999999",
            "max-open-builds",
            "max-open-builds=-1",
            "max-open-builds=+1",
            "max-submissions-per-hour=\"\"",
            "roles=\"stranger\"",
            "roles=\"agents\"",
            "roles=\"\"",
            "expiry-time=2027",
            "expiry-time=20271301",
            "expiry-time=2027013112300",
            "expiry-time=+2270131",
            ",",
            "=",
            "a",
        ] {
            assert!(options(front).is_err(), "{front}");
        }
    }

    #[test]
    fn what_is_not_a_usable_key_is_refused() {
        for line in [
            "hello",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-ed25519 not-base64!",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIF+pbSznYZqx+3avtmKQYH36Tzs+GMkRQoT0Stg3OtSH",
            "trusted-import hello world",
            "ssh-dss AAAAB3NzaC1kc3MAAACB",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn small_rsa_keys_are_refused_with_their_size() {
        use russh::keys::ssh_key::Mpint;
        let sized = |bytes: usize| {
            let n = Mpint::from_positive_bytes(&vec![0xc1; bytes]);
            let e = Mpint::from_positive_bytes(&[1, 0, 1]);
            let key = PublicKey::from(RsaPublicKey::new(e, n).unwrap());
            parse(&key.to_openssh().unwrap())
        };
        assert_eq!(sized(128), Err(LineError::SmallRsa(1024)));
        assert!(sized(256).unwrap().is_some());
    }

    #[test]
    fn any_text_is_read_without_a_panic() {
        proptest::proptest!(|(text in "[ -~é\\t]{0,60}")| {
            if let Ok(Some(_)) = parse(&text) {}
            if let Ok(Some(_)) = parse(&format!("{text} {KEY}")) {}
        });
    }
}
