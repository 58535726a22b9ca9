//! What packages install: manual pages, completions, units, the Debian package and the module for
//! NixOS, each looked at with the program that will read it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const STEADING: &str = env!("CARGO_BIN_EXE_steading");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[expect(clippy::print_stdout, reason = "whoever reads the results has to know")]
fn skipped(reason: &str) {
    println!("skipped: {reason}");
}

/// Returns whether a program is installed; says so where it is not.
fn have(program: &str) -> bool {
    let quiet = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if quiet.is_err() {
        skipped(&format!("there is no {program} in PATH"));
    }
    quiet.is_ok()
}

#[track_caller]
fn good(mut command: Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = format!("{}{}", output.stdout.escape_ascii(), output.stderr.escape_ascii());
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

/// Returns all files below a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs_err::read_dir(folder).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() { &mut open } else { &mut found }.push(entry.path());
        }
    }
    found.sort();
    found
}

fn manual() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(STEADING);
    command.arg("manual").arg(dir.path());
    good(command);
    dir
}

#[test]
fn man_reads_every_page_without_a_warning() {
    let dir = manual();
    let pages = files(&dir.path().join("man1"));
    assert!(pages.len() > 20, "{pages:?}");
    if !have("man") {
        return;
    }
    for page in pages {
        let mut command = Command::new("man");
        command.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).arg(&page);
        let output = good(command);
        assert!(output.stderr.is_empty(), "{page:?}: {}", output.stderr.escape_ascii());
        let mut command = Command::new("man");
        command.args(["-E", "UTF-8", "-l"]).arg(&page).env("MANPAGER", "cat");
        let text = String::from_utf8(good(command).stdout).unwrap();
        assert!(text.contains("NAME") && text.contains("SYNOPSIS"), "{page:?}: {text}");
    }
}

