-- What costs the same whatever the queue and the history hold.

-- How the builds of a derivation ended. The index before had open builds as well, and moved with
-- each of their states.
DROP INDEX builds_by_derivation;
CREATE INDEX builds_ended ON builds (derivation, state_at, id, state)
    WHERE state IN ('succeeded', 'failed');
-- ‘builds --state’ finds the few among the many that succeeded.
CREATE INDEX builds_unsuccessful ON builds (state) WHERE state IN ('failed', 'canceled');

-- How much the depot holds: one row, which follows `nars`.
CREATE TABLE holdings (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    nars INTEGER NOT NULL CHECK (nars >= 0),
    file_bytes INTEGER NOT NULL CHECK (file_bytes >= 0)
) STRICT;
INSERT INTO holdings SELECT 1, count(*), coalesce(sum(file_bytes), 0) FROM nars;
CREATE TRIGGER holdings_grow AFTER INSERT ON nars BEGIN
    UPDATE holdings SET nars = nars + 1, file_bytes = file_bytes + new.file_bytes;
END;
CREATE TRIGGER holdings_shrink AFTER DELETE ON nars BEGIN
    UPDATE holdings SET nars = nars - 1, file_bytes = file_bytes - old.file_bytes;
END;
CREATE TRIGGER holdings_change AFTER UPDATE OF file_bytes ON nars BEGIN
    UPDATE holdings SET file_bytes = file_bytes - old.file_bytes + new.file_bytes;
END;
