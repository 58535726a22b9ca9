//! What a submission is given besides derivations, from options, the session's environment and the
//! key. Order of force: option, environment, key, default.

use super::{error::CommandError, invocation::Invocation, table, times};
use crate::{
    core::{
        build::{PRIORITY_MAX, PRIORITY_MIN},
        engine::OverQuota,
    },
    ssh::Principal,
};
use std::str::FromStr;

/// The most tags of one build.
const TAGS_MAX: usize = 64;
/// The longest name or value of a tag, and the longest key, in bytes.
const WORD_BYTES_MAX: usize = 256;

/// A name and a value that builds are found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) name: String,
    pub(super) value: String,
}

/// The submitter's own name for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestKey(pub(super) String);

/// A text that is no tag, priority or key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidSetting {
    #[error(
        "a tag is NAME=VALUE: a name of letters, digits and . _ -, and a value of up to \
         {WORD_BYTES_MAX} bytes without commas and control characters"
    )]
    Tag,
    #[error("a key has 1 to {WORD_BYTES_MAX} bytes and no control characters")]
    Key,
}

impl FromStr for Tag {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let (name, value) = text.split_once('=').ok_or(InvalidSetting::Tag)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let named = (1..=WORD_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
        if !named || !is_word(value) || value.contains(',') {
            return Err(InvalidSetting::Tag);
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

impl FromStr for RequestKey {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        if is_word(text) { Ok(Self(text.to_owned())) } else { Err(InvalidSetting::Key) }
    }
}

fn is_word(text: &str) -> bool {
    (1..=WORD_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
}

/// What options say.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    pub(super) priority: Option<i32>,
    pub(super) tags: Vec<Tag>,
    pub(super) key: Option<RequestKey>,
}

/// What holds in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) priority: i32,
    pub(super) tags: Vec<(String, String)>,
    pub(super) key: Option<String>,
    /// Something that was asked for and is not granted.
    pub(super) remark: Option<String>,
}

/// Puts the settings together. `env` looks up a variable of the session.
pub(super) fn gather<'e>(
    options: Wishes,
    env: impl Fn(&str) -> Option<&'e str>,
    principal: &Principal,
) -> Result<Settings, CommandError> {
    let wrong = |name: &str, reason: &dyn std::fmt::Display| {
        CommandError::Usage(format!("the environment variable {name}: {reason}"))
    };
    let priority_env = match env("STEADING_PRIORITY") {
        Some(text) => Some(priority(text).map_err(|reason| wrong("STEADING_PRIORITY", &reason))?),
        None => None,
    };
    let mut tags_env = Vec::new();
    for text in env("STEADING_TAGS").unwrap_or_default().split(',').filter(|t| !t.is_empty()) {
        tags_env.push(text.trim().parse().map_err(|reason| wrong("STEADING_TAGS", &reason))?);
    }
    let key_env = match env("STEADING_KEY") {
        Some(text) => Some(text.parse().map_err(|reason| wrong("STEADING_KEY", &reason))?),
        None => None,
    };
    let (priority, remark) = under_ceiling(options.priority.or(priority_env), principal);
    let tags = merge([options.tags, tags_env, key_tags(principal)]);
    if tags.len() > TAGS_MAX {
        return Err(CommandError::Refused(format!(
            "there are {} tags; a build may have {TAGS_MAX}",
            tags.len()
        )));
    }
    Ok(Settings { priority, tags, key: options.key.or(key_env).map(|key| key.0), remark })
}

/// Returns the priority that is granted where one was asked for, and says so where it is another.
pub(super) async fn granted(invocation: &mut Invocation, asked: i32) -> Result<i32, CommandError> {
    let (priority, remark) = under_ceiling(Some(asked), &invocation.principal);
    if let Some(remark) = remark {
        invocation.output.message(&remark).await?;
    }
    Ok(priority)
}

/// Takes one of the submissions that the key may make in an hour.
pub(super) fn take_submission(invocation: &Invocation) -> Result<(), CommandError> {
    let principal = &invocation.principal;
    let Some(per_hour) = principal.quotas.submissions_per_hour else { return Ok(()) };
    let quotas = &invocation.coordinator.quotas;
    quotas.take_submission(&principal.name, per_hour).map_err(|ms| {
        let when = times::span(i64::try_from(ms).unwrap_or(i64::MAX).saturating_add(999));
        CommandError::Refused(format!(
            "your key may submit {per_hour} times in an hour, and has: the next time in {when}; \
             one submission may have many derivations. Nothing was submitted"
        ))
    })
}

