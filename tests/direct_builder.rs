//! Builds with the embedded executor: real processes, in namespaces where the kernel grants them.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/wait.rs"]
mod wait;

use std::{
    collections::BTreeSet,
    env,
    fs::Permissions,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use steading::{
    builders::{self, BuildOrder, Builder, BuilderError, BuilderKind, direct::Place},
    core::{
        derivation::{Derivation, Output},
        hash::Sha256,
        outcome::{BuildFailure, Outcome, SetupFailure},
        path_info::PathInfo,
        store_path::{PathHash, StoreDir, StorePath},
    },
};
use tempfile::TempDir;

/// The longest limit that a build is given to show that it has one.
const LIMIT_MAX: Duration = Duration::from_mins(1);

/// Ends a test that is about isolation where the kernel grants no namespaces, as in a chroot or in
/// many containers, and says so.
macro_rules! namespaces_or_skip {
    () => {
        let granted = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "true"])
            .stdin(Stdio::null())
            .output();
        match granted {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                println!("skipped: no namespaces: {}", output.stderr.escape_ascii());
                return;
            }
            Err(error) => {
                println!("skipped: no namespaces: unshare cannot be run: {error}");
                return;
            }
        }
    };
}

/// A store of its own, and the builder that works in it.
struct World {
    dir: TempDir,
    store_dir: StoreDir,
    physical_dir: PathBuf,
    place: Place,
    builder: Box<dyn Builder>,
}

/// What one build was.
struct Built {
    outcome: Outcome,
    log: String,
}

impl World {
    /// A store whose files are where its paths say.
    fn new() -> Self {
        Self::with("store", "store")
    }

    /// A store whose files are elsewhere.
    fn mounted() -> Self {
        Self::with("logical", "physical")
    }

    /// A store like [`World::new`] or [`World::mounted`], on a kernel that grants no namespaces.
    fn without_namespaces(logical: &str, physical: &str) -> Self {
        let mut world = Self::with(logical, physical);
        // In a user namespace whose own limit is zero, nobody gets another.
        let program = world.dir.path().join("steading");
        let text = format!(
            "#!/bin/sh\nexec /usr/bin/unshare --user --map-root-user /bin/sh -c \
             'echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"' sh {} \"$@\"\n",
            env!("CARGO_BIN_EXE_steading")
        );
        fs_err::write(&program, text).unwrap();
        fs_err::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        world.open(program);
        world
    }

    fn with(logical: &str, physical: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store_dir: StoreDir = dir.path().join(logical).to_str().unwrap().parse().unwrap();
        let physical_dir = dir.path().join(physical);
        let place = Place {
            store_dir: store_dir.clone(),
            physical_dir: physical_dir.clone(),
            shared: vec![dir.path().join("shared")],
            state_dir: dir.path().join("state"),
            program: env!("CARGO_BIN_EXE_steading").into(),
        };
        let builder = builders::open(BuilderKind::Direct(place.clone())).unwrap();
        Self { dir, store_dir, physical_dir, place, builder }
    }

    /// Opens the builder again, with another program around its builds.
    fn open(&mut self, program: PathBuf) {
        let place = Place { program, ..self.place.clone() };
        self.builder = builders::open(BuilderKind::Direct(place)).unwrap();
    }

    /// Returns a store path; equal names have equal paths.
    fn path(&self, name: &str) -> StorePath {
        self.store_dir.path(PathHash::fold(&Sha256::of(name.as_bytes())), name).unwrap()
    }

    /// Returns where the files of a path are.
    fn files(&self, path: &StorePath) -> PathBuf {
        self.physical_dir.join(path.base_name())
    }

