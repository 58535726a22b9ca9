//! What the builders themselves say of when they ran.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// One run of a builder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    pub(crate) agent: String,
    /// In seconds since the machine started.
    pub(crate) began: f64,
    /// Absent when it was killed.
    pub(crate) ended: Option<f64>,
}

/// A moment at which the machine of an agent died with everything on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Death {
    pub(crate) agent: String,
    pub(crate) at: f64,
}

/// Returns the time that witnesses write down.
pub(crate) fn now() -> f64 {
    let uptime = fs_err::read_to_string("/proc/uptime").unwrap();
    uptime.split_once(' ').unwrap().0.parse().unwrap()
}

/// Reads the files of all agents: the runs of each build by its name, in order of time.
pub(crate) fn read(files: &[(String, PathBuf)]) -> BTreeMap<String, Vec<Run>> {
    let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for (agent, file) in files {
        for line in lines(file) {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, name, at] = words[..] else { panic!("{line}") };
            let at: f64 = at.parse().unwrap();
            let own = runs.entry(name.to_owned()).or_default();
            if what == "begin" {
                own.push(Run { agent: agent.clone(), began: at, ended: None });
            } else {
                let run = own.iter_mut().rfind(|run| run.agent == *agent).unwrap();
                assert_eq!(run.ended.replace(at), None, "{name} ended twice");
            }
        }
    }
    for own in runs.values_mut() {
        own.sort_by(|a, b| a.began.total_cmp(&b.began));
    }
    runs
}

fn lines(file: &Path) -> Vec<String> {
    // An agent that was given nothing has no file.
    let text = fs_err::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Returns the first run that was begun while an earlier one of the same build lived or when its
/// result was to be had: one whose machine had not died.
pub(crate) fn needless(runs: &[Run], deaths: &[Death]) -> Option<Run> {
    // The clock of witnesses has hundredths of a second.
    const TICK: f64 = 0.011;
    let died = |run: &Run, before: f64| {
        deaths.iter().any(|death| {
            death.agent == run.agent && death.at + TICK >= run.began && death.at <= before + TICK
        })
    };
    runs.windows(2).find(|pair| !died(&pair[0], pair[1].began)).map(|pair| pair[1].clone())
}
