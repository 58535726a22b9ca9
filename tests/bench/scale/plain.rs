//! What ours is held against: the same graph in a plain database, a plain scan of our tables, and
//! a plain program with a heap and counters.

use crate::{
    layered,
    meter::{self, Meter},
};
use rusqlite::{Connection, params, types::ValueRef};
use std::{cmp::Reverse, collections::BinaryHeap, path::Path, time::Duration};
use steading::core::hash::Sha256;

/// Inserts the graph with one row per edge, in one durable transaction.
pub(crate) fn rows(builds: usize, dir: &Path) {
    let graph = layered::edges(builds);
    let hashes: Vec<[u8; 32]> =
        (0..builds).map(|member| *Sha256::of(&member.to_le_bytes()).as_bytes()).collect();
    let start = Meter::read();
    let mut database = Connection::open(dir.join("plain.db")).unwrap();
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE builds (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,
                name TEXT NOT NULL, state TEXT NOT NULL) STRICT;
             CREATE TABLE edges (build INTEGER NOT NULL, input INTEGER NOT NULL,
                PRIMARY KEY (build, input)) STRICT, WITHOUT ROWID;",
        )
        .unwrap();
    let change = database.transaction().unwrap();
    {
        let mut build = change.prepare("INSERT INTO builds VALUES (?1, ?2, ?3, 'queued')").unwrap();
        let mut edge = change.prepare("INSERT INTO edges VALUES (?1, ?2)").unwrap();
        for (member, inputs) in (0i64..).zip(&graph) {
            let hash = &hashes[usize::try_from(member).unwrap()][..20];
            let name = format!("member-of-a-layer-{member}");
            build.execute(params![member, hash, name]).unwrap();
            for input in inputs {
                edge.execute(params![member, input]).unwrap();
            }
        }
    }
    change.commit().unwrap();
    start.say("plain: insert, a row per edge", builds);
}

/// Reads every column of the tables that a start reads.
pub(crate) fn scan(dir: &Path) {
    let start = Meter::read();
    let database = Connection::open(dir.join("steading.db")).unwrap();
    let mut rows = 0;
    let mut sum = 0u64;
    for table in ["builds", "derivations", "derivation_outputs"] {
        let mut select = database.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = select.column_count();
        let mut found = select.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            rows += 1;
            for column in 0..columns {
                sum = sum.wrapping_add(match row.get_ref(column).unwrap() {
                    ValueRef::Null => 0,
                    ValueRef::Integer(number) => number.unsigned_abs(),
                    ValueRef::Real(_) => 1,
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                        bytes.iter().map(|byte| u64::from(*byte)).sum()
                    }
                });
            }
        }
    }
    std::hint::black_box(sum);
    start.say("plain: scan of the tables", rows);
}

/// Plans the graph with counters and one heap.
pub(crate) fn heap(builds: usize) {
    let graph = layered::edges(builds);
    let (mut spent, begin) = (Duration::ZERO, Meter::read());
    let start = Meter::read();
    let mut waiting: Vec<u32> = Vec::with_capacity(builds);
    let mut dependents: Vec<Vec<u32>> = vec![Vec::new(); builds];
    for (member, inputs) in (0u32..).zip(&graph) {
        waiting.push(u32::try_from(inputs.len()).unwrap());
        for input in inputs {
            dependents[*input as usize].push(member);
        }
    }
    let mut ready: BinaryHeap<Reverse<u32>> = BinaryHeap::new();
    ready.extend((0u32..).zip(&waiting).filter(|(_, left)| **left == 0).map(|(m, _)| Reverse(m)));
    let mut order = Vec::with_capacity(builds);
    while let Some(Reverse(member)) = ready.pop() {
        order.push(member);
        for dependent in &dependents[member as usize] {
            waiting[*dependent as usize] -= 1;
            if waiting[*dependent as usize] == 0 {
                ready.push(Reverse(*dependent));
            }
        }
    }
    spent += start.processor();
    assert_eq!(order.len(), builds);
    meter::say("plain: heap and counters", spent, builds);
    begin.say("  with its memory", builds);
}
