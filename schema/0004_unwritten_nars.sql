-- Small nars that are durable before they have a file.

-- The compressed files of nars that were committed and are not in the depot yet, in the order in
-- which they came. A row goes when its file is on the disk. The same file can be there twice, when
-- two attempts brought it.
CREATE TABLE unwritten_nars (
    id INTEGER PRIMARY KEY,
    file_hash BLOB NOT NULL CHECK (length(file_hash) = 32),
    file BLOB NOT NULL CHECK (length(file) > 0)
) STRICT;

-- For those who want such a nar meanwhile.
CREATE INDEX unwritten_nars_by_file ON unwritten_nars (file_hash);
