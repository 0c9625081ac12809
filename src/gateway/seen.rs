//! Agents as others are shown them: who is there, what each says of its work, and who has vanished.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::known::Known;
use super::table::{Lost, Table};
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
    pub fn of(id: &str, known: &Known, now: Instant) -> Seen {
        let since = now.saturating_duration_since(known.last_seen());
        Seen {
            // Who has never said anything may not be allowed to, or not be heard here.
            state: match known.is_overdue(since) {
                true => State::Silent,
                false => State::Ready,
            },
            last_seen_ms: millis(since),
            announcement: known.announcement(id),
            work: known.work.as_deref().cloned(),
        }
    }
}

/// Which agents are asked for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Those whose ids come after this one.
    pub after: String,
    /// No more than about so many: those with one id stay together.
    pub limit: usize,
    /// Those that take requests for this service; none: all.
    pub service: Option<String>,
}

impl Wanted {
    /// The first ones.
    pub fn first(limit: usize) -> Wanted {
        Wanted {
            after: String::new(),
            limit,
            service: None,
        }
    }
}

/// Who is there, and who has vanished.
#[derive(Debug, Default, Serialize)]
pub(super) struct Shown {
    pub agents: Vec<Seen>,
    /// There are more of them, behind this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many there are besides, where that is known.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_agents: usize,
    pub lost: Vec<Lost>,
}

