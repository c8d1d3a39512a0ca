//! Turns: accepted, claimed, ended, and what a crash left of them.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::sessions::{self, messages_of};
use super::{Store, StoreError, outbox, pieces};
use crate::model::delivery::{Delivery, Kind, NewDelivery};
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

/// What is stored with the end of a turn, in the same transaction.
#[derive(Debug, Default)]
pub struct Ending {
    /// What goes out.
    pub delivery: Option<NewDelivery>,
    /// Whether the first part of it is leased at once.
    pub lease: bool,
    /// Turns whose messages the agent took up while it worked: they end with this one.
    pub absorbed: Vec<TurnId>,
    /// The lengths of the reply's pieces, in bytes, where somebody may want to read it again as it was said.
    pub pieces: Vec<usize>,
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
            insert(connection, &turn, started, false)?;
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

    /// Ends a turn: its outcome, its reply and what goes out in one. The first delivery, if it was to be leased and is.
    pub async fn end_turn(&self, id: TurnId, outcome: Outcome, ending: Ending) -> Result<Option<Delivery>, StoreError> {
        self.write(move |connection| {
            for taken_up in &ending.absorbed {
                for message in messages_of(connection, taken_up.as_bytes())? {
                    say_more(connection, id, &message)?;
                }
                end(connection, *taken_up, &Outcome::Absorbed(id))?;
            }
            end(connection, id, &outcome)?;
            if !ending.pieces.is_empty() {
                let sql = "UPDATE turns SET pieces = ?2 WHERE id = ?1";
                connection.prepare_cached(sql)?.execute(params![id.as_bytes(), pieces::encode(&ending.pieces)])?;
            }
            match &ending.delivery {
                Some(delivery) => outbox::insert(connection, Some(id), delivery, ending.lease, Timestamp::now()),
                None => Ok(None),
            }
        })
        .await
    }

    /// Gives a turn back that an orderly stop cut off: its successor runs it again, and the attempt counts for nothing.
    pub async fn defer_turn(&self, id: TurnId) -> Result<(), StoreError> {
        self.write(move |connection| {
            let sql =
                "UPDATE turns SET state = 'queued', deferrals = deferrals + 1 WHERE id = ?1 AND state = 'running'";
            connection.prepare_cached(sql)?.execute([id.as_bytes()])?;
            Ok(())
        })
        .await
    }

    /// The attempt that runs goes on where an earlier one was cut off, so that one counts for nothing.
    pub async fn forgive_turn(&self, id: TurnId) -> Result<(), StoreError> {
        self.write(move |connection| {
            let sql = "UPDATE turns SET deferrals = attempts - 1 WHERE id = ?1 AND state = 'running'";
            connection.prepare_cached(sql)?.execute([id.as_bytes()])?;
            Ok(())
        })
        .await
    }

    /// What is asked in a turn, all of it.
    pub async fn turn_input(&self, id: TurnId) -> Result<Vec<Message>, StoreError> {
        self.read(move |connection| messages_of(connection, id.as_bytes())).await
    }

    /// A turn by its id.
    pub async fn turn(&self, id: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        self.read(move |connection| find(connection, "t.id = ?1", id.as_bytes())).await
    }

