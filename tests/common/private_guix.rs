//! A Guix of a test's own: Debian sid's, with a store and a daemon that nobody else sees.
//!
//! The daemon runs in a mount, a process and a network namespace. Its root is a directory that
//! `tests/common/make_guix_root` makes once and all tests share read-only; store, state, log and
//! configuration are in a temporary directory and are reached from outside through it. The
//! machine's `/gnu` and `/etc/guix`, if there are any, are not touched, and nothing inside reaches
//! a network. Everything ends with the value.

use crate::wait;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsStr,
    fmt::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};
use steading::{
    core::{derivation::Derivation, store_path::StorePath},
    formats::{
        export::{
            ExportLimits, ExportReader, ExportSink, ExportTrailer, entry_begin, entry_trailer,
            stream_end,
        },
        nar::NarLimits,
    },
};
use tempfile::TempDir;

/// What the nars of tests may ask.
pub(crate) const NAR_LIMITS: NarLimits =
    NarLimits { bytes_max: 1 << 30, entries_max: 100_000, depth_max: 100 };
/// Mounts everything and runs a command there.
const ENTER: &str = include_str!("enter_guix");
/// The namespaces of everything inside.
const NAMESPACES: [&str; 3] = ["--net", "--mount", "--pid"];
/// The directories of a machine's own, below its temporary directory.
const OWN: [&str; 7] = [
    "root",
    "gnu/store",
    "var/guix/home",
    "var/guix/tmp",
    "var/guix/substitute/cache",
    "var/log/guix",
    "etc/guix",
];
/// Who builds on machines with build users, and their group.
const BUILD_USERS: [&str; 2] = ["guixbuilder1", "guixbuilder2"];
const BUILD_GROUP: &str = "guixbuild";
/// What the derivations of tests are made with: `(make NAME SCRIPT)` and more keywords of
/// Guix's `derivation`, over a static busybox, because Guix's own packages would have to be built.
const PRELUDE: &str = r#"
(use-modules (guix) (guix derivations) (srfi srfi-1) (ice-9 format))
(define store (open-connection))
(define busybox
  (let ((dir (mkdtemp "/var/guix/tmp/busybox-XXXXXX")))
    (mkdir (string-append dir "/bin"))
    (copy-file "/bin/busybox" (string-append dir "/bin/busybox"))
    (chmod (string-append dir "/bin/busybox") #o555)
    (add-to-store store "busybox" #t "sha256" dir)))
(define* (make name script #:key (inputs '()) (sources '()) (env '())
               (outputs '("out")) hash hash-algo recursive?)
  (derivation store name (string-append busybox "/bin/busybox")
              (list "sh" "-c" (string-append
                               "PATH=" busybox "/bin; bb() { busybox \"$@\"; }; " script))
              #:system "x86_64-linux" #:inputs inputs #:sources (cons busybox sources)
              #:env-vars env #:outputs outputs
              #:hash hash #:hash-algo hash-algo #:recursive? recursive?))
(define (say drv) (display (derivation-file-name drv)) (newline) drv)
"#;

/// The running daemon.
pub(crate) struct PrivateGuix {
    own: TempDir,
    daemon: Child,
}

impl PrivateGuix {
    /// Starts a daemon, or says why there can be none here. Its builds run as root: what they leave
    /// behind outside their process groups stays.
    pub(crate) fn start() -> Result<Self, String> {
        Self::start_as(&[], Zstd::AsItComes)
    }

    /// Starts a daemon whose programs know no zstd.
    pub(crate) fn start_without_zstd() -> Result<Self, String> {
        Self::start_as(&[], Zstd::Absent)
    }

    /// Starts a daemon with users of its own for builds, who are in no other process namespace, so
    /// that daemons do not kill each other's processes.
    pub(crate) fn start_with_build_users() -> Result<Self, String> {
        Self::start_as(&BUILD_USERS, Zstd::AsItComes)
    }

    fn start_as(build_users: &[&str], zstd: Zstd) -> Result<Self, String> {
        let base = base()?;
        // The path of a Unix socket has at most 107 bytes, so the directory must be a short one.
        let own = tempfile::Builder::new().prefix("guix").tempdir_in("/tmp").unwrap();
        for place in OWN {
            fs_err::create_dir_all(own.path().join(place)).unwrap();
        }
        let mut options = vec!["--disable-chroot".to_owned(), "--substitute-urls=".to_owned()];
        if !build_users.is_empty() {
            write_users(base, own.path(), build_users);
            options.push(format!("--build-users-group={BUILD_GROUP}"));
        }
        match zstd {
            Zstd::Absent => write_absent(own.path()),
            Zstd::AsItComes => {}
        }
        let possible = enter(own.path(), "true").output().unwrap();
        if !possible.status.success() {
            let reason = possible.stderr.escape_ascii();
            return Err(format!("no private Guix can be mounted: {reason}"));
        }
        let log = fs_err::File::create(own.path().join("var/log/guix/daemon.log")).unwrap();
        // Its builds are confined by the namespaces that the daemon itself is in.
        let daemon = enter(own.path(), "guix-daemon")
            .args(options)
            .stdout(Stdio::null())
            .stderr(log.into_parts().0)
            .spawn()
            .unwrap();
        let guix = Self { own, daemon };
        let socket = guix.socket();
        wait::until("guix-daemon listens", || UnixStream::connect(&socket).is_ok());
        Ok(guix)
    }

    /// Returns the socket, as seen from outside.
    pub(crate) fn socket(&self) -> PathBuf {
        self.own.path().join("var/guix/daemon-socket/socket")
    }

    /// Returns where a file of the machine's own is, as seen from outside: a path of the store,
    /// and what is in `/var/guix`, `/var/log/guix` and `/etc/guix`.
    pub(crate) fn outside(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.own.path().join(inside.as_ref().strip_prefix("/").unwrap())
    }

    /// Returns a command that sees the private store and talks to the daemon.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        enter(self.own.path(), program)
    }

    /// Runs a program in Scheme and returns what it prints.
    pub(crate) fn scheme(&self, program: &str) -> String {
        let file = tempfile::Builder::new()
            .suffix(".scm")
            .tempfile_in(self.outside("/var/guix/tmp"))
            .unwrap();
        fs_err::write(file.path(), program).unwrap();
        let inside = Path::new("/var/guix/tmp").join(file.path().file_name().unwrap());
        let output = self.command("guix").args(["repl", "--"]).arg(inside).output().unwrap();
        assert!(output.status.success(), "{program}\n{}", output.stderr.escape_ascii());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes derivations in the store and returns those that the program says, in its order:
    /// `(say (make "name" "echo content > $out"))`.
    pub(crate) fn derivations(&self, program: &str) -> Vec<StorePath> {
        let said = self.scheme(&format!("{PRELUDE}{program}"));
        said.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Reads a derivation of the store.
    pub(crate) fn derivation(&self, path: &StorePath) -> Derivation<'static> {
        let file = self.outside(path.to_string());
        Derivation::parse(&fs_err::read(file).unwrap()).unwrap().into_owned()
    }

    /// Tells whether a path is valid. Its file alone says nothing: what was refused may lie there.
    pub(crate) fn has(&self, path: &StorePath) -> bool {
        let said = self.scheme(&format!(
            "(use-modules (guix)) (display (valid-path? (open-connection) \"{path}\"))"
        ));
        said == "#t"
    }

    /// Returns the closure of paths with their nars, references first.
    pub(crate) fn export(&self, paths: &[StorePath]) -> Vec<(ExportTrailer, Vec<u8>)> {
        let mut entries = Entries::default();
        let mut reader = ExportReader::new(ExportLimits { nar: NAR_LIMITS, entries_max: 100 });
        reader.feed(&self.export_stream(paths), &mut entries).unwrap();
        reader.finish::<()>().unwrap();
        entries.whole
    }

    /// Returns the closure of paths as an export stream without signatures.
    pub(crate) fn export_stream(&self, paths: &[StorePath]) -> Vec<u8> {
        let quoted: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
        let file = "/var/guix/tmp/export";
        self.scheme(&format!(
            "(use-modules (guix))
             (define store (open-connection))
             (call-with-output-file \"{file}\"
               (lambda (port)
                 (export-paths store (list {}) port #:sign? #f #:recursive? #t)))",
            quoted.join(" ")
        ));
        fs_err::read(self.outside(file)).unwrap()
    }

    /// Makes these public keys, in Guix's own text form, the only ones that are believed, and
    /// forgets what was learned of substitutes.
    pub(crate) fn authorize(&self, keys: &[String]) {
        let entry = |key: &String| format!("(entry {key} (tag (guix import)))");
        let entries = keys.iter().map(entry).collect::<Vec<_>>().join("\n");
        fs_err::write(self.outside("/etc/guix/acl"), format!("(acl {entries})")).unwrap();
        let cache = self.outside("/var/guix/substitute/cache");
        fs_err::remove_dir_all(&cache).unwrap();
        fs_err::create_dir(&cache).unwrap();
    }

    /// Starts the daemon again, with these variables, so that it and its children reach what
    /// listens on this machine.
    pub(crate) fn restart_before_farm(&mut self, environment: &[(&str, PathBuf)]) {
        self.kill();
        let log = fs_err::File::create(self.outside("/var/log/guix/daemon.log")).unwrap();
        let own = self.own.path();
        self.daemon = enter_with(&NAMESPACES[1..], own, "guix-daemon")
            .args(["--disable-chroot", "--substitute-urls="])
            .envs(environment.iter().cloned())
            .stdout(Stdio::null())
            .stderr(log.into_parts().0)
            .spawn()
            .unwrap();
        let socket = self.socket();
        wait::until("guix-daemon listens again", || UnixStream::connect(&socket).is_ok());
    }

    /// Kills the daemon and everything it started; without effect when that is done.
    pub(crate) fn kill(&mut self) {
        if self.daemon.try_wait().unwrap().is_some() {
            return;
        }
        // The child of `unshare` is the first process of the namespace and takes all others along;
        // `unshare` itself then ends after it, and leaves no zombie.
        let unshare = self.daemon.id();
        let children = format!("/proc/{unshare}/task/{unshare}/children");
        let children = fs_err::read_to_string(children).unwrap();
        let first = children.split_whitespace().find_map(|id| Pid::from_raw(id.parse().ok()?));
        if let Some(first) = first {
            kill_process(first, Signal::KILL).unwrap();
        }
        self.daemon.wait().unwrap();
    }
}

impl Drop for PrivateGuix {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a machine has Guile's module for zstd, as far as the common root has it.
#[derive(Clone, Copy)]
enum Zstd {
    AsItComes,
    Absent,
}

/// Writes what stands for modules that a machine lacks.
fn write_absent(own: &Path) {
    let absent = own.join("absent");
    fs_err::create_dir(&absent).unwrap();
    for name in ["zstd", "zstd.scm", "zstd.go"] {
        let whiteout = Command::new("mknod").arg(absent.join(name)).args(["c", "0", "0"]).status();
        assert!(whiteout.unwrap().success());
    }
}

/// Writes the users and groups of a machine: those of the common root, and some more.
fn write_users(base: &Path, own: &Path, users: &[&str]) {
    const FIRST_ID: u32 = 30_001;
    let read = |name: &str| fs_err::read_to_string(base.join("etc").join(name)).unwrap();
    let (mut passwd, mut group) = (read("passwd"), read("group"));
    for (id, user) in (FIRST_ID..).zip(users) {
        writeln!(passwd, "{user}:x:{id}:{FIRST_ID}::/nonexistent:/usr/sbin/nologin").unwrap();
    }
    writeln!(group, "{BUILD_GROUP}:x:{FIRST_ID}:{}", users.join(",")).unwrap();
    fs_err::write(own.join("passwd"), passwd).unwrap();
    fs_err::write(own.join("group"), group).unwrap();
}

/// Makes an export stream without signatures of what [`PrivateGuix::export`] returns.
pub(crate) fn stream(entries: impl IntoIterator<Item = (ExportTrailer, Vec<u8>)>) -> Vec<u8> {
    let mut stream = Vec::new();
    for (ExportTrailer { path, references, deriver, .. }, nar) in entries {
        stream.extend(entry_begin());
        stream.extend(nar);
        stream.extend(entry_trailer(&path, &references, deriver.as_ref()));
    }
    stream.extend(stream_end());
    stream
}

/// What an export stream had in it.
#[derive(Default)]
struct Entries {
    nar: Vec<u8>,
    whole: Vec<(ExportTrailer, Vec<u8>)>,
}

impl ExportSink for Entries {
    type Error = ();
    fn entry_begin(&mut self) -> Result<(), ()> {
        self.nar.clear();
        Ok(())
    }
    fn nar(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.nar.extend_from_slice(bytes);
        Ok(())
    }
    fn entry_end(&mut self, trailer: ExportTrailer) -> Result<(), ()> {
        self.whole.push((trailer, std::mem::take(&mut self.nar)));
        Ok(())
    }
}

/// Writes a program to `file` that runs another in a root with an empty store, which is in a new
/// directory `own`; processes, network and `/tmp` are those of this machine.
pub(crate) fn write_entrance(file: &Path, own: &Path, program: &Path) {
    for place in OWN {
        fs_err::create_dir_all(own.join(place)).unwrap();
    }
    let quoted = |text: &str| shell_words::quote(text).into_owned();
    let shown = |path: &Path| quoted(path.to_str().unwrap());
    let (base, own, program) = (shown(base().unwrap()), shown(own), shown(program));
    let enter = quoted(ENTER);
    let text = format!(
        "#!/bin/sh\nexec unshare --mount -- sh -c {enter} enter {base} {own} {program} \"$@\"\n"
    );
    fs_err::write(file, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs_err::set_permissions(file, mode).unwrap();
}

/// Returns the root directory with Guix, made when it is not there; or why it cannot be.
pub(crate) fn base() -> Result<&'static Path, String> {
    static BASE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = BASE.get_or_init(|| {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guix-root");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/make_guix_root");
        let output = Command::new(script).arg(&base).stdin(Stdio::null()).output().unwrap();
        if output.status.success() {
            return Ok(base);
        }
        let words = output.stderr.trim_ascii_end().escape_ascii().to_string();
        Err(words.rsplit("\\n").next().unwrap_or_default().to_owned())
    });
    made.as_deref().map_err(Clone::clone)
}

/// Returns a command that runs `program` in the private Guix that has `own` as its directory.
fn enter(own: &Path, program: impl AsRef<OsStr>) -> Command {
    enter_with(&NAMESPACES, own, program)
}

fn enter_with(namespaces: &[&str], own: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .args(["--fork", "--kill-child", "--mount-proc", "--"])
        .args(["sh", "-c", ENTER, "enter"])
        .arg(base().unwrap())
        .arg(own)
        .arg(program)
        .stdin(Stdio::null())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/var/guix/home")
        .env("TMPDIR", "/var/guix/tmp")
        .env("LC_ALL", "C.UTF-8");
    command
}