impl Shown {
    /// What a table has.
    pub fn of(table: &mut Table, wanted: &Wanted, now: Instant) -> Shown {
        let service = wanted.service.as_deref();
        let mut all = table
            .behind(&wanted.after)
            .filter(|(_, known)| service.is_none_or(|service| known.offers(service)));
        let mut agents: Vec<Seen> = Vec::new();
        let next = loop {
            let Some((id, known)) = all.next() else {
                break None;
            };
            let last = agents.last().map(|it| it.announcement.id.as_str());
            if agents.len() >= wanted.limit && last != Some(id) {
                break last.map(str::to_owned);
            }
            agents.push(Seen::of(id, known, now));
        };
        drop(all);
        let is_first = wanted.after.is_empty();
        Shown {
            more_agents: match is_first && service.is_none() {
                true => table.count.saturating_sub(agents.len()),
                false => 0,
            },
            next,
            agents,
            lost: match is_first {
                true => table.lost(now),
                false => Vec::new(),
            },
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
        // What is behind the end of one list may be missing there.
        let ends = [self.next.take(), other.next];
        self.next = ends.into_iter().flatten().min();
        if let Some(end) = &self.next {
            self.agents.retain(|it| it.announcement.id <= *end);
        }
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
        let is_its = |known: &&mut Known| *known.instance == *stats.instance;
        if let Some(known) = self.twins_mut(&stats.id).find(is_its) {
            known.work = Some(Box::new(stats.work));
            known.seen = now;
        }
    }

    /// How many are there, and how many of them are silent.
    pub fn states(&self, now: Instant) -> (usize, usize) {
        let is_silent =
            |known: &Known| known.is_overdue(now.saturating_duration_since(known.last_seen()));
        let silent = self.all().filter(|(_, known)| is_silent(known));
        (self.count, silent.count())
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

    use super::super::table::{MAX_AGENTS, MAX_LOST};
    use super::*;

    fn announcement(id: &str, more: Value) -> Announcement {
        let mut all = json!({
            "id": id, "services": [], "since": "2026-01-01T00:00:00Z", "version": "1", "instance": "1",
        });
        let members = more.as_object().unwrap().clone();
        all.as_object_mut().unwrap().extend(members);
        serde_json::from_value(all).unwrap()
    }

    fn seen(table: &mut Table, now: Instant) -> Vec<Seen> {
        Shown::of(table, &Wanted::first(10), now).agents
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
        let mut table = Table::new(MAX_AGENTS);
        let start = Instant::now();
        table.remember(
            "shed",
            announcement("shed", json!({"stats_ms": 10_000})),
            start,
        );
        table.remember("old", announcement("old", json!({})), start);
        table.remember("mute", announcement("mute", json!({"stats_ms": 0})), start);
        let states = |table: &mut Table, after: u64| {
            let all = seen(table, start + Duration::from_secs(after));
            let state = |it: Seen| (it.announcement.id, it.state);
            all.into_iter().map(state).collect::<Vec<_>>()
        };
        let all = |shed| {
            let ready = |id: &str| (id.to_owned(), State::Ready);
            vec![ready("mute"), ready("old"), ("shed".to_owned(), shed)]
        };
        assert_eq!(
            states(&mut table, 100),
            all(State::Ready),
            "it may not be heard"
        );
        table.note_stats(stats("shed", "1"), start);
        assert_eq!(states(&mut table, 25), all(State::Ready));
        assert_eq!(states(&mut table, 26), all(State::Silent));
        table.note_stats(stats("shed", "another"), start + Duration::from_secs(20));
        assert_eq!(states(&mut table, 26), all(State::Silent));
        table.note_stats(stats("shed", "1"), start + Duration::from_secs(20));
        assert_eq!(states(&mut table, 45), all(State::Ready));
        let shown = json!(seen(&mut table, start + Duration::from_secs(21))[2]);
        assert_eq!(shown["state"], "ready");
        assert_eq!(shown["last_seen_ms"], 1000);
        assert_eq!(shown["in_work"], 3);
        // Nobody knows of whom.
        table.note_stats(stats("nobody", "1"), start);
        assert_eq!(seen(&mut table, start).len(), 3);
    }

    #[test]
    fn who_vanishes_is_shown_for_a_while() {
        let mut table = Table::new(MAX_AGENTS);
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

    fn ids(shown: &Shown) -> Vec<&str> {
        let agents = shown.agents.iter();
        agents.map(|it| it.announcement.id.as_str()).collect()
    }

    #[test]
    fn many_are_shown_in_pages() {
        let mut table = Table::new(MAX_AGENTS);
        let now = Instant::now();
        for (id, service) in [("a", "web"), ("b", "git"), ("c", "web"), ("d", "web")] {
            table.remember(id, announcement(id, json!({"services": [service]})), now);
        }
        table.remember("b", announcement("b", json!({"instance": "2"})), now);
        let mut wanted = Wanted::first(2);
        let page = Shown::of(&mut table, &wanted, now);
        assert_eq!(ids(&page), ["a", "b", "b"], "twins stay together");
        assert_eq!((page.next.as_deref(), page.more_agents), (Some("b"), 2));
        wanted.after = "b".into();
        let page = Shown::of(&mut table, &wanted, now);
        assert_eq!(ids(&page), ["c", "d"]);
        assert_eq!(page.next, None);
        let mut wanted = Wanted::first(2);
        wanted.service = Some("web".into());
        let page = Shown::of(&mut table, &wanted, now);
        assert_eq!(
            (ids(&page), page.next.as_deref()),
            (vec!["a", "c"], Some("c"))
        );
        assert_eq!(table.states(now), (5, 0));
    }

    #[test]
    fn pages_of_several_brokers_fit_together() {
        let now = Instant::now();
        let mut tables = [(); 2].map(|()| Table::new(MAX_AGENTS));
        for (number, ids) in [["a", "c", "e"], ["b", "c", "d"]].into_iter().enumerate() {
            for id in ids {
                tables[number].remember(id, announcement(id, json!({})), now);
            }
        }
        let (mut all, mut wanted) = (Vec::new(), Wanted::first(2));
        loop {
            let [first, second] = &mut tables;
            let mut page = Shown::of(first, &wanted, now);
            page.add(Shown::of(second, &wanted, now));
            all.extend(ids(&page).into_iter().map(str::to_owned));
            match page.next {
                Some(next) => wanted.after = next,
                None => break,
            }
        }
        assert_eq!(all, ["a", "b", "c", "d", "e"]);
    }
}
