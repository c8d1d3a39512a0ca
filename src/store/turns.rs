//! Turns: accepted, claimed, ended, and what a crash left of them.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::sessions::{self, messages_of};
use super::{Store, StoreError};
use crate::model::id::TurnId;
use crate::model::message::{Message, Role};
use crate::model::time::Timestamp;
use crate::model::turn::{Failure, Finish, History, NewTurn, Origin, Outcome, TurnRecord, Usage};

/// What became of a turn that was to be recorded.
#[derive(Debug)]
pub enum Recorded {
    /// It is on disk.
    New,
    /// Its idempotency key is known already: this is the turn that came first.
    Known(Box<TurnRecord>),
}

/// A turn that a crash left unfinished and that is to be run again.
#[derive(Debug)]
pub struct Unfinished {
    /// What was asked.
    pub turn: NewTurn,
    /// How often it was started before.
    pub attempts: u32,
}

/// What a new life finds of its predecessor's work.
#[derive(Debug, Default)]
pub struct Released {
    /// To be run again, oldest first.
    pub again: Vec<Unfinished>,
    /// Ended as interrupted, for nobody can ask for them.
    pub interrupted: usize,
    /// Given up, for they were running at too many crashes.
    pub parked: usize,
}

impl Store {
    /// Puts a turn on disk: as running and once attempted if `started`, else as queued.
    pub async fn record_turn(&self, turn: NewTurn, started: bool) -> Result<Recorded, StoreError> {
        self.write(move |connection| {
            if let Some(idempotency) = &turn.idempotency
                && let Some(known) = find(connection, "t.idempotency_key = ?1", &idempotency.key)?
            {
                return Ok(Recorded::Known(Box::new(known)));
            }
            insert(connection, &turn, started)?;
            Ok(Recorded::New)
        })
        .await
    }

    /// Notes, before the agent sees it, that a queued turn is attempted once more.
    pub async fn claim_turn(&self, id: TurnId) -> Result<(), StoreError> {
        self.write(move |connection| {
            let sql = "UPDATE turns SET state = 'running', attempts = attempts + 1 WHERE id = ?1";
            connection.prepare_cached(sql)?.execute([id.as_bytes()])?;
            Ok(())
        })
        .await
    }

    /// Ends a turn: its outcome and its reply in one.
    pub async fn end_turn(&self, id: TurnId, outcome: Outcome) -> Result<(), StoreError> {
        self.write(move |connection| end(connection, id, &outcome)).await
    }

    /// A turn by its id.
    pub async fn turn(&self, id: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        self.read(move |connection| find(connection, "t.id = ?1", id.as_bytes())).await
    }

    /// Releases what the last life left unfinished. A turn that was started `max_attempts` times is parked.
    pub async fn release_unfinished(&self, max_attempts: u32) -> Result<Released, StoreError> {
        const UNFINISHED: &str =
            "SELECT id, keep, attempts FROM turns WHERE state IN ('queued', 'running') ORDER BY id";
        // Looked at first, so that a start with nothing to release costs no fsync.
        if !self.read(|connection| Ok(connection.prepare_cached(UNFINISHED)?.exists([])?)).await? {
            return Ok(Released::default());
        }
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(UNFINISHED)?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get(1)?, row.get(2)?)))?;
            let rows: Vec<([u8; 16], bool, u32)> = rows.collect::<Result<_, _>>()?;
            let mut released = Released::default();
            for (id, keep, attempts) in rows {
                let id = TurnId::from_bytes(id);
                if !keep {
                    end(connection, id, &Outcome::Interrupted)?;
                    released.interrupted += 1;
                } else if attempts >= max_attempts {
                    end(connection, id, &Outcome::Parked)?;
                    released.parked += 1;
                } else {
                    let requeue = "UPDATE turns SET state = 'queued' WHERE id = ?1";
                    connection.prepare_cached(requeue)?.execute([id.as_bytes()])?;
                    released.again.push(Unfinished { turn: unfinished(connection, id)?, attempts });
                }
            }
            Ok(released)
        })
        .await
    }
}

