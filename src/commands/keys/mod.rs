//! `keys`: who is let in, who waits for it, and tokens.

mod decide;
mod list;
mod token;

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    verb::Act,
};
use crate::{core::id::Name, ssh::Role};
use std::str::FromStr;

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct Keys {
    #[command(subcommand)]
    what: What,
}

/// What to do with keys.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// List keys: those that are let in, that wait, that have expired, and what is refused
    List,
    /// Let a key in that waits
    Approve(decide::Approve),
    /// Let a key in no more, wherever it is listed, and refuse certificates and tokens for it
    Revoke(decide::Revoke),
    /// Make, list and revoke tokens, with which keys let themselves in
    Token(Tokens),
}

/// What to do with tokens.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
struct Tokens {
    #[command(subcommand)]
    what: TokenWhat,
}

#[derive(Debug, clap::Subcommand)]
enum TokenWhat {
    /// Make a token; it is printed this once
    New(token::New),
    /// List tokens and who came in with them
    List,
    /// Make a token worthless; who came in with it stays
    Revoke {
        /// The token, by its id
        id: String,
    },
}

/// A key, by its fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fingerprint(String);

/// A text that is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a fingerprint as ‘ssh-keygen -l’ prints it: SHA256: and 43 signs")]
struct InvalidFingerprint;

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let digest = text.strip_prefix("SHA256:").unwrap_or(text);
        let sign = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
        if digest.len() != 43 || !digest.bytes().all(sign) {
            return Err(InvalidFingerprint);
        }
        Ok(Self(format!("SHA256:{digest}")))
    }
}

/// A role, by its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RoleWord(Role);

/// A text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the roles are agent, viewer, submitter, operator and admin")]
struct InvalidRole;

impl FromStr for RoleWord {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        Role::of_word(text).map(Self).ok_or(InvalidRole)
    }
}

/// Somebody's name, as the documents have it in front of a role.
fn owner(role: Role, name: &Name) -> String {
    format!("{role} {name}")
}

impl Act for Keys {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        match self.what {
            What::List => list::run(invocation).await,
            What::Approve(approve) => decide::approve(invocation, approve).await,
            What::Revoke(revoke) => decide::revoke(invocation, revoke).await,
            What::Token(Tokens { what: TokenWhat::New(new) }) => token::new(invocation, new).await,
            What::Token(Tokens { what: TokenWhat::List }) => token::list(invocation).await,
            What::Token(Tokens { what: TokenWhat::Revoke { id } }) => {
                token::revoke(invocation, id).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_as_ssh_keygen_prints_them() {
        let full = "SHA256:uNiVztksCsDhcc0u9e8BrrkdDzYX6xM1vBJxkVYpyAk";
        assert_eq!(full.parse(), Ok(Fingerprint(full.to_owned())));
        assert_eq!(full[7..].parse(), Ok(Fingerprint(full.to_owned())));
        for text in ["", "SHA256:", "SHA256:x", &full[..20], "MD5:00:11", &format!("{full}=")] {
            assert_eq!(text.parse::<Fingerprint>(), Err(InvalidFingerprint), "{text}");
        }
    }
}
