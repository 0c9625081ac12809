//! The messages of a stream: a body that one message can't hold. Pure.
//!
//! A stream goes one way; what goes back are credits. Its messages carry the correlation of the
//! request, and the topic tells the direction.

use bytes::Bytes;

use super::message::{BadProperty, Correlation, Message, Properties};
use crate::base::topic::{Id, InvalidTopic, Topic};

/// User property of the first message of either side: where messages of streams for it go.
pub const STREAM: &str = "stream";
/// User property: how far beyond what is confirmed may be sent, in bytes.
pub const WINDOW: &str = "window";
/// User property of a first message whose body follows as a stream: how long it will be, in bytes, or
/// `unknown`.
pub const LENGTH: &str = "length";
const UNKNOWN: &str = "unknown";
/// User property: what a message of a stream is.
const KIND: &str = "s";
const PROBE: &str = "probe";
/// User property of data and ends: where in the body they stand, in bytes.
const OFFSET: &str = "o";
/// User property of credits: everything before this is there.
const GOT: &str = "got";
/// User property of aborts: why.
const WHY: &str = "why";

/// Where messages for the streams of a gateway go.
///
/// Errors: it is too long for a topic.
pub fn gateway_topic(id: &Id) -> Result<Topic, InvalidTopic> {
    Topic::new(format!("recado/gateways/{id}/streams"))
}

/// The same of an agent; `instance` tells those with one id apart.
///
/// Errors: it is too long for a topic.
pub fn agent_topic(id: &Id, instance: &str) -> Result<Topic, InvalidTopic> {
    Topic::new(format!("recado/agents/{id}/streams/{instance}"))
}

/// The id and the instance of the agent whose streams are there.
pub fn agent_at(topic: &str) -> Option<(&str, &str)> {
    let (id, instance) = topic
        .strip_prefix("recado/agents/")?
        .split_once("/streams/")?;
    let are_ids = Id::new(id).is_ok() && Id::new(instance).is_ok();
    are_ids.then_some((id, instance))
}

/// Whether a topic is one for streams, of a gateway or of an agent.
pub fn is_for_streams(topic: &str) -> bool {
    let gateway = topic.strip_prefix("recado/gateways/");
    let gateway = gateway.and_then(|rest| rest.strip_suffix("/streams"));
    gateway.is_some_and(|id| Id::new(id).is_ok()) || agent_at(topic).is_some()
}

/// A message to oneself, to see whether the broker lets it through.
pub fn probe(topic: &Topic) -> Message {
    Message {
        topic: topic.to_string(),
        properties: Properties {
            user: vec![(KIND.to_owned(), PROBE.to_owned())],
            ..Properties::default()
        },
        ..Message::default()
    }
}

/// Whether it is such a message.
pub fn is_probe(message: &Message) -> bool {
    message.properties.user(KIND) == Some(PROBE)
}

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A part of the body.
    Data {
        /// Where its first byte stands.
        offset: u64,
        /// The part.
        bytes: Bytes,
    },
    /// The receiver's word.
    Credit {
        /// It has everything before this.
        got: u64,
        /// So much more may be sent.
        window: u64,
    },
    /// The body is over.
    End {
        /// How long it was.
        length: u64,
    },
    /// The receiver has all of it, and the end; a credit would not tell the latter.
    Ended {
        /// How long it was.
        length: u64,
    },
    /// The body is given up, by either side. Nothing answers this.
    Abort {
        /// Why.
        why: String,
    },
}

/// What a first message says of streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Where messages of streams for its sender go.
    pub topic: Topic,
    /// How much of a body it takes for now, in bytes.
    pub window: u64,
}

impl Offer {
    /// Adds it to a first message.
    pub fn write(&self, properties: &mut Properties) {
        let user = &mut properties.user;
        user.push((STREAM.to_owned(), self.topic.to_string()));
        user.push((WINDOW.to_owned(), self.window.to_string()));
    }

