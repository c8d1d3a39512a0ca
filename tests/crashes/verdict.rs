//! What the ledgers say.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::agent::Asked;
use crate::receiver::Call;

/// What went wrong, and how much was tried.
#[derive(Debug, Default)]
pub struct Verdict {
    pub kills: u32,
    /// Kills at each named point.
    pub at_points: BTreeMap<String, u32>,
    pub acknowledged: usize,
    /// Acknowledged, and no reply arrived.
    pub unanswered: Vec<String>,
    /// Arrived more often than they may, or without saying so.
    pub doubled: Vec<String>,
    /// Arrived twice and said so.
    pub repeated: usize,
    /// Replies that nobody asked for.
    pub unasked: Vec<String>,
    /// Replies that overtook an earlier one of their session.
    pub out_of_order: Vec<String>,
    /// Asked of the agent again without a word about the first time.
    pub unwarned: Vec<String>,
}

impl Verdict {
    /// Holds the ledgers against each other. `sent` are the messages of each session in their order, with whether they
    /// were acknowledged.
    pub fn of(sent: &BTreeMap<String, Vec<(String, bool)>>, calls: &[Call], asked: &[Asked], knows: bool) -> Self {
        let mut verdict = Self::default();
        let mut arrived: HashMap<&str, Vec<&Call>> = HashMap::new();
        for call in calls {
            arrived.entry(call.text()).or_default().push(call);
        }
        for messages in sent.values() {
            for (text, acknowledged) in messages {
                verdict.acknowledged += usize::from(*acknowledged);
                match arrived.remove(text.as_str()) {
                    None if *acknowledged => verdict.unanswered.push(text.clone()),
                    None => {}
                    Some(calls) => verdict.count(text, &calls, knows),
                }
            }
        }
        verdict.unasked = arrived.into_keys().map(str::to_owned).collect();
        verdict.check_order(sent, calls);
        let mut seen: HashMap<&str, u32> = HashMap::new();
        for question in asked {
            let times = seen.entry(&question.text).or_default();
            *times += 1;
            if *times > 1 && !question.warned {
                verdict.unwarned.push(question.text.clone());
            }
        }
        verdict
    }

    fn count(&mut self, text: &str, calls: &[&Call], knows: bool) {
        let key = |call: &Call| call.header("idempotency-key").map(str::to_owned);
        if calls.iter().any(|call| key(call).is_none() || key(call) != key(calls[0])) {
            // Another key is another delivery.
            self.doubled.push(text.to_owned());
        }
        let says_so = |call: &&&Call| call.body["possibly_repeated"] == true;
        self.repeated += calls.iter().filter(says_so).count();
        if !knows && calls.iter().skip(1).any(|call| !says_so(&call)) {
            self.doubled.push(text.to_owned());
        }
    }

    fn check_order(&mut self, sent: &BTreeMap<String, Vec<(String, bool)>>, calls: &[Call]) {
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (place, call) in calls.iter().enumerate() {
            first.entry(call.text()).or_insert(place);
        }
        for messages in sent.values() {
            let places: Vec<_> =
                messages.iter().filter_map(|(text, _)| Some((text, first.get(text.as_str())?))).collect();
            let overtaken = places.windows(2).filter(|pair| pair[0].1 > pair[1].1);
            self.out_of_order.extend(overtaken.map(|pair| pair[1].0.clone()));
        }
    }

    /// # Panics
    /// When anything went wrong, or a point was never died at.
    pub fn assert_innocent(&self, points: &[&str]) {
        let wrongs = [&self.unanswered, &self.doubled, &self.unasked, &self.out_of_order, &self.unwarned];
        assert!(wrongs.iter().all(|wrong| wrong.is_empty()), "{self}\n{self:#?}");
        let missed: Vec<_> = points.iter().filter(|point| !self.at_points.contains_key(**point)).collect();
        assert!(missed.is_empty(), "never died at {missed:?}: {self}");
        assert!(self.acknowledged > self.kills as usize, "too little was going on: {self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills ({:?}), {} messages acknowledged: {} unanswered, {} doubled, {} repeated and marked, {} unasked, \
             {} out of order, {} asked again without a warning",
            self.kills,
            self.at_points,
            self.acknowledged,
            self.unanswered.len(),
            self.doubled.len(),
            self.repeated,
            self.unasked.len(),
            self.out_of_order.len(),
            self.unwarned.len()
        )
    }
}
