//! What agents say of their work, as JSON in a message every few seconds. Pure.

use serde::{Deserialize, Serialize};

use crate::base::topic::{Id, InvalidTopic, Topic};

/// What statistics are published below.
pub const FILTER: &str = "recado/agents/+/stats";
/// How many bytes an agent may say of its work, and of how many services.
const MAX_STATS: usize = 16 * 1024;
const MAX_SERVICES: usize = 64;
/// How long what it says of a failure may be, in bytes.
const MAX_TEXT: usize = 128;

/// What an agent says of its work, and which one does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Its id.
    pub id: String,
    /// Tells agents apart that have the same id.
    pub instance: String,
    /// The rest.
    #[serde(flatten)]
    pub work: Work,
}

/// The work of an agent. Whatever counts, counts since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Work {
    /// Requests that were executed, well or not.
    pub requests: u64,
    /// Those of them that ended with an error of the agent's own.
    pub errors: u64,
    /// The same within the last minute.
    pub errors_last_minute: u64,
    /// Requests for which there was no place.
    pub refused: u64,
    /// Requests that were not executed because of themselves: malformed, repeated, too late.
    pub dropped: u64,
    /// Requests that are being executed.
    pub in_work: u64,
    /// Requests that wait for a worker.
    pub queued: u64,
    /// Bodies on their way in pieces.
    pub open_streams: u64,
    /// Connections to the broker after the first one.
    pub reconnects: u64,
    /// The memory that it takes, in bytes.
    pub resident_bytes: u64,
    /// Its threads.
    pub threads: u64,
    /// Whether what it calls can be reached, service by service.
    pub upstreams: Vec<UpstreamState>,
}

/// Whether what a service calls can be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamState {
    /// The service; `direct`: what is asked of this very agent.
    pub service: String,
    /// Whether it takes connections; none: nobody has tried.
    pub accepts: Option<bool>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Stats {
    /// Reads them.
    ///
    /// `None`: these are none, or more than any agent says.
    pub fn read(payload: &[u8]) -> Option<Stats> {
        if payload.len() > MAX_STATS {
            return None;
        }
        let mut read: Stats = serde_json::from_slice(payload).ok()?;
        let upstreams = &mut read.work.upstreams;
        upstreams.truncate(MAX_SERVICES);
        upstreams.retain(|it| Id::new(&*it.service).is_ok());
        for upstream in upstreams {
            upstream.why = upstream.why.take().map(|why| beginning(&why).to_owned());
        }
        Some(read)
    }

    /// As the payload of a message that is read: what is too long is cut, and of too many upstreams those
    /// are left that can't be reached, as far as there is place.
    pub fn write(mut self) -> String {
        let upstreams = &mut self.work.upstreams;
        upstreams.sort_by_key(|it| it.accepts != Some(false));
        upstreams.truncate(MAX_SERVICES);
        for upstream in upstreams {
            upstream.why = upstream.why.take().map(|why| beginning(&why).to_owned());
        }
        loop {
            // Strings and numbers only: it can't fail.
            let written = serde_json::to_string(&self).unwrap_or_default();
            if written.len() <= MAX_STATS || self.work.upstreams.pop().is_none() {
                return written;
            }
        }
    }
}

fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// The topic of an agent's statistics. An empty message on it asks for them.
///
/// Errors: it is too long.
pub fn topic(id: &Id) -> Result<Topic, InvalidTopic> {
    Topic::new(format!("recado/agents/{id}/stats"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::presence::agent_of;
    use super::*;

    fn upstream(service: &str, accepts: bool, why: &str) -> UpstreamState {
        UpstreamState {
            service: service.into(),
            accepts: Some(accepts),
            why: Some(why.into()),
        }
    }

    #[test]
    fn what_an_agent_says_is_read_and_bounded() {
        let stats = Stats {
            id: "shed".into(),
            instance: "i".into(),
            work: Work {
                requests: 7,
                upstreams: vec![upstream("web", false, &"é".repeat(1000))],
                ..Work::default()
            },
        };
        let written = stats.clone().write();
        let read = Stats::read(written.as_bytes()).unwrap();
        assert_eq!((read.work.requests, read.work.upstreams.len()), (7, 1));
        assert_eq!(
            read.work.upstreams[0].why.as_deref(),
            Some("é".repeat(64).as_str())
        );
        // Of a version that says less, or more.
        assert_eq!(Stats::read(b"{\"new\": 1}"), Some(Stats::default()));
        let mut long = written.into_bytes();
        long.resize(MAX_STATS + 1, b' ');
        assert_eq!(Stats::read(&long), None);
        // Whoever writes them is not obliged to anything.
        let mut wild = stats;
        wild.work.upstreams = vec![upstream("a b", true, ""), upstream("c", true, "x")];
        let read = Stats::read(&serde_json::to_vec(&wild).unwrap()).unwrap();
        assert_eq!(read.work.upstreams, wild.work.upstreams[1..]);
    }

    #[test]
    fn of_many_upstreams_those_are_told_that_can_not_be_reached() {
        let mut upstreams: Vec<UpstreamState> = (0..1000)
            .map(|number| {
                upstream(
                    &format!("{}-{number}", "s".repeat(50)),
                    true,
                    &"\"".repeat(500),
                )
            })
            .collect();
        upstreams[999].accepts = Some(false);
        let mut stats = Stats::default();
        stats.work.upstreams = upstreams;
        let read = Stats::read(stats.write().as_bytes()).unwrap().work;
        assert!(
            (10..=MAX_SERVICES).contains(&read.upstreams.len()),
            "{}",
            read.upstreams.len()
        );
        assert_eq!(read.upstreams[0].accepts, Some(false));
    }

    #[test]
    fn a_topic_names_its_agent() {
        let id = Id::new("shed.1").unwrap();
        let topic = topic(&id).unwrap();
        assert_eq!(agent_of(topic.as_str(), "stats"), Some(id));
        for other in [
            "recado/agents/a/b/stats",
            "recado/agents//stats",
            "recado/agents/stats",
            "recado/agents/a/xstats",
            "stats",
        ] {
            assert_eq!(agent_of(other, "stats"), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(payload: Vec<u8>, topic: String) {
            let _ = (Stats::read(&payload), agent_of(&topic, "stats"));
        }
    }
}
