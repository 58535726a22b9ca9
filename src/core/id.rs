//! Typed identifiers: a build's id cannot be passed where an attempt's belongs.

use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Defines a UUID newtype with text and byte conversions.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Returns the id with this UUID.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Returns the id with these 16 bytes, as the database keeps them.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// Returns some bits of it, which are as good as a hash of it.
            #[must_use]
            pub const fn digest(&self) -> u64 {
                let (high, low) = self.0.as_u64_pair();
                high ^ low
            }

            /// Returns the 16 bytes that the database keeps.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Returns the id in UUID version 7 form of a time and 10 random bytes, so that
            /// ids sort by creation.
            #[must_use]
            pub fn at(now: super::time::Timestamp, random: [u8; 10]) -> Self {
                let millis = u64::try_from(now.as_ms()).unwrap_or(0);
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
            }

            /// Returns the time that the id was made of, if it is one of ours.
            #[must_use]
            pub const fn made_at(&self) -> super::time::Timestamp {
                let [a, b, c, d, e, f, ..] = *self.as_bytes();
                super::time::Timestamp::from_ms(i64::from_be_bytes([0, 0, a, b, c, d, e, f]))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                match Uuid::try_parse(text) {
                    Ok(uuid) if text.len() == 36 => Ok(Self(uuid)),
                    Ok(_) | Err(_) => Err(InvalidId(text.chars().take(64).collect())),
                }
            }
        }
    };
}

uuid_id! {
    /// Names one build: one request to build one derivation.
    BuildId
}
uuid_id! {
    /// Names one attempt: one try of one build by one agent. It fences everything the agent sends.
    AttemptId
}
uuid_id! {
    /// Names one installation of an agent: made once per state directory, so that a reconnecting
    /// agent is told from another machine that uses the same key.
    InstanceId
}

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("‘{0}’ is not an id: ids look like 01890a5d-ac96-774b-bcce-b302099a8057")]
pub struct InvalidId(String);

/// The longest name of an agent or of a principal, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// The name of an agent or another principal: what its file in the keydir is called.
///
/// 1 to 64 characters from `A-Za-z0-9._-`, the first one a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(std::sync::Arc<str>);

impl Name {
    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if first && rest && text.len() <= NAME_BYTES_MAX {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName(text.chars().take(NAME_BYTES_MAX).collect()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({})", self.0)
    }
}

/// A text that is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "‘{0}’ is not a name: names have 1 to 64 characters from A-Z a-z 0-9 . _ - and start with a \
     letter or digit"
)]
pub struct InvalidName(String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::time::Timestamp;

    #[test]
    fn later_ids_sort_after_earlier_ones() {
        let early = BuildId::at(Timestamp::from_ms(1_000), [0xff; 10]);
        let late = BuildId::at(Timestamp::from_ms(1_001), [0; 10]);
        assert!(early < late);
        assert_eq!(late.to_string().parse(), Ok(late));
    }

    #[test]
    fn only_the_usual_text_of_an_id_is_read() {
        for text in
            ["", "1", "01890a5dac96774bbcceb302099a8057", "{01890a5d-ac96-774b-bcce-b302099a8057}"]
        {
            assert!(text.parse::<BuildId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_cannot_be_options_or_paths() {
        for text in ["", "-x", ".hidden", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
        for text in ["a", "honeycomb-1", "9p", "a.b_c"] {
            assert_eq!(text.parse::<Name>().map(String::from), Ok(text.to_owned()));
        }
    }
}
