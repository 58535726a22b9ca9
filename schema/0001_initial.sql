-- The first schema. Rules: STRICT tables; states repeated as CHECKs; times are integer
-- milliseconds since 1970 given by the caller; store paths are their 20 hash bytes, ids their 16.

CREATE TABLE store_dirs (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE
) STRICT;

-- What an agent must offer, as JSON of core::plan::Class: a few rows for millions of derivations.
CREATE TABLE classes (
    id INTEGER PRIMARY KEY,
    class TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE derivations (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 20),
    store_dir INTEGER NOT NULL REFERENCES store_dirs,
    name TEXT NOT NULL,
    class INTEGER NOT NULL REFERENCES classes,
    -- The hashes of the input derivations, one behind the other: no row per edge.
    inputs BLOB NOT NULL CHECK (length(inputs) % 20 = 0),
    modulo BLOB NOT NULL CHECK (length(modulo) = 32),
    received_at INTEGER NOT NULL
) STRICT;

-- Apart from the rest, so that a scan of the graph does not read it. Compressed with zstd.
CREATE TABLE derivation_texts (
    derivation INTEGER PRIMARY KEY REFERENCES derivations,
    text BLOB NOT NULL
) STRICT;

CREATE TABLE derivation_outputs (
    derivation INTEGER NOT NULL REFERENCES derivations,
    position INTEGER NOT NULL CHECK (position >= 0),
    output TEXT NOT NULL,
    path BLOB NOT NULL CHECK (length(path) = 20),
    name TEXT NOT NULL,
    PRIMARY KEY (derivation, position)
) STRICT, WITHOUT ROWID;

-- Which derivations make a path: several may claim the same fixed output.
CREATE INDEX derivation_outputs_by_path ON derivation_outputs (path);

-- Verified nars in the depot, at most one per path.
CREATE TABLE nars (
    path BLOB PRIMARY KEY CHECK (length(path) = 20),
    store_dir INTEGER NOT NULL REFERENCES store_dirs,
    name TEXT NOT NULL,
    nar_hash BLOB NOT NULL CHECK (length(nar_hash) = 32),
    nar_bytes INTEGER NOT NULL CHECK (nar_bytes > 0),
    file_hash BLOB NOT NULL CHECK (length(file_hash) = 32),
    file_bytes INTEGER NOT NULL CHECK (file_bytes > 0),
    -- Base names, separated by spaces, sorted; in the same store directory.
    refs TEXT NOT NULL,
    deriver TEXT,
    content_address TEXT,
    -- One per line.
    signatures TEXT NOT NULL,
    origin TEXT NOT NULL CHECK (origin IN ('built', 'content-addressed', 'trusted')),
    verified_at INTEGER NOT NULL,
    published_at INTEGER
) STRICT, WITHOUT ROWID;

-- Read at start, to publish what was interrupted.
CREATE INDEX nars_unpublished ON nars (verified_at) WHERE published_at IS NULL;

-- Outputs that an agent could find nowhere; a row goes when the path is held.
CREATE TABLE missing_outputs (
    path BLOB PRIMARY KEY CHECK (length(path) = 20),
    reported_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE builds (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    derivation INTEGER NOT NULL REFERENCES derivations,
    origin TEXT NOT NULL CHECK (origin IN ('asked', 'implied')),
    submitter TEXT NOT NULL,
    key TEXT,
    priority INTEGER NOT NULL CHECK (priority BETWEEN -1000 AND 1000),
    submitted_at INTEGER NOT NULL,
    timeout_ms INTEGER CHECK (timeout_ms > 0),
    max_silent_ms INTEGER CHECK (max_silent_ms > 0),
    state TEXT NOT NULL CHECK (state IN ('deferred', 'queued', 'allocated', 'building',
        'receiving', 'succeeded', 'failed', 'canceled')),
    state_at INTEGER NOT NULL,
    attempt BLOB CHECK (length(attempt) = 16),
    deferred_until INTEGER,
    infrastructure_ends INTEGER NOT NULL DEFAULT 0 CHECK (infrastructure_ends >= 0),
    -- The agent whose attempt ended last without telling anything about the build.
    avoid TEXT,
    CHECK ((attempt IS NOT NULL) =
        (state IN ('allocated', 'building', 'receiving', 'succeeded', 'failed'))),
    CHECK ((deferred_until IS NOT NULL) = (state = 'deferred'))
) STRICT, WITHOUT ROWID;

-- Read at start; finished builds are not in it.
CREATE INDEX builds_open ON builds (state)
    WHERE state IN ('deferred', 'queued', 'allocated', 'building', 'receiving');
CREATE INDEX builds_by_derivation ON builds (derivation, state_at);
-- The same request again is the same build.
CREATE UNIQUE INDEX builds_by_key ON builds (submitter, derivation, key) WHERE key IS NOT NULL;

CREATE TABLE build_tags (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    build BLOB NOT NULL REFERENCES builds,
    PRIMARY KEY (name, value, build)
) STRICT, WITHOUT ROWID;

CREATE INDEX build_tags_by_build ON build_tags (build);

CREATE TABLE attempts (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    build BLOB NOT NULL REFERENCES builds,
    agent TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('allocated', 'building', 'receiving', 'ended')),
    allocated_at INTEGER NOT NULL,
    started_at INTEGER,
    built_at INTEGER,
    ended_at INTEGER,
    -- The word of core::outcome::AttemptEnd, and all of it as JSON.
    ended TEXT,
    detail TEXT,
    disputed INTEGER NOT NULL DEFAULT 0 CHECK (disputed IN (0, 1)),
    CHECK ((state = 'ended') = (ended_at IS NOT NULL)),
    CHECK ((ended IS NULL) = (ended_at IS NULL)),
    CHECK ((detail IS NULL) = (ended_at IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX attempts_by_build ON attempts (build, allocated_at);

-- What each successful attempt made; `nars` says what is held, which an attempt may dispute.
CREATE TABLE attempt_outputs (
    attempt BLOB NOT NULL REFERENCES attempts,
    output TEXT NOT NULL,
    path BLOB NOT NULL CHECK (length(path) = 20),
    nar_hash BLOB NOT NULL CHECK (length(nar_hash) = 32),
    nar_bytes INTEGER NOT NULL CHECK (nar_bytes > 0),
    PRIMARY KEY (attempt, output)
) STRICT, WITHOUT ROWID;

CREATE INDEX attempt_outputs_by_path ON attempt_outputs (path);

CREATE TABLE agents (
    name TEXT PRIMARY KEY,
    instance BLOB NOT NULL CHECK (length(instance) = 16),
    -- JSON of core::agent::Abilities.
    abilities TEXT NOT NULL,
    last_seen_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who changed what. Never changed, only pruned by age.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    principal TEXT NOT NULL,
    line TEXT NOT NULL
) STRICT;
