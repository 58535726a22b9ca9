//! Tests of logs on disk, byte for byte.

use super::*;
use proptest::prelude::*;

/// Where one log is, and what it should contain.
struct Log {
    dir: tempfile::TempDir,
}

impl Log {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn live(&self) -> PathBuf {
        self.dir.path().join("live/one")
    }

    fn sealed(&self) -> PathBuf {
        self.dir.path().join("00/one.log.zst")
    }

    fn writer(&self, cap: u64) -> Writer {
        Writer::open(self.live(), Limits::within(cap)).unwrap()
    }

    fn view(&self) -> View {
        View::new(self.live(), self.sealed())
    }

    fn text(&self) -> Vec<u8> {
        rest_of(&mut self.view())
    }

    fn seal(&self) -> Sealed {
        seal(&self.live(), &self.sealed()).unwrap()
    }

    fn last_lines(&self, lines: u64) -> Vec<u8> {
        let mut view = self.view();
        view.skip_to_last_lines(lines).unwrap();
        rest_of(&mut view)
    }
}

fn rest_of(view: &mut View) -> Vec<u8> {
    let mut text = Vec::new();
    loop {
        let bytes = view.read().unwrap();
        if bytes.is_empty() {
            return text;
        }
        text.extend_from_slice(&bytes);
    }
}

/// Bytes in which every place is different enough from its neighbors.
fn content(length: usize) -> Vec<u8> {
    (0..=250u8)
        .cycle()
        .take(length)
        .enumerate()
        .map(|(place, byte)| if place % 7 == 6 { b'\n' } else { byte })
        .collect()
}

#[test]
fn what_is_within_the_cap_is_kept_whole() {
    let log = Log::new();
    let all = content(1_000);
    let mut writer = log.writer(2_048);
    writer.append(0, &all[..400]).unwrap();
    writer.append(300, &all[300..]).unwrap();
    writer.append(0, &all[..10]).unwrap();
    assert_eq!(writer.end(), 1_000);
    assert_eq!(log.text(), all);
    assert!(matches!(log.seal(), Sealed::File { .. }));
    assert!(!log.live().exists());
    assert_eq!(log.text(), all);
    assert_eq!(sealed_bytes(&log.sealed()).unwrap(), 1_000);
}

#[test]
fn of_a_long_log_the_beginning_and_the_end_are_kept_and_what_is_missing_is_said() {
    let log = Log::new();
    let all = content(100_000);
    let mut writer = log.writer(16_000);
    for (place, bytes) in all.chunks(333).enumerate() {
        writer.append(place as u64 * 333, bytes).unwrap();
        let kept: u64 = pieces(&log.live()).unwrap().iter().map(|piece| piece.bytes).sum();
        assert!(kept <= 16_000, "{kept}");
    }
    let text = log.text();
    let tail = pieces(&log.live()).unwrap()[1].start;
    assert!((92_000..=93_001).contains(&tail), "{tail}");
    let expected =
        [&all[..8_000], &marker(tail - 8_000), &all[usize::try_from(tail).unwrap()..]].concat();
    assert!(text == expected);
    assert_eq!(text_bytes(&pieces(&log.live()).unwrap()), text.len() as u64);
    log.seal();
    assert!(log.text() == expected);
    assert_eq!(sealed_bytes(&log.sealed()).unwrap(), text.len() as u64);
}

#[test]
fn a_reader_goes_on_where_it_was_when_the_log_is_sealed() {
    let all = content(300_000);
    for cap in [1 << 20, 100_000] {
        for read in [0, 1, 2] {
            let log = Log::new();
            log.writer(cap).append(0, &all).unwrap();
            let expected = log.text();
            let mut view = log.view();
            let mut seen = Vec::new();
            for _ in 0..read {
                seen.extend_from_slice(&view.read().unwrap());
            }
            log.seal();
            seen.extend_from_slice(&rest_of(&mut view));
            assert!(seen == expected, "cap {cap}, {read} reads before the seal");
        }
    }
}

#[test]
fn an_interrupted_seal_is_repeated() {
    let log = Log::new();
    let all = content(5_000);
    log.writer(1 << 20).append(0, &all).unwrap();
    fs::write(log.live().join("sealing.draft"), b"half").unwrap();
    assert_eq!(log.text(), all);
    log.seal();
    assert_eq!(log.text(), all);
    // The file is there and the live log, or a part of it, is still there, too.
    log.writer(1 << 20).append(0, &all[..100]).unwrap();
    assert_eq!(log.text(), all);
    log.seal();
    assert!(!log.live().exists());
    assert_eq!(log.text(), all);
}

#[test]
fn a_sealed_log_is_made_live_again_with_all_its_pieces() {
    let log = Log::new();
    let all = content(60_000);
    let mut writer = log.writer(20_000);
    for (place, bytes) in all[..50_000].chunks(1_000).enumerate() {
        writer.append(place as u64 * 1_000, bytes).unwrap();
    }
    let (text, known) = (log.text(), pieces(&log.live()).unwrap());
    log.seal();
    unseal(&log.live(), &log.sealed()).unwrap();
    assert!(!log.sealed().exists());
    assert_eq!(pieces(&log.live()).unwrap(), known);
    assert!(log.text() == text);
    let mut writer = log.writer(20_000);
    assert_eq!(writer.end(), 50_000);
    writer.append(50_000, &all[50_000..]).unwrap();
    log.seal();
    assert!(log.text().ends_with(&all[55_000..]));
}

