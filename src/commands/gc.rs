//! `gc`: withdraw what nobody needs.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    settings::Tag,
    table::{self, count},
    times::{self, Deadline, Since},
    verb::Act,
};
use crate::coordinator::care::gc::{self, Criteria, GcError};
use serde::Serialize;

/// How many milliseconds an hour has.
const HOUR_MS: i64 = 3_600_000;

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
All conditions must hold. Without any, what goes is what attempts made of which none is known any \
more, as after ‘prune’. Nothing goes that an open build needs or makes, or that something refers \
to which stays. What goes is not held any more at once, and its narinfo is gone in a moment; its \
files stay for ‘gc-delay’ of steading.toml, as long as others may ask for what they have seen.")]
pub(super) struct Gc {
    /// What was not verified, published or used since then, nor anything that refers to it
    #[arg(long, value_name = "TIME")]
    older_than: Option<Since>,

    /// What was made for builds with this tag; of several, with all
    #[arg(long, value_name = "NAME=VALUE")]
    where_tag: Vec<Tag>,

    /// Not what was made for builds with this tag, or is referred to by that
    #[arg(long, value_name = "NAME=VALUE")]
    keep_tag: Vec<Tag>,

    /// No more than it takes for the rest to have so many bytes, like 200G; what was used longest
    /// ago goes first
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<Size>,

    /// When the files go, instead of what ‘gc-delay’ says: how far off it is
    #[arg(long, value_name = "TIME")]
    delay: Option<Deadline>,

    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size(u64);

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a size in bytes, or with K, M, G or T behind it: 200G")]
struct InvalidSize;

impl std::str::FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
        let unit = UNITS.iter().find(|(unit, _)| text.ends_with(*unit));
        let (digits, shift) =
            unit.map_or((text, 0), |(unit, shift)| (text.trim_end_matches(*unit), *shift));
        let number: u64 = digits.parse().map_err(|_| InvalidSize)?;
        number.checked_mul(1 << shift).map(Self).ok_or(InvalidSize)
    }
}

#[derive(Serialize)]
struct Object {
    path: String,
    file_bytes: u64,
    /// When it, or what refers to it, was used last.
    used: String,
    dry_run: bool,
    /// When its files go.
    remove_at: String,
}

impl Act for Gc {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let coordinator = invocation.coordinator.clone();
        let now = coordinator.clock.now().wall;
        let pairs = |tags: Vec<Tag>| tags.into_iter().map(|tag| (tag.name, tag.value));
        let criteria = Criteria {
            unused_since: self.older_than.map(|since| since.from(now)),
            tags: pairs(self.where_tag).collect(),
            keep_tags: pairs(self.keep_tag).collect(),
            bytes_max: self.max_bytes.map(|Size(bytes)| bytes),
        };
        let delay = i64::from(coordinator.config.lock().await.gc_delay).saturating_mul(HOUR_MS);
        let remove_at = self.delay.map_or(now.plus_ms(delay), |deadline| deadline.from(now));
        if !self.dry_run {
            invocation.audit().await?;
        }
        let _turn = coordinator.care.one_at_a_time.lock().await;
        let chosen = gc::choose(&coordinator, criteria).await?;
        let gone = if self.dry_run {
            chosen
        } else {
            gc::withdraw(&coordinator, chosen, remove_at).await?
        };
        let mut bytes = 0u64;
        for one in &gone {
            bytes = bytes.saturating_add(one.file_bytes);
            match invocation.output.format() {
                Format::Text => invocation.output.line(&one.path.to_string()).await?,
                Format::Json => {
                    let object = Object {
                        path: one.path.to_string(),
                        file_bytes: one.file_bytes,
                        used: times::rfc3339(one.used),
                        dry_run: self.dry_run,
                        remove_at: times::rfc3339(remove_at),
                    };
                    invocation.output.json(&object).await?;
                }
            }
        }
        let what = format!("{} of {}", count(gone.len(), "nar"), table::bytes(bytes));
        let text = match (gone.is_empty(), self.dry_run) {
            (true, _) => "there is nothing to withdraw".to_owned(),
            (false, true) => format!("{what} would be withdrawn"),
            (false, false) => {
                format!("{what} withdrawn; the files go after {}", times::shown(remove_at))
            }
        };
        invocation.output.message(&text).await?;
        Ok(Exit::Done)
    }
}

impl From<GcError> for CommandError {
    fn from(error: GcError) -> Self {
        match error {
            GcError::Stopping(error) => Self::Stopping(error),
            GcError::Store(error) => Self::Store(error),
            GcError::Inputs(error) => Self::TryAgain(crate::telemetry::chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let sizes = ["0", "12", "3K", "200G", "1T"].map(|text| text.parse().map(|Size(n)| n));
        assert_eq!(sizes, [Ok(0), Ok(12), Ok(3 << 10), Ok(200 << 30), Ok(1 << 40)]);
        for text in ["", "G", "-1", "1.5G", "1X", "99999999999999T"] {
            assert_eq!(text.parse::<Size>(), Err(InvalidSize), "{text}");
        }
    }
}
