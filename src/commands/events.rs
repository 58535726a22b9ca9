//! `events`: what happened, in order and without a gap, and what happens.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    verb::Act,
};
use crate::{
    coordinator::event_line::EventLine,
    core::event::{Cursor, EventKind},
    store::{EventPage, Extent, Reader},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Events {
    /// Only what happened behind this event; 0 stands before the first. Without it, everything
    /// that is kept, or with --follow what happens from now on
    #[arg(long, value_name = "CURSOR")]
    since: Option<Cursor>,
    /// Go on with what happens
    #[arg(long)]
    follow: bool,
    /// Only events of this type, such as build-failure
    #[arg(long = "type", value_name = "T")]
    kind: Option<EventKind>,
}

impl Act for Events {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let mut news = invocation.coordinator.events.clone();
        let extent = invocation.coordinator.readers.read(Reader::events_extent).await?;
        let mut place = match self.since {
            Some(since) => begin(since, extent)?,
            None if self.follow => extent.last,
            None => extent.first.plus(-1),
        };
        loop {
            // What is committed behind this look is told.
            news.borrow_and_update();
            loop {
                let (kind, after) = (self.kind, place);
                let page =
                    invocation.coordinator.readers.read(move |r| r.events(after, kind)).await?;
                unbroken(after, &page)?;
                place = page.through;
                for event in &page.events {
                    invocation.output.json(&EventLine::of(event)).await?;
                }
                if place >= page.extent.last {
                    break;
                }
            }
            invocation.output.flush().await?;
            if !self.follow {
                return Ok(Exit::Done);
            }
            if news.changed().await.is_err() {
                let text = format!("the coordinator is stopping; go on with --since {place}");
                return Err(CommandError::TryAgain(text));
            }
        }
    }
}

/// Returns behind which event to begin, or why that cannot be.
fn begin(since: Cursor, extent: Extent) -> Result<Cursor, CommandError> {
    let Extent { first, last } = extent;
    if since > last {
        return Err(CommandError::Refused(format!(
            "event {since} has not happened here, the last is {last}: was an older backup put in \
             place? Begin with --since {last}, and look at ‘builds’ for what changed before",
        )));
    }
    // Whoever says 0 has nothing yet, and misses nothing.
    if since == Cursor::default() {
        return Ok(first.plus(-1));
    }
    if since.plus(1) < first {
        return Err(lost(since, first));
    }
    Ok(since)
}

/// Sees to it that nothing was forgotten between a place and what follows on it.
fn unbroken(after: Cursor, page: &EventPage) -> Result<(), CommandError> {
    if after.plus(1) < page.extent.first {
        return Err(lost(after, page.extent.first));
    }
    Ok(())
}

fn lost(after: Cursor, first: Cursor) -> CommandError {
    CommandError::Refused(format!(
        "the events behind {after} up to {} are not kept any more, as events-keep and \
         events-keep-days in steading.toml say: begin anew with --since 0, and look at ‘builds’ for \
         what changed meanwhile",
        first.plus(-1),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Extent = Extent { first: Cursor(11), last: Cursor(20) };

    #[test]
    fn whoever_has_seen_what_is_gone_goes_on_without_a_gap_or_is_told() {
        for since in 10..=20 {
            assert_eq!(begin(Cursor(since), KEPT).unwrap(), Cursor(since));
        }
        assert_eq!(begin(Cursor(0), KEPT).unwrap(), Cursor(10));
        for (since, words) in [(1, "behind 1 up to 10"), (9, "behind 9 up to 10"), (21, "is 20")] {
            let error = begin(Cursor(since), KEPT).unwrap_err();
            assert_eq!(error.status(), 5);
            assert!(error.text().contains(words), "{}", error.text());
        }
        let none = Extent { first: Cursor(1), last: Cursor(0) };
        assert_eq!(begin(Cursor(0), none).unwrap(), Cursor(0));
    }
}
