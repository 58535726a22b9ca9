-- What happened, for those who follow it, and for hooks.

-- A row is an event, or several of the same kind and time that have nothing else to say: then
-- `count` says how many, and `subject` has them one behind the other. The cursors of all rows
-- together have no gap; old rows go, the last never does.
CREATE TABLE events (
    -- The place of the first event in the row.
    cursor INTEGER PRIMARY KEY CHECK (cursor > 0),
    at INTEGER NOT NULL,
    -- The place in core::event::EventKind::ALL.
    kind INTEGER NOT NULL CHECK (kind >= 0),
    count INTEGER NOT NULL CHECK (count > 0),
    -- Ids of builds, or hashes of paths of kind 10.
    subject BLOB,
    attempt BLOB CHECK (length(attempt) = 16),
    agent TEXT,
    -- JSON of core::event::Detail.
    detail TEXT,
    CHECK (subject IS NULL AND count = 1
        OR length(subject) = count * CASE kind WHEN 10 THEN 20 ELSE 16 END)
) STRICT;

-- A file in a folder of hooks, and how far it has come.
CREATE TABLE hooks (
    event INTEGER NOT NULL,
    name TEXT NOT NULL,
    -- Everything up to here was delivered, or is in hook_deliveries.
    cursor INTEGER NOT NULL CHECK (cursor >= 0),
    -- How many events were forgotten before it had them.
    lost INTEGER NOT NULL DEFAULT 0 CHECK (lost >= 0),
    PRIMARY KEY (event, name)
) STRICT, WITHOUT ROWID;

-- An event on which a hook failed.
CREATE TABLE hook_deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event INTEGER NOT NULL,
    name TEXT NOT NULL,
    cursor INTEGER NOT NULL,
    -- What the hook gets: the event may be forgotten by now.
    text TEXT NOT NULL,
    tries INTEGER NOT NULL CHECK (tries >= 0),
    tried_at INTEGER NOT NULL,
    -- When it is tried again; NULL when it was given up.
    next_at INTEGER,
    -- How the last try ended, and what it printed.
    ended TEXT NOT NULL,
    output BLOB NOT NULL,
    UNIQUE (event, name, cursor),
    FOREIGN KEY (event, name) REFERENCES hooks ON DELETE CASCADE
) STRICT;

-- To find what is to be tried next.
CREATE INDEX hook_deliveries_waiting ON hook_deliveries (event, name, next_at)
    WHERE next_at IS NOT NULL;
