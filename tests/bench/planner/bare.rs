//! What the same work costs without anything around it.

use super::{cpu_of_this_thread, shape::Shape};
use rusqlite::{Connection, OpenFlags, params, types::ValueRef};
use std::{cmp::Reverse, collections::BinaryHeap, path::Path};
use steading::core::hash::Sha256;

/// Inserts a graph into a new database, with one row per edge, in one durable transaction. Returns
/// the processor seconds.
pub(crate) fn insert(file: &Path, shape: &Shape) -> f64 {
    let before = cpu_of_this_thread();
    let mut connection = Connection::open(file).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536;
             CREATE TABLE nodes (
                 id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, name TEXT NOT NULL,
                 state TEXT NOT NULL
             ) STRICT;
             CREATE TABLE edges (
                 node INTEGER NOT NULL, input INTEGER NOT NULL, PRIMARY KEY (node, input)
             ) STRICT, WITHOUT ROWID;",
        )
        .unwrap();
    let transaction = connection.transaction().unwrap();
    {
        let mut node =
            transaction.prepare("INSERT INTO nodes VALUES (?1, ?2, ?3, 'queued')").unwrap();
        let mut edge = transaction.prepare("INSERT INTO edges VALUES (?1, ?2)").unwrap();
        for number in 0..shape.count() {
            let name = format!("package-{number}-1.0");
            let hash = Sha256::of(name.as_bytes());
            let id = i64::try_from(number).unwrap();
            node.execute(params![id, &hash.as_bytes()[..20], name]).unwrap();
            for input in shape.inputs(number) {
                edge.execute(params![id, input]).unwrap();
            }
        }
    }
    transaction.commit().unwrap();
    cpu_of_this_thread() - before
}

/// Reads every column of every row that a start of the coordinator may have to look at, in the
/// order of the tables. Returns how many values there were.
pub(crate) fn scan(file: &Path) -> usize {
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let tables: Vec<String> = connection
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
                AND name NOT IN ('derivation_texts', 'audit') ORDER BY name",
        )
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let mut values = 0;
    for table in tables {
        let mut select = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = select.column_count();
        let mut rows = select.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                let value = row.get_ref(column).unwrap();
                values += usize::from(!matches!(value, ValueRef::Null));
            }
        }
    }
    values
}

/// Plans a graph with counters and a heap: `running` at a time, the longest chain first. Returns
/// the processor seconds of planning alone, without making the graph.
pub(crate) fn plan(shape: &Shape, running: usize) -> f64 {
    let count = shape.count();
    let mut waiting: Vec<u32> = Vec::with_capacity(count);
    let mut starts = vec![0_u32; count + 1];
    for node in 0..count {
        let inputs = shape.inputs(node);
        waiting.push(inputs.len().try_into().unwrap());
        for input in inputs {
            starts[*input as usize + 1] += 1;
        }
    }
    for node in 0..count {
        starts[node + 1] += starts[node];
    }
    let mut dependents = vec![0_u32; shape.edge_count()];
    let mut filled = starts.clone();
    for node in 0..count {
        for input in shape.inputs(node) {
            let place = &mut filled[*input as usize];
            dependents[*place as usize] = node.try_into().unwrap();
            *place += 1;
        }
    }
    let before = cpu_of_this_thread();
    let rank = |node: u32| (shape.height(node as usize), Reverse(node));
    let mut ready: BinaryHeap<(usize, Reverse<u32>)> = BinaryHeap::new();
    let roots = (0..count).filter(|node| waiting[*node] == 0);
    ready.extend(roots.map(|node| rank(node.try_into().unwrap())));
    let mut given: Vec<u32> = Vec::with_capacity(running);
    let mut completed = 0;
    loop {
        while given.len() < running
            && let Some((_, Reverse(node))) = ready.pop()
        {
            given.push(node);
        }
        if given.is_empty() {
            break;
        }
        for node in given.drain(..) {
            completed += 1;
            let [from, to] = [0, 1].map(|side| starts[node as usize + side] as usize);
            for dependent in &dependents[from..to] {
                let left = &mut waiting[*dependent as usize];
                *left -= 1;
                if *left == 0 {
                    ready.push(rank(*dependent));
                }
            }
        }
    }
    let used = cpu_of_this_thread() - before;
    assert_eq!(completed, count, "everything was planned");
    used
}
