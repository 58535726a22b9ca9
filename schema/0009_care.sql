-- What operators do to keep a farm in order: counts that outlive what is pruned, nars on their way
-- out, and when the database was saved.

-- How builds and attempts ended since the beginning, and how many builds were pruned by state. A
-- build that is tried again and ends once more counts twice.
CREATE TABLE totals (
    kind TEXT NOT NULL CHECK (kind IN ('build', 'attempt', 'pruned')),
    word TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 0),
    PRIMARY KEY (kind, word)
) STRICT, WITHOUT ROWID;
INSERT INTO totals SELECT 'build', state, count(*) FROM builds
    WHERE state IN ('succeeded', 'failed', 'canceled') GROUP BY state;
INSERT INTO totals SELECT 'attempt', ended, count(*) FROM attempts
    WHERE ended IS NOT NULL GROUP BY ended;
CREATE TRIGGER totals_of_builds AFTER UPDATE OF state ON builds
    WHEN new.state IN ('succeeded', 'failed', 'canceled') BEGIN
    INSERT INTO totals (kind, word, number) VALUES ('build', new.state, 1)
        ON CONFLICT (kind, word) DO UPDATE SET number = number + 1;
END;
CREATE TRIGGER totals_of_attempts AFTER UPDATE OF state ON attempts
    WHEN new.state = 'ended' BEGIN
    INSERT INTO totals (kind, word, number) VALUES ('attempt', new.ended, 1)
        ON CONFLICT (kind, word) DO UPDATE SET number = number + 1;
END;

-- To find what ended long ago. Builds end in the order of time, so this grows at its end.
CREATE INDEX builds_over ON builds (state_at, id)
    WHERE state IN ('succeeded', 'failed', 'canceled');
-- To remove an attempt, which these rows refer to.
CREATE INDEX disputed_nars_by_attempt ON disputed_nars (attempt);

-- When a nar was last given to an agent or named by a submission, to the day; NULL when it was not
-- since it was verified.
ALTER TABLE nars ADD COLUMN used_at INTEGER;

-- Nars that are held no more, and whose files stay until those have stopped asking for them who saw
-- the narinfo. A row goes with the files.
CREATE TABLE withdrawn_nars (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL CHECK (length(path) = 20),
    store_dir INTEGER NOT NULL REFERENCES store_dirs,
    name TEXT NOT NULL,
    nar_hash BLOB NOT NULL CHECK (length(nar_hash) = 32),
    nar_bytes INTEGER NOT NULL CHECK (nar_bytes > 0),
    file_hash BLOB NOT NULL CHECK (length(file_hash) = 32),
    file_bytes INTEGER NOT NULL CHECK (file_bytes > 0),
    content_address TEXT,
    withdrawn_at INTEGER NOT NULL,
    remove_at INTEGER NOT NULL,
    -- When its narinfo was gone for good.
    unlisted_at INTEGER
) STRICT;
-- For the thread that removes narinfos, and the one that removes files.
CREATE INDEX withdrawn_nars_listed ON withdrawn_nars (id) WHERE unlisted_at IS NULL;
CREATE INDEX withdrawn_nars_due ON withdrawn_nars (remove_at, id) WHERE unlisted_at IS NOT NULL;

-- The last copy of the database that somebody has taken away as a whole.
CREATE TABLE last_backup (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at INTEGER NOT NULL,
    bytes INTEGER NOT NULL CHECK (bytes > 0),
    principal TEXT NOT NULL
) STRICT;
