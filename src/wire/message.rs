//! One MQTT PUBLISH, without the library that carries it. Pure.

use std::fmt;

use bytes::Bytes;

/// How surely a message is delivered (MQTT 5, section 4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// Once or not at all; nobody acknowledges anything.
    #[default]
    AtMostOnce = 0,
    /// Once or more often; the receiver acknowledges, the sender repeats.
    AtLeastOnce = 1,
    /// Exactly once, by a four-part handshake.
    ExactlyOnce = 2,
}

impl fmt::Display for Qos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", *self as u8)
    }
}

/// One MQTT PUBLISH, to be sent or just received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The topic name; of a received message as the broker sent it.
    pub topic: String,
    /// The application data.
    pub payload: Bytes,
    /// The quality of service.
    pub qos: Qos,
    /// Sent: the broker shall keep it. Received: it was kept, so it is from before.
    pub retain: bool,
    /// Of a received message of QoS 1 or 2: what its acknowledgement names it by.
    pub packet_id: u16,
    /// The MQTT 5 properties; empty where a 3.1.1 peer is involved.
    pub properties: Properties,
}

/// The PUBLISH properties that this crate uses (MQTT 5, section 3.3.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// Where the sender wants the answer.
    pub response_topic: Option<String>,
    /// What the answer must carry so that the sender knows its request.
    pub correlation_data: Option<Bytes>,
    /// After how many seconds the broker may drop the message.
    pub message_expiry_interval: Option<u32>,
    /// The media type of the payload.
    pub content_type: Option<String>,
    /// Pairs of name and value, in order.
    pub user: Vec<(String, String)>,
}

impl Message {
    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        let properties = &self.properties;
        let user = properties.user.iter();
        let texts = [&properties.response_topic, &properties.content_type];
        self.payload.len()
            + self.topic.len()
            + texts.into_iter().flatten().map(String::len).sum::<usize>()
            + properties.correlation_data.as_ref().map_or(0, Bytes::len)
            + user
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
    }
}

impl Properties {
    /// The value of the only user property with this name.
    ///
    /// Errors: there are several, so nobody can say which one is meant.
    pub fn only(&self, name: &'static str) -> Result<Option<&str>, BadProperty> {
        let mut found = self.user.iter().filter(|(key, _)| key == name);
        let value = found.next().map(|(_, value)| value.as_str());
        match found.next() {
            None => Ok(value),
            Some(_) => Err(BadProperty(name)),
        }
    }

    /// The value of the first user property with this name.
    pub fn user(&self, name: &str) -> Option<&str> {
        self.user
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// 16 bytes that name one request: unique, and not to be guessed by who would forge a reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Correlation(pub [u8; 16]);

impl Correlation {
    /// Reads Correlation Data; `None` unless it is 16 bytes, as all of ours are.
    pub fn from_bytes(data: &[u8]) -> Option<Correlation> {
        data.try_into().ok().map(Correlation)
    }
}

impl fmt::Debug for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A user property that is there, but malformed or there more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadProperty(pub(super) &'static str);

impl fmt::Display for BadProperty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its user property {} is malformed or repeated", self.0)
    }
}

/// What a packet may hold besides the body, in bytes: topics, properties, headers.
const PACKET_OVERHEAD: usize = 96 * 1024;

/// The longest body that travels as one message unless a limit says otherwise, in bytes.
const WHOLE_BYTES: usize = 1024 * 1024;

const MOST_WHOLE_BYTES: usize = 64 * 1024 * 1024;

/// The longest body that travels as one message, where bodies of `max_body_bytes` are taken; 0: of any
/// length.
pub fn whole_bytes(max_body_bytes: usize) -> usize {
    match max_body_bytes {
        0 => WHOLE_BYTES,
        limit => limit.min(MOST_WHOLE_BYTES),
    }
}

/// The largest packet that carries such a body.
pub fn packet_limit(max_body_bytes: usize) -> u32 {
    u32::try_from(whole_bytes(max_body_bytes) + PACKET_OVERHEAD).unwrap_or(u32::MAX)
}