/// Returns what somebody is told who would have too many open builds.
pub(super) fn too_many(over: &OverQuota, so: &str) -> CommandError {
    CommandError::Refused(format!(
        "your key may have {} open builds: there are {}, and this would make {} more; wait until \
         some have ended, or cancel them; {so}",
        over.most, over.open, over.more
    ))
}

/// Reads a priority.
fn priority(text: &str) -> Result<i32, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|priority| (PRIORITY_MIN..=PRIORITY_MAX).contains(priority))
        .ok_or_else(|| {
            let text = table::excerpt(text);
            format!("‘{text}’ is not a whole number from {PRIORITY_MIN} to {PRIORITY_MAX}")
        })
}

/// Lowers a priority to what the key may ask for.
fn under_ceiling(asked: Option<i32>, principal: &Principal) -> (i32, Option<String>) {
    let ceiling = principal.max_priority.unwrap_or(PRIORITY_MAX).clamp(PRIORITY_MIN, PRIORITY_MAX);
    match asked {
        Some(asked) if asked > ceiling => {
            let remark = format!("the priority is {ceiling}: your key may ask for no more");
            (ceiling, Some(remark))
        }
        Some(asked) => (asked, None),
        None => (ceiling.min(0), None),
    }
}

fn key_tags(principal: &Principal) -> Vec<Tag> {
    let tags = principal.tags.iter();
    tags.map(|(name, value)| Tag { name: name.clone(), value: value.clone() }).collect()
}

/// Takes all values of a name from the first source that has the name.
fn merge(sources: [Vec<Tag>; 3]) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::new();
    for source in sources {
        let taken: Vec<String> = merged.iter().map(|(name, _)| name.clone()).collect();
        for tag in source {
            let pair = (tag.name, tag.value);
            if !taken.contains(&pair.0) && !merged.contains(&pair) {
                merged.push(pair);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::{Credential, Quotas, Role};

    fn principal(max_priority: Option<i32>) -> Principal {
        Principal {
            name: "ada".parse().unwrap(),
            role: Role::Submitter,
            fingerprint: "SHA256:x".to_owned(),
            systems: None,
            tags: vec![("site".to_owned(), "lab".to_owned()), ("by".to_owned(), "key".to_owned())],
            max_priority,
            trusted_import: false,
            quotas: Quotas::default(),
            credential: Credential::Listed,
        }
    }

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    #[test]
    fn options_win_over_the_environment_and_that_over_the_key() {
        let options = Wishes { tags: vec![tag("site=a"), tag("site=b")], ..Wishes::default() };
        let env = |name: &str| match name {
            "STEADING_PRIORITY" => Some("10"),
            "STEADING_TAGS" => Some("site=env,by=env"),
            "STEADING_KEY" => Some("nightly 7"),
            _ => None,
        };
        let settings = gather(options, env, &principal(None)).unwrap();
        let pairs: Vec<String> =
            settings.tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["site=a", "site=b", "by=env"]);
        assert_eq!(settings.priority, 10);
        assert_eq!(settings.key.as_deref(), Some("nightly 7"));
        let options = Wishes { priority: Some(3), ..Wishes::default() };
        let settings = gather(options, env, &principal(None)).unwrap();
        assert_eq!(settings.priority, 3);
    }

    #[test]
    fn the_key_sets_tags_and_a_ceiling() {
        let settings = gather(Wishes::default(), |_| None, &principal(Some(5))).unwrap();
        assert_eq!((settings.priority, settings.remark), (0, None));
        assert_eq!(settings.tags.len(), 2);
        let options = Wishes { priority: Some(6), ..Wishes::default() };
        let settings = gather(options.clone(), |_| None, &principal(Some(5))).unwrap();
        assert_eq!(settings.priority, 5);
        assert!(settings.remark.is_some());
        let settings = gather(Wishes::default(), |_| None, &principal(Some(-9))).unwrap();
        assert_eq!((settings.priority, settings.remark), (-9, None));
    }

    #[test]
    fn a_wrong_environment_is_a_usage_error_that_names_the_variable() {
        for (variable, value) in
            [("STEADING_PRIORITY", "much"), ("STEADING_PRIORITY", "1001"), ("STEADING_TAGS", "x")]
        {
            let env = |name: &str| (name == variable).then_some(value);
            let error = gather(Wishes::default(), env, &principal(None)).unwrap_err();
            assert_eq!(error.status(), 2);
            assert!(error.text().contains(variable), "{}", error.text());
        }
    }

    #[test]
    fn tags_are_names_with_values() {
        for text in
            ["", "a", "=b", "a=", "a b=c", "a=b,c", "a=\n", &format!("a={}", "x".repeat(257))]
        {
            assert!(text.parse::<Tag>().is_err(), "{text}");
        }
        assert_eq!(tag("a.b-c_d=x y=z").value, "x y=z");
    }
}
