//! The further tries of what a hook failed on, one at a time, each when its pause is over.

use super::{Ground, LaneError, lane::Bells};
use crate::{
    coordinator::engine_thread::EngineGone,
    core::hook::HookChange,
    hooks::{End, Hook},
    store::DeliveryRow,
};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

/// How long a pause is waited for at once: the wall clock may have jumped meanwhile.
const SLEEP_MAX: Duration = Duration::from_mins(1);

/// Tries again what is due; ends with an error only.
pub(super) async fn run(ground: &Ground, hook: &Hook, bells: &Bells) -> Result<(), LaneError> {
    let mut wishes = ground.coordinator.hooks.wishes();
    loop {
        wishes.borrow_and_update();
        let id = hook.id.clone();
        let next = ground.read(move |reader| reader.next_delivery(&id)).await?;
        let Some(next) = next else {
            until_told(bells, &mut wishes).await?;
            continue;
        };
        let due = next.next_at.unwrap_or(next.tried_at).as_ms();
        match u64::try_from(due.saturating_sub(ground.now().as_ms())) {
            Ok(ms) if ms > 0 => {
                let pause = Duration::from_millis(ms).min(SLEEP_MAX);
                tokio::select! {
                    told = until_told(bells, &mut wishes) => told?,
                    () = sleep(pause) => {}
                }
            }
            Ok(_) | Err(_) => {
                try_again(ground, hook, next).await?;
                bells.settled.notify_one();
            }
        }
    }
}

/// Returns when there may be something else to try first.
async fn until_told(bells: &Bells, wishes: &mut watch::Receiver<u64>) -> Result<(), EngineGone> {
    tokio::select! {
        () = bells.failed.notified() => Ok(()),
        changed = wishes.changed() => changed.map_err(|_| EngineGone),
    }
}

async fn try_again(ground: &Ground, hook: &Hook, row: DeliveryRow) -> Result<(), LaneError> {
    let ran = ground.run(hook, row.cursor, &row.text).await;
    let change = if ran.end == End::Done {
        HookChange::Delivered { delivery: row.id }
    } else {
        let tried = ground.tried(ran, row.tries.saturating_add(1));
        HookChange::FailedAgain { delivery: row.id, tried }
    };
    Ok(ground.note(vec![change]).await?)
}
