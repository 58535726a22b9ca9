//! What every verb is tried with. A new verb needs one entry, here or in `care`, and a schema in
//! `schema/json`.
//!
//! In the lines, `{failed}` is a build that failed and has a log, `{queued}` one that is ready,
//! `{fresh}` a ready build of its own for each run of a line, `{canceled}` the same, canceled;
//! `{absent}` is no build and `{uuid}` a free id; `{drv}` and `{source}` are store paths that are
//! held, `{nowhere}` is not; `{away}` is an agent of its own for each run, which has left.
//! `{delivery}` is an event that a hook failed on; `{newcomer}` is a free name, `{pending}` a key
//! that waits, `{token}` and `{token-id}` are a token and the id of one, each of its own for each
//! run. `{stray}` is nothing, and something is published that nobody has published.

use crate::care;
use std::iter::chain;

/// One verb.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// Who may use it: one of the least role that may.
    pub(crate) may: &'static str,
    /// Somebody who may not, unless everybody may.
    pub(crate) may_not: Option<&'static str>,
    /// Lines that are done, and what they print.
    pub(crate) done: &'static [Done],
    /// Lines whose words make no command.
    pub(crate) wrong: &'static [&'static str],
    /// Lines that name something that does not exist.
    pub(crate) absent: &'static [&'static str],
}

/// A line that is done.
pub(crate) struct Done {
    pub(crate) line: &'static str,
    /// What its text has, on stdout or stderr.
    pub(crate) says: &'static str,
    /// The schema of its objects.
    pub(crate) schema: &'static str,
    /// The least number of objects.
    pub(crate) objects: usize,
    /// What is on its standard input.
    pub(crate) input: &'static str,
    /// Its exit status.
    pub(crate) status: i32,
    /// In which forms there is an answer.
    pub(crate) forms: Forms,
}

/// In which forms an answer can be had; JSON is always one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forms {
    /// As text, in a pipe and on a terminal.
    Text,
    /// As bytes that are no text: not on a terminal. Standard error says what it should.
    Bytes,
    /// As nothing else.
    JsonOnly,
}

const NOTHING: Done =
    Done { line: "", says: "", schema: "", objects: 1, input: "", status: 0, forms: Forms::Text };

pub(crate) const fn done(line: &'static str, schema: &'static str, says: &'static str) -> Done {
    Done { line, says, schema, ..NOTHING }
}

pub(crate) const NONE: Entry =
    Entry { name: "", may: "vera", may_not: Some("amber"), done: &[], wrong: &[], absent: &[] };

/// All verbs, and what they have below them.
pub(crate) fn entries() -> impl Iterator<Item = &'static Entry> {
    chain(ENTRIES, care::ENTRIES)
}

