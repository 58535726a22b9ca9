//! Looks once at everything that an agent needs, and says what is wrong and how to mend it.
//!
//! Nothing is taken for granted that can be tried: the coordinator is dialed with the agent's key,
//! its clock is asked for, and a small nar that it signs has to be believed by the daemon. An agent
//! that runs on the same machine at the same time is not disturbed: no session is opened.

mod connection;
mod guix;
mod systems;

use super::{
    AgentConfig,
    blocking::on_thread,
    upkeep::{self, gates::Resource},
};
use crate::{
    builders::{
        self, Builder as _, BuilderError, BuilderKind, Substituters,
        direct::Place,
        nix::{Nix, Trust},
    },
    core::{path_info::PathInfo, store_path::StoreDir},
    telemetry::{self, Clock},
};
use connection::Probe;
use std::{fmt, path::Path};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// All is well.
    Ok,
    /// It works, but not as well or as safely as it might; or it could not be checked.
    Warn,
    /// The agent cannot work like this.
    Fail,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was checked, in one or two words.
    pub check: &'static str,
    /// How it came out.
    pub grade: Grade,
    /// What was found, for people.
    pub explanation: String,
    /// The one thing to do about it: a command, or what to ask somebody for.
    pub mend: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, explanation: impl Into<String>) -> Self {
        Self { check, grade: Grade::Ok, explanation: explanation.into(), mend: None }
    }

    fn warn(
        check: &'static str,
        explanation: impl Into<String>,
        mend: impl Into<Option<String>>,
    ) -> Self {
        let (grade, explanation, mend) = (Grade::Warn, explanation.into(), mend.into());
        Self { check, grade, explanation, mend }
    }

    fn fail(
        check: &'static str,
        explanation: impl Into<String>,
        mend: impl Into<Option<String>>,
    ) -> Self {
        Self { grade: Grade::Fail, ..Self::warn(check, explanation, mend) }
    }
}

impl fmt::Display for Finding {
    /// Writes one line, and a second one with what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4}  {:12}  {}", self.grade, self.check, self.explanation)?;
        match &self.mend {
            Some(mend) => write!(f, "\n{:20}→ {mend}", ""),
            None => Ok(()),
        }
    }
}

/// Checks everything that an agent with this configuration needs.
pub async fn examine(config: &AgentConfig, clock: Clock) -> Vec<Finding> {
    let (mut findings, probe) = connection::check(config, clock).await;
    let kind = config.builder.clone();
    let substituters = config.substituters.clone();
    let state_dir = config.state_dir.clone();
    let check = move || match &kind {
        BuilderKind::Guix { socket, store_dir } => {
            guix::check(socket, store_dir, &state_dir, probe.as_ref())
        }
        BuilderKind::Nix { socket, store_dir } => {
            check_nix(socket, store_dir, &substituters, probe.as_ref())
        }
        BuilderKind::Direct(place) => vec![check_direct(place)],
    };
    match on_thread(check).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::fail("daemon", error.to_string(), None)),
    }
    findings.extend(check_room(config));
    findings.extend(systems::check(config, Path::new("/proc"), std::env::consts::ARCH));
    findings
}

/// Checks the embedded executor.
fn check_direct(place: &Place) -> Finding {
    match builders::open(BuilderKind::Direct(place.clone())) {
        Ok(_) => {
            Finding::ok("builder", format!("builds without a daemon, into {}", place.store_dir))
        }
        Err(error) => {
            let mend = format!("chown $(id -u) {}", place.physical_dir.display());
            Finding::fail("builder", telemetry::chain(&error), mend)
        }
    }
}