    /// Returns a derivation that runs a script; its outputs are variables, as in Nix.
    fn derivation(&self, name: &str, script: &str, outputs: &[&str]) -> Derivation<'static> {
        let outputs: Vec<Output> = outputs
            .iter()
            .map(|output| Output {
                name: (*output).to_owned(),
                path: self.path(&format!("{name}-{output}")),
                hash_algorithm: String::new(),
                hash: String::new(),
            })
            .collect();
        let mut env: Vec<(String, String)> =
            outputs.iter().map(|o| (o.name.clone(), o.path.to_string())).collect();
        env.push(("PATH".to_owned(), "/usr/bin:/bin".to_owned()));
        env.sort();
        Derivation {
            outputs,
            input_derivations: Vec::new(),
            input_sources: Vec::new(),
            system: "x86_64-linux".to_owned(),
            builder: b"/bin/sh".to_vec().into(),
            arguments: vec![b"-c".to_vec().into(), script.as_bytes().to_vec().into()],
            env: env
                .into_iter()
                .map(|(name, value)| (name.into_bytes().into(), value.into_bytes().into()))
                .collect(),
        }
    }

    fn build(&mut self, derivation: &Derivation<'_>, inputs: &[StorePath]) -> Built {
        self.build_within(derivation, inputs, None, None)
    }

    fn build_within(
        &mut self,
        derivation: &Derivation<'_>,
        input_paths: &[StorePath],
        timeout: Option<Duration>,
        max_silent: Option<Duration>,
    ) -> Built {
        let drv_path = self.path("x.drv");
        let order = BuildOrder {
            drv_path: &drv_path,
            derivation,
            input_paths,
            timeout,
            max_silent,
            cores: 3,
        };
        let mut log = Vec::new();
        let outcome =
            self.builder.build(&order, &mut |bytes| log.extend_from_slice(bytes)).unwrap();
        Built { outcome, log: String::from_utf8(log).unwrap() }
    }

    /// Builds a script with the output `out`.
    fn run(&mut self, name: &str, script: &str) -> Built {
        let derivation = self.derivation(name, script, &["out"]);
        self.build(&derivation, &[])
    }

    fn info(&mut self, path: &StorePath) -> PathInfo {
        self.builder.path_info(path).unwrap().unwrap()
    }

    fn nar(&mut self, path: &StorePath) -> Vec<u8> {
        let mut nar = Vec::new();
        self.builder.dump(path, &mut nar).unwrap();
        nar
    }

    /// Asserts that a failed build left neither files nor records nor its directory.
    fn assert_nothing_left(&self) {
        for dir in [self.physical_dir.clone(), self.state("builds"), self.state("valid")] {
            let left: Vec<_> = fs_err::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
            assert_eq!(left, Vec::<PathBuf>::new(), "in {}", dir.display());
        }
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(name)
    }
}

/// Calls `attempt` with ever longer limits until what it returns shows that the builder had its turn
/// before the limit was over: one second is plenty, unless the machine is busy.
fn with_limits(
    mut attempt: impl FnMut(Duration) -> Built,
    had_its_turn: impl Fn(&Built) -> bool,
) -> Built {
    let mut limit = Duration::from_secs(1);
    loop {
        let built = attempt(limit);
        if had_its_turn(&built) || limit >= LIMIT_MAX {
            return built;
        }
        limit *= 2;
    }
}

/// Returns a number of seconds that no other run of the tests sleeps, to find its sleeper by.
fn seconds(digits: &str) -> String {
    format!("1000.{}{digits}", std::process::id())
}

/// Tells whether a process runs that has this text in its command line.
fn is_running(text: &str) -> bool {
    let processes = fs_err::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| fs_err::read(entry.ok()?.path().join("cmdline")).ok())
        .any(|line| line.windows(text.len()).any(|part| part == text.as_bytes()))
}

