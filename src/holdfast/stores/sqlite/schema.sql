-- Version 3. What is large stands outside `runs`, whose rows are rewritten by every append.
-- *_due and *_left are milliseconds on the store's clock, *_at wall milliseconds since 1970.

CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE sessions (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    generation INTEGER NOT NULL,          -- grows when the session is forgotten
    deleted INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
CREATE INDEX sessions_recent ON sessions (tenant, updated_at, id) WHERE deleted = 0;

CREATE TABLE runs (
    n INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of creation; joins the tables below
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    session TEXT NOT NULL,
    generation INTEGER NOT NULL,
    policy TEXT NOT NULL,
    idempotency_key TEXT,
    body_hash TEXT NOT NULL,
    deadline_ms INTEGER NOT NULL,
    queue_timeout_ms INTEGER NOT NULL,
    session_wait_ms INTEGER NOT NULL,
    attempts_max INTEGER NOT NULL,

    state TEXT NOT NULL,
    reason TEXT,
    slot INTEGER NOT NULL,                -- 1: holds the session
    rank INTEGER NOT NULL,                -- order in the ready queue, or behind the slot
    head INTEGER NOT NULL,                -- last seq of the log
    log_bytes INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    claim TEXT NOT NULL DEFAULT '',
    worker TEXT NOT NULL DEFAULT '',
    attempt INTEGER NOT NULL DEFAULT 0,   -- claims that began: that wrote run.started
    begun INTEGER NOT NULL DEFAULT 0,     -- whether the present claim did

    stopping TEXT,                        -- the durable stop flag: first reason kept
    stop_by TEXT NOT NULL DEFAULT '',
    stop_at INTEGER,

    lease_due INTEGER,                    -- running: until when the claim holds
    wait_due INTEGER,                     -- queued: queue timeout or session wait; waiting: approval deadline
    deadline_due INTEGER,                 -- from first ready on; NULL while waiting
    stop_due INTEGER,                     -- when the stop flag was set on a running run
    deadline_left INTEGER,                -- waiting: what the deadline has left
    listener_due INTEGER,                 -- until when somebody is known to listen; NULL: nobody needs to

    created_at INTEGER NOT NULL,
    ready_at INTEGER,
    started_at INTEGER,
    ended_at INTEGER,
    rehearsal INTEGER NOT NULL DEFAULT 0,
    unsaid INTEGER NOT NULL DEFAULT 0,    -- its end is to be told by whoever begins the next run; 2: it was cut off
    gone INTEGER NOT NULL DEFAULT 0,      -- wall ms since when the log is being, or was, deleted; 0: it is there
    UNIQUE (tenant, id)
);
CREATE UNIQUE INDEX one_active ON runs (tenant, session) WHERE slot = 1;
CREATE UNIQUE INDEX idempotency ON runs (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_of_session ON runs (tenant, session, n);
CREATE INDEX ready ON runs (tenant, rank) WHERE state = 'queued' AND slot = 1;
CREATE INDEX behind ON runs (tenant, session, rank) WHERE state = 'queued' AND slot = 0;
CREATE INDEX live ON runs (state, tenant) WHERE state IN ('queued', 'running', 'waiting');
CREATE INDEX due_lease ON runs (lease_due) WHERE lease_due IS NOT NULL;
CREATE INDEX due_wait ON runs (wait_due) WHERE wait_due IS NOT NULL;
CREATE INDEX due_deadline ON runs (deadline_due) WHERE deadline_due IS NOT NULL;
CREATE INDEX due_stop ON runs (stop_due) WHERE stop_due IS NOT NULL;
CREATE INDEX due_listener ON runs (listener_due) WHERE listener_due IS NOT NULL;
CREATE INDEX unsaid ON runs (tenant, session) WHERE unsaid > 0;
CREATE INDEX ended ON runs (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE specs (run INTEGER PRIMARY KEY, spec BLOB NOT NULL);
CREATE TABLE checkpoints (run INTEGER PRIMARY KEY, seq INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE results (run INTEGER PRIMARY KEY, result BLOB NOT NULL);
CREATE TABLE decisions (run INTEGER PRIMARY KEY, decisions BLOB NOT NULL);

CREATE TABLE events (
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (run, seq)
) WITHOUT ROWID;

CREATE TABLE history (
    tenant TEXT NOT NULL,
    session TEXT NOT NULL,
    run INTEGER NOT NULL,
    entry BLOB NOT NULL,
    PRIMARY KEY (tenant, session, run)
) WITHOUT ROWID;

CREATE TABLE inbox (
    run INTEGER NOT NULL,
    n INTEGER NOT NULL,
    idempotency_key TEXT NOT NULL,
    input TEXT NOT NULL,
    read INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, n)
) WITHOUT ROWID;

-- Prompts that went into an inbox instead of becoming a run: a repeat must find them after that run ended, too.
CREATE TABLE steers (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,                    -- "id:" and the run id of the create, or "key:" and its idempotency key
    body_hash TEXT NOT NULL,
    run INTEGER NOT NULL,                 -- whose inbox
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX steers_of_run ON steers (run);

-- Whose turn it is among tenants with ready runs: round robin.
CREATE TABLE turns (tenant TEXT PRIMARY KEY, turn INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX turns_order ON turns (turn);

CREATE TABLE workers (
    worker TEXT PRIMARY KEY,
    seen_due INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    facts BLOB NOT NULL
) WITHOUT ROWID;
