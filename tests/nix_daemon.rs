//! Builds with a real Nix daemon. Skipped, and said so, where there is none to start.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/private_nix.rs"]
mod private_nix;
#[path = "common/wait.rs"]
mod wait;

use private_nix::PrivateNix;
use std::{collections::BTreeSet, io::Write as _, time::Duration};
use steading::{
    builders::{self, BuildOrder, Builder, BuilderError, BuilderKind, Substituters},
    core::{
        hash::Sha256,
        outcome::{BuildFailure, Outcome, SetupFailure},
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
};

/// The shape of every derivation built here.
const MAKE: &str = r#"
let
  make = name: script: more: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" script ];
    PATH = "/usr/bin:/bin";
  } // more);
in "#;

/// Starts a daemon, or ends the test with the reason why there is none.
macro_rules! nix_or_skip {
    () => {
        match PrivateNix::start() {
            Ok(nix) => nix,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

/// What one build was.
struct Built {
    outcome: Outcome,
    log: String,
    outputs: Vec<StorePath>,
}

/// The limits of one build.
#[derive(Default)]
struct Limits {
    timeout: Option<Duration>,
    max_silent: Option<Duration>,
}

fn connect(nix: &PrivateNix) -> Box<dyn Builder> {
    let socket = nix.socket();
    builders::open(BuilderKind::Nix { socket, store_dir: StoreDir::nix() }).unwrap()
}

/// Builds a derivation, whose inputs are valid.
fn build(
    nix: &PrivateNix,
    builder: &mut dyn Builder,
    drv_path: &StorePath,
    limits: &Limits,
) -> Built {
    let derivation = nix.derivation(drv_path);
    let input_paths = nix.input_paths(&derivation);
    let order = BuildOrder {
        drv_path,
        derivation: &derivation,
        input_paths: &input_paths,
        timeout: limits.timeout,
        max_silent: limits.max_silent,
        cores: 1,
    };
    let mut log = Vec::new();
    let outcome = builder.build(&order, &mut |bytes| log.write_all(bytes).unwrap()).unwrap();
    Built {
        outcome,
        log: String::from_utf8(log).unwrap(),
        outputs: derivation.outputs.iter().map(|output| output.path.clone()).collect(),
    }
}

/// Instantiates one derivation and builds it over a connection of its own.
fn build_one(nix: &PrivateNix, expression: &str, limits: &Limits) -> Built {
    let drv = nix.instantiate(&format!("{MAKE}{expression}")).remove(0);
    build(nix, connect(nix).as_mut(), &drv, limits)
}

#[test]
fn a_graph_is_built_in_order_and_its_outputs_are_described() {
    let nix = nix_or_skip!();
    let expression = r#"
      let low = make "low" "echo building low; echo low > $out" { };
          high = make "high" "echo hello; read line < $low; echo $low $line > $out; echo doc > $doc"
            { inherit low; outputs = [ "out" "doc" ]; };
      in [ low high ]"#;
    let drvs = nix.instantiate(&format!("{MAKE}{expression}"));
    let mut builder = connect(&nix);

    let low = build(&nix, builder.as_mut(), &drvs[0], &Limits::default());
    assert_eq!((low.outcome, low.log.as_str()), (Outcome::Built, "building low\n"));
    builder.root(&low.outputs).unwrap();
    let high = build(&nix, builder.as_mut(), &drvs[1], &Limits::default());
    assert_eq!((high.outcome, high.log.as_str()), (Outcome::Built, "hello\n"));

    let valid = builder.valid(&high.outputs).unwrap();
    assert_eq!(valid, high.outputs.iter().cloned().collect::<BTreeSet<_>>());
    let referring: Vec<PathInfo> = high
        .outputs
        .iter()
        .map(|path| builder.path_info(path).unwrap().unwrap())
        .filter(|info| info.references == low.outputs)
        .collect();
    assert_eq!(referring.len(), 1);
    let mut nar = Vec::new();
    builder.dump(&referring[0].path, &mut nar).unwrap();
    assert_eq!(Sha256::of(&nar), referring[0].nar_hash);
    assert_eq!(nar.len() as u64, referring[0].nar_bytes);
    // The connection is where it should be after a raw nar.
    assert!(builder.path_info(&low.outputs[0]).unwrap().is_some());
}

#[test]
fn outputs_that_are_there_are_removed_and_built_again() {
    let nix = nix_or_skip!();
    let drv = nix.instantiate(&format!(r#"{MAKE} make "again" "echo x > $out" {{ }}"#)).remove(0);
    let mut builder = connect(&nix);
    let limits = Limits::default();
    let first = build(&nix, builder.as_mut(), &drv, &limits);
    assert_eq!(first.outcome, Outcome::Built);
    let second = build(&nix, builder.as_mut(), &drv, &limits);
    let present = SetupFailure::OutputsPresent(first.outputs[0].clone());
    assert_eq!(second.outcome, Outcome::SetupFailed(present));

    // Building rooted the output for as long as the connection lives.
    let error = connect(&nix).remove(&first.outputs).unwrap_err();
    assert!(matches!(error, BuilderError::OutputsPresent { .. }), "{error}");
    drop(builder);
    let mut builder = connect(&nix);
    wait::until("the daemon has noticed the end of the other connection", || {
        builder.remove(&first.outputs).is_ok()
    });
    assert!(builder.valid(&first.outputs).unwrap().is_empty());
    assert_eq!(builder.path_info(&first.outputs[0]).unwrap(), None);
    let third = build(&nix, builder.as_mut(), &drv, &limits);
    assert_eq!(third.outcome, Outcome::Built);
}

#[test]
fn failures_of_a_build_are_told_apart() {
    let nix = nix_or_skip!();
    let none = Limits::default();
    let failed = build_one(&nix, r#"make "exit" "echo going; exit 3" { }"#, &none);
    assert_eq!(failed.outcome, Outcome::Failed(BuildFailure::Exit(3)));
    assert!(failed.log.starts_with("going\n"), "{}", failed.log);
    assert!(!failed.log.contains('\u{1b}'), "{}", failed.log);

    let killed = build_one(&nix, r#"make "signal" "kill -9 $$" { }"#, &none);
    assert_eq!(killed.outcome, Outcome::Failed(BuildFailure::Signal(9)));

    let empty =
        build_one(&nix, r#"make "empty" "echo x > $out" { outputs = [ "out" "doc" ]; }"#, &none);
    assert_eq!(empty.outcome, Outcome::Failed(BuildFailure::NoOutput("doc".to_owned())));

    // The daemon repeats the end of the log in its text, which must not pass for its own words.
    let lying =
        build_one(&nix, r#"make "lie" "echo failed due to signal 9 >&2; exit 1" { }"#, &none);
    assert_eq!(lying.outcome, Outcome::Failed(BuildFailure::Exit(1)));

    let foreign = build_one(&nix, r#"make "far" "true" { system = "pdp11-unix"; }"#, &none);
    assert!(
        matches!(&foreign.outcome, Outcome::SetupFailed(SetupFailure::Refused(text))
            if text.contains("pdp11")),
        "{:?}",
        foreign.outcome
    );
}

#[test]
fn fixed_outputs_are_held_to_their_hash() {
    let nix = nix_or_skip!();
    let fixed = r#"{ outputHashMode = "flat"; outputHashAlgo = "sha256";
        outputHash = "0000000000000000000000000000000000000000000000000000"; }"#;
    let none = Limits::default();
    let other = build_one(&nix, &format!(r#"make "fixed" "echo x > $out" {fixed}"#), &none);
    assert!(
        matches!(&other.outcome, Outcome::Failed(BuildFailure::HashMismatch { expected, actual })
            if expected != actual && actual.starts_with("sha256")),
        "{:?}",
        other.outcome
    );
    let download = build_one(&nix, &format!(r#"make "fixed" "exit 22" {fixed}"#), &none);
    assert_eq!(download.outcome, Outcome::Failed(BuildFailure::Exit(22)));
}

#[test]
fn a_build_over_its_limits_is_ended() {
    let nix = nix_or_skip!();
    let second = Some(Duration::from_secs(1));
    let slow = r#"make "slow" "while true; do echo still here; sleep 0.2; done" { }"#;
    let limits = Limits { timeout: second, max_silent: Some(Duration::from_secs(100)) };
    assert_eq!(build_one(&nix, slow, &limits).outcome, Outcome::Failed(BuildFailure::Timeout));
    let silent = r#"make "silent" "sleep 1000" { }"#;
    let limits = Limits { timeout: Some(Duration::from_secs(100)), max_silent: second };
    assert_eq!(build_one(&nix, silent, &limits).outcome, Outcome::Failed(BuildFailure::Silent));
}

#[test]
fn a_nar_is_taken_in_and_built_with() {
    let nix = nix_or_skip!();
    let source = r#"let source = make "source" "echo content > $out" { };"#;
    let drvs = nix.instantiate(&format!(
        r#"{MAKE} {source} in [ source (make "user" "cat ${{source}} > $out" {{ }}) ]"#
    ));
    let mut maker = connect(&nix);
    let made = build(&nix, maker.as_mut(), &drvs[0], &Limits::default());
    let mut info = maker.path_info(&made.outputs[0]).unwrap().unwrap();
    info.signatures.clear();
    let mut nar = Vec::new();
    maker.dump(&info.path, &mut nar).unwrap();
    drop(maker);
    let mut builder = connect(&nix);
    wait::until("the daemon lets go of the output", || builder.remove(&made.outputs).is_ok());

    builder.substitute(&made.outputs, &Substituters::default()).unwrap();
    assert!(builder.valid(&made.outputs).unwrap().is_empty());
    let mut wrong = info.clone();
    wrong.nar_hash = Sha256::of(b"something else");
    let error = builder.import(&wrong, &mut nar.as_slice()).unwrap_err();
    assert!(matches!(error, BuilderError::Daemon(_)), "{error}");
    // The daemon's refusal left the connection whole.
    builder.import(&info, &mut nar.as_slice()).unwrap();
    builder.import(&info, &mut nar.as_slice()).unwrap();
    assert_eq!(builder.path_info(&info.path).unwrap().unwrap().nar_hash, info.nar_hash);

    let used = build(&nix, builder.as_mut(), &drvs[1], &Limits::default());
    assert_eq!(used.outcome, Outcome::Built);
    assert_eq!(fs_err::read(nix.outside(&used.outputs[0])).unwrap(), b"content\n");

    // A source that ends early is no nar, and the connection cannot go on from its middle.
    let error = builder.import(&info, &mut &nar[..10]).unwrap_err();
    assert!(matches!(error, BuilderError::Stream { .. }), "{error}");
    assert!(matches!(builder.valid(&[]), Err(BuilderError::GivenUp)));
}

#[test]
fn a_daemon_that_dies_fails_no_build() {
    let mut nix = nix_or_skip!();
    let expression = r#"make "doomed" "echo started; sleep 1000" { }"#;
    let drv = nix.instantiate(&format!("{MAKE}{expression}")).remove(0);
    let mut builder = connect(&nix);
    let derivation = nix.derivation(&drv);
    let order = BuildOrder {
        drv_path: &drv,
        derivation: &derivation,
        input_paths: &[],
        timeout: None,
        max_silent: None,
        cores: 1,
    };
    // The log shows that the builder runs; from then on nothing but the daemon's end is awaited.
    let outcome = builder.build(&order, &mut |_| nix.kill()).unwrap();
    assert!(
        matches!(outcome, Outcome::SetupFailed(SetupFailure::DaemonUnreachable(_))),
        "{outcome:?}"
    );
    assert!(builder.valid(&[]).unwrap_err().is_lost());
    let socket = nix.socket();
    let again = builders::open(BuilderKind::Nix { socket, store_dir: StoreDir::nix() });
    assert!(matches!(again, Err(BuilderError::Unreachable { .. })));
}
