//! The part of all agents that a gateway takes for its own.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::base::topic::{Id, Topic, TopicFilter};
use crate::wire::presence;

/// A pattern of the topics of presences: `recado/agents/eu-+/presence`. `+` stands for any characters of the
/// id; where it is not the whole level, which is all that MQTT knows, the broker sends all and the others
/// are dropped here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Part {
    // What ids begin and end with; none: it is the id of one.
    before: String,
    after: Option<String>,
    // Everybody, unless something was said.
    is_some: bool,
}

impl Part {
    /// What to subscribe to.
    pub(super) fn filter(&self) -> Option<TopicFilter> {
        let filter = match (self.is_some, &self.after) {
            (true, None) => {
                let id = Id::new(self.before.as_str()).ok()?;
                TopicFilter::from(&Topic::new(presence::topic(&id)).ok()?)
            }
            _ => TopicFilter::new(presence::FILTER).ok()?,
        };
        Some(filter)
    }

    /// Whether an agent belongs to it.
    pub(super) fn has(&self, id: &str) -> bool {
        if !self.is_some {
            return true;
        }
        match &self.after {
            None => id == self.before,
            Some(after) => id
                .strip_prefix(self.before.as_str())
                .is_some_and(|rest| rest.ends_with(after.as_str())),
        }
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let wrong = || {
            format!(
                "found {text:?}, allowed is recado/agents/PATTERN/presence, whose pattern is an id with one + at the most"
            )
        };
        let pattern = text.strip_prefix("recado/agents/");
        let pattern = pattern.and_then(|rest| rest.strip_suffix("/presence"));
        let pattern = pattern.ok_or_else(wrong)?;
        // What it stands for makes an id of it.
        if Id::new(pattern.replacen('+', "x", 1)).is_err() {
            return Err(wrong());
        }
        let (before, after) = match pattern.split_once('+') {
            None => (pattern, None),
            Some((before, after)) => (before, Some(after.to_owned())),
        };
        Ok(Part {
            before: before.to_owned(),
            is_some: after.as_deref() != Some("") || !before.is_empty(),
            after,
        })
    }
}

impl TryFrom<String> for Part {
    type Error = String;

    fn try_from(text: String) -> Result<Part, String> {
        text.parse()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = match (self.is_some, &self.after) {
            (false, _) => ("", "+".to_owned()),
            (true, None) => (self.before.as_str(), String::new()),
            (true, Some(after)) => (self.before.as_str(), format!("+{after}")),
        };
        write!(f, "recado/agents/{before}{after}/presence")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_says_who_belongs_to_it() {
        let part = |pattern: &str| {
            let text = format!("recado/agents/{pattern}/presence");
            let part: Part = text.parse().unwrap();
            assert_eq!(part.to_string(), text);
            part
        };
        let has = |pattern: &str, id: &str| part(pattern).has(id);
        assert!(has("+", "a") && Part::default().has("a"));
        assert!(has("eu-+", "eu-1") && has("eu-+", "eu-") && !has("eu-+", "us-1"));
        assert!(has("+.lan", "shed.lan") && !has("+.lan", "shed"));
        assert!(has("a+b", "ab") && has("a+b", "acb") && !has("a+a", "a"));
        assert!(has("shed", "shed") && !has("shed", "shed2"));
        let filter = |pattern: &str| part(pattern).filter().unwrap().as_str().to_owned();
        assert_eq!(filter("shed"), "recado/agents/shed/presence");
        assert_eq!(filter("eu-+"), presence::FILTER);
        for bad in [
            "",
            "recado/agents/#",
            "recado/agents//presence",
            "recado/agents/+/+/presence",
        ] {
            assert!(bad.parse::<Part>().is_err(), "{bad}");
        }
        assert!("recado/agents/a+b+c/presence".parse::<Part>().is_err());
    }
}
