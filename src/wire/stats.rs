//! What agents say of their work, as JSON in a message every few seconds. Pure.

use serde::{Deserialize, Serialize};

use crate::base::topic::{Id, InvalidTopic, Topic};

/// What statistics are published below.
pub const FILTER: &str = "recado/agents/+/stats";
/// How many bytes an agent may say of its work, and of how many services.
const MAX_STATS: usize = 64 * 1024;
const MAX_SERVICES: usize = 256;
/// How long what an agent calls a service, or says of a failure, may be, in bytes.
const MAX_TEXT: usize = 512;

/// What an agent says of its work. Whatever counts, counts since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Its id.
    pub id: String,
    /// Tells agents apart that have the same id.
    pub instance: String,
    /// Requests that were executed, well or not.
    pub requests: u64,
    /// Those of them that ended with an error of the agent's own.
    pub errors: u64,
    /// The same within the last minute.
    pub errors_last_minute: u64,
    /// Requests for which there was no place.
    pub refused: u64,
    /// Requests that nobody could be told of, or whose callers had stopped waiting.
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
        let read: Stats = serde_json::from_slice(payload).ok()?;
        let is_short = |state: &UpstreamState| {
            let why = state.why.as_deref().unwrap_or_default();
            state.service.len() <= MAX_TEXT && why.len() <= MAX_TEXT
        };
        let fits = read.upstreams.len() <= MAX_SERVICES && read.upstreams.iter().all(is_short);
        fits.then_some(read)
    }
}

/// What an agent says of a failure, cut to what is read.
pub fn beginning(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

/// The topic of an agent's statistics. An empty message on it asks for them.
///
/// Errors: it is too long.
pub fn topic(id: &Id) -> Result<Topic, InvalidTopic> {
    Topic::new(format!("recado/agents/{id}/stats"))
}

/// Whose statistics are published on a topic.
pub fn agent_of(topic: &str) -> Option<&str> {
    let rest = topic.strip_prefix("recado/agents/")?;
    let id = rest.strip_suffix("/stats")?;
    Id::new(id).ok().map(|_| id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_an_agent_says_is_read_and_bounded() {
        let stats = Stats {
            id: "shed".into(),
            requests: 7,
            upstreams: vec![UpstreamState {
                service: "web".into(),
                accepts: Some(false),
                why: Some(beginning(&"é".repeat(1000))),
            }],
            ..Stats::default()
        };
        let mut written = serde_json::to_vec(&stats).unwrap();
        assert_eq!(Stats::read(&written), Some(stats.clone()));
        // Of a version that says less, or more.
        assert_eq!(Stats::read(b"{\"new\": 1}"), Some(Stats::default()));
        written.resize(MAX_STATS + 1, b' ');
        assert_eq!(Stats::read(&written), None);
        let mut many = stats;
        many.upstreams[0].why = Some("x".repeat(MAX_TEXT + 1));
        assert_eq!(Stats::read(&serde_json::to_vec(&many).unwrap()), None);
        many.upstreams = vec![UpstreamState::default(); MAX_SERVICES + 1];
        assert_eq!(Stats::read(&serde_json::to_vec(&many).unwrap()), None);
    }

    #[test]
    fn a_topic_names_its_agent() {
        let topic = topic(&Id::new("shed.1").unwrap()).unwrap();
        assert_eq!(agent_of(topic.as_str()), Some("shed.1"));
        for other in ["recado/agents/a/b/stats", "recado/agents//stats", "stats"] {
            assert_eq!(agent_of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(payload: Vec<u8>, topic: String) {
            let _ = (Stats::read(&payload), agent_of(&topic));
        }
    }
}
