//! Those who watch a turn: what they have seen of it, where they begin, and what follows when they leave.

use std::mem;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Cut, Live, Piece};
use crate::gateway::mark::{Mark, Told};
use crate::model::id::TurnId;
use crate::model::turn::{Outcome, TurnEvent, TurnRecord};

/// What a watcher sees next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The next piece of the reply.
    Text(String),
    /// The next piece of what the agent thinks aloud.
    Thought(String),
    /// The end; there is no more.
    Ended(Outcome),
}

/// Where a watcher begins who has something of the reply already.
#[derive(Debug)]
pub enum Resumed {
    /// Behind what they have.
    Behind(Told),
    /// With the first word: what they have is not how this reply begins.
    FromStart,
}

/// Somebody who watches a turn. The last one to leave cancels it, unless its result can be asked for later.
#[derive(Debug)]
pub struct Watch {
    live: Arc<Live>,
    changed: watch::Receiver<u64>,
    /// Pieces seen, those of them that are text, and bytes of each kind.
    seen: usize,
    texts_seen: u64,
    text_seen: usize,
    thoughts_seen: usize,
    /// Thoughts before this piece are not told.
    thoughts_from: usize,
}

impl Watch {
    /// On all of a turn, from its first word on; it has been counted.
    pub(super) fn new(live: Arc<Live>) -> Self {
        let changed = live.changed.subscribe();
        let (seen, texts_seen, text_seen, thoughts_seen, thoughts_from) = (0, 0, 0, 0, 0);
        Self { live, changed, seen, texts_seen, text_seen, thoughts_seen, thoughts_from }
    }

    /// A watch on a turn that ended before; `None` if it has not.
    pub fn ended(record: &TurnRecord) -> Option<Self> {
        let outcome = record.outcome.clone()?;
        let live = Arc::new(Live::of(record.id, record.attempts.max(1), true, record.session.clone(), None));
        if let Outcome::Completed { text, .. } = &outcome {
            let mut rest = text.as_str();
            for length in &record.pieces {
                let Some((piece, behind)) = rest.split_at_checked(*length) else { break };
                live.add(TurnEvent::Text(piece.to_owned()));
                rest = behind;
            }
            live.add(TurnEvent::Text(rest.to_owned()));
        }
        live.end(outcome);
        Some(live.watch())
    }

    /// The turn.
    pub fn turn(&self) -> TurnId {
        self.live.turn
    }

    /// Which attempt at the turn this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.live.attempt
    }

    /// How many pieces of text are behind the watcher. With one that was begun in an earlier attempt, only its rest is
    /// to come.
    pub fn texts_seen(&self) -> u64 {
        self.texts_seen
    }

    /// Whether it ends, or is about to end, without a word about what was asked: nobody wanted it, or nobody could
    /// have asked for its result.
    pub fn is_cut_off(&self) -> bool {
        match self.outcome_now() {
            Some(outcome) => matches!(outcome, Outcome::Cancelled | Outcome::Interrupted),
            None => self.live.why_cut() == Some(Cut::Unwanted),
        }
    }

    /// Begins behind what a watcher has, as soon as the reply has got so far and if it begins like that. What the
    /// agent thought aloud until then is not told again.
    pub async fn resume(&mut self, has: &Mark) -> Resumed {
        let start = loop {
            if let Some(start) = self.start(has.position) {
                break start;
            }
            if self.changed.changed().await.is_err() {
                return Resumed::FromStart;
            }
        };
        let mut told = Told::nothing(self.turn());
        let position = match start {
            Start::Reached(start) if has.is_of(&start) => {
                told.add(&start);
                has.position
            }
            Start::Reached(_) => return Resumed::FromStart,
            // Nothing of it counts any more; only the end is told.
            Start::WithoutReply => usize::MAX,
        };
        self.skip(position);
        Resumed::Behind(told)
    }

    /// The reply up to a position, or whatever it has instead; `None` if it has not got so far.
    fn start(&self, position: usize) -> Option<Start> {
        let said = self.live.lock();
        match &said.outcome {
            _ if said.text.len() >= position => {
                // Within a letter there was never a cut: that is the position in another text.
                Some(Start::Reached(said.text.get(..position).unwrap_or_default().to_owned()))
            }
            Some(Outcome::Completed { .. }) => Some(Start::Reached(String::new())),
            Some(_) => Some(Start::WithoutReply),
            None => None,
        }
    }

    fn skip(&mut self, position: usize) {
        let said = self.live.lock();
        for piece in &said.pieces {
            match *piece {
                Piece::Text(end) if end > position => break,
                Piece::Text(_) => self.texts_seen += 1,
                Piece::Thought(end) => self.thoughts_seen = end,
            }
            self.seen += 1;
        }
        (self.text_seen, self.thoughts_from) = (position.min(said.text.len()), said.pieces.len());
    }

    /// What comes next; after [`Progress::Ended`] the same again.
    pub async fn next(&mut self) -> Progress {
        loop {
            if let Some(progress) = self.look() {
                return progress;
            }
            // The sender lives in `self.live`, so this ends only when something changed.
            if self.changed.changed().await.is_err() {
                return Progress::Ended(Outcome::Interrupted);
            }
        }
    }

    /// How it ends; passes over what is said until then.
    pub async fn outcome(&mut self) -> Outcome {
        loop {
            if let Progress::Ended(outcome) = self.next().await {
                return outcome;
            }
        }
    }

    /// The outcome if it has ended.
    pub fn outcome_now(&self) -> Option<Outcome> {
        self.live.lock().outcome.clone()
    }

    fn look(&mut self) -> Option<Progress> {
        let said = self.live.lock();
        loop {
            let Some(piece) = said.pieces.get(self.seen) else { return said.outcome.clone().map(Progress::Ended) };
            self.seen += 1;
            // Each piece was added whole, so these ends are character boundaries.
            match *piece {
                Piece::Text(end) => {
                    self.texts_seen += 1;
                    return Some(Progress::Text(said.text[mem::replace(&mut self.text_seen, end)..end].to_owned()));
                }
                Piece::Thought(end) => {
                    let thought = &said.thoughts[mem::replace(&mut self.thoughts_seen, end)..end];
                    if self.seen > self.thoughts_from {
                        return Some(Progress::Thought(thought.to_owned()));
                    }
                }
            }
        }
    }
}