    /// Releases what the last life left unfinished. A turn that was started `max_attempts` times and never came to an end
    /// in order is parked; where its reply would have gone, `parked_notice` goes.
    pub async fn release_unfinished(
        &self,
        max_attempts: u32,
        parked_notice: &'static str,
    ) -> Result<Released, StoreError> {
        const UNFINISHED: &str = "SELECT id, keep, attempts, attempts - deferrals FROM turns \
                                  WHERE state IN ('queued', 'running') ORDER BY session, seq";
        // Looked at first, so that a start with nothing to release costs no fsync.
        if !self.read(|connection| Ok(connection.prepare_cached(UNFINISHED)?.exists([])?)).await? {
            return Ok(Released::default());
        }
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(UNFINISHED)?;
            let rows = statement
                .query_map([], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
            let rows: Vec<([u8; 16], bool, u32, u32)> = rows.collect::<Result<_, _>>()?;
            let mut released = Released::default();
            for (id, keep, attempts, crashes) in rows {
                let id = TurnId::from_bytes(id);
                if !keep {
                    end(connection, id, &Outcome::Interrupted)?;
                    released.interrupted += 1;
                } else if crashes >= max_attempts {
                    park(connection, id, parked_notice)?;
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

fn park(connection: &Connection, id: TurnId, notice: &str) -> Result<(), StoreError> {
    let turn = unfinished(connection, id)?;
    end(connection, id, &Outcome::Parked)?;
    if let Some(target) = turn.deliver {
        let (session, parts) = (Some(turn.session), vec![notice.to_owned()]);
        let delivery = NewDelivery { target, kind: Kind::Notice, session, parts };
        outbox::insert(connection, Some(id), &delivery, false, Timestamp::now())?;
    }
    Ok(())
}

/// Stores a turn as the newest of its session; with `fresh` the conversation begins with it.
pub(super) fn insert(connection: &Connection, turn: &NewTurn, started: bool, fresh: bool) -> Result<(), StoreError> {
    let session = sessions::row(connection, &turn.session, turn.accepted)?;
    // Not before the conversation's beginning, which is kept when turns are pruned.
    let seq = "SELECT max(s.fresh_from, 1 + coalesce((SELECT max(seq) FROM turns WHERE session = s.id), 0)) \
               FROM sessions s WHERE s.id = ?1";
    let seq: i64 = connection.prepare_cached(seq)?.query_row([session], |row| row.get(0))?;
    let sql = "UPDATE sessions SET active = ?2, fresh_from = iif(?3, ?4, fresh_from) WHERE id = ?1";
    connection.prepare_cached(sql)?.execute(params![session, turn.accepted.as_millis(), fresh, seq])?;
    if fresh {
        sessions::forget(connection, session)?;
    }
    let (parent, context) = match &turn.history {
        // Only a turn that may be attempted again needs it; a given history can be long.
        History::Given(messages) if turn.keep => (None, Some(serde_json::to_string(messages))),
        History::Given(_) | History::Session => (None, None),
        History::Chain(last) => (Some(last.as_bytes()), None),
    };
    let context = context.transpose().map_err(|e| StoreError::Failed(e.to_string()))?;
    let sql = "INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, parent, instructions, \
               context, idempotency_key, fingerprint, accepted, seq, deliver) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
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
        seq,
        turn.deliver.as_ref().map(ToString::to_string),
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

/// Adds a message to those of a turn.
pub(super) fn say_more(connection: &Connection, turn: TurnId, message: &Message) -> Result<(), StoreError> {
    let sql = "SELECT count(*) FROM messages WHERE turn = ?1";
    let position: i64 = connection.prepare_cached(sql)?.query_row([turn.as_bytes()], |row| row.get(0))?;
    say(connection, turn, usize::try_from(position).unwrap_or(0), message.role, &message.content)
}

fn end(connection: &Connection, id: TurnId, outcome: &Outcome) -> Result<(), StoreError> {
    let (finish, usage, error) = match outcome {
        Outcome::Completed { finish, usage, .. } => (Some(finish_word(*finish)), Some(*usage), None),
        Outcome::Failed { failure, message } => (Some(failure_word(*failure)), None, Some(message)),
        Outcome::Cancelled | Outcome::Interrupted | Outcome::Parked => (None, None, None),
        Outcome::Superseded | Outcome::Absorbed(_) => (None, None, None),
    };
    let absorbed_by = match outcome {
        Outcome::Absorbed(by) => Some(by.as_bytes()),
        _ => None,
    };
    let sql = "UPDATE turns SET state = ?2, ended = ?3, finish = ?4, input_tokens = ?5, output_tokens = ?6, \
               error = ?7, context = NULL, parent = coalesce(?8, parent) WHERE id = ?1 AND state IN ('queued', 'running')";
    let ended = connection.prepare_cached(sql)?.execute(params![
        id.as_bytes(),
        outcome.label(),
        Timestamp::now().as_millis(),
        finish,
        usage.map(|u| u.input_tokens as i64),
        usage.map(|u| u.output_tokens as i64),
        error,
        absorbed_by,
    ])?;
    if ended == 0 {
        return Err(StoreError::Failed(format!("turn {id} has ended already")));
    }
    if let Outcome::Completed { text, .. } = outcome {
        say_more(connection, id, &Message { role: Role::Assistant, content: text.clone() })?;
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
                       t.finish, t.input_tokens, t.output_tokens, t.error, t.fingerprint, t.parent, t.deliver, \
                       t.pieces, s.name AS session";

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
    let deliver: Option<String> = row.get("deliver")?;
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
        pieces: row.get::<_, Option<Vec<u8>>>("pieces")?.map(|bytes| pieces::decode(&bytes)).unwrap_or_default(),
        fingerprint: row.get("fingerprint")?,
        parent: row.get::<_, Option<[u8; 16]>>("parent")?.map(TurnId::from_bytes),
        deliver: deliver.map(|text| text.parse()).transpose().map_err(|_| damaged("target"))?,
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
        "superseded" => Outcome::Superseded,
        "absorbed" => {
            let by: Option<[u8; 16]> = row.get("parent")?;
            Outcome::Absorbed(by.map_or_else(|| TurnId::from_bytes(*id), TurnId::from_bytes))
        }
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
        deliver: known.deliver,
    })
}
