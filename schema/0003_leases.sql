-- Attempts that outlive their lease: taken back, reported, or disputed.

-- When the agent of an attempt that had ended as agent-lost came back with it, the last time.
ALTER TABLE attempts ADD COLUMN readopted_at INTEGER;
-- When the agent said what it had made instead of sending it; `attempt_outputs` then has its word.
ALTER TABLE attempts ADD COLUMN reported_at INTEGER;

-- Verified nars that differ from what `nars` holds, or came together with one that does. Kept for
-- people to compare, never published. The same bytes are kept once.
CREATE TABLE disputed_nars (
    path BLOB NOT NULL CHECK (length(path) = 20),
    nar_hash BLOB NOT NULL CHECK (length(nar_hash) = 32),
    attempt BLOB NOT NULL REFERENCES attempts,
    store_dir INTEGER NOT NULL REFERENCES store_dirs,
    name TEXT NOT NULL,
    nar_bytes INTEGER NOT NULL CHECK (nar_bytes > 0),
    file_hash BLOB NOT NULL CHECK (length(file_hash) = 32),
    file_bytes INTEGER NOT NULL CHECK (file_bytes > 0),
    -- As in `nars`. There is no signature: nobody vouches for these.
    refs TEXT NOT NULL,
    deriver TEXT,
    content_address TEXT,
    verified_at INTEGER NOT NULL,
    PRIMARY KEY (path, nar_hash)
) STRICT, WITHOUT ROWID;

-- What agents said they had made in attempts that this database does not know, as after a restore
-- from a backup that is older than them.
CREATE TABLE stray_outputs (
    path BLOB NOT NULL CHECK (length(path) = 20),
    attempt BLOB NOT NULL CHECK (length(attempt) = 16),
    agent TEXT NOT NULL,
    output TEXT NOT NULL,
    nar_hash BLOB NOT NULL CHECK (length(nar_hash) = 32),
    nar_bytes INTEGER NOT NULL CHECK (nar_bytes > 0),
    reported_at INTEGER NOT NULL,
    PRIMARY KEY (path, attempt)
) STRICT, WITHOUT ROWID;