fn insert(connection: &Connection, turn: &NewTurn, started: bool) -> Result<(), StoreError> {
    let session = sessions::row(connection, &turn.session, turn.accepted)?;
    let (parent, context) = match &turn.history {
        // Only a turn that may be attempted again needs it; a given history can be long.
        History::Given(messages) if turn.keep => (None, Some(serde_json::to_string(messages))),
        History::Given(_) | History::Session => (None, None),
        History::Chain(last) => (Some(last.as_bytes()), None),
    };
    let context = context.transpose().map_err(|e| StoreError::Failed(e.to_string()))?;
    let sql = "INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, parent, instructions, \
               context, idempotency_key, fingerprint, accepted) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
    connection.prepare_cached(sql)?.execute(params![
        turn.id.as_bytes(),
        session,
        turn.agent,
        turn.model,
        turn.origin.label(),
        if started { "running" } else { "queued" },
        turn.keep,
        u32::from(started),
        parent,
        turn.instructions,
        context,
        turn.idempotency.as_ref().map(|i| &i.key),
        turn.idempotency.as_ref().map(|i| &i.fingerprint),
        turn.accepted.as_millis(),
    ])?;
    for (position, message) in turn.input.iter().enumerate() {
        say(connection, turn.id, position, message.role, &message.content)?;
    }
    Ok(())
}

fn say(c: &Connection, turn: TurnId, position: usize, role: Role, content: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO messages (turn, position, role, content) VALUES (?1, ?2, ?3, ?4)";
    c.prepare_cached(sql)?.execute(params![turn.as_bytes(), position as i64, role.to_string(), content])?;
    Ok(())
}

fn end(connection: &Connection, id: TurnId, outcome: &Outcome) -> Result<(), StoreError> {
    let (finish, usage, error) = match outcome {
        Outcome::Completed { finish, usage, .. } => (Some(finish_word(*finish)), Some(*usage), None),
        Outcome::Failed { failure, message } => (Some(failure_word(*failure)), None, Some(message)),
        Outcome::Cancelled | Outcome::Interrupted | Outcome::Parked => (None, None, None),
    };
    let sql = "UPDATE turns SET state = ?2, ended = ?3, finish = ?4, input_tokens = ?5, output_tokens = ?6, \
               error = ?7, context = NULL WHERE id = ?1 AND state IN ('queued', 'running')";
    let ended = connection.prepare_cached(sql)?.execute(params![
        id.as_bytes(),
        outcome.label(),
        Timestamp::now().as_millis(),
        finish,
        usage.map(|u| u.input_tokens as i64),
        usage.map(|u| u.output_tokens as i64),
        error,
    ])?;
    if ended == 0 {
        return Err(StoreError::Failed(format!("turn {id} has ended already")));
    }
    if let Outcome::Completed { text, .. } = outcome {
        let sql = "SELECT count(*) FROM messages WHERE turn = ?1";
        let position: i64 = connection.prepare_cached(sql)?.query_row([id.as_bytes()], |row| row.get(0))?;
        say(connection, id, usize::try_from(position).unwrap_or(0), Role::Assistant, text)?;
    }
    Ok(())
}

fn finish_word(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

fn failure_word(failure: Failure) -> &'static str {
    match failure {
        Failure::Agent => "agent",
        Failure::Timeout => "timeout",
        Failure::Store => "store",
    }
}

const COLUMNS: &str = "t.id, t.agent, t.model, t.origin, t.state, t.keep, t.attempts, t.accepted, t.instructions, \
                       t.finish, t.input_tokens, t.output_tokens, t.error, t.fingerprint, t.parent, s.name AS session";

