//! `offload`: the daemon asks, derivation by derivation, whether somebody else builds it.
//!
//! A request is one line, `0|1 SYSTEM DRV FEATURES`, where 1 means that the daemon has a slot of
//! its own. The answer is a line on standard error. After `# accept` two more lines come, the whole
//! input closure and the outputs that are missing, and this process is for that one build. Source:
//! Guix `nix/libstore/build.cc` (`tryBuildHook`), `guix/scripts/offload.scm`.

use super::{
    GuixProgramError, answers,
    build::{self, Order},
    closure::Outputs,
    farm::{Farm, FarmError},
    next_line, remark,
    settings::{Settings, Unreachable},
};
use crate::{core::store_path::StorePath, telemetry};
use std::{
    io::{self, BufRead, Write as _},
    process::ExitCode,
};

/// For how long it is believed what the farm offers, or that it is away, in milliseconds: the
/// daemon asks for every derivation, and again every few seconds for those it was told to postpone.
const BELIEVED_MS: u64 = 10_000;

/// What the daemon says of all builds, in the words behind the verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// How long a build may say nothing, in seconds; 0 for any time.
    pub(super) max_silent_s: u64,
    /// How long a build may take, in seconds; 0 for any time.
    pub(super) timeout_s: u64,
    /// Whether machines read what is said.
    pub(super) trace: bool,
}

impl Terms {
    /// Reads the words behind `offload`; nothing when a person wrote them. The system is that of
    /// the daemon's machine, and each request names its own.
    pub(super) fn parse(
        system: &str,
        max_silent: &str,
        trace: &str,
        timeout: &str,
    ) -> Option<Self> {
        let is_system = system.contains('-') && !system.starts_with('-');
        Some(Self {
            max_silent_s: max_silent.parse().ok().filter(|_| is_system)?,
            timeout_s: timeout.parse().ok()?,
            trace: matches!(trace, "true" | "1"),
        })
    }
}

/// What the daemon wants to have built.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    system: String,
    drv: StorePath,
    features: Vec<String>,
}

impl Request {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (Some("0" | "1"), Some(system), Some(drv)) = (words.next(), words.next(), words.next())
        else {
            return None;
        };
        let features = words.next().unwrap_or_default().split(',').filter(|word| !word.is_empty());
        Some(Self {
            system: system.to_owned(),
            drv: drv.parse().ok().filter(StorePath::is_derivation)?,
            features: features.map(str::to_owned).collect(),
        })
    }
}

/// What the daemon is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    /// The farm builds it.
    Accept,
    /// The daemon's machine builds it.
    Decline,
    /// The daemon asks again.
    Postpone,
}

impl Reply {
    const fn line(self) -> &'static str {
        match self {
            Self::Accept => "# accept\n",
            Self::Decline => "# decline\n",
            Self::Postpone => "# postpone\n",
        }
    }
}

/// What an agent of the farm says of itself, as far as it matters here.
#[derive(Debug, Clone, serde::Deserialize)]
struct Offer {
    connected: bool,
    store_dir: String,
    systems: Vec<String>,
    emulated_systems: Vec<String>,
    features: Vec<String>,
}

impl Offer {
    fn covers(&self, request: &Request) -> bool {
        let systems = || self.systems.iter().chain(&self.emulated_systems);
        self.store_dir == request.drv.dir().as_str()
            && systems().any(|system| *system == request.system)
            && request.features.iter().all(|feature| self.features.contains(feature))
    }
}

/// What `whoami` says, as far as it matters.
#[derive(Debug, serde::Deserialize)]
struct Myself {
    name: String,
    role: String,
    trusted_import: bool,
}

/// What is known of the farm just now.
#[derive(Debug)]
enum View {
    /// It can be asked.
    Here {
        /// Its agents.
        offers: Vec<Offer>,
        /// Whether it believes what this machine built.
        inputs: Outputs,
    },
    /// It cannot be reached.
    Away,
    /// It builds nothing for this machine.
    Closed,
}