/// What there is of a reply up to a position.
enum Start {
    Reached(String),
    /// The turn ended without one.
    WithoutReply,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.live.watchers.send_modify(|count| *count -= 1);
        self.live.cut_if_unwatched();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::turn::{Finish, Origin, Usage};

    fn live(keep: bool) -> Arc<Live> {
        Arc::new(Live::of(TurnId::new(), 1, keep, "s".parse().expect("an id"), None))
    }

    fn completed(text: &str) -> Outcome {
        Outcome::Completed { text: text.into(), finish: Finish::Stop, usage: Usage::default() }
    }

    #[tokio::test]
    async fn early_and_late_watchers_see_the_same_story() {
        let live = live(false);
        let mut early = live.watch();
        live.add(TurnEvent::Thought("hm".into()));
        live.add(TurnEvent::Text("Grüß ".into()));
        assert_eq!(early.next().await, Progress::Thought("hm".into()));
        assert_eq!(early.next().await, Progress::Text("Grüß ".into()));
        live.add(TurnEvent::Text("Gott".into()));
        live.end(completed("Grüß Gott"));
        assert_eq!(early.next().await, Progress::Text("Gott".into()));
        let mut late = live.watch();
        assert_eq!(late.next().await, Progress::Thought("hm".into()));
        assert_eq!(late.next().await, Progress::Text("Grüß ".into()));
        assert_eq!(late.next().await, Progress::Text("Gott".into()));
        assert_eq!(early.outcome().await, late.outcome().await);
    }

    #[tokio::test]
    async fn the_last_to_leave_cancels_what_cannot_be_asked_for_later() {
        let live = live(false);
        let (first, second) = (live.watch(), live.watch());
        drop(first);
        assert_eq!(live.why_cut(), None);
        drop(second);
        live.is_cut().await;
        live.unwatched().await;
        assert_eq!(live.why_cut(), Some(Cut::Unwanted));
        let kept = self::live(true);
        drop(kept.watch());
        assert_eq!(kept.why_cut(), None);
    }

    /// All that is still told, and how it ends.
    async fn rest(watch: &mut Watch) -> (String, Outcome) {
        let mut text = String::new();
        loop {
            match watch.next().await {
                Progress::Text(piece) => text.push_str(&piece),
                Progress::Thought(thought) => text.push_str(&format!("[{thought}]")),
                Progress::Ended(outcome) => return (text, outcome),
            }
        }
    }

    fn mark(turn: TurnId, text: &str) -> Mark {
        let mut told = Told::nothing(turn);
        told.add(text);
        told.mark()
    }