/// Those about builds, agents and whoever asks, in the order in which `help` lists them.
const ENTRIES: &[Entry] = &[
    Entry {
        name: "submit",
        may: "sam",
        may_not: Some("vera"),
        done: &[
            done("submit {drv} --key night", "submit", "-"),
            done("submit {drv} --skip-if-queued --tag branch=core --priority 7", "submit", "-"),
            done("submit {drv} --uuid {uuid} --native-only", "submit", "{uuid}"),
            done("submit {drv} --defer-until 2d --timeout 60 --max-silent 9", "submit", "-"),
            done("submit {drv} --replaces branch=gone --with-inputs", "submit", "-"),
            Done { input: "{drv}\n", ..done("submit - --key night", "submit", "-") },
        ],
        wrong: &[
            "submit",
            "submit {source}",
            "submit - --closure",
            "submit {drv} --priority high",
            "submit {drv} --tag nothing",
            "submit {drv} --uuid 7",
            "submit {drv} --defer-until yesterday",
            "submit {drv} --with-inputs --no-inputs",
            "submit {drv} --agent ''",
            "submit {drv} --timeout 0",
            "submit {drv} --nonsense",
        ],
        absent: &["submit {nowhere}"],
    },
    Entry {
        name: "missing",
        may: "sam",
        may_not: Some("vera"),
        done: &[Done {
            input: "{source}\n{nowhere}\n",
            ..done("missing -", "missing", "{nowhere}")
        }],
        wrong: &["missing", "missing x", "missing - -"],
        ..NONE
    },
    Entry {
        name: "builds",
        done: &[
            done("builds", "builds", "failed"),
            done("builds --state failed --system x86_64-linux --agent amber", "builds", "failed"),
            done("builds --drv 'falls*' --since 2h --limit 1", "builds", "falls"),
            done("builds --after {failed}", "builds", "ready"),
        ],
        wrong: &[
            "builds --state done",
            "builds --since tomorrow",
            "builds --limit 0",
            "builds --after 7",
            "builds --where-tag x",
            "builds x",
        ],
        ..NONE
    },
    Entry {
        name: "show",
        done: &[done("show {failed}", "show", "amber"), done("show {queued}", "show", "ready")],
        wrong: &["show", "show 7", "show {failed} {queued}"],
        absent: &["show {absent}"],
        ..NONE
    },
    Entry {
        name: "why",
        done: &[done("why {failed}", "why", "failed"), done("why {queued}", "why", "amber")],
        wrong: &["why", "why 7"],
        absent: &["why {absent}"],
        ..NONE
    },
    Entry {
        name: "unplaceable",
        done: &[done("unplaceable", "unplaceable", "nobody")],
        wrong: &["unplaceable x"],
        ..NONE
    },
    Entry {
        name: "log",
        done: &[
            done("log {failed}", "log", "the second line"),
            done("log -f {failed} --attempt 1 --tail 1", "log", "the second line"),
        ],
        wrong: &["log", "log 7", "log {failed} --attempt 0", "log {failed} --tail some"],
        absent: &["log {absent}", "log {failed} --attempt 9"],
        ..NONE
    },
    Entry {
        name: "wait",
        done: &[
            Done { status: 1, ..done("wait {failed}", "wait", "failed") },
            Done { status: 1, objects: 0, ..done("wait {queued} --timeout 0", "wait", "") },
        ],
        wrong: &["wait", "wait 7", "wait {failed} --where-tag a=b", "wait {failed} --timeout x"],
        absent: &["wait {absent}"],
        ..NONE
    },
    Entry {
        name: "cancel",
        may: "sam",
        may_not: Some("vera"),
        done: &[
            done("cancel {fresh}", "cancel", "canceled"),
            done("cancel {fresh} --force", "cancel", "canceled"),
            Done { status: 1, objects: 0, ..done("cancel {failed}", "cancel", "failed") },
        ],
        wrong: &["cancel", "cancel 7", "cancel {failed} --where-tag a=b"],
        absent: &["cancel {absent}"],
    },
    Entry {
        name: "retry",
        may: "sam",
        may_not: Some("vera"),
        done: &[
            done("retry {canceled}", "retry", "ready"),
            done("retry {canceled} --with-dependents --priority 3", "retry", "ready"),
            done("retry {canceled} --not-agent birch", "retry", "ready"),
        ],
        wrong: &["retry", "retry 7", "retry {failed} --priority x", "retry {failed} --agent ''"],
        absent: &["retry {absent}"],
    },
    Entry {
        name: "set",
        may: "sam",
        may_not: Some("vera"),
        done: &[
            done("set {fresh} --priority 9 --tag branch=core", "set", "ready"),
            done("set {fresh} --hold", "set", "held"),
            done("set {fresh} --release", "set", "ready"),
        ],
        wrong: &["set", "set {failed} --hold --release", "set 7 --hold", "set {failed} --tag x"],
        absent: &["set {absent} --hold"],
    },
    Entry {
        name: "outputs",
        done: &[done("outputs {source} {drv}", "outputs", "{source}")],
        wrong: &["outputs", "outputs notes.txt"],
        absent: &["outputs {nowhere}"],
        ..NONE
    },
    Entry {
        name: "nar",
        done: &[
            done("nar {source}", "nar", "nix-archive-1"),
            Done {
                input: "{nowhere}\n{source}\n",
                forms: Forms::JsonOnly,
                ..done("nar -", "nar", "")
            },
        ],
        wrong: &[
            "nar",
            "nar notes.txt",
            "nar {source} --attempt 7",
            "nar - --attempt {absent} --json",
        ],
        absent: &["nar {nowhere}", "nar {source} --attempt {absent}"],
        ..NONE
    },
    Entry {
        name: "agents",
        done: &[done("agents", "agents", "amber")],
        wrong: &["agents puase amber", "agents --nonsense"],
        ..NONE
    },
    Entry {
        name: "agents show",
        done: &[done("agents show amber", "agents-show", "amber")],
        wrong: &["agents show", "agents show ''"],
        absent: &["agents show nobody"],
        ..NONE
    },
    Entry {
        name: "agents pause",
        may: "olga",
        may_not: Some("sam"),
        done: &[
            done("agents pause birch --reason 'new disk' --deadline 2h", "agents", "birch"),
            done("agents pause birch", "agents", "paused"),
        ],
        wrong: &["agents pause", "agents pause birch --deadline soon"],
        absent: &["agents pause nobody"],
    },
    Entry {
        name: "agents drain",
        may: "olga",
        may_not: Some("sam"),
        done: &[done("agents drain birch", "agents", "drained")],
        wrong: &["agents drain"],
        absent: &["agents drain nobody"],
    },
    Entry {
        name: "agents resume",
        may: "olga",
        may_not: Some("sam"),
        done: &[done("agents resume birch", "agents", "birch")],
        wrong: &["agents resume", "agents resume birch --reason x"],
        absent: &["agents resume nobody"],
    },
    Entry {
        name: "agents rm",
        may: "olga",
        may_not: Some("sam"),
        done: &[done("agents rm {away}", "agents-rm", "removed")],
        wrong: &["agents rm"],
        absent: &["agents rm nobody"],
    },
    Entry {
        name: "whoami",
        may: "amber",
        may_not: None,
        done: &[done("whoami", "whoami", "agent")],
        wrong: &["whoami x"],
        ..NONE
    },
    Entry {
        name: "help",
        may: "amber",
        may_not: None,
        done: &[done("help", "help", "submit"), done("help wait", "help", "Example: ")],
        wrong: &["help sumbit", "help wait wait"],
        ..NONE
    },
    Entry {
        name: "version",
        may: "amber",
        may_not: None,
        done: &[done("version", "version", "steading 0.")],
        wrong: &["version x"],
        ..NONE
    },
];
