//! Agents as others are shown them: who is there, what each says of its work, and who has vanished.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::table::{Known, Lost, Table};
use crate::wire::presence::Announcement;
use crate::wire::stats::{Stats, Work};

/// For how long an agent is shown that has vanished.
const SHOWN: Duration = Duration::from_secs(600);

/// Whether anything is heard of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// It says in time what it does, or need not.
    Ready,
    /// It should have said something, twice at least.
    Silent,
}

/// An agent that is there.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Seen {
    #[serde(flatten)]
    pub announcement: Announcement,
    pub state: State,
    /// How long ago it said something.
    pub last_seen_ms: u64,
    #[serde(flatten)]
    pub work: Option<Work>,
}

impl Seen {
    pub fn of(known: &Known, now: Instant) -> Seen {
        let since = now.saturating_duration_since(known.last_seen());
        Seen {
            // Who has never said anything may not be allowed to, or not be heard here.
            state: match known.work.is_some() && known.announcement.is_overdue(since) {
                true => State::Silent,
                false => State::Ready,
            },
            last_seen_ms: millis(since),
            announcement: known.announcement.clone(),
            work: known.work.clone(),
        }
    }
}

/// Who is there, and who has vanished.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub agents: Vec<Seen>,
    /// How many there are besides.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_agents: usize,
    pub lost: Vec<Lost>,
}

impl Shown {
    /// What a table has, but no more agents than `most`.
    pub fn of(table: &mut Table, now: Instant, most: usize) -> Shown {
        Shown {
            agents: table.seen(now, most),
            more_agents: table.count.saturating_sub(most),
            lost: table.lost(now),
        }
    }

    /// Takes those of another broker who are not here yet.
    pub fn add(&mut self, other: Shown) {
        let name = |it: &Seen| (it.announcement.id.clone(), it.announcement.instance.clone());
        let known: HashSet<_> = self.agents.iter().map(name).collect();
        let new = other
            .agents
            .into_iter()
            .filter(|it| !known.contains(&name(it)));
        self.agents.extend(new);
        self.agents.sort_by_key(name);
        self.more_agents = self.more_agents.max(other.more_agents);
        let is_new = |lost: &Lost| !self.lost.iter().any(|known| known.agent == lost.agent);
        let lost: Vec<Lost> = other.lost.into_iter().filter(is_new).collect();
        self.lost.extend(lost);
        // Whoever is still at one broker is not lost.
        let agents = &self.agents;
        let is_there = |lost: &Lost| agents.iter().any(|it| it.announcement.id == lost.agent);
        self.lost.retain(|lost| !is_there(lost));
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Table {
    /// Takes what an agent says of its work.
    pub fn note_stats(&mut self, stats: Stats, now: Instant) {
        let twins = self.agents.get_mut(&stats.id).into_iter().flatten();
        let is_its = |known: &&mut Known| known.announcement.instance == stats.instance;
        if let Some(known) = twins.into_iter().find(is_its) {
            known.work = Some(stats.work);
            known.seen = now;
        }
    }

    /// Those who are there, and no more of them than `most`.
    pub fn seen(&self, now: Instant, most: usize) -> Vec<Seen> {
        let all = self.agents.values().flatten().take(most);
        all.map(|known| Seen::of(known, now)).collect()
    }

    /// Who has vanished lately.
    pub fn lost(&mut self, now: Instant) -> Vec<Lost> {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.lost.retain(|lost| since(lost.vanished) < SHOWN);
        let shown = |lost: &Lost| Lost {
            last_seen_ms: millis(since(lost.heard)),
            ..lost.clone()
        };
        self.lost.iter().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::table::MAX_LOST;
    use super::*;

    fn announcement(id: &str, more: Value) -> Announcement {
        let mut all = json!({
            "id": id, "services": [], "since": "2026-01-01T00:00:00Z", "version": "1", "instance": "1",
        });
        let members = more.as_object().unwrap().clone();
        all.as_object_mut().unwrap().extend(members);
        serde_json::from_value(all).unwrap()
    }

    fn stats(id: &str, instance: &str) -> Stats {
        Stats {
            id: id.into(),
            instance: instance.into(),
            work: Work {
                in_work: 3,
                ..Work::default()
            },
        }
    }

    #[test]
    fn who_says_nothing_any_more_is_silent() {
        let mut table = Table::default();
        let start = Instant::now();
        table.remember(
            "shed",
            announcement("shed", json!({"stats_ms": 10_000})),
            start,
        );
        table.remember("old", announcement("old", json!({})), start);
        table.remember("mute", announcement("mute", json!({"stats_ms": 0})), start);
        let states = |table: &Table, after: u64| {
            let all = table.seen(start + Duration::from_secs(after), 10);
            let state = |it: Seen| (it.announcement.id, it.state);
            all.into_iter().map(state).collect::<Vec<_>>()
        };
        let all = |shed| {
            let ready = |id: &str| (id.to_owned(), State::Ready);
            vec![ready("mute"), ready("old"), ("shed".to_owned(), shed)]
        };
        assert_eq!(
            states(&table, 100),
            all(State::Ready),
            "it may not be heard"
        );
        table.note_stats(stats("shed", "1"), start);
        assert_eq!(states(&table, 25), all(State::Ready));
        assert_eq!(states(&table, 26), all(State::Silent));
        table.note_stats(stats("shed", "another"), start + Duration::from_secs(20));
        assert_eq!(states(&table, 26), all(State::Silent));
        table.note_stats(stats("shed", "1"), start + Duration::from_secs(20));
        assert_eq!(states(&table, 45), all(State::Ready));
        let shown = json!(table.seen(start + Duration::from_secs(21), 10)[2]);
        assert_eq!(shown["state"], "ready");
        assert_eq!(shown["last_seen_ms"], 1000);
        assert_eq!(shown["in_work"], 3);
        // Nobody knows of whom.
        table.note_stats(stats("nobody", "1"), start);
        assert_eq!(table.seen(start, 10).len(), 3);
    }

    #[test]
    fn who_vanishes_is_shown_for_a_while() {
        let mut table = Table::default();
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let lost = |table: &mut Table, at| {
            let all = table.lost(at).into_iter();
            all.map(|it| (it.agent, it.last_seen_ms))
                .collect::<Vec<_>>()
        };
        for id in ["shed", "old", "polite"] {
            let more = if id == "old" {
                json!({})
            } else {
                json!({"stats_ms": 0})
            };
            table.remember(id, announcement(id, more), start);
        }
        table.goodbye("polite", later(1));
        for id in ["shed", "old", "polite"] {
            table.left(id, later(2));
        }
        assert_eq!(lost(&mut table, later(5)), [("shed".to_owned(), 5000)]);
        table.remember(
            "shed",
            announcement("shed", json!({"stats_ms": 0})),
            later(6),
        );
        assert!(lost(&mut table, later(6)).is_empty(), "it is back");
        table.left("shed", later(7));
        assert_eq!(lost(&mut table, later(600)).len(), 1, "since it was lost");
        assert!(lost(&mut table, later(700)).is_empty());
        for number in 0..2 * MAX_LOST {
            let id = format!("a{number}");
            table.remember(&id, announcement(&id, json!({"stats_ms": 0})), start);
            table.left(&id, start);
        }
        assert_eq!(table.lost(start).len(), MAX_LOST);
    }
}
