//! The ready-made hooks of `contrib/hooks`, each with a recorded event, and with programs and
//! servers on loopback that note what they are given.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::{self, JoinHandle},
};
use tempfile::TempDir;

/// Events as `events` and the outbox print them, recorded from a farm.
const SUCCESS: &str = r#"{"cursor":42,"time":"2026-11-21T11:02:03.456Z","type":"build-success","build":"01890a5d-ac96-774b-bcce-b302099a8057","attempt":"01890a5d-ac96-774b-bcce-b302099a8058","agent":"amber","detail":{},"derivation":"/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello-2.12.1.drv","system":"x86_64-linux","submitter":"sam","priority":0,"tags":{"branch":["core-updates"],"commit":["0123456789012345678901234567890123456789"],"repository":["ada/farm"]},"outputs":[]}"#;
const FAILURE: &str = r#"{"cursor":43,"time":"2026-11-21T11:02:04.000Z","type":"build-failure","build":"01890a5d-ac96-774b-bcce-b302099a8057","attempt":"01890a5d-ac96-774b-bcce-b302099a8058","agent":"amber","detail":{"end":"exit","reason":"exit: 7 \"build\":\"no\""},"derivation":"/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello-2.12.1.drv","system":"x86_64-linux","submitter":"sam","priority":0,"tags":{"branch":["../core updates"],"repository":["ada/../../farm"],"commit":["0123456789012345678901234567890123456789"]},"outputs":[]}"#;
const QUARANTINED: &str = r#"{"cursor":44,"time":"2026-11-21T11:02:05.000Z","type":"agent-quarantined","build":null,"attempt":null,"agent":"birch","detail":{"reason":"5 builds in a row ended through its fault"}}"#;

/// Where a hook runs: with programs that stand for others in front of all others.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("bin")).unwrap();
        fs_err::create_dir(dir.path().join("secrets")).unwrap();
        fs_err::create_dir(dir.path().join("run")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a program that does what these shell commands do.
    fn program(&self, name: &str, commands: &str) {
        let path = self.path("bin").join(name);
        fs_err::write(&path, format!("#!/bin/sh\n{commands}\n")).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn conf(&self, text: &str) {
        fs_err::write(self.path("conf"), text).unwrap();
    }

    /// Runs a hook with an event.
    fn run(&self, hook: &str, event: &str) -> Output {
        let told: Value = serde_json::from_str(event).unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/hooks").join(hook);
        let path = std::env::var("PATH").unwrap();
        let mut child = Command::new(program)
            .env_clear()
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("STEADING_EVENT", told["type"].as_str().unwrap())
            .env("STEADING_CURSOR", told["cursor"].to_string())
            .env("STEADING_COORDINATOR", "-p 2222 127.0.0.1")
            .env("STEADING_KEY", self.path("secrets/hooks_ed25519"))
            .env("STEADING_HOOK_CONF", self.path("conf"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{event}").unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, hook: &str, event: &str) {
        let ran = self.run(hook, event);
        assert!(ran.status.success(), "{}", ran.stderr.escape_ascii());
    }

    fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).unwrap()
    }
}

/// A request over HTTP.
struct Asked {
    line: String,
    head: Vec<String>,
    body: Value,
}

/// Answers one request with this status. Returns the address, and what was asked.
fn answer_once(status: &'static str) -> (String, JoinHandle<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim_end().is_empty() {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let length = |line: &String| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        };
        let mut body = vec![0; head.iter().find_map(length).unwrap()];
        reader.read_exact(&mut body).unwrap();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
        let line = head.remove(0);
        Asked { line, head, body: serde_json::from_slice(&body).unwrap() }
    });
    (address, asked)
}

#[test]
fn mail_says_what_happened_and_how_the_log_ends() {
    let place = Place::new();
    let out = place.path("mail");
    place.program("sendmail", &format!("echo \"$@\" > {0}; cat >> {0}", out.display()));
    place.program("ssh", "echo \"$@\"; echo 'make: *** [all] Error 7'");
    let sendmail = place.path("bin/sendmail");
    place.conf(&format!("TO='ada@example.org bob@example.org'\nSENDMAIL={}\n", sendmail.display()));
    place.succeeds("mail", FAILURE);
    let mail = place.read("mail");
    assert!(mail.starts_with("-oi -t\n"), "{mail}");
    for part in [
        "To: ada@example.org,bob@example.org\n",
        "Subject: build-failure hello-2.12.1\n",
        "Message-ID: <43.build-failure@steading>\n",
        "-p 2222 127.0.0.1 log --tail 50 01890a5d-ac96-774b-bcce-b302099a8057\n",
        "make: *** [all] Error 7\n",
    ] {
        assert!(mail.contains(part), "{part} is not in {mail}");
    }
    place.succeeds("mail", QUARANTINED);
    let mail = place.read("mail");
    assert!(mail.contains("Subject: agent-quarantined birch\n"), "{mail}");
    assert!(!mail.contains("log --tail"), "{mail}");
    // What cannot be sent comes again.
    place.program("sendmail", "exit 75");
    assert_eq!(place.run("mail", FAILURE).status.code(), Some(75));
}