fn mode(path: &Path) -> u32 {
    fs_err::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_build_makes_its_outputs_valid_and_canonical() {
    namespaces_or_skip!();
    let mut world = World::new();
    let script = r"
        mkdir -p $out/bin; echo run > $out/bin/run; chmod 4755 $out/bin/run
        ln -s $doc $out/doc; mkdir $out/closed; chmod 0 $out/closed; echo doc > $doc";
    let derivation = world.derivation("tool", script, &["doc", "out"]);
    let built = world.build(&derivation, &[]);
    assert_eq!((built.outcome, built.log.as_str()), (Outcome::Built, ""));

    let (doc, out) = (world.path("tool-doc"), world.path("tool-out"));
    assert_eq!(world.info(&doc).references, []);
    let info = world.info(&out);
    assert_eq!(info.references, std::slice::from_ref(&doc));
    assert_eq!(info.deriver, Some(world.path("x.drv")));
    let nar = world.nar(&out);
    assert_eq!((Sha256::of(&nar), nar.len() as u64), (info.nar_hash, info.nar_bytes));

    let files = world.files(&out);
    assert_eq!(mode(&files.join("bin/run")), 0o555);
    assert_eq!(mode(&world.files(&doc)), 0o444);
    for dir in ["", "bin", "closed"] {
        assert_eq!(mode(&files.join(dir)), 0o555, "{dir}");
    }
    for file in ["", "bin/run", "doc", "closed"] {
        assert_eq!(fs_err::symlink_metadata(files.join(file)).unwrap().mtime(), 1, "{file}");
    }
}

#[test]
fn outputs_refer_to_inputs_of_inputs_and_to_themselves() {
    let mut world = World::new();
    assert_eq!(world.run("low", "echo low > $out").outcome, Outcome::Built);
    let low = world.path("low-out");
    let middle = world.derivation("middle", &format!("echo {low} > $out"), &["out"]);
    assert_eq!(world.build(&middle, std::slice::from_ref(&low)).outcome, Outcome::Built);
    let middle = world.path("middle-out");
    let high =
        world.derivation("high", &format!("cat {middle} > $out; echo $out >> $out"), &["out"]);
    assert_eq!(world.build(&high, std::slice::from_ref(&middle)).outcome, Outcome::Built);
    let high = world.path("high-out");
    let references: BTreeSet<_> = world.info(&high).references.into_iter().collect();
    assert_eq!(references, BTreeSet::from([high, low.clone()]));

    let error = world.builder.remove(&[low]).unwrap_err();
    assert!(matches!(error, BuilderError::OutputsPresent { .. }), "{error}");
}

#[test]
fn the_environment_is_the_derivations_and_nothing_of_the_machines() {
    namespaces_or_skip!();
    let mut world = World::new();
    let script = r"
        echo home $HOME cores $NIX_BUILD_CORES store $NIX_STORE; env | grep -c CARGO
        [ $PWD = $NIX_BUILD_TOP ] && [ $PWD = $TMPDIR ] && echo place; echo error >&2; echo x > $out";
    let built = world.run("env", script);
    let store = world.store_dir.clone();
    assert_eq!(
        built.log,
        format!("home /homeless-shelter cores 3 store {store}\n0\nplace\nerror\n")
    );
    assert_eq!(built.outcome, Outcome::Built);
}

#[test]
fn variables_can_come_as_files() {
    let mut world = World::new();
    let mut derivation = world.derivation("files", "cat $textPath > $out", &["out"]);
    derivation.env.push((b"passAsFile".to_vec().into(), b"text".to_vec().into()));
    derivation.env.push((b"text".to_vec().into(), b"long".to_vec().into()));
    derivation.env.sort();
    assert_eq!(world.build(&derivation, &[]).outcome, Outcome::Built);
    assert_eq!(fs_err::read(world.files(&world.path("files-out"))).unwrap(), b"long");
}

#[test]
fn failures_are_told_apart_and_leave_nothing() {
    namespaces_or_skip!();
    let mut world = World::new();
    let failed = world.run("exit", "echo part > $out; echo going; exit 3");
    assert_eq!(
        (failed.outcome, failed.log.as_str()),
        (Outcome::Failed(BuildFailure::Exit(3)), "going\n")
    );
    let killed = world.run("signal", "kill -9 $$");
    assert_eq!(killed.outcome, Outcome::Failed(BuildFailure::Signal(9)));
    let derivation = world.derivation("two", "echo x > $out", &["doc", "out"]);
    let outcome = world.build(&derivation, &[]).outcome;
    assert_eq!(outcome, Outcome::Failed(BuildFailure::NoOutput("doc".to_owned())));
    let socket = world.run("pipe", "mkdir $out; mkfifo $out/pipe");
    assert!(matches!(socket.outcome, Outcome::Failed(BuildFailure::OutputRejected(_))));
    let mut absent = world.derivation("absent", "", &["out"]);
    absent.builder = b"/does/not/exist".to_vec().into();
    let absent = world.build(&absent, &[]);
    assert_eq!(absent.outcome, Outcome::Failed(BuildFailure::Exit(1)));
    assert!(absent.log.contains("/does/not/exist"), "{}", absent.log);
    world.assert_nothing_left();
}

#[test]
fn a_build_over_its_time_is_killed_with_all_it_started() {
    namespaces_or_skip!();
    let mut world = World::new();
    let mark = &seconds("271");
    let script =
        format!("sleep {mark} & setsid sleep {mark} & while true; do echo here; sleep 0.1; done");
    let derivation = world.derivation("slow", &script, &["out"]);
    let built = with_limits(
        |limit| world.build_within(&derivation, &[], Some(limit), None),
        |built| built.log.contains("here\n"),
    );
    assert_eq!(built.outcome, Outcome::Failed(BuildFailure::Timeout));
    assert!(built.log.contains("here\n"));
    wait::until("everything that was started is gone", || !is_running(mark));
    world.assert_nothing_left();
}

#[test]
fn a_silent_build_is_killed() {
    namespaces_or_skip!();
    let mut world = World::new();
    let mark = seconds("272");
    let derivation = world.derivation("silent", &format!("echo once; sleep {mark}"), &["out"]);
    let built = with_limits(
        |limit| world.build_within(&derivation, &[], None, Some(limit)),
        |built| !built.log.is_empty(),
    );
    assert_eq!(built.outcome, Outcome::Failed(BuildFailure::Silent));
    assert_eq!(built.log, "once\n");
    wait::until("the builder is gone", || !is_running(&mark));
}

#[test]
fn what_a_build_leaves_running_does_not_keep_it_from_ending() {
    let mut world = World::new();
    let mark = seconds("273");
    let built = world.run("leaves", &format!("sleep {mark} & echo x > $out"));
    assert_eq!(built.outcome, Outcome::Built);
    wait::until("what it left is gone", || !is_running(&mark));
}

#[test]
fn fixed_outputs_are_held_to_their_hash() {
    let mut world = World::new();
    let mut derivation = world.derivation("fixed", "printf content > $out", &["out"]);
    derivation.outputs[0].hash_algorithm = "sha256".to_owned();
    derivation.outputs[0].hash = Sha256::of(b"other").hex();
    let expected = Sha256::of(b"other").to_string();
    let actual = Sha256::of(b"content").to_string();
    assert_eq!(
        world.build(&derivation, &[]).outcome,
        Outcome::Failed(BuildFailure::HashMismatch { expected, actual: actual.clone() })
    );
    world.assert_nothing_left();
    derivation.outputs[0].hash = Sha256::of(b"content").hex();
    assert_eq!(world.build(&derivation, &[]).outcome, Outcome::Built);
    let info = world.info(&derivation.outputs[0].path);
    assert_eq!(info.content_address, Some(format!("fixed:{actual}")));

    let mut nar = world.derivation("recursive", "mkdir $out; printf content > $out/file", &["out"]);
    nar.outputs[0].hash_algorithm = "r:sha256".to_owned();
    nar.outputs[0].hash = Sha256::of(b"").hex();
    let outcome = world.build(&nar, &[]).outcome;
    let Outcome::Failed(BuildFailure::HashMismatch { actual, .. }) = outcome else {
        panic!("{outcome:?}");
    };
    nar.outputs[0].hash = Sha256::parse(&actual).unwrap().hex();
    assert_eq!(world.build(&nar, &[]).outcome, Outcome::Built);
}

#[test]
fn forbidden_references_are_rejected() {
    let mut world = World::new();
    let mut derivation = world.derivation("own", "echo $out > $out", &["out"]);
    derivation.env.push((b"allowedReferences".to_vec().into(), b"".to_vec().into()));
    derivation.env.sort();
    let outcome = world.build(&derivation, &[]).outcome;
    assert!(matches!(outcome, Outcome::Failed(BuildFailure::OutputRejected(_))), "{outcome:?}");
}

#[test]
fn what_cannot_be_built_here_is_refused_before_it_starts() {
    let mut world = World::new();
    let mut builtin = world.derivation("fetch", "", &["out"]);
    builtin.builder = b"builtin:fetchurl".to_vec().into();
    let outcome = world.build(&builtin, &[]).outcome;
    assert!(matches!(outcome, Outcome::SetupFailed(SetupFailure::Refused(_))), "{outcome:?}");

    let (absent, plain) = (world.path("absent"), world.derivation("plain", "", &["out"]));
    let missing = SetupFailure::MissingInputs(vec![absent.clone()]);
    assert_eq!(world.build(&plain, &[absent]).outcome, Outcome::SetupFailed(missing));

    assert_eq!(world.run("there", "echo x > $out").outcome, Outcome::Built);
    let there = world.path("there-out");
    let present = SetupFailure::OutputsPresent(there.clone());
    assert_eq!(world.run("there", "echo x > $out").outcome, Outcome::SetupFailed(present));
    world.builder.remove(std::slice::from_ref(&there)).unwrap();
    assert!(!world.files(&there).exists());
    assert_eq!(world.run("there", "echo x > $out").outcome, Outcome::Built);
}

#[test]
fn a_nar_goes_from_one_store_into_another_and_is_built_with() {
    namespaces_or_skip!();
    let mut here = World::new();
    assert_eq!(
        here.run("tree", "mkdir $out; echo text > $out/file; ln -s file $out/link").outcome,
        Outcome::Built
    );
    let path = here.path("tree-out");
    let (mut info, nar) = (here.info(&path), here.nar(&path));

    let mut there = World::mounted();
    let path = there.path("tree-out");
    info.path = path.clone();
    info.deriver = None;
    let mut wrong = info.clone();
    wrong.nar_hash = Sha256::of(b"");
    let error = there.builder.import(&wrong, &mut nar.as_slice()).unwrap_err();
    assert!(matches!(error, BuilderError::NarMismatch { .. }), "{error}");
    assert!(there.builder.import(&info, &mut &nar[..nar.len() - 8]).is_err());
    there.assert_nothing_left();
    there.builder.import(&info, &mut nar.as_slice()).unwrap();
    there.builder.import(&info, &mut nar.as_slice()).unwrap();
    assert_eq!(
        there.builder.valid(&[path.clone(), there.path("other")]).unwrap(),
        BTreeSet::from([path.clone()])
    );
    assert_eq!((there.info(&path), there.nar(&path)), (info, nar));

    // The build sees the file where its path says, although it is elsewhere.
    let user = there.derivation("user", &format!("cat {path}/link > $out"), &["out"]);
    let built = there.build(&user, &[path]);
    assert_eq!((built.outcome, built.log.as_str()), (Outcome::Built, ""));
    assert_eq!(fs_err::read(there.files(&there.path("user-out"))).unwrap(), b"text\n");
}

#[test]
fn a_build_reaches_no_network_and_no_processes_of_the_machine() {
    namespaces_or_skip!();
    let mut world = World::mounted();
    let script =
        "cat /proc/net/dev | grep -vc 'lo:\\||'; ls /proc | grep -c '^[0-9]'; id -u; echo x > $out";
    let built = world.run("alone", script);
    assert_eq!(built.outcome, Outcome::Built, "{}", built.log);
    let lines: Vec<&str> = built.log.lines().collect();
    assert_eq!(lines[0], "0", "network devices besides the loopback");
    assert!(lines[1].parse::<u32>().unwrap() < 8, "{}", built.log);
    assert_eq!(lines[2], "1000");
}

#[test]
fn a_build_sees_its_inputs_only_and_cannot_change_them() {
    namespaces_or_skip!();
    for mut world in [World::new(), World::mounted()] {
        for (name, script) in [
            ("file", "echo in > $out"),
            ("tree", "mkdir $out; echo in > $out/file"),
            ("link", "ln -s nowhere $out"),
            ("other", "echo other > $out"),
        ] {
            assert_eq!(world.run(name, script).outcome, Outcome::Built);
        }
        let inputs = ["file-out", "tree-out", "link-out"].map(|name| world.path(name));
        let [file, tree, link] = &inputs;
        let other = world.path("other-out");
        let script = format!(
            "echo $(ls -A $NIX_STORE | wc -l); cat {file} {tree}/file; readlink {link}
             for attempt in 'echo x >> {file}' 'rm -f {tree}/file' 'chmod 777 {tree}' 'rm -rf {file}' \
                 'cat {other}'; do
                 (eval \"$attempt\") 2>/dev/null && echo \"possible: $attempt\"
             done; echo x > $out"
        );
        let derivation = world.derivation("user", &script, &["out"]);
        let built = world.build(&derivation, &inputs);
        assert_eq!(built.log, "3\nin\nin\nnowhere\n");
        assert_eq!(built.outcome, Outcome::Built);
        assert_eq!(fs_err::read_to_string(world.files(file)).unwrap(), "in\n");
        let left = fs_err::read_dir(&world.physical_dir).unwrap().count();
        assert_eq!(left, 5, "only the outputs of five builds");
    }
}

/// Tries to read a file beside the store and to write beside it and into `/tmp`, and says what of
/// that was possible.
fn reaching_out(world: &World) -> String {
    let (secret, beside) = (world.dir.path().join("secret"), world.dir.path().join("beside"));
    let shared = world.dir.path().join("shared");
    fs_err::create_dir(&shared).unwrap();
    fs_err::write(&secret, "s3cret").unwrap();
    format!(
        "cat {} 2>&1; touch {} 2>&1; touch {}/file; test -r /etc/passwd || echo no /etc
         echo x > $out",
        secret.display(),
        beside.display(),
        shared.display()
    )
}

#[test]
fn a_build_reaches_no_files_that_are_not_for_everybody() {
    namespaces_or_skip!();
    for mut world in [World::new(), World::without_namespaces("store", "store")] {
        let script = reaching_out(&world);
        let built = world.run("reaching", &script);
        assert_eq!(built.outcome, Outcome::Built, "{}", built.log);
        if built.log.contains("no landlock") {
            println!("skipped: the kernel has no landlock");
            return;
        }
        assert_eq!(built.log.matches("Permission denied").count(), 2, "{}", built.log);
        assert!(!built.log.contains("s3cret") && !built.log.contains("no /etc"), "{}", built.log);
        assert!(!world.dir.path().join("beside").exists());
        assert!(world.dir.path().join("shared/file").exists());
    }
}

#[test]
fn the_loopback_device_is_up() {
    let mut world = World::new();
    // The address has a route only while the device is up.
    let built = world.run("loopback", "grep -q 127.0.0.1 /proc/net/fib_trie && echo x > $out");
    assert_eq!(built.outcome, Outcome::Built, "{}", built.log);
}

#[test]
fn without_namespaces_a_build_runs_all_the_same() {
    namespaces_or_skip!();
    let mut world = World::without_namespaces("store", "store");
    let mark = seconds("274");
    let built = world.run("plain", &format!("sleep {mark} & setsid sleep {mark} & echo x > $out"));
    assert_eq!(built.outcome, Outcome::Built, "{}", built.log);
    assert!(built.log.contains("without isolation"), "{}", built.log);
    wait::until("everything that was started is gone", || !is_running(&mark));
    let script = format!("sleep {mark} & (setsid sleep {mark} &) & wait; sleep {mark}");
    let derivation = world.derivation("slow", &script, &["out"]);
    let built = world.build_within(&derivation, &[], Some(Duration::from_secs(1)), None);
    assert_eq!(built.outcome, Outcome::Failed(BuildFailure::Timeout), "{}", built.log);
    wait::until("everything that was started is gone", || !is_running(&mark));
}

#[test]
fn without_namespaces_a_store_elsewhere_is_refused() {
    namespaces_or_skip!();
    let mut world = World::without_namespaces("logical", "physical");
    let outcome = world.run("plain", "echo x > $out").outcome;
    assert!(
        matches!(&outcome, Outcome::SetupFailed(SetupFailure::Refused(reason))
            if reason.contains("cannot be mounted")),
        "{outcome:?}"
    );
    world.assert_nothing_left();
}

/// Set in the process that the test below starts.
const BUILD_UNTIL_KILLED: &str = "STEADING_TEST_BUILD_UNTIL_KILLED";

#[test]
fn a_process_around_a_build_whose_parent_has_died_starts_nothing() {
    for stage in ["enter", "begin-isolated", "begin-plain"] {
        // The parent would hold the other end of standard input open.
        let output = Command::new(env!("CARGO_BIN_EXE_steading"))
            .args(["direct-sandbox", stage, "/nonexistent"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        assert_eq!(output.stdout, b"refused the process that started this one has died\n");
    }
}

#[test]
fn ending_the_process_of_an_attempt_ends_its_build() {
    namespaces_or_skip!();
    let this = "ending_the_process_of_an_attempt_ends_its_build";
    if let Ok(mark) = env::var(BUILD_UNTIL_KILLED) {
        World::new().run("long", &format!("sleep {mark} & setsid sleep {mark} & wait"));
        return;
    }
    let mark = seconds("275");
    let place = tempfile::tempdir().unwrap();
    let mut attempt = Command::new(env::current_exe().unwrap())
        .args(["--exact", this])
        .env(BUILD_UNTIL_KILLED, &mark)
        .env("TMPDIR", place.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait::until("the build runs", || is_running(&format!("sleep\0{mark}")));
    attempt.kill().unwrap();
    attempt.wait().unwrap();
    wait::until("everything that was started is gone", || !is_running(&mark));

    // The directory of the build stays behind, until the next attempt here begins.
    let world = place.path().read_dir().unwrap().next().unwrap().unwrap().path();
    let builds = || world.join("state/builds").read_dir().unwrap().count();
    assert_eq!(builds(), 1);
    let store_dir: StoreDir = world.join("store").to_str().unwrap().parse().unwrap();
    let (physical_dir, state_dir) = (world.join("store"), world.join("state"));
    let program = env!("CARGO_BIN_EXE_steading").into();
    let next = Place { store_dir, physical_dir, shared: vec![], state_dir, program };
    builders::open(BuilderKind::Direct(next)).unwrap();
    assert_eq!(builds(), 0);
}