    /// Reads it from a first message, if that says anything of streams.
    ///
    /// Errors: the property that is missing, there twice, or malformed.
    pub fn read(properties: &Properties) -> Result<Option<Offer>, BadProperty> {
        let Some(topic) = properties.only(STREAM)? else {
            return Ok(None);
        };
        let topic = Topic::new(topic).map_err(|_| BadProperty(STREAM))?;
        let window = number(properties, WINDOW)?;
        Ok(Some(Offer { topic, window }))
    }
}

/// Says that the body of a first message follows as a stream, and how long it is, if that is known.
pub fn write_length(length: Option<u64>, properties: &mut Properties) {
    let value = length.map_or_else(|| UNKNOWN.to_owned(), |length| length.to_string());
    properties.user.push((LENGTH.to_owned(), value));
}

/// Whether the body of a first message follows as a stream, and how long it is, if that is known.
///
/// Errors: it says so twice, or in a way that can't be read.
pub fn read_length(properties: &Properties) -> Result<Option<Option<u64>>, BadProperty> {
    match properties.only(LENGTH)? {
        None => Ok(None),
        Some(UNKNOWN) => Ok(Some(None)),
        Some(_) => number(properties, LENGTH).map(|length| Some(Some(length))),
    }
}

// Not `parse` alone, which takes a plus sign.
fn number(properties: &Properties, name: &'static str) -> Result<u64, BadProperty> {
    let text = properties.only(name)?.ok_or(BadProperty(name))?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or(BadProperty(name))
}

impl Piece {
    /// The message that says so.
    pub fn write(&self, topic: &str, correlation: Correlation) -> Message {
        let number = |name: &str, value: u64| (name.to_owned(), value.to_string());
        let (kind, further, payload) = match self {
            Piece::Data { offset, bytes } => ("data", vec![number(OFFSET, *offset)], bytes.clone()),
            Piece::Credit { got, window } => {
                let further = vec![number(GOT, *got), number(WINDOW, *window)];
                ("credit", further, Bytes::new())
            }
            Piece::End { length } => ("end", vec![number(OFFSET, *length)], Bytes::new()),
            Piece::Ended { length } => ("ended", vec![number(OFFSET, *length)], Bytes::new()),
            Piece::Abort { why } => ("abort", vec![(WHY.to_owned(), why.clone())], Bytes::new()),
        };
        let mut user = vec![(KIND.to_owned(), kind.to_owned())];
        user.extend(further);
        Message {
            topic: topic.to_owned(),
            payload,
            properties: Properties {
                correlation_data: Some(Bytes::copy_from_slice(&correlation.0)),
                user,
                ..Properties::default()
            },
            ..Message::default()
        }
    }

