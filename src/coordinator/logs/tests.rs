//! Tests of the logs of attempts.

use super::*;
use std::time::Duration;

/// How long any condition may take.
const LIMIT: Duration = Duration::from_secs(30);

const RULES: LogRules = LogRules { cap: 1 << 20, keep_days: 30, keep_bytes: 1 << 30 };

fn attempt(number: u8) -> AttemptId {
    AttemptId::from_bytes([number; 16])
}

fn start(dir: &Path, rules: LogRules, live: &[AttemptId]) -> Logs {
    let pressure = Pressure::new(dir, Some(0), Clock::start());
    Logs::start(dir, rules, Clock::start(), &live.iter().copied().collect(), pressure).unwrap()
}

async fn text(logs: &Logs, attempt: AttemptId) -> Vec<u8> {
    let mut reading = logs.read(attempt);
    let mut text = Vec::new();
    loop {
        let bytes = reading.next().await.unwrap();
        if bytes.is_empty() {
            return text;
        }
        text.extend_from_slice(&bytes);
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, wait).await.is_ok(), "waited in vain until {what}");
}

#[tokio::test]
async fn a_piece_that_comes_twice_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let logs = start(dir.path(), RULES, &[]);
    let one = attempt(9);
    assert_eq!(logs.append(one, 0, Bytes::from_static(b"one ")).await.unwrap(), 4);
    assert_eq!(logs.append(one, 0, Bytes::from_static(b"one ")).await.unwrap(), 4);
    assert_eq!(logs.append(one, 2, Bytes::from_static(b"e two")).await.unwrap(), 7);
    assert_eq!(logs.append(one, 0, Bytes::new()).await.unwrap(), 7);
    assert_eq!(text(&logs, one).await, b"one two");
    assert_eq!(logs.bytes(one).await.unwrap(), Some(7));
    assert_eq!(logs.bytes(attempt(8)).await.unwrap(), None);
}

#[tokio::test]
async fn a_follower_sees_growth_and_the_end_and_reads_on_across_the_seal() {
    let dir = tempfile::tempdir().unwrap();
    let logs = start(dir.path(), RULES, &[]);
    let one = attempt(9);
    let mut follower = logs.follow(one).await.unwrap();
    assert_eq!(logs.followers(), 1);
    assert_eq!(follower.extent(), Extent { bytes: 0, sealed: false });
    logs.append(one, 0, Bytes::from_static(b"hello")).await.unwrap();
    follower.changed().await.unwrap();
    assert_eq!(follower.extent(), Extent { bytes: 5, sealed: false });
    let mut reading = logs.read(one);
    assert_eq!(reading.next().await.unwrap(), "hello");
    assert_eq!(reading.next().await.unwrap(), "");
    logs.append(one, 5, Bytes::from_static(b" world")).await.unwrap();
    logs.complete(one, 11).await.unwrap();
    logs.seal(one);
    follower.changed().await.unwrap();
    follower.changed().await.ok();
    assert_eq!(follower.extent(), Extent { bytes: 11, sealed: true });
    until("it is sealed", || sealed_path(dir.path(), one).exists()).await;
    assert_eq!(reading.next().await.unwrap(), " world");
    assert_eq!(text(&logs, one).await, b"hello world");
    drop(follower);
    assert_eq!(logs.followers(), 0);
}

#[tokio::test]
async fn a_log_goes_on_after_a_restart_and_one_that_is_over_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let logs = start(dir.path(), RULES, &[]);
    let (live, over) = (attempt(1), attempt(2));
    for one in [live, over] {
        logs.append(one, 0, Bytes::from_static(b"before ")).await.unwrap();
    }
    let logs = start(dir.path(), RULES, &[live]);
    until("it is sealed", || !live_dir(dir.path(), over).exists()).await;
    logs.append(live, 0, Bytes::from_static(b"before after")).await.unwrap();
    assert_eq!(text(&logs, live).await, b"before after");
    assert_eq!(text(&logs, over).await, b"before ");
    assert!(live_dir(dir.path(), live).exists());
}