#[test]
fn an_empty_log_leaves_nothing_and_a_known_length_is_told() {
    let log = Log::new();
    assert_eq!(log.seal(), Sealed::Nothing);
    let mut writer = log.writer(1_000);
    writer.append(0, b"").unwrap();
    assert_eq!(log.seal(), Sealed::Nothing);
    let mut writer = log.writer(1_000);
    writer.append(0, b"begin").unwrap();
    writer.note_end(5).unwrap();
    writer.note_end(25).unwrap();
    let expected = [b"begin", marker(20).as_slice()].concat();
    assert_eq!(log.text(), expected);
    log.seal();
    assert_eq!(log.text(), expected);
}

#[test]
fn the_last_lines_are_the_same_in_both_forms() {
    for (text, lines, expected) in [
        ("a\nb\nc\n", 2, "b\nc\n"),
        ("a\nb\nc", 2, "b\nc"),
        ("a\nb\nc\n", 9, "a\nb\nc\n"),
        ("a\nb\n\n", 1, "\n"),
        ("a\n", 0, ""),
        ("a", 0, ""),
    ] {
        let log = Log::new();
        log.writer(1 << 20).append(0, text.as_bytes()).unwrap();
        assert_eq!(log.last_lines(lines), expected.as_bytes(), "{text:?} {lines}");
        log.seal();
        assert_eq!(log.last_lines(lines), expected.as_bytes(), "{text:?} {lines} sealed");
    }
    let log = Log::new();
    let both = [vec![b'x'; 200_000], b"\n".to_vec(), vec![b'y'; 70_000]].concat();
    log.writer(1 << 20).append(0, &both).unwrap();
    assert!(log.last_lines(1) == vec![b'y'; 70_000]);
    assert!(log.last_lines(2) == both);
}

#[test]
fn damage_of_a_sealed_log_is_an_error() {
    let log = Log::new();
    log.writer(1 << 20).append(0, &content(5_000)).unwrap();
    log.seal();
    let whole = fs::read(log.sealed()).unwrap();
    for length in [0, 3, 7, 9, 20, whole.len() - 1] {
        fs::write(log.sealed(), &whole[..length]).unwrap();
        let mut view = log.view();
        let failed = std::iter::repeat_with(|| view.read())
            .find(|read| read.as_ref().map_or(true, Vec::is_empty))
            .unwrap();
        assert!(failed.is_err(), "cut at {length}");
    }
}

/// One thing that happens to a log.
#[derive(Debug, Clone)]
enum Event {
    /// The sender begins again this many bytes before what it thinks was received.
    Cut { back: usize },
    /// The receiver starts again.
    Restart,
    /// The sender has lost these bytes.
    Lose(usize),
    /// A piece of this many bytes arrives.
    Send(usize),
    /// A reader looks.
    Read,
    /// The attempt seems over, and goes on.
    SealAndGoOn,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0usize..900).prop_map(Event::Send),
        2 => (0usize..1_500).prop_map(|back| Event::Cut { back }),
        1 => Just(Event::Restart),
        1 => (1usize..500).prop_map(Event::Lose),
        4 => Just(Event::Read),
        1 => Just(Event::SealAndGoOn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However a log is cut and resumed, its readers get every byte that is kept once, in order,
    /// and a line with the right number where some are missing.
    #[test]
    fn cuts_and_resumes_neither_lose_nor_repeat_a_byte(
        events in proptest::collection::vec(event(), 1..60),
        capped in any::<bool>(),
    ) {
        let log = Log::new();
        let all = content(80_000);
        let cap = if capped { 4_000 } else { 1 << 30 };
        let mut writer = log.writer(cap);
        // Where the sender is, and which bytes it had lost before anybody got them.
        let (mut sent, mut received) = (0usize, vec![false; all.len()]);
        let mut view = log.view();
        let mut seen = Vec::new();
        for event in events {
            match event {
                Event::Send(length) => {
                    let end = (sent + length).min(all.len());
                    let known = usize::try_from(writer.end()).unwrap();
                    writer.append(sent as u64, &all[sent..end]).unwrap();
                    received[sent.max(known).min(end)..end].fill(true);
                    sent = end;
                }
                Event::Cut { back } => sent = sent.saturating_sub(back),
                Event::Lose(length) => {
                    sent = (sent + length).min(all.len());
                }
                Event::Restart => writer = log.writer(cap),
                Event::Read => {
                    // What a slow reader of a capped log has missed is another thing than what
                    // the log itself misses.
                    if !capped {
                        seen.extend_from_slice(&view.read().unwrap());
                    }
                }
                Event::SealAndGoOn => {
                    log.seal();
                    if log.sealed().exists() {
                        unseal(&log.live(), &log.sealed()).unwrap();
                    }
                    writer = log.writer(cap);
                    view = log.view();
                    seen.clear();
                }
            }
        }
        let known = pieces(&log.live()).unwrap();
        let mut expected = Vec::new();
        let mut end = 0;
        for piece in &known {
            if piece.start > end {
                expected.extend_from_slice(&marker(piece.start - end));
            }
            let range = usize::try_from(piece.start).unwrap()..usize::try_from(piece.end()).unwrap();
            prop_assert!(received[range.clone()].iter().all(|received| *received));
            expected.extend_from_slice(&all[range]);
            end = piece.end();
        }
        prop_assert_eq!(text_bytes(&known), expected.len() as u64);
        prop_assert!(log.text() == expected);
        if !capped {
            // Without a cap, everything that came is there.
            let kept: u64 = known.iter().map(|piece| piece.bytes).sum();
            let came = received.iter().filter(|received| **received).count() as u64;
            prop_assert_eq!(kept, came);
            log.seal();
            seen.extend_from_slice(&rest_of(&mut view));
            prop_assert!(seen == expected);
        }
        log.seal();
        prop_assert!(log.text() == expected);
    }
}
