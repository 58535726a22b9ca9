-- What people and the planner decide about builds.

-- What a build asks of its agent, as JSON of core::demands::Demands; NULL is nothing.
ALTER TABLE builds ADD COLUMN demands TEXT;
-- When it may be tried, by the wish of whoever asked for it.
ALTER TABLE builds ADD COLUMN not_before INTEGER;
-- Who holds it back, beside any state, and since when.
ALTER TABLE builds ADD COLUMN held_by TEXT;
ALTER TABLE builds ADD COLUMN held_at INTEGER CHECK ((held_at IS NULL) = (held_by IS NULL));
-- How many attempts found it failing, and it was tried again. A success after that is flaky.
ALTER TABLE builds ADD COLUMN failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0);

-- To find what depended on a failure, and was canceled or failed as well, by when it ended; the
-- other index of these builds has them by state, in the order in which they are listed.
CREATE INDEX builds_unsuccessful_since ON builds (state_at) WHERE state IN ('failed', 'canceled');

-- Whether the agent emulated the system that the build is for.
ALTER TABLE attempts ADD COLUMN emulated INTEGER NOT NULL DEFAULT 0 CHECK (emulated IN (0, 1));

-- How much each submitter has used of the farm, as of a time: it counts half as much after each
-- half-life.
CREATE TABLE accounts (
    name TEXT PRIMARY KEY,
    used_ms INTEGER NOT NULL CHECK (used_ms >= 0),
    used_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
