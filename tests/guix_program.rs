//! A machine whose guix-daemon is as Guix made it, and a farm behind it: `steading guix` as the
//! program that the daemon calls. Skipped, and said so, where there is no Debian sid to be had.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/private_guix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_guix;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/wait.rs"]
mod wait;

use private_guix::{PrivateGuix, write_entrance};
use processes::{DirectAgent, Farm, STEADING};
use std::{
    fmt::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use steading::{
    core::store_path::{StoreDir, StorePath},
    formats::signature::guix::GuixSecretKey,
    ssh::host_key,
};

/// A farm with one agent, and a machine beside it.
struct Scene {
    // The machine goes first: its daemon may still speak to the farm.
    guix: PrivateGuix,
    farm: Farm,
}

/// Starts a scene, or ends the test with the reason why there can be none.
macro_rules! scene_or_skip {
    () => {
        match Scene::start() {
            Ok(scene) => scene,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

impl Scene {
    fn start() -> Result<Self, String> {
        if let Some(obstacle) = processes::obstacle() {
            return Err(obstacle.to_owned());
        }
        let mut guix = PrivateGuix::start()?;
        let mut farm = Farm::start();
        let dir = farm.dir().to_owned();
        let program = dir.join("steading");
        fs_err::copy(STEADING, &program).unwrap();
        symlink(&program, dir.join("steading-guix")).unwrap();
        let entrance = dir.join("enter-agent");
        write_entrance(&entrance, &dir.join("agent-root"), &program);
        let store_dir = StoreDir::guix();
        let agent = DirectAgent {
            name: "amber",
            store_dir: &store_dir,
            slots: 2,
            uploads: 1,
            through: None,
        };
        farm.start_direct_agent_as(&agent, entrance);
        farm.until_connected(1);
        write_key(&farm, "trusted-import");
        until_machine_is(&farm, true);
        pack_ssh(&dir.join("ssh"));
        write_settings(&farm, "", "");
        place_before(&mut guix, &farm);
        Ok(Self { guix, farm })
    }

    /// Puts another machine in the place of this one, and returns this one.
    fn exchange(&mut self, mut other: PrivateGuix) -> PrivateGuix {
        place_before(&mut other, &self.farm);
        std::mem::replace(&mut self.guix, other)
    }

    /// Returns a file for which builds wait, and whose name is in their script.
    fn gate(&self, name: &str) -> PathBuf {
        self.farm.dir().join(format!("gate-{name}"))
    }

    fn open(&self, name: &str) {
        fs_err::write(self.gate(name), "").unwrap();
    }

    fn close(&self, name: &str) {
        fs_err::remove_file(self.gate(name)).unwrap();
    }

    /// Makes derivations that say `begins NAME`, wait for their gates and say `ends NAME`; each
    /// needs the one before it.
    fn derivations(&self, names: &[&str]) -> Vec<StorePath> {
        let mut program = String::from("(define last #f)\n");
        for name in names {
            let gate = self.gate(name).display().to_string();
            let script = format!(
                "echo begins {name}; while [ ! -e {gate} ]; do busybox sleep 0.1; done; \
                 echo ends {name}; busybox mkdir -p $out/dir; echo $before {name} > $out/dir/file; \
                 busybox ln -s dir/file $out/link; busybox chmod +x $out/dir/file"
            );
            writeln!(
                program,
                "(set! last (say (make \"{name}\" \"{script}\"
                   #:inputs (if last (list (list last)) '())
                   #:env (if last `((\"before\" . ,(derivation->output-path last))) '()))))"
            )
            .unwrap();
        }
        self.guix.derivations(&program)
    }

    fn output(&self, drv: &StorePath) -> StorePath {
        self.guix.derivation(drv).outputs[0].path.clone()
    }

    /// Starts `guix build`; what it says goes to a file.
    fn begin(&self, options: &[&str], drv: &StorePath) -> Client {
        let said = tempfile::NamedTempFile::new_in(self.farm.dir()).unwrap().into_temp_path();
        let file = fs_err::File::create(&said).unwrap().into_parts().0;
        let child = self
            .guix
            .command("guix")
            .arg("build")
            .args(options)
            .arg(drv.to_string())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Client { child, said }
    }

    /// Runs `guix build` to its end, which must be a good one.
    fn build(&self, options: &[&str], drv: &StorePath) -> String {
        let (succeeded, said) = self.begin(options, drv).end();
        assert!(succeeded, "{said}\n{}", self.daemon_log());
        said
    }

    /// Removes an output from the machine's store.
    fn forget(&self, output: &StorePath) {
        let mut command = self.guix.command("guix");
        let deleted = command.args(["gc", "--delete", &output.to_string()]).output().unwrap();
        assert!(deleted.status.success(), "{}", deleted.stderr.escape_ascii());
        assert!(!self.guix.has(output));
    }

    /// Returns the derivations that the farm was asked to build, and what became of them.
    fn builds(&self) -> Vec<(String, String)> {
        let builds = self.farm.objects("builds");
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        builds.iter().map(|build| (text(&build["derivation"]), text(&build["state"]))).collect()
    }

    fn daemon_log(&self) -> String {
        fs_err::read_to_string(self.guix.outside("/var/log/guix/daemon.log")).unwrap()
    }
}

/// A running `guix build`.
struct Client {
    child: Child,
    said: tempfile::TempPath,
}

impl Client {
    fn said(&self) -> String {
        fs_err::read_to_string(&self.said).unwrap()
    }

    fn until_said(&self, words: &str) {
        wait::until(&format!("the client says ‘{words}’"), || self.said().contains(words));
    }

    fn end(mut self) -> (bool, String) {
        let status = self.child.wait().unwrap();
        (status.success(), self.said())
    }
}

/// Copies this machine's `ssh` with its libraries, because the root of the Guix has none; what is
/// to be run is called `run`. A file `alter` beside it holds a script for sed through which nars pass.
fn pack_ssh(dir: &Path) {
    fs_err::create_dir_all(dir.join("lib")).unwrap();
    let ssh = Command::new("sh").args(["-c", "command -v ssh"]).output().unwrap();
    let ssh = String::from_utf8(ssh.stdout).unwrap();
    fs_err::copy(ssh.trim(), dir.join("ssh")).unwrap();
    let listed = Command::new("ldd").arg(ssh.trim()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut loader = None;
    for word in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = Path::new(word).file_name().unwrap();
        let copy = dir.join("lib").join(name);
        fs_err::copy(word, &copy).unwrap();
        if name.to_str().unwrap().starts_with("ld-") {
            loader = Some(copy);
        }
    }
    let (loader, here) = (loader.unwrap(), dir.display());
    let run = format!("exec {} --library-path {here}/lib {here}/ssh \"$@\"", loader.display());
    let program = dir.join("run");
    // The verb is the last word.
    let text = format!(
        "#!/bin/bash\nset -o pipefail\nverb=\"${{@: -1}}\"\n\
         if [ -e {here}/alter ] && [[ $verb == 'nar '* ]]; then\n\
         ({run}) | sed --file {here}/alter\nelse\n{run}\nfi\n"
    );
    fs_err::write(&program, text).unwrap();
    fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Writes the machine's settings; `options` are for ssh, `more` is the end of the file.
fn write_settings(farm: &Farm, options: &str, more: &str) {
    let (dir, port) = (farm.dir().display(), farm.port());
    let text = format!(
        "ssh = \"{dir}/ssh/run\"\nguix = \"/usr/bin/guix\"\npatience = 60\n\
         coordinator = \"-F none -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes \
         -o UserKnownHostsFile={dir}/known_hosts -o IdentityFile={dir}/identities/machine \
         {options} -p {port} 127.0.0.1\"\n{more}\n"
    );
    fs_err::write(farm.dir().join("guix.toml"), text).unwrap();
}

/// Writes the machine's key into the keydir.
fn write_key(farm: &Farm, options: &str) {
    let key = host_key::load_or_create(&farm.dir().join("identities/machine")).unwrap();
    let folder = farm.state().join("keys/submitters");
    fs_err::create_dir_all(&folder).unwrap();
    let line = format!("{options} {}\n", key.public_line());
    fs_err::write(folder.join("machine.pub"), line.trim_start()).unwrap();
}

/// Lets a machine's daemon build on the farm, and believe it.
fn place_before(guix: &mut PrivateGuix, farm: &Farm) {
    let dir = farm.dir();
    guix.restart_before_farm(&[
        ("GUIX", dir.join("steading-guix")),
        ("STEADING_GUIX_CONFIG", dir.join("guix.toml")),
    ]);
    guix.authorize(&[farm.run_file("signing-guix.pub")]);
}

/// Returns what the coordinator says of the machine's key.
fn machine_is(farm: &Farm) -> Option<serde_json::Value> {
    let identity = farm.dir().join("identities/machine");
    let words = farm.ssh_words();
    let mut ssh = Command::new(&words[0]);
    // The first identity named is the one that counts.
    ssh.arg("-o").arg(format!("IdentityFile={}", identity.display())).args(&words[1..]);
    let answer = ssh.args(["whoami", "--json"]).stdin(Stdio::null()).output().unwrap();
    serde_json::from_slice(&answer.stdout)
        .ok()
        .filter(|it: &serde_json::Value| it["name"] == "machine")
}

/// Waits until the coordinator believes the machine, or does not.
fn until_machine_is(farm: &Farm, trusted: bool) {
    wait::until("the coordinator has read the machine's key", || {
        machine_is(farm).is_some_and(|it| it["trusted_import"] == trusted)
    });
}

#[test]
fn builds_go_to_the_farm_and_what_it_has_is_substituted() {
    let scene = scene_or_skip!();
    let drvs = scene.derivations(&["below", "above"]);
    let [below, above] = &*drvs else { panic!("{drvs:?}") };
    let output = scene.output(above);

    // What this machine built itself is believed, and not built again.
    scene.open("below");
    let said = scene.build(&["--no-offload"], below);
    assert!(said.contains("ends below"), "{said}");
    assert_eq!(scene.builds(), []);
    let client = scene.begin(&[], above);
    client.until_said("begins above");
    assert!(!scene.guix.has(&output));
    assert_eq!(scene.builds(), [(above.to_string(), "building".to_owned())]);
    scene.open("above");
    let (succeeded, said) = client.end();
    assert!(succeeded, "{said}\n{}", scene.daemon_log());
    assert!(said.contains("ends above") && !said.contains("begins below"), "{said}");
    assert!(scene.guix.has(&output));
    let here = scene.guix.outside(output.to_string());
    let before = scene.output(below);
    let content = fs_err::read_to_string(here.join("link")).unwrap();
    assert_eq!(content, format!("{before} above\n"));
    let mode = fs_err::symlink_metadata(here.join("dir/file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o555);
    assert_eq!(scene.builds(), [(above.to_string(), "succeeded".to_owned())]);
}

#[test]
fn substitutes_of_the_farm_need_a_signature_that_counts() {
    let scene = scene_or_skip!();
    let drvs = scene.derivations(&["thing"]);
    let [thing] = &*drvs else { panic!("{drvs:?}") };
    let output = scene.output(thing);
    let alter = scene.farm.dir().join("ssh/alter");
    scene.open("thing");
    scene.build(&[], thing);
    let built = scene.builds();
    assert_eq!(built.len(), 1);

    // Were it built here, it would wait for the gate.
    scene.close("thing");
    scene.forget(&output);
    let said = scene.build(&["--no-offload"], thing);
    assert!(!said.contains("begins thing"), "{said}");
    assert!(scene.guix.has(&output));
    let verified = scene.guix.command("guix").args(["gc", "--verify=contents"]).output().unwrap();
    assert!(verified.status.success(), "{}", verified.stderr.escape_ascii());
    assert!(scene.guix.has(&output), "{}", verified.stderr.escape_ascii());

    // In these cases it is built here, because nothing that the farm has is good enough.
    scene.open("thing");
    let own_key = scene.farm.run_file("signing-guix.pub");
    let stranger = GuixSecretKey::generate([7; 32]).public().to_text();
    for (key, sed, why) in [
        (&stranger, None, "its key does not count"),
        (&own_key, Some("s/\"nar_bytes\":/&1/"), "it says another size than was signed"),
        (
            &own_key,
            Some("s/\"signatures\":\\[\"[^\"]*\"\\]/\"signatures\":[]/"),
            "nothing is signed",
        ),
    ] {
        scene.guix.authorize(std::slice::from_ref(key));
        if let Some(sed) = sed {
            fs_err::write(&alter, sed).unwrap();
        }
        scene.forget(&output);
        let said = scene.build(&["--no-offload"], thing);
        assert!(said.contains("begins thing"), "{why}: {said}");
        assert!(said.contains("is not by a key in /etc/guix/acl"), "{why}: {said}");
        fs_err::remove_file(&alter).ok();
    }
    // And what comes is compared with what was signed.
    fs_err::write(&alter, "s/thing$/thinG/").unwrap();
    scene.forget(&output);
    let (succeeded, said) = scene.begin(&["--no-offload"], thing).end();
    assert!(!succeeded && said.contains("hash mismatch"), "{said}");
    assert!(!scene.guix.has(&output));
    // A build that was handed out does not bring it in, either.
    let (succeeded, said) = scene.begin(&["--no-substitutes"], thing).end();
    assert!(!succeeded && said.contains("sent another content"), "{said}");
    assert!(!scene.guix.has(&output));
    assert_eq!(scene.builds(), built);
}

#[test]
fn a_build_outlasts_the_coordinator_and_ends_with_its_client() {
    let mut scene = scene_or_skip!();
    let drvs = scene.derivations(&["long"]);
    let other = scene.derivations(&["unwanted"]);
    let long = drvs[0].clone();
    let client = scene.begin(&[], &long);
    client.until_said("begins long");
    scene.farm.kill_coordinator();
    scene.farm.restart_coordinator();
    scene.farm.until_connected(1);
    scene.open("long");
    let (succeeded, said) = client.end();
    assert!(succeeded, "{said}\n{}", scene.daemon_log());
    assert_eq!(said.matches("begins long").count(), 1, "{said}");
    assert_eq!(said.matches("ends long").count(), 1, "{said}");
    assert_eq!(scene.builds().len(), 1);

    let mut client = scene.begin(&[], &other[0]);
    client.until_said("begins unwanted");
    client.child.kill().unwrap();
    client.child.wait().unwrap();
    wait::until("the build that nobody wants is canceled", || {
        scene.builds().contains(&(other[0].to_string(), "canceled".to_owned()))
    });
}

#[test]
fn a_build_that_two_machines_want_is_there_for_the_one_that_stays() {
    let mut scene = scene_or_skip!();
    let drvs = scene.derivations(&["shared"]);
    let mut gives_up = scene.begin(&[], &drvs[0]);
    gives_up.until_said("begins shared");
    let first = scene.exchange(PrivateGuix::start().unwrap());
    assert_eq!(scene.derivations(&["shared"]), drvs);
    let stays = scene.begin(&[], &drvs[0]);
    stays.until_said("begins shared");
    assert_eq!(scene.builds(), [(drvs[0].to_string(), "building".to_owned())]);
    gives_up.child.kill().unwrap();
    gives_up.child.wait().unwrap();
    stays.until_said("is asked for again");
    scene.open("shared");
    let (succeeded, said) = stays.end();
    assert!(succeeded && said.contains("ends shared"), "{said}");
    assert!(scene.guix.has(&scene.output(&drvs[0])));
    drop(first);
}

#[test]
fn failures_are_the_builds_and_a_farm_that_is_away_stops_nobody() {
    let mut scene = scene_or_skip!();
    let drvs = scene.guix.derivations(
        r#"(say (make "broken" "echo goes wrong; exit 3")) (say (make "slow" "busybox sleep 600"))"#,
    );
    let (succeeded, said) = scene.begin(&[], &drvs[0]).end();
    assert!(!succeeded && said.contains("goes wrong"), "{said}");
    assert!(said.contains("exited with status 3"), "{said}");
    // The daemon's limit is over as soon as the farm's is, or sooner.
    let (succeeded, said) = scene.begin(&["--timeout=1"], &drvs[1]).end();
    assert!(!succeeded && said.contains("timed out after"), "{said}");
    wait::until("the farm has ended both", || {
        let states: Vec<String> = scene.builds().into_iter().map(|(_, state)| state).collect();
        states[0] == "failed" && ["failed", "canceled"].contains(&&*states[1])
    });

    // To wait for an agent is not to be silent.
    let drvs = scene.derivations(&["late"]);
    scene.open("late");
    assert!(scene.farm.run("agents pause amber").status.success());
    let client = scene.begin(&["--max-silent-time=2"], &drvs[0]);
    wait::until("more than two seconds are over", || client.said().matches("goes on").count() > 2);
    assert!(scene.farm.run("agents resume amber").status.success());
    let (succeeded, said) = client.end();
    assert!(succeeded && said.contains("ends late"), "{said}");

    scene.farm.stop_coordinator();
    let drvs = scene.derivations(&["alone"]);
    scene.open("alone");
    let said = scene.build(&[], &drvs[0]);
    assert!(said.contains("ends alone"), "{said}");
    assert!(said.contains("the farm does not build"), "{said}");
    assert!(scene.guix.has(&scene.output(&drvs[0])));
    // By another rule it waits.
    write_settings(&scene.farm, "", "unreachable = \"wait\"");
    let drvs = scene.derivations(&["patient"]);
    scene.open("patient");
    let client = scene.begin(&[], &drvs[0]);
    client.until_said("the farm does not build");
    scene.farm.restart_coordinator();
    scene.farm.until_connected(1);
    let (succeeded, said) = client.end();
    assert!(succeeded && said.contains("ends patient"), "{said}");
    assert!(scene.builds().contains(&(drvs[0].to_string(), "succeeded".to_owned())));
}

#[test]
fn what_the_farm_does_not_believe_it_builds_itself() {
    let scene = scene_or_skip!();
    write_key(&scene.farm, "");
    until_machine_is(&scene.farm, false);
    // All that is asked of the farm goes through one connection.
    let master = format!(
        "-o ControlMaster=auto -o ControlPersist=10 -o ControlPath={}/%C",
        scene.farm.dir().display()
    );
    write_settings(&scene.farm, &master, "tags = [\"site=lab\"]\npriority = 5");
    let drvs = scene.guix.derivations(
        r#"
(define three (say (make "three" "echo out > $out; echo $out > $lib; echo doc > $doc"
                         #:outputs '("out" "lib" "doc"))))
(say (make "uses" "read line < $lib; echo $line > $out"
           #:inputs (list (list three "lib"))
           #:env `(("lib" . ,(derivation->output-path three "lib")))))"#,
    );
    let [three, uses] = &*drvs else { panic!("{drvs:?}") };
    scene.build(&["--no-offload"], three);
    assert_eq!(scene.builds(), []);
    scene.build(&[], uses);
    let mut built = scene.builds();
    built.sort();
    let mut expected = [three, uses].map(|drv| (drv.to_string(), "succeeded".to_owned()));
    expected.sort();
    assert_eq!(built, expected);
    let tagged = scene.farm.objects("builds --where-tag site=lab");
    assert!(tagged.iter().any(|build| build["derivation"] == uses.to_string()), "{tagged:?}");
    assert!(tagged.iter().all(|build| build["priority"] == 5), "{tagged:?}");
    // All of several outputs come, also those that a build needed not.
    for output in scene.guix.derivation(three).outputs.iter().map(|output| &output.path) {
        scene
            .guix
            .command("guix")
            .args(["gc", "--delete"])
            .arg(output.to_string())
            .output()
            .unwrap();
    }
    scene.forget(&scene.output(uses));
    scene.build(&["--no-substitutes"], three);
    for output in &scene.guix.derivation(three).outputs {
        assert!(scene.guix.has(&output.path), "{}", output.path);
    }
    assert_eq!(scene.builds().len(), 2, "the farm had them");
}

#[test]
fn every_other_verb_is_the_real_guixs() {
    let scene = scene_or_skip!();
    let program = scene.farm.dir().join("steading-guix");
    for words in [&["--version"][..], &["gc", "--help"], &["offload", "--help"]] {
        let said = |program: &Path| {
            let mut command = scene.guix.command(program);
            command.env("STEADING_GUIX_CONFIG", scene.farm.dir().join("guix.toml"));
            let output = command.args(words).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        assert_eq!(said(&program), said(Path::new("guix")), "{words:?}");
    }
    // Without settings, too, so that a typing mistake stops no daemon.
    let output = scene.guix.command(&program).arg("--version").output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.windows(5).any(|bytes| bytes == b"farm:"), "{output:?}");

    // A machine that may look only builds by itself.
    let keys = scene.farm.state().join("keys");
    fs_err::create_dir_all(keys.join("viewers")).unwrap();
    fs_err::rename(keys.join("submitters/machine.pub"), keys.join("viewers/machine.pub")).unwrap();
    wait::until("the machine may look only", || {
        machine_is(&scene.farm).is_some_and(|it| it["role"] == "viewer")
    });
    let drvs = scene.derivations(&["own"]);
    scene.open("own");
    let said = scene.build(&[], &drvs[0]);
    assert!(said.contains("may not submit") && said.contains("ends own"), "{said}");
    assert_eq!(scene.builds(), []);
}
