-- The order of turns in their session does not depend on the clock, which may jump back.
ALTER TABLE turns ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
UPDATE turns SET seq = numbered.n
    FROM (SELECT id, row_number() OVER (PARTITION BY session ORDER BY id) AS n FROM turns) AS numbered
    WHERE turns.id = numbered.id;
DROP INDEX turns_of_session;
CREATE UNIQUE INDEX turns_of_session ON turns (session, seq);
-- Where the reply goes by itself: PLATFORM:CHAT.
ALTER TABLE turns ADD COLUMN deliver TEXT;
-- How many of the attempts ended in order, with the gateway: those are nobody's fault.
ALTER TABLE turns ADD COLUMN deferrals INTEGER NOT NULL DEFAULT 0;
-- The lengths of the pieces in which a response was said: who reads it again by event numbers gets the same events.
ALTER TABLE turns ADD COLUMN pieces BLOB;
-- Pruning looks for the oldest that have ended.
CREATE INDEX turns_ended ON turns (ended) WHERE ended IS NOT NULL;

-- People look for the turns that did not go well; there should be few.
CREATE INDEX turns_failed ON turns (state)
    WHERE state IN ('failed', 'cancelled', 'interrupted', 'parked', 'superseded', 'absorbed');

-- When the newest turn was accepted: people look for the latest conversations first.
ALTER TABLE sessions ADD COLUMN active INTEGER NOT NULL DEFAULT 0;
UPDATE sessions SET active = coalesce(
    (SELECT accepted FROM turns WHERE turns.session = sessions.id ORDER BY seq DESC LIMIT 1), created);
CREATE INDEX sessions_active ON sessions (active);

-- The conversation begins with this turn; earlier ones are kept and fall silent.
ALTER TABLE sessions ADD COLUMN fresh_from INTEGER NOT NULL DEFAULT 0;

-- What agents keep of a session between two turns, each in its own words.
CREATE TABLE memories (
    session  INTEGER NOT NULL REFERENCES sessions,
    agent    TEXT    NOT NULL,
    content  TEXT    NOT NULL,
    PRIMARY KEY (session, agent)
) STRICT, WITHOUT ROWID;

-- Messages that platforms brought: each becomes part of a turn once, however often it is brought.
CREATE TABLE inbox (
    platform  TEXT    NOT NULL,
    account   TEXT    NOT NULL,
    message   TEXT    NOT NULL,                  -- the platform's id
    turn      BLOB    NOT NULL,                  -- may have been pruned before this row is
    received  INTEGER NOT NULL,
    PRIMARY KEY (platform, account, message)
) STRICT, WITHOUT ROWID;
CREATE INDEX inbox_received ON inbox (received);

-- How far each account of a platform has read; committed with the messages before it.
CREATE TABLE cursors (
    platform  TEXT NOT NULL,
    account   TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (platform, account)
) STRICT, WITHOUT ROWID;

-- Messages on their way out. AUTOINCREMENT: a number is never used again, and the order of numbers is the order in a chat.
CREATE TABLE outbox (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    key       TEXT    NOT NULL UNIQUE,           -- names it to platforms that recognise a repetition
    turn      BLOB,
    target    TEXT    NOT NULL,                  -- PLATFORM:CHAT
    kind      TEXT    NOT NULL,                  -- reply, notice
    part      INTEGER NOT NULL,
    parts     INTEGER NOT NULL,
    content   TEXT    NOT NULL,
    state     TEXT    NOT NULL,                  -- pending, leased; sent, dead
    due       INTEGER NOT NULL,                  -- not before
    attempts  INTEGER NOT NULL DEFAULT 0,        -- that failed
    waited    INTEGER NOT NULL DEFAULT 0,        -- milliseconds between them, which add up to the horizon
    repeated  INTEGER NOT NULL DEFAULT 0,        -- 1: a life ended while it was sent, so it may have arrived twice
    receipt   TEXT,                              -- the platform's name for it
    reason    TEXT,                              -- what went wrong last
    created   INTEGER NOT NULL,
    settled   INTEGER
) STRICT;
CREATE INDEX outbox_of_chat ON outbox (target, number) WHERE state IN ('pending', 'leased');
CREATE INDEX outbox_due ON outbox (due) WHERE state = 'pending';
CREATE INDEX outbox_of_turn ON outbox (turn) WHERE turn IS NOT NULL;
-- By number in each state. Those that were sent are many, and nobody looks for them by their state.
CREATE INDEX outbox_unsent ON outbox (state) WHERE state IN ('pending', 'leased', 'dead');
CREATE INDEX outbox_settled ON outbox (settled) WHERE settled IS NOT NULL;
