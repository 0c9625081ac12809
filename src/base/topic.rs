//! Topic names and topic filters, checked once at the edge (MQTT 5, section 4.7).

use std::fmt;

use serde::Deserialize;

/// The longest topic name or filter, in bytes: MQTT strings carry a two-byte length.
pub const MAX_TOPIC_BYTES: usize = 65_535;

/// Why a string is not a topic name, a topic filter or an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidTopic(String);

impl InvalidTopic {
    pub(crate) fn new(reason: String) -> InvalidTopic {
        InvalidTopic(reason)
    }
}

impl fmt::Display for InvalidTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidTopic {}

/// The name of one topic: what a message is published to. It holds no wildcard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Topic(String);

impl Topic {
    /// Checks a topic name.
    ///
    /// Errors: it is empty, too long, or holds a wildcard or a control character.
    pub fn new(name: impl Into<String>) -> Result<Topic, InvalidTopic> {
        let name = name.into();
        check_common("topic", &name)?;
        match name.find(['+', '#']) {
            Some(at) => Err(InvalidTopic(format!(
                "topic {name:?} holds the wildcard {:?}, which only a filter may",
                &name[at..=at]
            ))),
            None => Ok(Topic(name)),
        }
    }

    /// The name as it goes on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Topic> for String {
    fn from(topic: Topic) -> String {
        topic.0
    }
}

