//! The shell around the rules: one thread runs the engine and owns the write connection; sessions
//! bring it inputs and carry its effects out.
//!
//! What this room owns: the engine's thread ([`engine_thread`]), the logs of attempts ([`logs`]),
//! the control and bulk sessions of agents ([`control`], [`bulk`]), the intake of submissions
//! ([`submission`]), how much is received at a time ([`transfers`]), the publishing thread
//! ([`publishing`]), the one beside it that makes other forms of nars ([`forms`]), the watch over the
//! disk ([`pressure`]), the files that people may read ([`sftp`]), the outbox of hooks ([`hooks`])
//! and the care for what is kept ([`care`]). What it never does: decide anything about builds (that is `core`),
//! or speak to people (that is `commands`). It is started by [`start::start`].

mod acl;
pub mod audit;
mod below;
pub mod bulk;
pub mod care;
pub mod control;
mod eager;
pub mod engine_thread;
pub mod enrollment;
pub mod event_line;
mod exports;
mod expulsion;
pub mod files;
pub mod forms;
pub mod hooks;
pub mod hygiene;
pub mod inputs;
mod keeper;
pub mod logs;
mod offer;
pub mod pressure;
mod probe;
pub mod publishing;
pub mod quotas;
pub mod readers;
pub mod sftp;
mod small;
pub mod start;
pub mod submission;
pub mod transfers;
pub mod truth;
pub mod upload;

use crate::{
    config::Config,
    core::{
        build::ShownState,
        event::Cursor,
        id::{AttemptId, BuildId},
        outcome::OutputPolicy,
    },
    depot::Depot,
    ssh::Monitor,
    telemetry::Clock,
};
use audit::Auditor;
use engine_thread::EngineHandle;
use enrollment::Enrollment;
use logs::Logs;
use pressure::{Activity, Pressure};
use quotas::Quotas;
use readers::Readers;
use std::{path::PathBuf, sync::Arc};
use tokio::sync::{broadcast, watch};
use transfers::Transfers;

/// Everything a session or a command needs of the coordinator; cheap to clone.
#[derive(Debug, Clone)]
pub struct Coordinator {
    /// The engine.
    pub engine: EngineHandle,
    /// Read-only connections to the database.
    pub readers: Readers,
    /// The nars.
    pub depot: Depot,
    /// What is being received.
    pub transfers: Arc<Transfers>,
    /// The logs.
    pub logs: Logs,
    /// How full the disk is.
    pub pressure: Pressure,
    /// What becomes of outputs.
    pub outputs: OutputPolicy,
    /// What goes on.
    pub activity: Activity,
    /// Where builds come to rest: final, or blocked.
    pub rested: broadcast::Sender<(BuildId, ShownState)>,
    /// Where agents are given builds.
    pub allocated: broadcast::Sender<(BuildId, AttemptId)>,
    /// The last event that is durable.
    pub events: watch::Receiver<Cursor>,
    /// What goes on in hooks.
    pub hooks: hooks::Outbox,
    /// What sessions of agents dropped.
    pub dropped: Arc<control::Dropped>,
    /// Who does what.
    pub audit: Auditor,
    /// Who submits how often.
    pub quotas: Quotas,
    /// Whose key becomes known.
    pub enrollment: Enrollment,
    /// The clock.
    pub clock: Clock,
    /// The state directory.
    pub state_dir: PathBuf,
    /// Who is connected.
    pub monitor: Monitor,
    /// The configuration in force, and which file it comes from.
    pub config: Arc<tokio::sync::Mutex<Config>>,
    /// What the care for the database and the depot shares.
    pub care: care::Care,
    /// When this process began, for `status`.
    pub started_at: crate::core::time::Timestamp,
}
