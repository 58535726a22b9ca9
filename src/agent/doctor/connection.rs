//! The key, the coordinator, its host key, and the two clocks.

use super::{super::bulk, Finding};
use crate::{
    agent::{AgentConfig, dialect},
    core::path_info::PathInfo,
    protocol::bulk::{BulkFromAgent, BulkToAgent},
    ssh::{ClientConfig, ConnectError, KeyFileError, KeyPair, host_key},
    telemetry::{self, Clock},
};
use bulk::BulkError;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

/// A clock that differs by more than this confuses people who compare logs, in milliseconds.
const SKEW_MS_MAX: u64 = 30_000;

/// What the coordinator signed for this machine.
#[derive(Debug)]
pub(super) struct Probe {
    /// The facts of a path that exists nowhere yet, signed.
    pub(super) info: PathInfo,
    /// Its nar.
    pub(super) nar: Bytes,
    /// The coordinator's public signing key, as `trusted-public-keys` has it.
    pub(super) signing_key: String,
}

/// Checks all that has to do with the coordinator, and returns what it signed.
pub(super) async fn check(config: &AgentConfig, clock: Clock) -> (Vec<Finding>, Option<Probe>) {
    let identity = match host_key::load(&config.identity) {
        Ok(identity) => identity,
        Err(error) => return (without_key(config, &error).await, None),
    };
    match ask(config, identity.clone()).await {
        Ok((wall_ms, probe)) => {
            let findings = vec![
                Finding::ok("key", format!("{} is known there", identity.fingerprint())),
                Finding::ok("host key", format!("{} is the pinned one", config.coordinator)),
                check_clock(wall_ms, clock.now().wall.as_ms()),
            ];
            (findings, Some(probe))
        }
        Err(error) => (explain(&error, config, &identity), None),
    }
}

/// Says what is wrong with the agent's key, and tries another one: the coordinator shows its host
/// key before it looks at ours.
async fn without_key(config: &AgentConfig, error: &KeyFileError) -> Vec<Finding> {
    let path = config.identity.display();
    let mend = match error {
        KeyFileError::Exposed { .. } => format!("chmod 600 {path}"),
        KeyFileError::File { .. } | KeyFileError::NotAKey { .. } => {
            format!("ssh-keygen -q -t ed25519 -N '' -f {path}")
        }
    };
    let mut findings = vec![Finding::fail("key", telemetry::chain(error), mend)];
    let mut seed = [0u8; 32];
    if getrandom::fill(&mut seed).is_ok() {
        let stranger = KeyPair::from_seed(seed);
        if let Err(error) = ask(config, stranger.clone()).await {
            let explained = explain(&error, config, &stranger).into_iter();
            // What is said of the stranger's key helps nobody.
            findings.extend(explained.filter(|finding| finding.check != "key"));
        }
    }
    findings
}

/// Asks the coordinator for the time and for something signed.
async fn ask(config: &AgentConfig, identity: KeyPair) -> Result<(i64, Probe), BulkError> {
    let client = ClientConfig {
        address: config.coordinator.clone(),
        host_keys: config.host_keys.clone(),
        identity,
        user: "steading".to_owned(),
    };
    let over = CancellationToken::new();
    let _end = over.clone().drop_guard();
    let mut exchange = bulk::Pool::start(client, 1, over).exchange().await?;
    let store_dir = dialect(&config.builder).1.clone();
    exchange.send(&BulkFromAgent::Probe { store_dir }).await?;
    match exchange.receive().await? {
        BulkToAgent::Probe { wall_ms, signing_key, info, nar } => {
            Ok((wall_ms, Probe { info, nar, signing_key }))
        }
        _ => Err(BulkError::OutOfTurn("an answer to ‘probe’ was expected")),
    }
}

/// Says at which step the coordinator was not reached; what lies before that step is well.
fn explain(error: &BulkError, config: &AgentConfig, identity: &KeyPair) -> Vec<Finding> {
    let words = telemetry::chain(error);
    let key = || Finding::ok("key", format!("{} is usable", identity.fingerprint()));
    let coordinator = &config.coordinator;
    let BulkError::Connect(error) = error else {
        return vec![key(), Finding::fail("coordinator", words, format!("upgrade {coordinator}"))];
    };
    match error {
        ConnectError::PinnedKey(_)
        | ConnectError::NothingPinned(_)
        | ConnectError::HostKeyMismatch { .. } => {
            let (host, port) = coordinator.rsplit_once(':').unwrap_or((coordinator, "22"));
            let mend = format!(
                "compare with the coordinator's run/host_key.pub what this shows, then pin it: \
                 ssh-keyscan -t ed25519 -p {port} {host}"
            );
            vec![key(), Finding::fail("host key", words, mend)]
        }
        ConnectError::Refused { .. } => {
            let mend = format!(
                "on the coordinator: echo '{}' > STATE/keys/agents/NAME.pub",
                identity.public_line()
            );
            let pinned = format!("{coordinator} is the pinned one");
            vec![Finding::ok("host key", pinned), Finding::fail("key", words, mend)]
        }
        ConnectError::Unreachable { .. }
        | ConnectError::TimedOut { .. }
        | ConnectError::BrokenOff { .. }
        | ConnectError::Canceled => {
            let mend = "on the coordinator: systemctl status steading-coordinator".to_owned();
            vec![key(), Finding::fail("coordinator", words, mend)]
        }
    }
}

/// Compares the clocks.
fn check_clock(theirs_ms: i64, ours_ms: i64) -> Finding {
    let skew_ms = theirs_ms.abs_diff(ours_ms);
    let seconds = skew_ms.div_ceil(1_000);
    if skew_ms > SKEW_MS_MAX {
        let explanation = format!("it differs by {seconds} s from the coordinator's");
        Finding::warn("clock", explanation, "timedatectl set-ntp true".to_owned())
    } else {
        Finding::ok("clock", format!("within {seconds} s of the coordinator's"))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Grade, *};

    #[test]
    fn a_clock_may_differ_by_half_a_minute() {
        assert_eq!(check_clock(1_000_000, 1_030_000).grade, Grade::Ok);
        assert_eq!(check_clock(1_030_001, 1_000_000).grade, Grade::Warn);
        assert_eq!(check_clock(i64::MIN, i64::MAX).grade, Grade::Warn);
    }
}