/// Checks a Nix daemon, and whom it trusts.
fn check_nix(
    socket: &Path,
    store_dir: &StoreDir,
    substituters: &Substituters,
    probe: Option<&Probe>,
) -> Vec<Finding> {
    let mut nix = match Nix::connect(socket, store_dir.clone()) {
        Ok(nix) => nix,
        Err(error) => {
            let mend = match error {
                BuilderError::Unreachable { .. } => "systemctl enable --now nix-daemon.socket",
                _ => {
                    "set NIX_DAEMON_SOCKET_PATH to the socket of a Nix daemon, or --builder direct"
                }
            };
            return vec![Finding::fail("daemon", telemetry::chain(&error), mend.to_owned())];
        }
    };
    let version = nix.version().unwrap_or("of an unknown version").to_owned();
    let explanation = format!("Nix {version} answers at {}", socket.display());
    let mut findings = vec![Finding::ok("daemon", explanation)];
    let trust = match (nix.trust(), probe) {
        (Trust::Unknown, Some(probe)) => try_trust(&mut nix, probe),
        (trust, _) => trust,
    };
    findings.push(check_trust(trust, nix.builds_by_path()));
    findings.extend(check_signatures(&mut nix, trust, probe));
    if trust == Trust::Untrusted && *substituters != Substituters::default() {
        findings.push(Finding::warn(
            "substituters",
            "the daemon ignores the configured substituters of users that it does not trust, \
             except those in its trusted-substituters",
            "add them to trusted-substituters in /etc/nix/nix.conf and restart nix-daemon"
                .to_owned(),
        ));
    }
    findings
}

/// Finds out whether a daemon that does not tell trusts this user: only from users that it trusts
/// does it take what nobody has signed.
fn try_trust(nix: &mut Nix, probe: &Probe) -> Trust {
    let name = "steading-unsigned-probe";
    let Ok(path) = probe.info.path.dir().make_path(name, &probe.info.nar_hash, name) else {
        return Trust::Unknown;
    };
    let unsigned = PathInfo { path, signatures: Vec::new(), ..probe.info.clone() };
    match nix.import(&unsigned, &mut probe.nar.as_ref()) {
        Ok(()) => Trust::Trusted,
        Err(BuilderError::Daemon(_)) => Trust::Untrusted,
        Err(_) => Trust::Unknown,
    }
}

/// Judges whether the daemon builds for this user.
fn check_trust(trust: Trust, builds_by_path: bool) -> Finding {
    let mend =
        || "add this user to trusted-users in /etc/nix/nix.conf and restart nix-daemon".to_owned();
    match trust {
        Trust::Trusted => Finding::ok("trust", "the daemon trusts this user to build"),
        Trust::Unknown => Finding::warn(
            "trust",
            "this daemon does not tell whether it trusts this user, and without the coordinator \
             it cannot be tried; others get only derivations with fixed outputs built",
            mend(),
        ),
        Trust::Untrusted if builds_by_path => Finding::ok(
            "trust",
            "the daemon does not trust this user: it takes in what is signed, and derivations are \
             built by their paths",
        ),
        // It does not tell, so its agent would not know in time.
        Trust::Untrusted => Finding::fail(
            "trust",
            "the daemon does not trust this user: it builds only derivations with fixed outputs \
             for it",
            mend(),
        ),
    }
}

/// Lets the daemon take in a nar on the coordinator's signature alone.
fn check_signatures(nix: &mut Nix, trust: Trust, probe: Option<&Probe>) -> Option<Finding> {
    let probe = probe?;
    if probe.info.signatures.is_empty() {
        let explanation = "the coordinator does not sign for this store";
        return Some(Finding::warn("signatures", explanation, None));
    }
    Some(match nix.import_signed(&probe.info, &mut probe.nar.as_ref()) {
        Ok(()) => {
            let explanation = format!("the daemon believes {}", probe.signing_key);
            Finding::ok("signatures", explanation)
        }
        Err(error) => {
            let error = telemetry::chain(&error);
            let mend = format!(
                "echo 'extra-trusted-public-keys = {}' >> /etc/nix/nix.conf && systemctl restart \
                 nix-daemon",
                probe.signing_key
            );
            if trust == Trust::Trusted {
                let explanation = format!(
                    "the daemon does not believe the coordinator's signatures, and takes its nars \
                     only because it trusts this user: {error}"
                );
                Finding::warn("signatures", explanation, mend)
            } else {
                let explanation =
                    format!("the daemon does not believe the coordinator's signatures: {error}");
                Finding::fail("signatures", explanation, mend)
            }
        }
    })
}