#[tokio::test]
async fn an_attempt_that_comes_back_goes_on_with_its_sealed_log() {
    let dir = tempfile::tempdir().unwrap();
    let logs = start(dir.path(), RULES, &[]);
    let one = attempt(7);
    logs.append(one, 0, Bytes::from_static(b"one ")).await.unwrap();
    logs.seal(one);
    until("it is sealed", || !live_dir(dir.path(), one).exists()).await;
    // Until the keeper has let go of it, the answer is only how long the log is.
    let goes_on =
        async { while logs.append(one, 4, Bytes::from_static(b"two")).await.unwrap() != 7 {} };
    tokio::time::timeout(LIMIT, goes_on).await.unwrap();
    assert_eq!(text(&logs, one).await, b"one two");
    logs.seal(one);
    until("it is sealed again", || !live_dir(dir.path(), one).exists()).await;
    assert_eq!(text(&logs, one).await, b"one two");
}

#[tokio::test]
async fn what_cannot_be_written_is_asked_for_again_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let logs = start(dir.path(), RULES, &[]);
    let one = attempt(3);
    // A file where the log's directory should be: nothing can be written.
    fs::write(live_dir(dir.path(), one), b"").unwrap();
    assert_eq!(logs.append(one, 0, Bytes::from_static(b"one ")).await.unwrap(), 0);
    fs::remove_file(live_dir(dir.path(), one)).unwrap();
    // What was on its way would leave a gap.
    assert_eq!(logs.append(one, 4, Bytes::from_static(b"two")).await.unwrap(), 0);
    assert_eq!(logs.append(one, 0, Bytes::new()).await.unwrap(), 0);
    assert_eq!(logs.append(one, 0, Bytes::from_static(b"one two")).await.unwrap(), 7);
    assert_eq!(text(&logs, one).await, b"one two");
}

#[tokio::test]
async fn the_oldest_logs_go_first_and_live_ones_never() {
    let dir = tempfile::tempdir().unwrap();
    let rules = LogRules { keep_bytes: 20_000, ..RULES };
    let logs = start(dir.path(), RULES, &[]);
    let clock = Clock::start();
    let noise: Vec<u8> =
        (0..8_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let live = attempt(200);
    logs.append(live, 0, noise.clone().into()).await.unwrap();
    for number in 1..=4 {
        let one = attempt(number);
        logs.append(one, 0, noise[..8_000].to_vec().into()).await.unwrap();
        logs.seal(one);
        let sealed = sealed_path(dir.path(), one);
        until("it is sealed", || !live_dir(dir.path(), one).exists()).await;
        // One day between any two; the last is of today.
        let age = Duration::from_hours(24 * u64::from(4 - number));
        let file = fs::OpenOptions::new().append(true).open(&sealed).unwrap();
        let then = file.metadata().unwrap().modified().unwrap() - age;
        file.file().set_modified(then).unwrap();
    }
    let logs = start(dir.path(), rules, &[live]);
    until("the oldest are gone", || !sealed_path(dir.path(), attempt(2)).exists()).await;
    assert!(!sealed_path(dir.path(), attempt(1)).exists());
    assert!(sealed_path(dir.path(), attempt(3)).exists());
    assert!(sealed_path(dir.path(), attempt(4)).exists());
    assert!(text(&logs, live).await == noise);
    let now = clock.now().wall;
    let (two_days_ago, yesterday) = (now.plus_ms(-48 * 3_600_000), now.plus_ms(-24 * 3_600_000));
    assert!(logs.was_removed(two_days_ago.plus_ms(-120_000)));
    assert!(!logs.was_removed(yesterday));
    // The next process knows it, too; and what is too old goes by itself.
    let logs = start(dir.path(), LogRules { keep_days: 0, ..RULES }, &[live]);
    assert!(logs.was_removed(two_days_ago.plus_ms(-120_000)));
    until("yesterday's is gone", || !sealed_path(dir.path(), attempt(3)).exists()).await;
    assert!(live_dir(dir.path(), live).exists());
}
