-- A conversation.
CREATE TABLE sessions (
    id       INTEGER PRIMARY KEY,
    name     TEXT    NOT NULL UNIQUE,
    created  INTEGER NOT NULL          -- milliseconds since 1970, as every time here
) STRICT;

-- A message in, an agent's work, a reply. The id is a UUID of version 7, so the order of ids is the order of time.
CREATE TABLE turns (
    id               BLOB    PRIMARY KEY,
    session          INTEGER NOT NULL REFERENCES sessions,
    agent            TEXT    NOT NULL,
    model            TEXT    NOT NULL,           -- what the client called the agent
    origin           TEXT    NOT NULL,           -- chat, responses, control
    state            TEXT    NOT NULL,           -- queued, running; completed, failed, cancelled, interrupted, parked
    keep             INTEGER NOT NULL,           -- 1: the result can be asked for later, so a crash does not end it
    attempts         INTEGER NOT NULL,
    parent           BLOB,                       -- the turn that this one continues
    instructions     TEXT,                       -- for this turn only
    context          TEXT,                       -- JSON: history given with the request; only with keep, until the end
    idempotency_key  TEXT    UNIQUE,
    fingerprint      BLOB,
    accepted         INTEGER NOT NULL,
    ended            INTEGER,
    finish           TEXT,                       -- completed: stop, length; failed: agent, timeout, store
    input_tokens     INTEGER,
    output_tokens    INTEGER,
    error            TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX turns_of_session ON turns (session, id);
CREATE INDEX turns_unfinished ON turns (state) WHERE state IN ('queued', 'running');

-- What was said in a turn, in its order; the reply comes last.
CREATE TABLE messages (
    turn      BLOB    NOT NULL REFERENCES turns,
    position  INTEGER NOT NULL,
    role      TEXT    NOT NULL,                  -- system, user, assistant
    content   TEXT    NOT NULL,
    PRIMARY KEY (turn, position)
) STRICT, WITHOUT ROWID;