/// Checks the state directory, and that everything with a limit can be read and is within it.
fn check_room(config: &AgentConfig) -> Vec<Finding> {
    let upkeep = config.upkeep.borrow().clone();
    let limits = &upkeep.limits;
    let sensors = upkeep::sensors(config);
    let reading = sensors.read();
    let mut findings = vec![check_state(&config.state_dir)];
    let places = [
        ("store disk", &sensors.store, reading.store_free_bytes),
        ("state disk", &sensors.state, reading.state_free_bytes),
    ];
    for (check, dir, free) in places {
        let Some(free) = free else {
            let explanation = format!("the free space of {} cannot be read", dir.display());
            findings.push(Finding::warn(check, explanation, None));
            continue;
        };
        let has = format!("{} free for {}", upkeep::bytes(free), dir.display());
        findings.push(match limits.free_bytes {
            Some(floor) if free < floor => Finding::fail(
                check,
                format!("{has}, less than --min-free {}", upkeep::bytes(floor)),
                match &config.builder {
                    BuilderKind::Guix { .. } => "guix gc --delete-generations=7d",
                    BuilderKind::Nix { .. } | BuilderKind::Direct(_) => {
                        "nix-collect-garbage --delete-older-than 7d"
                    }
                }
                .to_owned(),
            ),
            Some(_) => Finding::ok(check, has),
            None => Finding::warn(
                check,
                format!("{has}, and nothing keeps builds from filling it"),
                "set min-free in agent.toml, for example to \"20G\"".to_owned(),
            ),
        });
    }
    let unread = Resource::ALL.into_iter().filter(|resource| {
        limits.pressure.contains_key(resource) && !reading.pressure.contains_key(resource)
    });
    for resource in unread {
        findings.push(Finding::fail(
            "pressure",
            format!("this kernel does not tell the {resource} pressure, which has a limit"),
            "boot with psi=1 on the kernel's command line, or remove max-pressure".to_owned(),
        ));
    }
    findings
}

/// Tells whether the agent can write its state.
fn check_state(dir: &Path) -> Finding {
    let tried = fs_err::create_dir_all(dir).and_then(|()| {
        let trial = dir.join("doctor.trial");
        fs_err::write(&trial, "x")?;
        fs_err::remove_file(&trial)
    });
    match tried {
        Ok(()) => Finding::ok("state", format!("{} can be written", dir.display())),
        Err(error) => {
            let mend = format!("install -d -m 700 -o $(id -un) {}", dir.display());
            Finding::fail("state", telemetry::chain(&error), mend)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_and_what_to_do_is_another() {
        let fine = Finding::ok("clock", "it is right");
        assert_eq!(fine.to_string(), "ok    clock         it is right");
        let wrong = Finding::fail("clock", "it is wrong", "mend it".to_owned());
        assert_eq!(
            wrong.to_string(),
            "FAIL  clock         it is wrong\n                    → mend it"
        );
        let json = serde_json::to_value(&wrong).unwrap();
        assert_eq!(json["grade"], "fail");
    }

    #[test]
    fn a_state_directory_that_cannot_be_written_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check_state(&dir.path().join("new")).grade, Grade::Ok);
        fs_err::write(dir.path().join("file"), "").unwrap();
        let finding = check_state(&dir.path().join("file"));
        assert_eq!(finding.grade, Grade::Fail);
        assert!(finding.mend.is_some());
    }

    #[test]
    fn trust_is_needed_only_by_what_is_not_built_by_its_path() {
        assert_eq!(check_trust(Trust::Trusted, false).grade, Grade::Ok);
        assert_eq!(check_trust(Trust::Unknown, false).grade, Grade::Warn);
        assert_eq!(check_trust(Trust::Untrusted, false).grade, Grade::Fail);
        // Whether it can work so depends on signatures.
        assert_eq!(check_trust(Trust::Untrusted, true).grade, Grade::Ok);
    }
}
