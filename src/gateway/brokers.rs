//! The brokers of a gateway, and which of them a request goes through.

use std::sync::Arc;
use std::time::Instant;

use super::broker::Broker;
use super::seen::{Seen, Shown, Wanted};
use crate::base::topic::Topic;
use crate::http::Failure;

/// All of them; one, unless several are used at once.
pub(super) struct Brokers {
    all: Vec<Arc<Broker>>,
}

/// Where a request can go.
pub(super) struct Choice<'a> {
    pub broker: &'a Broker,
    /// In HTTP mode, whether all who serve it take streams; in JSON mode, whether anybody is announced.
    pub found: bool,
}

impl Brokers {
    /// `all`: one at least.
    pub fn new(all: Vec<Arc<Broker>>) -> Brokers {
        Brokers { all }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Broker> {
        self.all.iter().map(|broker| &**broker)
    }

    /// Whether there are several.
    pub fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    /// Their names, without what is secret.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.iter().map(|it| it.way.broker.as_str()).collect();
        names.join(", ")
    }

    /// Whether there is a connection that takes messages.
    ///
    /// Errors: there is none; why.
    pub fn connected(&self) -> Result<(), String> {
        // The publisher of each stands for all.
        self.all[0].way.any.ready()
    }

    /// Whether requests can be answered through one of them.
    ///
    /// Errors: they can't; why.
    pub fn ready(&self) -> Result<(), Failure> {
        let mut failure = None;
        for broker in self.iter() {
            match broker.ready() {
                Ok(()) => return Ok(()),
                Err(why) => more_telling(&mut failure, why),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// The broker for a request in HTTP mode.
    ///
    /// Errors: through none of them anybody can be asked; the most that is known of it.
    pub fn for_http(
        &self,
        topic: &Topic,
        inbox: &Topic,
        now: Instant,
    ) -> Result<Choice<'_>, Failure> {
        if self.are_several() {
            // Nobody waits for one broker while another one knows.
            let known = self.choose(|broker| broker.serves_http(topic, inbox, now, false), |_| 0);
            if known.is_ok() {
                return known;
            }
        }
        self.choose(|broker| broker.serves_http(topic, inbox, now, true), |_| 0)
    }

    /// The broker for a request in JSON mode: one where somebody has announced itself, if there is any.
    ///
    /// Errors: as [`Brokers::for_http`].
    pub fn for_json(
        &self,
        topic: &Topic,
        inbox: &Topic,
        now: Instant,
    ) -> Result<Choice<'_>, Failure> {
        self.choose(
            |broker| broker.serves_json(topic, inbox, now),
            |is_announced| u8::from(!is_announced),
        )
    }

    // Among those that `look` finds usable the one with the lowest rank and the shortest round trip.
    fn choose(
        &self,
        look: impl Fn(&Broker) -> Result<bool, Failure>,
        rank: impl Fn(bool) -> u8,
    ) -> Result<Choice<'_>, Failure> {
        let (mut best, mut failure) = (None::<((u8, u64), Choice<'_>)>, None);
        for broker in self.iter() {
            match look(broker) {
                Ok(found) => {
                    let cost = (rank(found), broker.round_trip());
                    if best.as_ref().is_none_or(|(so_far, _)| cost < *so_far) {
                        best = Some((cost, Choice { broker, found }));
                    }
                }
                Err(why) => more_telling(&mut failure, why),
            }
        }
        match best {
            Some((_, choice)) => Ok(choice),
            None => Err(failure.unwrap_or(Failure::Defect)),
        }
    }

    /// A broker through which a request can be repeated that was on its way when another one was lost, and
    /// was for `sole` alone, if for one agent: that one knows it again and does not execute it twice. Else
    /// only what is `harmless` may be repeated.
    pub fn for_repeat(
        &self,
        tried: &[usize],
        topic: &Topic,
        sole: Option<&str>,
        harmless: bool,
    ) -> Option<&Broker> {
        let others = self.iter().filter(|it| !tried.contains(&it.way.number));
        let fits = |broker: &&Broker| {
            broker.check().is_ok()
                && match sole {
                    Some(instance)
                        if broker.presence.sole_server(topic).as_deref() == Some(instance) =>
                    {
                        true
                    }
                    _ => harmless && broker.presence.is_served(topic),
                }
        };
        others.filter(fits).min_by_key(|broker| broker.round_trip())
    }

    /// Those who are there, each once.
    pub fn agents(&self, wanted: &Wanted, now: Instant) -> Shown {
        let mut shown = self.all[0].presence.agents(wanted, now);
        for broker in &self.all[1..] {
            shown.add(broker.presence.agents(wanted, now));
        }
        shown
    }

    /// The same as far as is known now, without waiting for who might be.
    pub fn agents_known(&self, wanted: &Wanted, now: Instant) -> Shown {
        let mut shown = self.all[0].presence.agents_known(wanted, now);
        for broker in &self.all[1..] {
            shown.add(broker.presence.agents_known(wanted, now));
        }
        shown
    }

    /// How many are there, and how many of them are silent, at the broker that knows most.
    pub fn states(&self, now: Instant) -> (usize, usize) {
        let states = self.iter().map(|broker| broker.presence.states(now));
        states.max().unwrap_or_default()
    }

    /// One agent, if it is there.
    pub fn agent(&self, id: &str, now: Instant) -> Option<Seen> {
        self.iter()
            .find_map(|broker| broker.presence.agent(id, now))
    }

    /// Whether this agent is known to be there.
    pub fn is_there(&self, id: &str, instance: &str) -> bool {
        self.iter()
            .any(|broker| broker.presence.is_there(id, instance))
    }

    /// Whether somebody has left since this was asked last.
    pub fn somebody_left(&self, now: Instant) -> bool {
        // Each is asked: what it has to say is said once.
        let left = self.iter().filter(|it| it.presence.somebody_left(now));
        left.count() > 0
    }
}

// Keeps what says most of why nobody can be asked.
fn more_telling(so_far: &mut Option<Failure>, why: Failure) {
    let weight = |failure: &Failure| match failure {
        Failure::Denied(_) => 2,
        Failure::NoAgent(_) => 1,
        _ => 0,
    };
    if so_far
        .as_ref()
        .is_none_or(|before| weight(&why) > weight(before))
    {
        *so_far = Some(why);
    }
}