    #[tokio::test]
    async fn who_comes_back_goes_on_behind_what_they_have_and_hears_no_thought_twice() {
        let live = live(true);
        for event in [TurnEvent::Text("one ".into()), TurnEvent::Thought("hm".into()), TurnEvent::Text("two ".into())] {
            live.add(event);
        }
        let mut early = live.watch();
        let has = mark(early.turn(), "one tw");
        assert!(matches!(early.resume(&has).await, Resumed::Behind(told) if told.mark() == has));
        assert_eq!(early.texts_seen(), 1, "of the second piece the rest is to come");
        // In another attempt, the text is not there yet.
        let again = self::live(true);
        let mut waiting = again.watch();
        again.add(TurnEvent::Thought("anew".into()));
        again.add(TurnEvent::Text("one t".into()));
        let mut resuming = Box::pin(waiting.resume(&has));
        assert!(futures_util::poll!(&mut resuming).is_pending());
        again.add(TurnEvent::Text("wo three".into()));
        assert!(matches!(resuming.await, Resumed::Behind(told) if told.mark().position == has.position));
        for (live, watch) in [(&live, &mut early), (&again, &mut waiting)] {
            live.add(TurnEvent::Thought("so".into()));
            live.add(TurnEvent::Text(" end".into()));
            live.end(completed("whatever"));
            let (text, _) = rest(watch).await;
            assert!(["o [so] end", "o three[so] end"].contains(&text.as_str()), "{text}");
        }
    }

    #[tokio::test]
    async fn another_text_is_told_from_its_start_and_a_failure_is_told_as_such() {
        let live = live(true);
        live.add(TurnEvent::Text("Grüße".into()));
        let turn = live.turn;
        // Longer than this one will ever be, another one, and one that ends within a letter of this one.
        let mut watches: Vec<_> =
            ["Grüße an alle", "Große", "Gr\u{c4}"].map(|has| (mark(turn, has), live.watch())).into_iter().collect();
        live.end(completed("Grüße"));
        for (has, watch) in &mut watches {
            assert!(matches!(watch.resume(has).await, Resumed::FromStart), "{has}");
            assert_eq!(rest(watch).await.0, "Grüße");
        }
        let failed = self::live(true);
        failed.add(TurnEvent::Text("Gr".into()));
        let mut watch = failed.watch();
        failed.end(Outcome::Interrupted);
        assert!(matches!(watch.resume(&mark(turn, "Grüße")).await, Resumed::Behind(_)));
        assert_eq!(rest(&mut watch).await, (String::new(), Outcome::Interrupted));
    }

    #[tokio::test]
    async fn a_stored_reply_is_told_in_the_pieces_in_which_it_was_said() {
        let live = live(true);
        for piece in ["", "Gr", "üße", " an", " alle"] {
            live.add(TurnEvent::Text(piece.into()));
            live.add(TurnEvent::Thought("hm".into()));
        }
        assert_eq!(live.pieces(), [2, 5, 3, 5]);
        let record = |pieces: Vec<usize>| TurnRecord {
            id: live.turn,
            session: live.session.clone(),
            agent: "a".into(),
            model: "a".into(),
            origin: Origin::Responses,
            keep: true,
            instructions: None,
            attempts: 1,
            accepted: crate::model::time::Timestamp::now(),
            outcome: Some(completed("Grüße an alle")),
            pieces,
            fingerprint: None,
            parent: None,
            deliver: None,
        };
        let told = async |pieces: Vec<usize>| {
            let mut watch = Watch::ended(&record(pieces)).expect("it has ended");
            let mut told = Vec::new();
            while let Progress::Text(text) = watch.next().await {
                told.push(text);
            }
            told
        };
        assert_eq!(told(live.pieces()).await, ["Gr", "üße", " an", " alle"]);
        assert_eq!(told(Vec::new()).await, ["Grüße an alle"]);
        assert_eq!(told(vec![3, 100]).await, ["Grüße an alle"], "what does not fit is no cut");
    }

    proptest::proptest! {
        /// However two attempts cut what they say, and wherever the first one ended.
        #[test]
        fn nobody_puts_together_a_mixture(first: Vec<String>, second: Vec<String>, same: bool, at: usize) {
            let (had, wanted) = (first.concat(), if same { first.concat() } else { second.concat() });
            let at = (at % (had.len() + 1)..).find(|at| had.is_char_boundary(*at)).unwrap_or(0);
            let live = live(true);
            // The same text in the pieces of the other one.
            let mut rest = wanted.as_str();
            for piece in &second {
                let length = (1..=piece.len()).find(|n| rest.is_char_boundary(*n)).unwrap_or(0).min(rest.len());
                let (piece, behind) = rest.split_at(length);
                live.add(TurnEvent::Text(piece.to_owned()));
                rest = behind;
            }
            live.add(TurnEvent::Text(rest.to_owned()));
            let mut watch = live.watch();
            live.end(completed(&wanted));
            let resume = async {
                let begun = match watch.resume(&mark(live.turn, &had[..at])).await {
                    Resumed::Behind(told) => had[..told.mark().position].to_owned(),
                    Resumed::FromStart => String::new(),
                };
                begun + &rest_of(&mut watch).await
            };
            let whole = futures_util::FutureExt::now_or_never(resume).expect("nothing to wait for");
            proptest::prop_assert_eq!(whole, wanted);
        }
    }

    async fn rest_of(watch: &mut Watch) -> String {
        rest(watch).await.0
    }
}
