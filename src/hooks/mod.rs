//! Hooks: executables of the operator that are run when something happens.
//!
//! What this room owns: which files are hooks ([`look`]), one run of one of them with its limits
//! ([`run`]), and when a run that failed is tried again ([`HookSettings::pause_ms`]). What it never
//! does: know which events there were, or write anything down. The coordinator brings the events
//! and keeps how far each hook has come.
//!
//! A hook is `hooks/EVENT.d/NAME` in the state directory, where EVENT is a kind of
//! [`crate::core::event::EventKind`] and NAME is made of letters, digits, `_` and `-`, as
//! `run-parts` wants it. It must be a regular file that can be executed, owned by root or by the
//! coordinator's user, and writable for nobody else; so must the folders around it. It gets one
//! line of JSON on standard input, and these variables beside `PATH`, `HOME` and `LANG`:
//!
//! | variable | what it is |
//! |---|---|
//! | `STEADING_EVENT` | the kind of the event |
//! | `STEADING_CURSOR` | its number; the same again means the same event again |
//! | `STEADING_COORDINATOR` | what `ssh` takes to reach the coordinator as the principal `hooks` |
//! | `STEADING_KEY` | the file of the key that this principal has |
//!
//! Exit status 0 means that the event was taken. Anything else, a signal, too much time or too much
//! output is a failure: the event comes again later, and at last is on the list of the dead.

mod folder;
mod run;
mod settings;

pub use folder::{Found, Hook, look};
pub use run::{Call, End, FLOOD_BYTES_MAX, OUTPUT_KEPT_BYTES, Ran, run};
pub use settings::{HookRole, HookSettings, PARALLEL_MAX};

/// How many hooks there may be; further ones are reported and not run.
pub const HOOKS_MAX: usize = 64;