/// A topic of this program's own.
#[allow(clippy::expect_used)] // constants, covered by tests
pub(crate) fn constant_topic(name: &str) -> Topic {
    Topic::new(name).expect("a constant topic")
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pattern of topic names: what a client subscribes to. `+` stands for one level, a final `#`
/// for any number of levels; `$share/<group>/` in front makes the subscription a shared one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicFilter(String);

impl TopicFilter {
    /// Checks a topic filter.
    ///
    /// Errors: it is empty, too long, holds a control character, a wildcard that does not fill
    /// its level, a `#` before the last level, or `$share` without a group or a filter.
    pub fn new(filter: impl Into<String>) -> Result<TopicFilter, InvalidTopic> {
        let filter = filter.into();
        check_common("topic filter", &filter)?;
        let levels = match filter.strip_prefix("$share/") {
            None => filter.as_str(),
            Some(rest) => {
                let (group, levels) = rest.split_once('/').unwrap_or((rest, ""));
                if group.is_empty() || group.contains(['+', '#']) || levels.is_empty() {
                    return Err(InvalidTopic(format!(
                        "topic filter {filter:?} is not of the form $share/<group>/<filter>"
                    )));
                }
                levels
            }
        };
        let mut rest = levels.split('/').peekable();
        while let Some(level) = rest.next() {
            if level.len() > 1 && level.contains(['+', '#']) {
                return Err(InvalidTopic(format!(
                    "topic filter {filter:?}: a wildcard must fill its level, found {level:?}"
                )));
            }
            if level == "#" && rest.peek().is_some() {
                return Err(InvalidTopic(format!(
                    "topic filter {filter:?}: # may only be the last level"
                )));
            }
        }
        Ok(TopicFilter(filter))
    }

    /// The filter as it goes on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same filter as a subscription that `group` shares: each message goes to one member.
    pub fn shared(&self, group: &Id) -> TopicFilter {
        TopicFilter(format!("$share/{group}/{}", self.0))
    }

    /// Whether a message to `topic` is one that this filter asks for.
    ///
    /// Topics that begin with `$` match no filter that begins with a wildcard (section 4.7.2).
    pub fn matches(&self, topic: &str) -> bool {
        let levels = match self.0.strip_prefix("$share/") {
            Some(rest) => rest.split_once('/').map_or("", |(_, levels)| levels),
            None => self.0.as_str(),
        };
        if topic.starts_with('$') && levels.starts_with(['+', '#']) {
            return false;
        }
        let mut names = topic.split('/');
        for level in levels.split('/') {
            match (level, names.next()) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (level, Some(name)) if level == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&Topic> for TopicFilter {
    fn from(topic: &Topic) -> TopicFilter {
        TopicFilter(topic.0.clone())
    }
}

/// The name of a gateway, an agent or a group: one topic level of 1 to 64 letters, digits, `_` and `-`,
/// and dots between them, so that it can be a host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Id(String);

impl Id {
    /// Checks an id.
    ///
    /// Errors: it is empty, longer than 64 characters, holds another character, or a dot at an end or
    /// beside another one.
    pub fn new(id: impl Into<String>) -> Result<Id, InvalidTopic> {
        let id = id.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let is_part = |part: &str| !part.is_empty() && part.chars().all(allowed);
        if id.len() <= 64 && id.split('.').all(is_part) {
            Ok(Id(id))
        } else {
            Err(InvalidTopic(format!(
                "found {id:?}, allowed are 1 to 64 of the characters A-Z a-z 0-9 _ -, and . between them"
            )))
        }
    }

    /// An id for a process that was given none, or a part of one. It is its own, not secret.
    pub fn random() -> Id {
        let number = getrandom::u64().unwrap_or_else(|_| {
            // A system without random numbers: correlations will be refused, but two processes must
            // not have one id all the same.
            let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            (u64::from(std::process::id()) << 40) ^ since.as_nanos() as u64
        });
        Id(format!("{number:016x}"))
    }

    /// The id as it stands in topics.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Topic {
    type Error = InvalidTopic;

    fn try_from(name: String) -> Result<Topic, InvalidTopic> {
        Topic::new(name)
    }
}

impl TryFrom<String> for Id {
    type Error = InvalidTopic;

    fn try_from(id: String) -> Result<Id, InvalidTopic> {
        Id::new(id)
    }
}

fn check_common(what: &str, text: &str) -> Result<(), InvalidTopic> {
    if text.is_empty() {
        return Err(InvalidTopic(format!("{what} is empty")));
    }
    if text.len() > MAX_TOPIC_BYTES {
        return Err(InvalidTopic(format!(
            "{what} is {} bytes long, allowed are {MAX_TOPIC_BYTES}",
            text.len()
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidTopic(format!(
            "{what} {text:?} holds a control character"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    #[test]
    fn filters_match_as_the_specification_says() {
        for (pattern, topic, expected) in [
            ("my/topic", "my/topic", true),
            ("my/topic", "my/topic/", false),
            ("my/+", "my/topic", true),
            ("my/+", "my", false),
            ("my/+", "my/topic/x", false),
            ("my/#", "my", true),
            ("my/#", "my/topic/x", true),
            ("+/+", "/x", true),
            ("/+", "/x", true),
            ("+", "/x", false),
            ("#", "$SYS/uptime", false),
            ("+/uptime", "$SYS/uptime", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("$share/g/my/+", "my/topic", true),
        ] {
            assert_eq!(
                filter(pattern).matches(topic),
                expected,
                "{pattern} {topic}"
            );
        }
    }

    #[test]
    fn what_is_no_topic_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "is empty"),
            ("a/+/b", "wildcard"),
            ("a/#", "wildcard"),
            ("a\0b", "control character"),
        ] {
            let error = Topic::new(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        for (text, reason) in [
            ("", "is empty"),
            ("a/b+", "fill its level"),
            ("a/#/b", "last level"),
            ("$share/g", "$share/<group>/<filter>"),
            ("$share//a", "$share/<group>/<filter>"),
            ("$share/+/a", "$share/<group>/<filter>"),
        ] {
            let error = TopicFilter::new(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        assert!(Topic::new("x".repeat(MAX_TOPIC_BYTES)).is_ok());
        assert!(Topic::new("x".repeat(MAX_TOPIC_BYTES + 1)).is_err());
    }

    #[test]
    fn ids_are_one_topic_level() {
        assert!(Id::new("demo").is_ok());
        assert!(Id::new("shed.lan").is_ok());
        assert!(Id::new("a".repeat(64)).is_ok());
        for bad in ["", "a/b", "+", "ação", "a b", ".", "..", ".a", "a.", "a..b"] {
            assert!(Id::new(bad).is_err(), "{bad:?}");
        }
        assert!(Id::new("a".repeat(65)).is_err());
    }

    proptest! {
        #[test]
        fn a_topic_matches_itself_and_its_wildcards(topic in "[a-z]{0,3}(/[a-z]{0,3}){0,4}") {
            prop_assume!(!topic.is_empty());
            prop_assert!(Topic::new(topic.clone()).is_ok());
            prop_assert!(filter(&topic).matches(&topic));
            prop_assert!(filter("#").matches(&topic));
            let plus = vec!["+"; topic.split('/').count()].join("/");
            prop_assert!(filter(&plus).matches(&topic));
            let longer = format!("{plus}/+");
            prop_assert!(!filter(&longer).matches(&topic));
        }

        #[test]
        fn checking_never_panics(text in any::<String>(), topic in any::<String>()) {
            let _ = Topic::new(text.clone());
            let _ = Id::new(text.clone());
            if let Ok(filter) = TopicFilter::new(text) {
                let _ = filter.matches(&topic);
            }
        }
    }
}
