//! What an agent does to a machine with a real Guix daemon, and what it keeps: collections of
//! garbage, outputs that are there already, processes that were left running, substituters.
//! Skipped, and said so, where there is no Guix to start.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/private_guix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_guix;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/wait.rs"]
mod wait;

use private_guix::PrivateGuix;
use processes::{Farm, until_some_build_is};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    time::Duration,
};
use steading::{
    builders::{self, BuildOrder, Builder, BuilderError, BuilderKind, Substituters},
    core::{
        outcome::{BuildFailure, Outcome, SetupFailure},
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    formats::{
        narinfo::{self, guix::NarFile},
        signature::guix::GuixSecretKey,
    },
};
use tempfile::TempDir;

/// Starts a Guix, or ends the test with the reason why there is none.
macro_rules! guix_or_skip {
    () => {
        guix_or_skip!(start)
    };
    ($start:ident) => {
        match PrivateGuix::$start() {
            Ok(guix) => guix,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

fn connect(guix: &PrivateGuix) -> Box<dyn Builder> {
    let socket = guix.socket();
    builders::open(BuilderKind::Guix { socket, store_dir: StoreDir::guix() }).unwrap()
}

/// Builds a derivation like an attempt does: inputs are rooted first.
fn build(
    guix: &PrivateGuix,
    builder: &mut dyn Builder,
    drv_path: &StorePath,
    timeout: Option<Duration>,
    log: &mut dyn FnMut(&[u8]),
) -> (Outcome, Vec<StorePath>) {
    let derivation = guix.derivation(drv_path);
    let mut input_paths = derivation.closure_references();
    for (path, names) in &derivation.input_derivations {
        let outputs = guix.derivation(path).outputs.into_iter();
        input_paths.extend(outputs.filter(|o| names.contains(&o.name)).map(|o| o.path));
    }
    builder.root(&input_paths).unwrap();
    let order = BuildOrder {
        drv_path,
        derivation: &derivation,
        input_paths: &input_paths,
        timeout,
        max_silent: None,
        cores: 1,
    };
    let outcome = builder.build(&order, log).unwrap();
    (outcome, derivation.outputs.iter().map(|output| output.path.clone()).collect())
}

/// Makes derivations, builds them all, and lets go of them.
fn built(guix: &PrivateGuix, program: &str) -> Vec<StorePath> {
    let mut outputs = Vec::new();
    for drv in guix.derivations(program) {
        let (outcome, paths) = build(guix, connect(guix).as_mut(), &drv, None, &mut |_| {});
        assert_eq!(outcome, Outcome::Built);
        outputs.extend(paths);
    }
    outputs
}

/// A FIFO that builds of any user may use.
struct Fifo {
    path: PathBuf,
    _dir: TempDir,
}

impl Fifo {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let path = dir.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        for (place, mode) in [(dir.path(), 0o755), (&*path, 0o666)] {
            fs_err::set_permissions(place, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Self { path, _dir: dir }
    }

    /// Reads what a process says with it, and then tells when all that had it are gone.
    fn listen(&self) -> mpsc::Receiver<String> {
        let (said, heard) = mpsc::channel();
        let path = self.path.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(fs_err::File::open(path).unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            said.send(line).unwrap();
            reader.read_to_end(&mut Vec::new()).unwrap();
            said.send("gone".to_owned()).ok();
        });
        heard
    }
}

const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_collection_takes_nothing_from_a_build_that_runs_or_is_being_packed() {
    let guix = guix_or_skip!();
    let fifo = Fifo::new();
    let drvs = guix.derivations(&format!(
        r#"
(define input (say (make "input" "echo content > $out")))
(say (make "other" "echo other > $out"))
(say (make "user" "echo begun; read go < {}; busybox cat $input > $out"
           #:inputs (list (list input))
           #:env `(("input" . ,(derivation->output-path input)))))"#,
        fifo.path.display()
    ));
    let [input, other] = [&drvs[0], &drvs[1]].map(|drv| {
        let (outcome, outputs) = build(&guix, connect(&guix).as_mut(), drv, None, &mut |_| {});
        assert_eq!(outcome, Outcome::Built);
        outputs
    });
    let mut attempt = connect(&guix);
    let mut freed = None;
    let (outcome, output) = build(&guix, attempt.as_mut(), &drvs[2], None, &mut |bytes| {
        if bytes == b"begun\n" {
            let mut collector = connect(&guix);
            // The daemon lets go of what other connections had rooted when it notices their end.
            wait::until("what nobody needs is collected", || {
                freed = Some(collector.collect(u64::MAX).unwrap());
                collector.valid(&other).unwrap().is_empty()
            });
            // The input, and the derivations that the build was asked for by.
            assert_eq!(collector.valid(&input).unwrap().len(), 1);
            assert_eq!(collector.valid(&[drvs[0].clone(), drvs[2].clone()]).unwrap().len(), 2);
            fs_err::write(&fifo.path, "go\n").unwrap();
        }
    });
    assert_eq!(outcome, Outcome::Built);
    assert!(freed.is_some());

    connect(&guix).collect(u64::MAX).unwrap();
    let mut nar = Vec::new();
    attempt.dump(&output[0], &mut nar).unwrap();
    assert!(nar.windows(8).any(|part| part == b"content\n"));

    drop(attempt);
    let mut collector = connect(&guix);
    wait::until("a packed output is garbage like any other", || {
        collector.collect(u64::MAX).unwrap();
        collector.valid(&output).unwrap().is_empty()
    });
}

#[test]
fn a_collection_frees_about_what_was_asked_for() {
    let guix = guix_or_skip!();
    // Of files that are alike the daemon keeps one, which is free only with the last.
    let outputs = built(
        &guix,
        r#"(for-each (lambda (name)
             (say (make name "busybox dd if=/dev/urandom of=$out bs=1048576 count=2")))
           '("one" "two" "three" "four" "five"))"#,
    );
    let mut collector = connect(&guix);
    wait::until("enough is collected", || collector.collect(1 << 20).unwrap() >= 1 << 20);
    let left = collector.valid(&outputs).unwrap().len();
    assert!(left >= 1, "all was collected, which was not asked for");
}

#[test]
fn a_rooted_output_is_present_and_another_one_is_deleted() {
    let guix = guix_or_skip!();
    let outputs = built(&guix, r#"(say (make "kept" "echo x > $out"))"#);
    let root = guix.outside("/var/guix/gcroots/kept");
    std::os::unix::fs::symlink(outputs[0].to_string(), &root).unwrap();
    let error = connect(&guix).remove(&outputs).unwrap_err();
    assert!(
        matches!(&error, BuilderError::OutputsPresent { path, .. } if *path == outputs[0]),
        "{error}"
    );
    fs_err::remove_file(root).unwrap();
    let mut builder = connect(&guix);
    wait::until("nothing uses it any more", || builder.remove(&outputs).is_ok());
    assert!(builder.valid(&outputs).unwrap().is_empty());
}

/// Leaves a process behind in a session of its own, which holds the FIFO until it dies.
fn leaves_a_process_behind(fifo: &Fifo) -> String {
    format!(
        r#"(say (make "orphan" "busybox setsid busybox sh -c 'exec 3>{0}; echo here >&3; busybox sleep 100000' & echo begun; busybox sleep 100000"))"#,
        fifo.path.display()
    )
}

#[test]
fn a_time_limit_ends_what_left_the_session_of_its_build_too() {
    let guix = guix_or_skip!(start_with_build_users);
    let fifo = Fifo::new();
    let heard = fifo.listen();
    let drv = guix.derivations(&leaves_a_process_behind(&fifo)).remove(0);
    let limit = Some(Duration::from_secs(2));
    let mut log = Vec::new();
    let (outcome, _) = build(&guix, connect(&guix).as_mut(), &drv, limit, &mut |bytes| {
        log.write_all(bytes).unwrap();
    });
    assert_eq!(outcome, Outcome::Failed(BuildFailure::Timeout), "{}", log.escape_ascii());
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "here\n");
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "gone");
}

#[test]
fn a_canceled_build_leaves_no_process_behind() {
    let guix = guix_or_skip!(start_with_build_users);
    let fifo = Fifo::new();
    let heard = fifo.listen();
    let mut farm = Farm::start();
    farm.start_guix_agent("amber", &guix.socket());
    let id = submit(&farm, &guix, &leaves_a_process_behind(&fifo));
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "here\n");
    assert!(farm.run(&format!("cancel {id}")).status.success());
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "gone");
}

#[test]
fn a_daemon_that_dies_fails_no_build() {
    let mut guix = guix_or_skip!();
    let program = r#"(say (make "doomed" "echo started; busybox sleep 1000"))"#;
    let drv = guix.derivations(program).remove(0);
    let mut builder = connect(&guix);
    let derivation = guix.derivation(&drv);
    let order = BuildOrder {
        drv_path: &drv,
        derivation: &derivation,
        input_paths: &[],
        timeout: None,
        max_silent: None,
        cores: 1,
    };
    // The log shows that the builder runs; from then on nothing but the daemon's end is awaited.
    let outcome = builder.build(&order, &mut |_| guix.kill()).unwrap();
    assert!(
        matches!(outcome, Outcome::SetupFailed(SetupFailure::DaemonUnreachable(_))),
        "{outcome:?}"
    );
    assert!(builder.valid(&[]).unwrap_err().is_lost());
}

#[test]
fn substituters_are_those_of_the_agent_and_different_for_derivations() {
    let (guix, bare) = (guix_or_skip!(), guix_or_skip!());
    let drvs = guix.derivations(r#"(say (make "far" "echo far > $out"))"#);
    let (outcome, outputs) = build(&guix, connect(&guix).as_mut(), &drvs[0], None, &mut |_| {});
    assert_eq!(outcome, Outcome::Built);
    let both = [outputs[0].clone(), drvs[0].clone()];
    let key = GuixSecretKey::generate([6; 32]);
    let cache = publish(&guix, &key, &both);
    bare.authorize(&[key.public().to_text()]);
    let (none, some) = (|| Some(Vec::new()), || Some(vec![format!("file://{}", cache.display())]));
    let mut builder = connect(&bare);
    builder.root(&both).unwrap();

    builder.substitute(&both, &Substituters::default()).unwrap();
    assert!(builder.valid(&both).unwrap().is_empty());
    builder.substitute(&both, &Substituters { derivations: some(), others: none() }).unwrap();
    assert_eq!(builder.valid(&both).unwrap().into_iter().collect::<Vec<_>>(), [drvs[0].clone()]);
    builder.substitute(&both, &Substituters { derivations: none(), others: some() }).unwrap();
    assert_eq!(builder.valid(&both).unwrap().len(), 2);
}

/// Writes a substituter with the closure of these paths, signed by this key. Returns its directory.
fn publish(guix: &PrivateGuix, key: &GuixSecretKey, paths: &[StorePath]) -> PathBuf {
    let cache = guix.outside("/var/guix/home/cache");
    fs_err::create_dir(&cache).unwrap();
    fs_err::write(cache.join("nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    for (trailer, nar) in guix.export(paths) {
        let url = format!("{}.nar", trailer.path.hash().base32());
        let mut info = PathInfo {
            path: trailer.path,
            nar_hash: trailer.nar_hash,
            nar_bytes: trailer.nar_bytes,
            references: trailer.references,
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
        };
        info.signatures = vec![key.sign_narinfo("test", &narinfo::guix::facts(&info).unwrap())];
        fs_err::write(cache.join(&url), &nar).unwrap();
        let compression = "none".to_owned();
        let files = [NarFile { url, compression, file_bytes: info.nar_bytes }];
        let name = format!("{}.narinfo", info.path.hash().base32());
        fs_err::write(cache.join(name), narinfo::guix::text(&info, &files).unwrap()).unwrap();
    }
    cache
}

/// Submits the derivation that a program makes, and returns its build.
fn submit(farm: &Farm, guix: &PrivateGuix, program: &str) -> String {
    let drvs = guix.derivations(program);
    let verb = format!("submit --closure {}", drvs[0]);
    let submitted = processes::feed(&farm.ssh_words(), &verb, &guix.export_stream(&drvs));
    assert!(submitted.status.success(), "{}", submitted.stderr.escape_ascii());
    String::from_utf8(submitted.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn what_waits_for_its_upload_survives_a_collection() {
    let guix = guix_or_skip!();
    let fifo = Fifo::new();
    let mut farm = Farm::start();
    farm.start_guix_agent("amber", &guix.socket());
    let program = format!(
        r#"(say (make "late" "echo begun; read line < {}; echo $line > $out"))"#,
        fifo.path.display()
    );
    let id = submit(&farm, &guix, &program);
    until_some_build_is(&farm, "building");
    farm.kill_coordinator();
    fs_err::write(&fifo.path, "content\n").unwrap();
    wait::until("the outputs are packed", || !farm.packed("amber").is_empty());
    let drv = guix.derivations(&program).remove(0);
    let output = guix.derivation(&drv).outputs[0].path.clone();
    let mut collector = connect(&guix);
    wait::until("the output is collected", || {
        collector.collect(u64::MAX).unwrap();
        collector.valid(std::slice::from_ref(&output)).unwrap().is_empty()
    });
    farm.restart_coordinator();
    let waited = farm.run(&format!("wait {id}"));
    assert!(waited.status.success(), "{}", waited.stdout.escape_ascii());
    let nar = farm.run(&format!("nar {output}")).stdout;
    assert!(nar.windows(8).any(|part| part == b"content\n"), "{}", nar.escape_ascii());
}

#[test]
fn without_a_daemon_an_attempt_says_so() {
    let guix = guix_or_skip!();
    let mut farm = Farm::start();
    farm.start_guix_agent("amber", Path::new("/nonexistent"));
    let id = submit(&farm, &guix, r#"(say (make "nobody" "echo x > $out"))"#);
    wait::until("the attempt ended", || {
        let shown = &farm.objects(&format!("show {id}"))[0];
        let attempts = shown["attempts"].as_array().unwrap();
        attempts.iter().any(|attempt| attempt["end"] == "daemon-unreachable")
    });
}

#[test]
fn an_input_that_a_machine_does_not_believe_is_a_setup_failure_that_says_what_to_do() {
    let (amber, birch) = (guix_or_skip!(), guix_or_skip!());
    let mut farm = Farm::start();
    farm.start_guix_agent("amber", &amber.socket());
    let program = r#"
(define below (make "below" "echo $out > $out"))
(say (make "above" "busybox cat $below > $out" #:inputs (list (list below))
           #:env `(("below" . ,(derivation->output-path below)))))"#;
    // The machine that built the input has it and needs nobody's word for it.
    let id = submit(&farm, &amber, program);
    assert!(farm.run(&format!("wait {id}")).status.success());
    farm.stop_agent("amber");
    farm.start_guix_agent("birch", &birch.socket());
    let again = program.replace(r#""above""#, r#""again""#);
    let id = submit(&farm, &amber, &again);
    wait::until("the attempt ended", || {
        let shown = &farm.objects(&format!("show {id}"))[0];
        let attempts = shown["attempts"].as_array().unwrap();
        attempts.iter().any(|attempt| {
            attempt["end"] == "setup-refused" && attempt.to_string().contains("agent doctor")
        })
    });
    // As soon as it believes the farm, it builds.
    birch.authorize(&[farm.run_file("signing-guix.pub")]);
    let waited = farm.run(&format!("wait {id}"));
    assert!(waited.status.success(), "{}", waited.stdout.escape_ascii());
}