    /// Reads a message of a stream, and which stream's it is.
    ///
    /// Errors: the property that is missing, there twice, or malformed.
    pub fn read(message: &Message) -> Result<(Correlation, Piece), BadProperty> {
        let properties = &message.properties;
        let correlation = properties.correlation_data.as_deref();
        let correlation = correlation
            .and_then(Correlation::from_bytes)
            .ok_or(BadProperty("correlation data"))?;
        let number = |name| number(properties, name);
        let piece = match properties.only(KIND)? {
            Some("data") => Piece::Data {
                offset: number(OFFSET)?,
                bytes: message.payload.clone(),
            },
            Some("credit") => Piece::Credit {
                got: number(GOT)?,
                window: number(WINDOW)?,
            },
            Some("end") => Piece::End {
                length: number(OFFSET)?,
            },
            Some("ended") => Piece::Ended {
                length: number(OFFSET)?,
            },
            Some("abort") => Piece::Abort {
                why: properties.only(WHY)?.unwrap_or_default().to_owned(),
            },
            _ => return Err(BadProperty(KIND)),
        };
        Ok((correlation, piece))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece() -> impl Strategy<Value = Piece> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..50);
        prop_oneof![
            (any::<u64>(), bytes).prop_map(|(offset, bytes)| Piece::Data {
                offset,
                bytes: bytes.into(),
            }),
            (any::<u64>(), any::<u64>()).prop_map(|(got, window)| Piece::Credit { got, window }),
            any::<u64>().prop_map(|length| Piece::End { length }),
            any::<u64>().prop_map(|length| Piece::Ended { length }),
            "[a-z -]{0,30}".prop_map(|why| Piece::Abort { why }),
        ]
    }

    proptest! {
        #[test]
        fn every_piece_survives(piece in piece(), name in any::<[u8; 16]>()) {
            let message = piece.write("t", Correlation(name));
            prop_assert_eq!(Piece::read(&message), Ok((Correlation(name), piece)));
        }

        #[test]
        fn no_message_panics(user in proptest::collection::vec(("s|o|got|window|why", "data|credit|end|ended|abort|-?[0-9]{0,21}"), 0..6)) {
            let mut message = Piece::End { length: 1 }.write("t", Correlation([0; 16]));
            message.properties.user = user;
            let _ = Piece::read(&message);
        }
    }

    #[test]
    fn topics_name_their_owners() {
        let agent = agent_topic(&Id::new("shed").unwrap(), "x1").unwrap();
        assert_eq!(agent_at(agent.as_str()), Some(("shed", "x1")));
        let gateway = gateway_topic(&Id::new("g").unwrap()).unwrap();
        assert_eq!(agent_at(gateway.as_str()), None);
        assert!(is_for_streams(agent.as_str()) && is_for_streams(gateway.as_str()));
        assert!(!is_for_streams("recado/gateways/a/b/streams"));
        assert_eq!(agent_at("recado/agents/shed/request"), None);
        assert!(is_probe(&probe(&agent)) && !is_probe(&Message::default()));
    }

    #[test]
    fn first_messages_say_where_bodies_go() {
        let offer = Offer {
            topic: Topic::new("a/b").unwrap(),
            window: 7,
        };
        let mut properties = Properties::default();
        assert_eq!(Offer::read(&properties), Ok(None));
        assert_eq!(read_length(&properties), Ok(None));
        offer.write(&mut properties);
        assert_eq!(Offer::read(&properties), Ok(Some(offer)));
        for length in [None, Some(0), Some(u64::MAX)] {
            let mut properties = Properties::default();
            write_length(length, &mut properties);
            assert_eq!(read_length(&properties), Ok(Some(length)));
            write_length(length, &mut properties);
            assert_eq!(read_length(&properties), Err(BadProperty(LENGTH)));
        }
        let bad = |name: &str, value: &str| {
            let mut bad = properties.clone();
            bad.user.retain(|(key, _)| key != name);
            bad.user.push((name.into(), value.into()));
            Offer::read(&bad).and_then(|_| read_length(&bad)).is_err()
        };
        assert!(bad(STREAM, "a/+") && bad(WINDOW, "") && bad(LENGTH, "-1") && bad(LENGTH, ""));
    }

    #[test]
    fn what_is_malformed_is_named() {
        let good = Piece::Credit { got: 1, window: 2 }.write("t", Correlation([0; 16]));
        for (name, value) in [("s", "x"), ("got", "+1"), ("got", ""), ("window", "1e3")] {
            let mut bad = good.clone();
            bad.properties.user.retain(|(key, _)| key != name);
            assert_eq!(Piece::read(&bad), Err(BadProperty(name)), "missing");
            bad.properties.user.push((name.into(), value.into()));
            assert_eq!(Piece::read(&bad), Err(BadProperty(name)), "{value}");
            let mut twice = good.clone();
            twice
                .properties
                .user
                .extend_from_slice(&good.properties.user);
            assert!(Piece::read(&twice).is_err());
        }
        let mut foreign = good;
        foreign.properties.correlation_data = None;
        assert!(Piece::read(&foreign).is_err());
    }
}
