//! What agents say of themselves, as JSON in a retained message. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::topic::Id;

/// What presences are published below.
pub const FILTER: &str = "recado/agents/+/presence";
/// The user property of the message that takes an announcement back: whoever sent it is going, and did
/// not vanish.
pub const GOODBYE: &str = "goodbye";
/// How many bytes an agent may say of itself.
const MAX_ANNOUNCEMENT: usize = 16 * 1024;
/// How many topics one takes requests from, and how long what tells two with one id apart may be, in
/// bytes.
const MAX_TOPICS: usize = 256;
const MAX_INSTANCE: usize = 64;
/// The longest time between two announcements that is believed, in seconds.
const MAX_REFRESH_S: u64 = 24 * 3600;

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Its id.
    pub id: String,
    /// The services that it takes requests for.
    pub services: Vec<String>,
    /// Since when it is there, as RFC 3339.
    pub since: String,
    /// The version of its program.
    pub version: String,
    /// The topics that it takes requests from.
    #[serde(default)]
    pub topics: Vec<String>,
    /// Tells agents apart that have the same id.
    #[serde(default)]
    pub instance: String,
    /// After how many seconds it says all this again; none: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_s: Option<u64>,
    /// After how many milliseconds it says again what it does; 0: only when asked; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_ms: Option<u64>,
    /// The topics that the broker does not let it read or write, though it must.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<String>,
    /// Whether it takes bodies as streams, and sends them so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streams: bool,
    /// Whether it knows each request again that comes once more, by another broker.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remembers: bool,
    /// This one is about to go; another with its id goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

impl Announcement {
    /// Reads one.
    ///
    /// `None`: it is none, or larger than any is.
    pub fn read(payload: &[u8]) -> Option<Announcement> {
        if payload.len() > MAX_ANNOUNCEMENT {
            return None;
        }
        let read: Announcement = serde_json::from_slice(payload).ok()?;
        let is_short = read.instance.len() <= MAX_INSTANCE;
        (is_short && read.topics.len() <= MAX_TOPICS).then_some(read)
    }

    /// Whether one that says what it does every so many milliseconds should have done so, if it did so
    /// long ago.
    pub fn is_overdue(stats_ms: Option<u64>, since: Duration) -> bool {
        let every = Duration::from_millis(stats_ms.unwrap_or(0));
        // Two may be lost, or come late.
        !every.is_zero() && since > every.saturating_mul(5) / 2
    }

    /// For how long one holds that is said again after so many seconds; `None`: until it is taken back.
    pub fn holds(refresh_s: Option<u64>) -> Option<Duration> {
        // Two may be lost, or come late.
        let refresh = Duration::from_secs(refresh_s?.min(MAX_REFRESH_S));
        Some(refresh * 5 / 2)
    }
}

/// The Message Expiry Interval of an announcement that is said again after so many seconds.
pub fn expiry(refresh_s: u64) -> u32 {
    u32::try_from(refresh_s * 5 / 2).unwrap_or(u32::MAX)
}

/// Which agent a topic of the form `recado/agents/<id>/<level>` belongs to.
pub fn agent_of(topic: &str, level: &str) -> Option<Id> {
    let rest = topic.strip_prefix("recado/agents/")?;
    let id = rest.strip_suffix(level)?.strip_suffix('/')?;
    Id::new(id).ok()
}

/// The topic of an agent's presence.
pub fn topic(id: &Id) -> String {
    format!("recado/agents/{id}/presence")
}
