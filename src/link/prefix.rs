//! What stands at the beginning of this project's topics, so that one broker serves many who know nothing of
//! each other. Inside of the program it is always `recado`; it is put in its place, and taken off, where
//! messages leave and come in.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::base::topic::{Topic, TopicFilter};
use crate::wire::Message;

/// What it is unless something else is said.
const USUAL: &str = "recado";
/// How long it may be, in bytes: there are levels behind it.
const LONGEST: usize = 128;

/// What topics begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix {
    // With the slash behind it; none: the usual one.
    other: Option<Box<str>>,
}

impl Prefix {
    /// How many bytes a message may be longer outside than inside.
    pub(super) fn extra_bytes(&self) -> usize {
        let longer = |other: &str| other.len().saturating_sub(USUAL.len() + 1);
        // In its topic, and in that of its answer.
        2 * self.other.as_deref().map_or(0, longer)
    }

    /// A message as it is outside.
    pub(super) fn outside(&self, mut message: Message) -> Message {
        if let Some(other) = &self.other {
            replace(&mut message.topic, "recado/", other);
            if let Some(topic) = &mut message.properties.response_topic {
                replace(topic, "recado/", other);
            }
        }
        message
    }

    /// A message as it is inside.
    pub(super) fn inside(&self, mut message: Message) -> Message {
        if let Some(other) = &self.other {
            replace(&mut message.topic, other, "recado/");
            if let Some(topic) = &mut message.properties.response_topic {
                replace(topic, other, "recado/");
            }
        }
        message
    }

    /// A filter as it is outside.
    pub(super) fn filter(&self, filter: &TopicFilter) -> TopicFilter {
        let Some(other) = &self.other else {
            return filter.clone();
        };
        let mut text = filter.as_str().to_owned();
        replace(&mut text, "recado/", other);
        // It has been looked that this can be the beginning of a filter, and is not too long.
        TopicFilter::new(text).unwrap_or_else(|_| filter.clone())
    }
}

fn replace(topic: &mut String, from: &str, to: &str) {
    if topic.starts_with(from) {
        topic.replace_range(..from.len(), to);
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        if text == USUAL {
            return Ok(Prefix::default());
        }
        let levels = || text.split('/');
        let is_topic = Topic::new(text).is_ok() && !text.starts_with('$');
        if !is_topic || text.len() > LONGEST || levels().any(str::is_empty) {
            return Err(format!(
                "found {text:?}, allowed are levels of a topic such as \"acme/recado\", {LONGEST} bytes at the most, without wildcards, and without $, an empty level or a slash at its ends"
            ));
        }
        Ok(Prefix {
            other: Some(format!("{text}/").into()),
        })
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Prefix, String> {
        text.parse()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = self.other.as_deref();
        f.write_str(other.map_or(USUAL, |it| it.trim_end_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Properties;

    fn message(topic: &str, response_topic: &str) -> Message {
        Message {
            topic: topic.into(),
            properties: Properties {
                response_topic: Some(response_topic.into()),
                ..Properties::default()
            },
            ..Message::default()
        }
    }

    #[test]
    fn it_is_put_in_its_place_and_taken_off() {
        let inside = message("recado/agents/a/request", "recado/gateways/g/response");
        let other: Prefix = "acme/recado".parse().unwrap();
        let outside = other.outside(inside.clone());
        let there = message(
            "acme/recado/agents/a/request",
            "acme/recado/gateways/g/response",
        );
        assert_eq!(outside, there);
        assert_eq!(other.inside(outside), inside);
        let usual = Prefix::default();
        assert_eq!(usual.outside(inside.clone()), inside);
        let foreign = message("api/ping/request", "recadox/y");
        assert_eq!(other.outside(foreign.clone()), foreign);
        assert_eq!(other.inside(foreign.clone()), foreign);
        let filter = TopicFilter::new("recado/agents/+/presence").unwrap();
        assert_eq!(
            other.filter(&filter).as_str(),
            "acme/recado/agents/+/presence"
        );
        assert_eq!((usual.extra_bytes(), other.extra_bytes()), (0, 10));
    }

    #[test]
    fn it_is_levels_of_a_topic() {
        for good in ["recado", "acme", "a/b/c"] {
            assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
        }
        let long = "x".repeat(129);
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "a/+",
            "#",
            "$SYS",
            long.as_str(),
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }
}
