-- What is decided about agents: who gets no builds and why, and what leads to a quarantine.

ALTER TABLE agents ADD COLUMN suspended TEXT
    CHECK (suspended IN ('paused', 'draining', 'quarantined'));
ALTER TABLE agents ADD COLUMN suspended_at INTEGER
    CHECK ((suspended_at IS NULL) = (suspended IS NULL));
-- Who decided it; NULL beside a state is the coordinator itself.
ALTER TABLE agents ADD COLUMN suspended_by TEXT
    CHECK (suspended_by IS NULL OR suspended IS NOT NULL);
ALTER TABLE agents ADD COLUMN suspended_until INTEGER
    CHECK (suspended_until IS NULL OR coalesce(suspended, '') IN ('paused', 'draining'));
ALTER TABLE agents ADD COLUMN suspended_reason TEXT
    CHECK (suspended_reason IS NULL OR suspended IS NOT NULL);
-- The ids of the builds that failed through its fault since the last that did not, one behind the
-- other.
ALTER TABLE agents ADD COLUMN failures BLOB NOT NULL DEFAULT x''
    CHECK (length(failures) % 16 = 0);

-- What an agent did last, and how much today.
CREATE INDEX attempts_by_agent ON attempts (agent, allocated_at);
