//! PostgreSQL as a queue: `FOR UPDATE SKIP LOCKED`, every commit synchronous.

use super::{Rate, Server, output};
use crate::wait;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where Debian has the programs of a version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The user that the server runs as where we are root, which it refuses.
const USER: &str = "postgres";

const TABLE: &str = "
    CREATE TABLE builds (
        id bigint PRIMARY KEY, rank bigint NOT NULL, state text NOT NULL, agent int,
        derivation text NOT NULL
    );
    CREATE INDEX ready ON builds (rank) WHERE state = 'ready';
";

/// One transaction to allocate and one to complete.
const SCRIPT: &str = r"
UPDATE builds SET state = 'allocated', agent = :client_id WHERE id = (SELECT id FROM builds WHERE state = 'ready' ORDER BY rank LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id AS build \gset
UPDATE builds SET state = 'succeeded' WHERE id = :build;
";

/// Allocates and completes `count` builds with each of these numbers of clients, and returns the
/// best rate.
pub(crate) fn postgres(scratch: &Path, count: usize, clients: &[usize]) -> Result<Rate, String> {
    let programs = programs()?;
    let dir = tempfile::tempdir_in(scratch).unwrap();
    let own = output(Command::new("id").arg("-u"))?.trim() != "0";
    if !own {
        output(Command::new("chown").arg(USER).arg(dir.path()))?;
        // Its own directory is closed; those above must let it through.
        output(Command::new("chmod").arg("a+x").arg(scratch))?;
    }
    let command = |name: &str| {
        let program = programs.join(name);
        if own {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program);
        command.current_dir(dir.path());
        command
    };
    let data = dir.path().join("data");
    output(command("initdb").args(["-A", "trust", "-U", USER, "-D"]).arg(&data))?;
    let mut server = command("postgres");
    server.arg("-D").arg(&data).arg("-k").arg(dir.path()).args(["-h", ""]);
    for setting in
        ["synchronous_commit=on", "fsync=on", "max_connections=300", "shared_buffers=256MB"]
    {
        server.args(["-c", setting]);
    }
    let mut server = Server::start(server.stdout(Stdio::null()).stderr(Stdio::null()))?;
    let client = |name: &str| {
        let mut client = command(name);
        client.arg("-h").arg(dir.path()).args(["-U", USER]);
        client
    };
    wait::until("postgres listens", || {
        assert_eq!(server.0.try_wait().unwrap(), None, "postgres does not run");
        output(&mut client("pg_isready")).is_ok()
    });
    output(client("psql").args(["-q", "-c", TABLE]))?;
    let script = dir.path().join("script");
    fs_err::write(&script, SCRIPT).unwrap();
    let mut best: Option<Rate> = None;
    for clients in clients {
        let each = count / clients;
        let fill = format!(
            "TRUNCATE builds; INSERT INTO builds SELECT n, n, 'ready', NULL, 'package-' || n || \
             '-1.0.drv' FROM generate_series(1, {}) n;",
            // Some more, so that nobody finds all of the last ones locked.
            (each + 1) * clients
        );
        output(client("psql").args(["-q", "-c", &fill, "-c", "VACUUM ANALYZE builds"]))?;
        let mut bench = client("pgbench");
        bench.args(["-n", "-M", "prepared", "-j", "2", "-c", &clients.to_string()]);
        bench.args(["-t", &each.to_string(), "-f"]).arg(&script).arg(USER);
        let text = output(&mut bench)?;
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap();
        let per_s = rate.split(' ').next().unwrap().parse().unwrap();
        let ended = "SELECT count(*) FROM builds WHERE state = 'succeeded'";
        let ended = output(client("psql").args(["-t", "-A", "-c", ended]))?;
        assert_eq!(ended.trim(), (each * clients).to_string(), "each was completed once");
        if best.is_none_or(|best| per_s > best.per_s) {
            best = Some(Rate { per_s, clients: *clients });
        }
    }
    best.ok_or_else(|| "no number of clients".to_owned())
}

/// Returns the folder with the newest version's programs.
fn programs() -> Result<PathBuf, String> {
    let missing = || "no PostgreSQL below /usr/lib/postgresql (apt install postgresql)".to_owned();
    let entries = fs_err::read_dir(VERSIONS).map_err(|_| missing())?;
    let folders = entries.map(|entry| entry.unwrap().path().join("bin"));
    let complete = |bin: &PathBuf| {
        ["initdb", "postgres", "psql", "pgbench"].iter().all(|name| bin.join(name).exists())
    };
    folders.filter(complete).max().ok_or_else(missing)
}
