//! `contrib/cron/steading-cron`, with the installed Nix, git and Python.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/farm.rs"]
#[expect(dead_code, reason = "other tests run more verbs")]
mod farm;
#[path = "common/private_nix.rs"]
#[expect(dead_code, reason = "other tests build with it")]
mod private_nix;
#[path = "common/wait.rs"]
mod wait;

use farm::Farm;
use private_nix::PrivateNix;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use steading::{config::Config, ssh::Role};
use tempfile::TempDir;

const STEADING: &str = env!("CARGO_BIN_EXE_steading");

/// A set of two derivations, one with a fixed output, and a third that has the revision in it.
const EXPRESSION: &str = r#"
let
  make = name: extra: derivation ({
    inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ];
  } // extra);
in {
  still = make "still" { };
  moved = make "moved" { text = "REVISION"; };
  fixed = make "fixed" {
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b";
  };
}
"#;

/// A farm, a Nix, and a folder for what is submitted.
struct Scene {
    farm: Farm,
    nix: PrivateNix,
    dir: TempDir,
}

impl Scene {
    #[expect(clippy::print_stdout, reason = "whoever reads the results has to know")]
    async fn start() -> Option<Self> {
        for program in ["python3", "git"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("skipped: there is no {program} in PATH");
                return None;
            }
        }
        let nix = match PrivateNix::start() {
            Ok(nix) => nix,
            Err(reason) => {
                println!("skipped: {reason}");
                return None;
            }
        };
        let farm = Farm::start(&Config::default(), &[(Role::Submitter, "cron", "")]).await?;
        let dir = tempfile::tempdir().unwrap();
        Some(Self { farm, nix, dir })
    }

    /// Returns a path in the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs_err::write(self.path(name), text).unwrap();
    }

    /// Runs the script where Nix is.
    fn cron(&self, words: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/cron/steading-cron");
        let ssh = self.farm.ssh("cron", &[], "");
        let words_of_ssh: Vec<&str> =
            ssh.as_std().get_args().map(|word| word.to_str().unwrap()).collect();
        // All but the empty line.
        let destination = shell_words::join(&words_of_ssh[..words_of_ssh.len() - 1]);
        self.nix
            .command("python3")
            .arg(script)
            .args(words)
            .args(["--steading", STEADING, "--state"])
            .arg(self.path("state"))
            .env("STEADING_COORDINATOR", destination)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stderr(Stdio::piped())
            .output()
            .unwrap()
    }

    /// Runs the script, which must succeed, and returns the builds that it was told of.
    fn submitted(&self, words: &[&str]) -> Vec<String> {
        let output = self.cron(words);
        assert!(output.status.success(), "{}", String::from_utf8(output.stderr).unwrap());
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Returns what is known of a build.
    async fn show(&self, build: &str) -> Value {
        self.farm.run("cron", &format!("show {build} --json")).await.expect(0).objects().remove(0)
    }

    async fn count(&self) -> usize {
        self.farm.run("cron", "builds --json").await.expect(0).objects().len()
    }

    fn git(&self, words: &[&str]) {
        let status = Command::new("git")
            .arg("-C")
            .arg(self.path("checkout"))
            .args(["-c", "user.name=test", "-c", "user.email=test@localhost"])
            .args(words)
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "git {words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_is_submitted_once_and_a_moved_branch_replaces_what_waits() {
    let Some(scene) = Scene::start().await else { return };
    scene.write("default.nix", &EXPRESSION.replace("REVISION", "1"));
    let file = scene.path("default.nix").display().to_string();
    let words = ["nix", "--name", "core", "--priority", "3", file.as_str()];
    let first = scene.submitted(&words);
    assert_eq!(first.len(), 3);
    let shown = scene.show(&first[0]).await;
    assert_eq!((&shown["tags"]["branch"][0], &shown["priority"]), (&"core".into(), &3.into()));
    let revision = shown["tags"]["revision"][0].as_str().unwrap().to_owned();
    assert_eq!(shown["key"], format!("core/{revision}"));
    // Again, and again when it has forgotten: nothing new.
    assert!(scene.submitted(&words).is_empty());
    fs_err::remove_dir_all(scene.path("state")).unwrap();
    assert_eq!(scene.submitted(&words), first);
    assert_eq!(scene.count().await, 3);
    for build in &first {
        assert_ne!(scene.show(build).await["state"], "canceled");
    }

    scene.write("default.nix", &EXPRESSION.replace("REVISION", "2"));
    let second = scene.submitted(&words);
    assert_eq!(second.len(), 3);
    for (old, new) in first.iter().zip(&second) {
        assert_eq!(scene.show(old).await["state"], "canceled");
        assert_ne!(scene.show(new).await["state"], "canceled");
    }
    // Nothing is submitted by a trial.
    scene.write("default.nix", &EXPRESSION.replace("REVISION", "3"));
    let mut trial = words.to_vec();
    trial.extend(["--dry-run", "--attr", "moved"]);
    let printed = scene.submitted(&trial);
    assert!(printed.len() == 1 && printed[0].ends_with("-moved.drv"), "{printed:?}");
    assert_eq!(scene.count().await, 6);
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_of_a_name_is_at_it_at_a_time_and_failures_are_told() {
    let Some(scene) = Scene::start().await else { return };
    scene.write("state/core.lock", "");
    let lock = fs_err::File::open(scene.path("state/core.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    scene.write("default.nix", "{ }");
    let file = scene.path("default.nix").display().to_string();
    assert_eq!(scene.cron(&["nix", "--name", "core", &file]).status.code(), Some(75));
    drop(lock);
    let output = scene.cron(&["nix", "--name", "core", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.escape_ascii().to_string().contains("nothing to build"));
    scene.write("default.nix", "{ x = throw \"no\"; }");
    assert_eq!(scene.cron(&["nix", "--name", "core", &file]).status.code(), Some(1));
    assert_eq!(scene.cron(&["nix", "--name", "../core", &file]).status.code(), Some(2));
    assert!(!scene.path("state/core.json").exists(), "nothing was submitted");
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_series_is_submitted_by_the_tree_that_it_makes() {
    let Some(scene) = Scene::start().await else { return };
    scene.write("checkout/default.nix", &EXPRESSION.replace("REVISION", "1"));
    scene.git(&["init", "--quiet"]);
    scene.git(&["add", "."]);
    scene.git(&["commit", "--quiet", "--message", "first"]);
    scene.write("checkout/default.nix", &EXPRESSION.replace("REVISION", "2"));
    scene.git(&["commit", "--quiet", "--all", "--message", "second"]);
    scene.git(&["format-patch", "--quiet", "--output-directory", "..", "HEAD~1"]);
    scene.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
    let patch = scene.path("0001-second.patch").display().to_string();
    let checkout = scene.path("checkout").display().to_string();
    let words = [
        "patches",
        "--name",
        "issue-7",
        "--checkout",
        &checkout,
        "--command",
        "nix-instantiate default.nix --attr moved",
        &patch,
    ];
    let builds = scene.submitted(&words);
    assert_eq!(builds.len(), 1);
    let shown = scene.show(&builds[0]).await;
    let drv = shown["derivation"].as_str().unwrap().parse().unwrap();
    let text = fs_err::read_to_string(scene.nix.outside(&drv)).unwrap();
    assert!(text.contains("(\"text\",\"2\")"), "the patch was applied: {text}");
    assert!(scene.submitted(&words).is_empty());
    let mut worktrees = Command::new("git");
    worktrees.arg("-C").arg(&checkout).args(["worktree", "list"]);
    let listed = worktrees.output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().count(), 1, "none is left");
    // A series that does not apply changes nothing.
    scene.write("bad.patch", "no patch\n");
    let bad = scene.path("bad.patch").display().to_string();
    let mut words = words.to_vec();
    words[7] = &bad;
    assert_eq!(scene.cron(&words).status.code(), Some(1));
    assert_eq!(scene.count().await, 1);
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_of_a_data_service_is_submitted() {
    let Some(scene) = Scene::start().await else { return };
    scene.write("default.nix", EXPRESSION);
    let drvs = scene.nix.instantiate(&format!("import {}", scene.path("default.nix").display()));
    let commit = "5b0b8ab3f8e5d9c5f0c3f3a1fd8d2a5e3c1b2a49";
    let listed: Vec<Value> = drvs
        .iter()
        .map(|drv| {
            serde_json::json!({
                "derivation": drv.to_string(), "system": "x86_64-linux", "target": "", "builds": []
            })
        })
        .collect();
    let answer = serde_json::json!({ "derivations": listed }).to_string();
    scene.write(&format!("service/revision/{commit}/package-derivations.json"), &answer);
    let newest = serde_json::json!({ "revision": { "commit": commit } }).to_string();
    let newest_at = "service/repository/1/branch/master/latest-processed-revision.json";
    scene.write(newest_at, &newest);
    let url = format!("file://{}", scene.path("service").display());
    let ensured = scene.path("ensured").display().to_string();
    let ensure = format!("sh -c 'cat > {ensured}'");
    let words =
        ["data-service", "--name", "guix", "--url", &url, "--recorded", "--ensure", &ensure];
    let builds = scene.submitted(&words);
    assert_eq!(builds.len(), 3);
    assert_eq!(scene.show(&builds[0]).await["tags"]["revision"][0], commit);
    assert_eq!(fs_err::read_to_string(&ensured).unwrap().lines().count(), 3);
    assert!(scene.submitted(&words).is_empty());
    // What is no path of a derivation is not passed on.
    let hostile = serde_json::json!({ "derivations": [{ "derivation": "--help" }] }).to_string();
    scene.write("service/revision/x/package-derivations.json", &hostile);
    let words = ["data-service", "--name", "guix", "--url", &url, "--recorded", "--revision", "x"];
    assert_eq!(scene.cron(&words).status.code(), Some(1));
    assert_eq!(scene.count().await, 3);
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_outputs_are_checked_again_when_it_is_their_turn() {
    let Some(scene) = Scene::start().await else { return };
    scene.write("default.nix", EXPRESSION);
    let drvs = scene.nix.instantiate(&format!("import {}", scene.path("default.nix").display()));
    let list: Vec<String> = drvs.iter().map(ToString::to_string).collect();
    scene.write("list", &list.join("\n"));
    let list = scene.path("list").display().to_string();
    let on = |day| ["recheck", "--name", "sources", "--every", "30", "--today", day, list.as_str()];
    let first = scene.submitted(&on("2026-01-01"));
    assert_eq!(first.len(), 1, "one of the three has a fixed output");
    assert!(scene.show(&first[0]).await["derivation"].as_str().unwrap().contains("fixed"));
    assert!(scene.submitted(&on("2026-01-30")).is_empty());
    let second = scene.submitted(&on("2026-01-31"));
    assert_eq!(second.len(), 1);
    assert_ne!(first, second, "a check of its own");
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_of_guix_is_submitted_for_systems_and_targets() {
    let Some(scene) = Scene::start().await else { return };
    // A Guix that says what it was asked, and answers with derivations of Nix.
    scene.write("default.nix", EXPRESSION);
    let drvs = scene.nix.instantiate(&format!("import {}", scene.path("default.nix").display()));
    let log = scene.path("log").display().to_string();
    let guix = format!(
        "#!/bin/sh\necho \"$*\" >> {log}\ncase \"$*\" in\n\
         *describe*) echo '[{{\"name\":\"guix\",\"commit\":\"c0ffee\"}}]';;\n\
         *aarch64*) echo {};;\n*) echo {};;\nesac\n",
        drvs[0], drvs[1]
    );
    scene.write("guix", &guix);
    let program = format!("sh {}", scene.path("guix").display());
    let words = [
        "guix",
        "--name",
        "master",
        "--channels",
        "channels.scm",
        "--manifest",
        "m.scm",
        "--system",
        "x86_64-linux",
        "--system",
        "aarch64-linux",
        "--target",
        "riscv64-linux-gnu",
        "--guix",
        &program,
    ];
    let builds = scene.submitted(&words);
    assert_eq!(builds.len(), 2);
    assert_eq!(scene.show(&builds[0]).await["tags"]["revision"][0], "c0ffee");
    let asked = fs_err::read_to_string(&log).unwrap();
    let line = "time-machine --channels=channels.scm -- build --derivations --manifest=m.scm \
                --system=aarch64-linux --target=riscv64-linux-gnu";
    assert!(asked.lines().any(|asked| asked == line), "{asked}");
    assert!(scene.submitted(&words).is_empty());
    scene.farm.stop().await;
}
