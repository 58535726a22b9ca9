//! What the verbs are tried with that care for a farm: what happened and whom that concerns, who is
//! let in, and what is kept; in the order in which `help` lists them.

use crate::{
    scene::STRANGER,
    table::{Done, Entry, Forms, NONE, done},
};

const OPERATOR: Entry = Entry { may: "olga", may_not: Some("sam"), ..NONE };
const ADMIN: Entry = Entry { may: "ada", may_not: Some("olga"), ..NONE };

/// A fingerprint that no key has.
macro_rules! nobody {
    () => {
        "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    };
}

/// Those verbs, and what they have below them.
pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "events",
        done: &[
            done("events", "events", "build-failure"),
            done("events --since 0 --type build-failure", "events", "{failed}"),
            Done { objects: 0, ..done("events --since 1 --type intake-opened", "events", "") },
        ],
        wrong: &["events x", "events --since now", "events --since=-1", "events --type failure"],
        ..NONE
    },
    Entry {
        name: "hooks",
        done: &[
            done("hooks", "hooks", "mail"),
            done("hooks --failed", "hooks-failed", "no mail today"),
        ],
        wrong: &["hooks --nonsense", "hooks rerty 7"],
        ..OPERATOR
    },
    Entry {
        name: "hooks retry",
        done: &[done("hooks retry {delivery}", "hooks-retry", "again")],
        wrong: &[
            "hooks retry",
            "hooks retry mail",
            "hooks retry 0",
            "hooks retry {delivery} {delivery}",
            "hooks --failed retry {delivery}",
        ],
        absent: &["hooks retry 4711"],
        ..OPERATOR
    },
    Entry {
        name: "status",
        done: &[done("status", "status", "agents")],
        wrong: &["status x"],
        ..NONE
    },
    Entry {
        name: "metrics",
        done: &[done("metrics", "metrics", "# TYPE steading_")],
        wrong: &["metrics x"],
        ..NONE
    },
    Entry {
        name: "reload",
        done: &[Done { objects: 0, ..done("reload", "reload", "") }],
        wrong: &["reload x"],
        ..ADMIN
    },
    Entry {
        name: "keys",
        done: &[done("keys list", "keys-list", "olga")],
        wrong: &["keys", "keys lsit", "keys list x"],
        ..ADMIN
    },
    Entry {
        name: "keys approve",
        done: &[
            done("keys approve {pending} agent {newcomer}", "keys-approve", "agent newcomer"),
            done("keys approve {pending} viewer vera --also", "keys-approve", "viewer vera"),
        ],
        wrong: &[
            "keys approve",
            "keys approve {pending} agent",
            "keys approve SHA256:x agent {newcomer}",
            "keys approve {pending} agents {newcomer}",
            "keys approve {pending} agent ''",
        ],
        absent: &[concat!("keys approve ", nobody!(), " agent {newcomer}")],
        ..ADMIN
    },
    Entry {
        name: "keys revoke",
        done: &[done("keys revoke {pending}", "keys-revoke", "it waited")],
        wrong: &["keys revoke", "keys revoke amber", "keys revoke {pending} {pending}"],
        absent: &[concat!("keys revoke ", nobody!())],
        ..ADMIN
    },
    Entry {
        name: "keys token new",
        done: &[
            done("keys token new", "keys-token-new", "steading-token-"),
            done("keys token new --expires 2h --uses 20 --role viewer", "keys-token-new", "viewer"),
        ],
        wrong: &[
            "keys token",
            "keys token new x",
            "keys token new --uses 0",
            "keys token new --expires soon",
            "keys token new --role root",
        ],
        ..ADMIN
    },
    Entry {
        name: "keys token list",
        done: &[done("keys token list", "keys-token", "usable")],
        wrong: &["keys token list x", "keys token lsit"],
        ..ADMIN
    },
    Entry {
        name: "keys token revoke",
        done: &[done("keys token revoke {token-id}", "keys-token", "revoked")],
        wrong: &["keys token revoke", "keys token revoke {token-id} {token-id}"],
        absent: &["keys token revoke nosuch"],
        ..ADMIN
    },
    Entry {
        name: "audit",
        done: &[
            done("audit", "audit", "admin ada"),
            done("audit --since 1h --principal olga --limit 1", "audit", "operator olga"),
            done("audit --after 0", "audit", "submit"),
        ],
        wrong: &[
            "audit x",
            "audit --since tomorrow",
            "audit --limit 0",
            "audit --after x",
            "audit --principal ''",
        ],
        ..ADMIN
    },
    Entry {
        name: "check",
        done: &[
            Done { objects: 0, ..done("check", "check", "all is well") },
            Done { status: 1, ..done("check{stray}", "check", "check --repair removes it") },
            done("check --deep --repair{stray}", "check", "removed"),
        ],
        wrong: &["check x", "check --depp"],
        ..ADMIN
    },
    Entry {
        name: "backup",
        done: &[Done { forms: Forms::Bytes, ..done("backup", "backup", "unpacked") }],
        wrong: &["backup x", "backup --to /tmp"],
        ..ADMIN
    },
    Entry {
        name: "prune",
        done: &[
            done("prune --older-than 90d --dry-run", "prune", "0 builds"),
            done("prune --older-than 90d", "prune", "removed"),
        ],
        wrong: &["prune", "prune --older-than", "prune --older-than long", "prune 90d"],
        ..ADMIN
    },
    Entry {
        name: "gc",
        done: &[
            done("gc --older-than 0s --delay 1h --dry-run", "gc", "would be withdrawn"),
            Done { objects: 0, ..done("gc --where-tag branch=gone", "gc", "nothing to withdraw") },
            Done { objects: 0, ..done("gc --max-bytes 1T --keep-tag a=b", "gc", "nothing") },
        ],
        wrong: &[
            "gc x",
            "gc --older-than long",
            "gc --where-tag x",
            "gc --keep-tag x",
            "gc --max-bytes 1.5G",
            "gc --delay soon",
        ],
        ..ADMIN
    },
    Entry {
        name: "enroll",
        may: STRANGER,
        may_not: None,
        done: &[
            Done { status: 1, ..done("enroll", "enroll", "waits for an admin") },
            Done { status: 1, ..done("enroll --name {newcomer}", "enroll", "keys approve") },
            done("enroll --token {token} --name {newcomer}", "enroll", "is agent newcomer"),
        ],
        wrong: &["enroll x", "enroll --name 'a b'", "enroll --token"],
        ..NONE
    },
];
