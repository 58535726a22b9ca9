-- Who came in, who wants to, and who did what.

-- Names an act that is being done; NULL once it is over.
ALTER TABLE audit ADD COLUMN act INTEGER;
-- What the principal was, and where it came from; NULL for the coordinator itself.
ALTER TABLE audit ADD COLUMN role TEXT;
ALTER TABLE audit ADD COLUMN address TEXT;
-- The exit status; NULL while it is being done, and where nobody was left to be told.
ALTER TABLE audit ADD COLUMN status INTEGER CHECK (status BETWEEN 0 AND 255);
-- What whoever asked was told when it was not done.
ALTER TABLE audit ADD COLUMN reason TEXT;
-- How many lines this one stands for: more than one where a flood is summed up.
ALTER TABLE audit ADD COLUMN lines INTEGER NOT NULL DEFAULT 1 CHECK (lines > 0);

-- To end an act; what is over is not in it.
CREATE UNIQUE INDEX audit_acts ON audit (act) WHERE act IS NOT NULL;
-- For `audit --principal`.
CREATE INDEX audit_by_principal ON audit (principal, id);

-- With a token a key becomes known without waiting for an admin.
CREATE TABLE enrollment_tokens (
    id TEXT PRIMARY KEY,
    -- HMAC-SHA256 of the secret; the secret itself is nowhere.
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    role TEXT NOT NULL CHECK (role IN ('agent', 'viewer', 'submitter', 'operator')),
    uses INTEGER NOT NULL CHECK (uses > 0),
    made_by TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

-- Which keys came in with a token; the same key again is no other use.
CREATE TABLE token_uses (
    token TEXT NOT NULL REFERENCES enrollment_tokens,
    fingerprint TEXT NOT NULL,
    name TEXT NOT NULL,
    used_at INTEGER NOT NULL,
    PRIMARY KEY (token, fingerprint)
) STRICT, WITHOUT ROWID;

-- Keys that wait for an admin.
CREATE TABLE pending_keys (
    fingerprint TEXT PRIMARY KEY,
    key TEXT NOT NULL,
    name TEXT,
    address TEXT NOT NULL,
    asked_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