fn find(
    connection: &Connection,
    condition: &str,
    value: &dyn rusqlite::ToSql,
) -> Result<Option<TurnRecord>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM turns t JOIN sessions s ON s.id = t.session WHERE {condition}");
    let found = connection.prepare_cached(&sql)?.query_row([value], |row| Ok(record(connection, row))).optional()?;
    found.transpose()
}

fn record(connection: &Connection, row: &Row<'_>) -> Result<TurnRecord, StoreError> {
    let id: [u8; 16] = row.get("id")?;
    let (session, origin): (String, String) = (row.get("session")?, row.get("origin")?);
    let damaged = |what: &str| StoreError::Failed(format!("turn {} has a damaged {what}", TurnId::from_bytes(id)));
    Ok(TurnRecord {
        id: TurnId::from_bytes(id),
        session: session.parse().map_err(|_| damaged("session"))?,
        agent: row.get("agent")?,
        model: row.get("model")?,
        origin: origin_of(&origin).ok_or_else(|| damaged("origin"))?,
        keep: row.get("keep")?,
        instructions: row.get("instructions")?,
        attempts: row.get("attempts")?,
        accepted: Timestamp::from_millis(row.get("accepted")?),
        outcome: outcome(connection, row, &id)?,
        fingerprint: row.get("fingerprint")?,
        parent: row.get::<_, Option<[u8; 16]>>("parent")?.map(TurnId::from_bytes),
    })
}

fn origin_of(word: &str) -> Option<Origin> {
    Origin::ALL.into_iter().find(|origin| origin.label() == word)
}

fn outcome(connection: &Connection, row: &Row<'_>, id: &[u8; 16]) -> Result<Option<Outcome>, StoreError> {
    let count = |column: &str| row.get::<_, Option<i64>>(column).map(|n| n.unwrap_or(0).max(0) as u64);
    let (state, finish): (String, Option<String>) = (row.get("state")?, row.get("finish")?);
    let finish = finish.unwrap_or_default();
    Ok(Some(match state.as_str() {
        "queued" | "running" => return Ok(None),
        "completed" => Outcome::Completed {
            text: messages_of(connection, id)?.pop().map(|message| message.content).unwrap_or_default(),
            finish: if finish == "length" { Finish::Length } else { Finish::Stop },
            usage: Usage { input_tokens: count("input_tokens")?, output_tokens: count("output_tokens")? },
        },
        "failed" => Outcome::Failed {
            failure: if finish == "timeout" { Failure::Timeout } else { Failure::Agent },
            message: row.get::<_, Option<String>>("error")?.unwrap_or_default(),
        },
        "cancelled" => Outcome::Cancelled,
        "interrupted" => Outcome::Interrupted,
        "parked" => Outcome::Parked,
        other => return Err(StoreError::Failed(format!("unknown state '{other}' of a turn"))),
    }))
}

fn unfinished(connection: &Connection, id: TurnId) -> Result<NewTurn, StoreError> {
    let damaged = || StoreError::Failed(format!("turn {id} has a damaged context"));
    let known = find(connection, "t.id = ?1", id.as_bytes())?.ok_or_else(damaged)?;
    let context = "SELECT context FROM turns WHERE id = ?1";
    let given: Option<String> = connection.prepare_cached(context)?.query_row([id.as_bytes()], |row| row.get(0))?;
    let given: Option<Vec<Message>> =
        given.map(|json| serde_json::from_str(&json)).transpose().map_err(|_| damaged())?;
    let history = match (known.parent, given) {
        (Some(parent), _) => History::Chain(parent),
        (None, Some(given)) => History::Given(given),
        (None, None) => History::Session,
    };
    Ok(NewTurn {
        id,
        session: known.session,
        agent: known.agent,
        model: known.model,
        origin: known.origin,
        accepted: known.accepted,
        instructions: known.instructions,
        history,
        input: messages_of(connection, id.as_bytes())?,
        // A known key leads to this turn already.
        idempotency: None,
        keep: true,
    })
}