#[test]
fn shells_complete_parts_verbs_and_options() {
    let dir = manual();
    let bash = dir.path().join("bash/steading");
    let complete = |words: &str, place: usize| {
        let script = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={place}; _steading; echo \"${{COMPREPLY[*]}}\"",
            bash.display()
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script]);
        String::from_utf8(good(command).stdout).unwrap().trim().to_owned()
    };
    if have("bash") {
        assert_eq!(complete("steading sub", 1), "submit");
        assert_eq!(complete("steading submit --max", 2), "--max-silent");
        assert_eq!(complete("steading agents pa", 2), "pause");
        assert!(complete("steading agent --", 2).contains("--coordinator"));
    }
    for (shell, file) in [("zsh", "zsh/_steading"), ("fish", "fish/steading.fish")] {
        let file = dir.path().join(file);
        assert!(fs_err::read_to_string(&file).unwrap().contains("max-silent"));
        if have(shell) {
            let mut command = Command::new(shell);
            command.arg("-n").arg(&file);
            good(command);
        }
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !have("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for folder in ["contrib/systemd", "contrib/cron"] {
        for file in files(&root().join(folder)) {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            if ["service", "timer"].iter().any(|kind| file.extension() == Some(kind.as_ref())) {
                // The programs are where a package puts them, which is not here.
                let text = fs_err::read_to_string(&file).unwrap();
                let text = text.replace("/usr/local/bin/steading", "/bin/true");
                fs_err::write(dir.path().join(name), text).unwrap();
            }
        }
    }
    for unit in files(dir.path()) {
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no"]).arg(&unit);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let name = unit.file_name().unwrap().to_str().unwrap();
        let wrong: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

#[test]
fn the_debian_package_has_what_a_machine_needs() {
    if !have("dpkg-deb") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let build = |folder: &Path| {
        let mut command = Command::new(root().join("contrib/debian/build"));
        // A program for tests is large, and nobody waits for its compression.
        command.env("DPKG_DEB_COMPRESSOR_TYPE", "none").arg(STEADING).arg(folder);
        command
    };
    let said = String::from_utf8(good(build(dir.path())).stdout).unwrap();
    let package = PathBuf::from(said.lines().last().unwrap());
    let field = |name: &str| {
        let mut command = Command::new("dpkg-deb");
        command.arg("--field").arg(&package).arg(name);
        String::from_utf8(good(command).stdout).unwrap().trim().to_owned()
    };
    assert_eq!(field("Package"), "steading");
    assert_eq!(field("Version"), concat!(env!("CARGO_PKG_VERSION"), "-1"));
    let target = dir.path().join("root");
    let mut command = Command::new("dpkg-deb");
    command.arg("--raw-extract").arg(&package).arg(&target);
    good(command);
    for path in [
        "usr/bin/steading",
        "usr/bin/steading-cron",
        "usr/lib/systemd/system/steading-coordinator.service",
        "usr/lib/systemd/system/steading-agent.service",
        "usr/lib/sysusers.d/steading.conf",
        "usr/share/man/man1/steading-submit.1.gz",
        "usr/share/bash-completion/completions/steading",
        "usr/share/doc/steading/copyright",
        "usr/share/doc/steading/doc/debian.md",
    ] {
        assert!(target.join(path).exists(), "{path}");
    }
    let unit = target.join("usr/lib/systemd/system/steading-coordinator.service");
    assert!(fs_err::read_to_string(unit).unwrap().contains("ExecStart=/usr/bin/steading"));
    let mut command = Command::new(target.join("usr/bin/steading"));
    command.arg("--version");
    good(command);
    for script in ["postinst", "prerm", "postrm"] {
        let mut command = Command::new("sh");
        command.arg("-n").arg(target.join("DEBIAN").join(script));
        good(command);
    }
    // Twice the same: nothing in it depends on when it was made.
    let again = dir.path().join("again");
    good(build(&again));
    let other = again.join(package.file_name().unwrap());
    assert!(fs_err::read(&package).unwrap() == fs_err::read(other).unwrap());
}

/// Installs the package below a folder and removes it again.
#[test]
fn dpkg_installs_and_purges_the_package() {
    if !rustix::process::geteuid().is_root() {
        skipped("dpkg needs root");
        return;
    }
    if !have("dpkg") || !have("systemd-sysusers") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root_dir = dir.path().join("root");
    for folder in ["etc", "var/lib/dpkg/updates", "var/lib/dpkg/info"] {
        fs_err::create_dir_all(root_dir.join(folder)).unwrap();
    }
    fs_err::write(root_dir.join("var/lib/dpkg/status"), "").unwrap();
    let mut command = Command::new(root().join("contrib/debian/build"));
    command.env("DPKG_DEB_COMPRESSOR_TYPE", "none").arg(STEADING).arg(dir.path());
    let said = String::from_utf8(good(command).stdout).unwrap();
    let dpkg = |words: &[&str]| {
        let mut command = Command::new("dpkg");
        command
            .arg(format!("--root={}", root_dir.display()))
            .args(["--force-depends", "--force-script-chrootless"])
            .args(words);
        good(command)
    };
    dpkg(&["--install", said.lines().last().unwrap()]);
    let users = fs_err::read_to_string(root_dir.join("etc/passwd")).unwrap();
    assert!(users.contains("steading:x:") && users.contains("steading-agent:x:"), "{users}");
    let state = root_dir.join("var/lib/steading");
    fs_err::create_dir_all(&state).unwrap();
    fs_err::write(state.join("steading.db"), "kept").unwrap();
    dpkg(&["--purge", "steading"]);
    assert!(!root_dir.join("usr/bin/steading").exists());
    assert!(state.join("steading.db").exists(), "what was acknowledged stays");
}

#[test]
fn nix_evaluates_the_module_for_nixos() {
    if !have("nix-instantiate") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let evaluate = |configuration: &str| {
        let expression = format!(
            "import {}/contrib/nixos/evaluate.nix {{ configuration = {configuration}; }}",
            root().display()
        );
        let mut command = Command::new("nix-instantiate");
        command
            .args(["--eval", "--strict", "--json", "--expr", &expression])
            .env("NIX_REMOTE", format!("local?root={}", dir.path().display()))
            .env("HOME", dir.path())
            .env("NIX_PATH", "");
        let output = good(command);
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let nothing = evaluate("{ }");
    assert_eq!(nothing["systemd"]["services"], serde_json::json!({}));
    let both = evaluate(
        "{ services.steading = { \
             coordinator = { enable = true; settings.min-free = 20000000000; openFirewall = true; \
                 keys.operators.ann = \"ssh-ed25519 AAAA ann\"; }; \
             agent = { enable = true; coordinator = \"farm:2222\"; hostKey = \"/etc/farm.pub\"; }; \
         }; }",
    );
    let services = &both["systemd"]["services"];
    let start = services["steading-coordinator"]["serviceConfig"]["ExecStart"].as_str().unwrap();
    assert!(start.contains("/bin/steading coordinator") && start.contains("--listen"), "{start}");
    let agent = services["steading-agent"]["serviceConfig"]["ExecStart"].as_str().unwrap();
    assert!(agent.contains("--coordinator farm:2222"), "{agent}");
    assert_eq!(services["steading-agent"]["serviceConfig"]["KillMode"], "process");
    assert_eq!(both["networking"]["firewall"]["allowedTCPPorts"], serde_json::json!([2222]));
    let keys = &both["environment"]["etc"]["steading/keys/operators/ann.pub"]["text"];
    assert_eq!(keys, "ssh-ed25519 AAAA ann\n");
}
