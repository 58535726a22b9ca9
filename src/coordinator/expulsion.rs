//! Agents whose key left the keydir: what they have goes to others.
//!
//! Their connections end by themselves, as the door sees to that. A lease would keep their builds
//! for an agent that is not let in again.

use super::{Coordinator, engine_thread::EngineGone};
use crate::core::{
    engine::{Ask, Input, Told},
    id::Name,
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long a key may be away before its builds go to others: a checkout or a copy may take a file
/// away for a moment.
const GRACE: Duration = Duration::from_secs(3);

/// Follows the keydir until canceled.
pub(super) async fn follow(coordinator: Coordinator, cancel: CancellationToken) {
    let following = async {
        let mut gone = gone_meanwhile(&coordinator).await?;
        loop {
            if gone.is_empty() {
                gone = coordinator.monitor.agents_gone().await;
            }
            sleep(GRACE).await;
            for agent in still_gone(&coordinator, std::mem::take(&mut gone)).await? {
                tracing::info!(%agent, "an agent is known no more: its builds go to others");
                coordinator.engine.tell(Input::Expel { agent }).await?;
            }
        }
    };
    let ended: Result<(), EngineGone> = tokio::select! {
        () = cancel.cancelled() => return,
        ended = following => ended,
    };
    // Nothing is left to be done then.
    ended.ok();
}

/// Returns the agents with builds whose key left the keydir while nobody looked.
async fn gone_meanwhile(coordinator: &Coordinator) -> Result<BTreeSet<Name>, EngineGone> {
    // With authorities, an agent that is listed nowhere may be known.
    if coordinator.monitor.keydir().0.has_authorities() {
        return Ok(BTreeSet::new());
    }
    let Told::Agents(agents) = coordinator.engine.ask(Ask::Agents).await? else {
        return Ok(BTreeSet::new());
    };
    let busy = agents.into_iter().filter(|one| !one.running.is_empty() || !one.sending.is_empty());
    still_gone(coordinator, busy.map(|one| one.name).collect()).await
}

/// Returns which of some agents are neither listed nor connected.
async fn still_gone(
    coordinator: &Coordinator,
    mut names: BTreeSet<Name>,
) -> Result<BTreeSet<Name>, EngineGone> {
    let known = coordinator.monitor.known_agents();
    names.retain(|name| !known.contains(name));
    if let Told::Agents(agents) = coordinator.engine.ask(Ask::Agents).await? {
        for agent in agents.iter().filter(|agent| agent.connected) {
            names.remove(&agent.name);
        }
    }
    Ok(names)
}