#[test]
fn a_data_service_gets_builds_as_it_takes_them() {
    let place = Place::new();
    fs_err::write(place.path("token"), "secret&\n").unwrap();
    let conf = |url: &str| {
        let token = place.path("token");
        place.conf(&json!({"url": url, "build_server_id": 3, "token_file": token}).to_string());
    };
    let (url, asked) = answer_once("200 OK");
    conf(&url);
    place.succeeds("data-service", SUCCESS);
    let asked = asked.join().unwrap();
    assert_eq!(asked.line, "POST /build-server/3/build-events?token=secret%26 HTTP/1.1");
    let item = json!({
        "type": "build",
        "event": "succeeded",
        "timestamp": 1_795_258_923,
        "derivation": "/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello-2.12.1.drv",
        "build_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    });
    assert_eq!(asked.body, json!({"items": [item]}));
    let (url, asked) = answer_once("503 Service Unavailable");
    conf(&url);
    let ran = place.run("data-service", FAILURE);
    assert_eq!(ran.status.code(), Some(1));
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(said.contains("503") && !said.contains("secret"), "{said}");
    assert_eq!(asked.join().unwrap().body["items"][0]["event"], "failed");
    // What is about no build is nothing for it.
    place.succeeds("data-service", QUARANTINED);
}

#[test]
fn a_forge_gets_the_status_of_the_commit_that_a_build_is_tagged_with() {
    let place = Place::new();
    fs_err::write(place.path("token"), "secret\n").unwrap();
    let (url, asked) = answer_once("201 Created");
    let token = place.path("token");
    let leads = "https://builds.example.org/{build}";
    place.conf(&json!({"api": url, "token_file": token, "url": leads}).to_string());
    place.succeeds("forge-status", SUCCESS);
    let asked = asked.join().unwrap();
    let commit = "0123456789012345678901234567890123456789";
    assert_eq!(asked.line, format!("POST /repos/ada/farm/statuses/{commit} HTTP/1.1"));
    assert!(
        asked.head.iter().any(|line| line == "Authorization: token secret"),
        "{:?}",
        asked.head
    );
    let status = json!({
        "state": "success",
        "context": "steading/x86_64-linux/hello-2.12.1",
        "description": "hello-2.12.1 was built",
        "target_url": "https://builds.example.org/01890a5d-ac96-774b-bcce-b302099a8057",
    });
    assert_eq!(asked.body, status);
    // Tags that would lead elsewhere are not followed; builds without any concern nobody.
    let ran = place.run("forge-status", FAILURE);
    assert!(ran.stderr.starts_with(b"the tag repository"), "{}", ran.stderr.escape_ascii());
    place.succeeds("forge-status", QUARANTINED);
}

#[test]
fn a_badge_says_how_the_last_build_of_a_branch_went() {
    let place = Place::new();
    place.conf(&format!("DIR={}\n", place.path("badges").display()));
    place.succeeds("badge", SUCCESS);
    let badge = place.read("badges/core-updates.svg");
    assert!(badge.starts_with("<svg ") && badge.contains("core-updates: passing"), "{badge}");
    // A value is never a path.
    place.succeeds("badge", FAILURE);
    let badge = place.read("badges/_.._core_updates.svg");
    assert!(badge.contains("failing"), "{badge}");
    place.succeeds("badge", QUARANTINED);
    assert_eq!(fs_err::read_dir(place.path("badges")).unwrap().count(), 2);
}

#[test]
fn a_mirror_gets_files_before_the_narinfos_that_name_them_and_not_more_often_than_needed() {
    let published = |cursor: u32| {
        json!({"cursor": cursor, "time": "2026-11-21T11:02:05.000Z", "type": "output-published",
            "build": null, "attempt": null, "agent": null, "detail": {"path": "/gnu/store/x"}})
        .to_string()
    };
    let place = Place::new();
    let log = place.path("log");
    place.program("rsync", &format!("echo \"$@\" >> {}", log.display()));
    place.program("ssh", &format!("echo '{}'", published(50)));
    place.conf("SOURCE=/srv/public/\nTARGET=mirror.example.org::farm\n");
    place.succeeds("mirror", &published(45));
    let usual = "--archive --hard-links --quiet";
    let (files, all) = (
        format!("{usual} --exclude=*.narinfo /srv/public/ mirror.example.org::farm\n"),
        format!("{usual} /srv/public/ mirror.example.org::farm\n"),
    );
    assert_eq!(place.read("log"), format!("{files}{all}"));
    // What was published before that began went along; what came later did not.
    for cursor in 46..=50 {
        place.succeeds("mirror", &published(cursor));
    }
    assert_eq!(place.read("log").lines().count(), 2);
    place.program("rsync", "exit 23");
    assert_eq!(place.run("mirror", &published(51)).status.code(), Some(23));
    place.program("rsync", &format!("echo \"$@\" >> {}", log.display()));
    // A coordinator that does not answer costs a copy too many, and no copy.
    place.program("ssh", "exit 255");
    place.succeeds("mirror", &published(51));
    assert_eq!(place.read("log").lines().count(), 4);
    place.conf("");
    assert_eq!(place.run("mirror", &published(52)).status.code(), Some(1));
}
