//! Builds with a real Guix daemon. Skipped, and said so, where there is none to start.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/private_guix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_guix;
#[path = "common/wait.rs"]
mod wait;

use private_guix::PrivateGuix;
use std::{io, time::Duration};
use steading::{
    builders::{BuildOrder, Builder as _, BuilderError, Substituters, guix::Guix, nix::Nix},
    core::{
        hash::{Sha256, Sha256Hasher},
        outcome::{BuildFailure, Outcome, SetupFailure},
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    formats::{
        export::{ExportTrailer, entry_facts},
        signature::guix::GuixSecretKey,
    },
};

/// Starts a Guix, or ends the test with the reason why there is none.
macro_rules! guix_or_skip {
    () => {
        match PrivateGuix::start() {
            Ok(guix) => guix,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

/// The limits of one build.
#[derive(Default)]
struct Limits {
    timeout: Option<Duration>,
    max_silent: Option<Duration>,
}

fn connect(guix: &PrivateGuix) -> Guix {
    Guix::connect(&guix.socket(), StoreDir::guix()).unwrap()
}

/// Builds a derivation of the store, over a connection of its own.
fn build(guix: &PrivateGuix, drv: &StorePath, limits: &Limits) -> (Outcome, String) {
    let derivation = guix.derivation(drv);
    let mut inputs = derivation.input_sources.clone();
    for (path, names) in &derivation.input_derivations {
        let outputs = guix.derivation(path).outputs.into_iter();
        inputs.extend(outputs.filter(|o| names.contains(&o.name)).map(|output| output.path));
    }
    let order = BuildOrder {
        drv_path: drv,
        derivation: &derivation,
        input_paths: &inputs,
        timeout: limits.timeout,
        max_silent: limits.max_silent,
        cores: 1,
    };
    let mut log = Vec::new();
    let outcome = connect(guix).build(&order, &mut |bytes| log.extend_from_slice(bytes)).unwrap();
    (outcome, String::from_utf8(log).unwrap())
}

/// Returns what a store's export says of a path, as the coordinator would tell it to an agent.
fn info(trailer: &ExportTrailer) -> PathInfo {
    PathInfo {
        path: trailer.path.clone(),
        nar_hash: trailer.nar_hash,
        nar_bytes: trailer.nar_bytes,
        references: trailer.references.clone(),
        deriver: trailer.deriver.clone(),
        signatures: Vec::new(),
        content_address: None,
    }
}

/// Signs the export of a path.
fn sign(key: &GuixSecretKey, info: &PathInfo, nar: &[u8]) -> String {
    let mut hasher = Sha256Hasher::default();
    hasher.update(nar);
    hasher.update(&entry_facts(&info.path, &info.references, info.deriver.as_ref()));
    key.sign(&hasher.finish())
}

#[test]
fn the_daemons_of_guix_and_nix_are_told_apart() {
    let guix = guix_or_skip!();
    let error = Nix::connect(&guix.socket(), StoreDir::guix()).unwrap_err();
    assert!(matches!(&error, BuilderError::Dialect(text) if text.contains("Guix")), "{error}");
    connect(&guix);
}

#[test]
fn builds_end_as_what_happened_to_them() {
    let guix = guix_or_skip!();
    let drvs = guix.derivations(
        r#"
(use-modules (gcrypt hash) (rnrs bytevectors))
(say (make "good" "echo building; echo; echo '@ build-failed x - timeout'; echo x > $out"))
(say (make "exit" "echo one; echo two >&2; exit 3"))
(say (make "signal" "kill -9 $$"))
(say (make "nothing" "echo x > $out" #:outputs '("out" "doc")))
(say (make "silent" "echo x; busybox sleep 60; echo x > $out"))
(say (make "endless" "while true; do echo x; busybox sleep 0.1; done"))
(say (make "promise" "echo x > $out" #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "y"))))
(define below (make "below" "echo x > $out"))
(say (make "above" "echo x > $out" #:inputs (list (list below))))"#,
    );
    let [good, exit, signal, nothing, silent, endless, promise, above] = &*drvs else {
        panic!("{drvs:?}");
    };
    let (outcome, log) = build(&guix, good, &Limits::default());
    assert_eq!(outcome, Outcome::Built, "{log}");
    assert_eq!(log, "building\n\n@ build-failed x - timeout\n");
    let output = guix.derivation(good).outputs[0].path.clone();
    assert_eq!(fs_err::read(guix.outside(output.to_string())).unwrap(), b"x\n");
    // It is there now, and nothing would be built.
    let (outcome, _) = build(&guix, good, &Limits::default());
    let present = Outcome::SetupFailed(SetupFailure::OutputsPresent(output.clone()));
    assert_eq!(outcome, present);
    connect(&guix).remove(&[output]).unwrap();
    assert_eq!(build(&guix, good, &Limits::default()).0, Outcome::Built);

    let failed = |drv: &StorePath, limits: &Limits| match build(&guix, drv, limits) {
        (Outcome::Failed(failure), log) => (failure, log),
        (outcome, log) => panic!("{drv}: {outcome:?}\n{log}"),
    };
    let (failure, log) = failed(exit, &Limits::default());
    assert_eq!(failure, BuildFailure::Exit(3));
    assert!(log.starts_with("one\ntwo\nbuilder for"), "{log}");
    assert_eq!(failed(signal, &Limits::default()).0, BuildFailure::Signal(9));
    assert_eq!(failed(nothing, &Limits::default()).0, BuildFailure::NoOutput("doc".to_owned()));
    let second = Some(Duration::from_secs(1));
    let (failure, log) = failed(silent, &Limits { max_silent: second, timeout: None });
    assert_eq!(failure, BuildFailure::Silent, "{log}");
    let (failure, log) = failed(endless, &Limits { max_silent: None, timeout: second });
    assert_eq!(failure, BuildFailure::Timeout, "{log}");
    let (failure, _) = failed(promise, &Limits::default());
    let hash = |text: &[u8]| Sha256::of(text).to_string();
    let (expected, actual) = (hash(b"y"), hash(b"x\n"));
    assert_eq!(failure, BuildFailure::HashMismatch { expected, actual });

    // Inputs are not built on the way.
    let (outcome, log) = build(&guix, above, &Limits::default());
    let below = &guix.derivation(above).input_derivations[0].0;
    let below = guix.derivation(below).outputs[0].path.clone();
    assert_eq!(outcome, Outcome::SetupFailed(SetupFailure::MissingInputs(vec![below])), "{log}");
}

#[test]
fn what_a_store_has_is_told_and_read() {
    let guix = guix_or_skip!();
    let drvs = guix
        .derivations(r#"(say (make "thing" "busybox seq 1 100000 > $out; echo $out >> $out"))"#);
    assert_eq!(build(&guix, &drvs[0], &Limits::default()).0, Outcome::Built);
    let output = guix.derivation(&drvs[0]).outputs[0].path.clone();
    let absent: StorePath = output.to_string().replace("-thing", "-other").parse().unwrap();
    let mut daemon = connect(&guix);
    let valid = daemon.valid(&[output.clone(), absent.clone(), drvs[0].clone()]).unwrap();
    assert_eq!(valid.len(), 2);
    assert!(guix.has(&output) && !guix.has(&absent), "the stock client says the same");
    assert_eq!(daemon.path_info(&absent).unwrap(), None);
    let info = daemon.path_info(&output).unwrap().unwrap();
    assert_eq!(info.references, std::slice::from_ref(&output));
    assert_eq!(info.deriver, Some(drvs[0].clone()));
    let mut nar = Vec::new();
    daemon.dump(&output, &mut nar).unwrap();
    assert_eq!((Sha256::of(&nar), nar.len() as u64), (info.nar_hash, info.nar_bytes));
    let error = daemon.dump(&absent, &mut io::sink()).unwrap_err();
    assert!(matches!(error, BuilderError::NotValid(_)), "{error}");
    // A place that is full is no fault of the daemon.
    let error = daemon.dump(&output, &mut &mut [0u8; 10][..]).unwrap_err();
    assert!(matches!(error, BuilderError::Stream { .. }), "{error}");
}

#[test]
fn what_is_rooted_is_not_collected() {
    let guix = guix_or_skip!();
    let drvs = guix
        .derivations(r#"(say (make "kept" "echo x > $out")) (say (make "lost" "echo y > $out"))"#);
    for drv in &drvs {
        assert_eq!(build(&guix, drv, &Limits::default()).0, Outcome::Built);
    }
    let outputs: Vec<_> =
        drvs.iter().map(|drv| guix.derivation(drv).outputs[0].path.clone()).collect();
    let mut daemon = connect(&guix);
    daemon.root(&outputs[..1]).unwrap();
    assert!(connect(&guix).collect(u64::MAX).unwrap() > 0);
    let valid = daemon.valid(&outputs).unwrap();
    assert!(valid.into_iter().eq([outputs[0].clone()]));
}

#[test]
fn a_bare_store_gets_all_that_a_build_needs_and_believes_signatures_only() {
    let home = guix_or_skip!();
    let bare = guix_or_skip!();
    let drvs = home.derivations(
        r#"
(define below (say (make "below" "echo x > $out; echo $out >> $out")))
(say (make "above" "busybox cat $below > $out" #:inputs (list (list below))
           #:env `(("below" . ,(derivation->output-path below)))))"#,
    );
    assert_eq!(build(&home, &drvs[0], &Limits::default()).0, Outcome::Built);
    let input = home.derivation(&drvs[0]).outputs[0].path.clone();
    let key = GuixSecretKey::generate([4; 32]);
    bare.authorize(&[key.public().to_text()]);
    let mut daemon = connect(&bare);

    // Derivations and sources follow from their content, and need nobody's word.
    let mut kinds = Vec::new();
    for (trailer, nar) in home.export(&drvs[1..]) {
        let mut info = info(&trailer);
        if !info.path.is_derivation() {
            info.content_address = Some(format!("fixed:r:sha256:{}", info.nar_hash.base32()));
        }
        kinds.push(info.path.is_derivation());
        daemon.import(&info, &mut nar.as_slice()).unwrap();
        let there = daemon.path_info(&info.path).unwrap().unwrap();
        assert_eq!((there.nar_hash, there.references), (info.nar_hash, info.references));
    }
    assert_eq!(kinds.iter().filter(|is_derivation| **is_derivation).count(), 2);
    assert!(kinds.contains(&false));

    // An output has to be signed, by a key that is authorized, as it is.
    let exported = home.export(std::slice::from_ref(&input));
    let (trailer, nar) = exported.iter().find(|(trailer, _)| trailer.path == input).unwrap();
    let unsigned = info(trailer);
    let stranger = GuixSecretKey::generate([5; 32]);
    let mut altered = nar.clone();
    let at = altered.windows(2).position(|bytes| bytes == b"x\n").unwrap();
    altered[at] = b'y';
    let with = |signature: String| PathInfo { signatures: vec![signature], ..unsigned.clone() };
    let good = with(sign(&key, &unsigned, nar));
    for (info, nar, what) in [
        (unsigned.clone(), nar, "nobody signed"),
        (with(sign(&stranger, &unsigned, nar)), nar, "a stranger signed"),
        (good.clone(), &altered, "the content is another"),
        (with("1;host;KHNpZ25hdHVyZSk=".to_owned()), nar, "it is the signature of a narinfo"),
    ] {
        let error = daemon.import(&info, &mut nar.as_slice()).unwrap_err();
        assert!(matches!(error, BuilderError::Daemon(_)), "{what}: {error}");
        assert_eq!(daemon.valid(std::slice::from_ref(&input)).unwrap().len(), 0, "{what}");
    }
    let error = connect(&bare).import(&good, &mut &nar[..nar.len() / 2]).unwrap_err();
    assert!(matches!(error, BuilderError::Stream { .. }), "{error}");
    daemon.import(&good, &mut nar.as_slice()).unwrap();
    daemon.import(&good, &mut nar.as_slice()).unwrap();
    let there = daemon.path_info(&input).unwrap().unwrap();
    assert_eq!((there.nar_hash, there.references), (good.nar_hash, good.references));

    let (outcome, log) = build(&bare, &drvs[1], &Limits::default());
    assert_eq!(outcome, Outcome::Built, "{log}");
}

#[test]
fn a_text_that_is_not_what_its_path_says_is_refused() {
    let home = guix_or_skip!();
    let bare = guix_or_skip!();
    let drvs = home.derivations(r#"(say (make "thing" "echo x > $out"))"#);
    let mut daemon = connect(&bare);
    for (trailer, nar) in home.export(&drvs) {
        let mut info = info(&trailer);
        if !info.path.is_derivation() {
            info.content_address = Some(format!("fixed:r:sha256:{}", info.nar_hash.base32()));
            daemon.import(&info, &mut nar.as_slice()).unwrap();
            continue;
        }
        let other: StorePath = info.path.to_string().replace("-thing", "-other").parse().unwrap();
        let info = PathInfo { path: other.clone(), ..info };
        let error = daemon.import(&info, &mut nar.as_slice()).unwrap_err();
        assert!(matches!(error, BuilderError::Daemon(_)), "{error}");
        assert_eq!(daemon.valid(&[other]).unwrap().len(), 0);
    }
}

#[test]
fn paths_that_no_substituter_has_are_no_error() {
    let guix = guix_or_skip!();
    let path: StorePath = "/gnu/store/wgd9i6yligq18a1zp600q4rrizfim5lw-nowhere".parse().unwrap();
    let nowhere = Some(vec!["file:///nowhere".to_owned()]);
    let from = Substituters { derivations: nowhere.clone(), others: nowhere };
    let mut daemon = connect(&guix);
    daemon.substitute(std::slice::from_ref(&path), &from).unwrap();
    assert_eq!(daemon.valid(&[path]).unwrap().len(), 0);
}