/// Answers the daemon until a build is accepted and done, or the daemon wants nothing more.
pub(super) fn serve(settings: &Settings, terms: &Terms) -> Result<ExitCode, GuixProgramError> {
    let farm = Farm::new(settings);
    let mut daemon = io::stdin().lock();
    let mut believed: Option<(u64, View)> = None;
    while let Some(line) = next_line(&mut daemon)? {
        let Some(request) = Request::parse(&line) else {
            answer(Reply::Decline)?;
            continue;
        };
        if believed.as_ref().is_none_or(|(at, _)| farm.now_ms() >= at + BELIEVED_MS) {
            believed = Some((farm.now_ms(), look(settings, &farm)));
        }
        let view = believed.as_ref().map_or(&View::Away, |(_, view)| view);
        let reply = decide(settings, &request, view);
        answer(reply)?;
        if let (Reply::Accept, View::Here { inputs, .. }) = (reply, view) {
            let order = order(&mut daemon, request.drv, *inputs, *terms)?;
            let mut log = answers()?;
            return Ok(build::run(settings, &farm, &order, &mut log).tell());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(reply: Reply) -> Result<(), GuixProgramError> {
    io::stderr().write_all(reply.line().as_bytes()).map_err(GuixProgramError::Daemon)
}

/// Looks at the farm, and says what is wrong with it.
fn look(settings: &Settings, farm: &Farm<'_>) -> View {
    if !settings.offloads() {
        return View::Closed;
    }
    match ask(farm) {
        Ok((myself, _)) if matches!(&*myself.role, "viewer" | "agent") => {
            remark(&format!(
                "the farm does not build: there {} is {}, who may not submit",
                myself.name, myself.role
            ));
            View::Closed
        }
        Ok((myself, offers)) => {
            let inputs = if myself.trusted_import { Outputs::Sent } else { Outputs::Left };
            View::Here { offers, inputs }
        }
        Err(error) => {
            remark(&format!("the farm does not build: {}", telemetry::chain(&error)));
            // Of other errors, waiting makes none better.
            let is_away = matches!(error, FarmError::Unreachable(_));
            if is_away { View::Away } else { View::Closed }
        }
    }
}

/// Asks the farm who this machine is there, and who builds.
fn ask(farm: &Farm<'_>) -> Result<(Myself, Vec<Offer>), FarmError> {
    let myself = farm.ask::<Myself>(&["whoami"], "")?.into_iter().next();
    let myself = myself.ok_or_else(|| FarmError::Refused("it does not know the key".to_owned()))?;
    Ok((myself, farm.ask(&["agents"], "")?))
}

/// Decides where a derivation is built.
fn decide(settings: &Settings, request: &Request, view: &View) -> Reply {
    let excluded = |rule: &Option<Vec<String>>, word: &String| {
        rule.as_ref().is_some_and(|allowed| !allowed.contains(word))
    };
    if !settings.offloads()
        || excluded(&settings.systems, &request.system)
        || request.features.iter().any(|feature| excluded(&settings.features, feature))
    {
        return Reply::Decline;
    }
    let later = match settings.unreachable {
        Unreachable::Local => Reply::Decline,
        Unreachable::Wait => Reply::Postpone,
    };
    let offers = match view {
        View::Here { offers, .. } => offers,
        View::Away => return later,
        View::Closed => return Reply::Decline,
    };
    let mut could = offers.iter().filter(|offer| offer.covers(request)).peekable();
    if could.peek().is_none() {
        return Reply::Decline;
    }
    if could.any(|offer| offer.connected) { Reply::Accept } else { later }
}

/// Reads what the daemon says of a build that was accepted.
fn order(
    daemon: &mut impl BufRead,
    drv: StorePath,
    inputs: Outputs,
    terms: Terms,
) -> Result<Order, GuixProgramError> {
    let mut paths = || {
        let line = next_line(daemon)?;
        let line =
            line.ok_or_else(|| GuixProgramError::Request("it said too little".to_owned()))?;
        let parse = |word: &str| {
            word.parse().map_err(|error| GuixProgramError::Request(format!("{error}")))
        };
        line.split_ascii_whitespace().map(parse).collect::<Result<Vec<StorePath>, _>>()
    };
    Ok(Order { drv, closure: paths()?, inputs, outputs: paths()?, terms })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello.drv";

    fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings { destination: vec!["farm".to_owned()], ..Settings::default() };
        change(&mut settings);
        settings
    }

    fn request(system: &str, features: &str) -> Request {
        Request::parse(&format!("1 {system} {DRV} {features}")).unwrap()
    }

    fn offer(connected: bool) -> Offer {
        Offer {
            connected,
            store_dir: "/gnu/store".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: vec!["aarch64-linux".to_owned()],
            features: vec!["kvm".to_owned()],
        }
    }

    fn here(connected: bool) -> View {
        View::Here { offers: vec![offer(connected)], inputs: Outputs::Left }
    }

    #[test]
    fn a_request_is_read_as_the_daemon_writes_it() {
        let read = Request::parse(&format!("0 x86_64-linux {DRV} kvm,big")).unwrap();
        assert_eq!(read.features, ["kvm", "big"]);
        assert!(request("x86_64-linux", "").features.is_empty());
        for line in ["", "1", "2 x86_64-linux /x", "1 x86_64-linux /gnu/store/x"] {
            assert_eq!(Request::parse(line), None, "{line}");
        }
    }

    #[test]
    fn what_people_say_to_guix_offload_is_not_the_daemons() {
        let terms = Terms::parse("x86_64-linux", "3600", "true", "86400").unwrap();
        assert_eq!(terms, Terms { max_silent_s: 3_600, timeout_s: 86_400, trace: true });
        assert_eq!(Terms::parse("test", "a", "b", "c"), None);
    }

    #[test]
    fn the_farm_gets_what_its_agents_can_build() {
        let view = here(true);
        let all = settings(|_| {});
        let decided = |settings: &Settings, request| decide(settings, &request, &view);
        assert_eq!(decided(&all, request("x86_64-linux", "")), Reply::Accept);
        assert_eq!(decided(&all, request("aarch64-linux", "kvm")), Reply::Accept);
        assert_eq!(decided(&all, request("riscv64-linux", "")), Reply::Decline);
        assert_eq!(decided(&all, request("x86_64-linux", "big")), Reply::Decline);
        let native = settings(|s| s.systems = Some(vec!["x86_64-linux".to_owned()]));
        assert_eq!(decided(&native, request("aarch64-linux", "")), Reply::Decline);
        let plain = settings(|s| s.features = Some(Vec::new()));
        assert_eq!(decided(&plain, request("x86_64-linux", "kvm")), Reply::Decline);
        assert_eq!(decided(&Settings::without_farm(), request("x86_64-linux", "")), Reply::Decline);
    }

    #[test]
    fn while_the_farm_is_away_the_rule_counts() {
        let local = settings(|_| {});
        let wait = settings(|s| s.unreachable = Unreachable::Wait);
        for view in [View::Away, here(false)] {
            assert_eq!(decide(&local, &request("x86_64-linux", ""), &view), Reply::Decline);
            assert_eq!(decide(&wait, &request("x86_64-linux", ""), &view), Reply::Postpone);
        }
        let closed = decide(&wait, &request("x86_64-linux", ""), &View::Closed);
        assert_eq!(closed, Reply::Decline, "that does not change by itself");
        // Nobody there could build it, whoever comes back.
        let view = here(false);
        assert_eq!(decide(&wait, &request("riscv64-linux", ""), &view), Reply::Decline);
    }
}
