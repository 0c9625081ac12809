//! Topics with parts of a path in them.

use std::fmt;

use crate::base::topic::{Id, InvalidTopic, Topic};

/// A topic name with parts of the path in it: `recado/agents/{id}/request`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Parameter(String),
}

impl TopicTemplate {
    /// Reads a template.
    ///
    /// Errors: a brace without its other half, an empty name, or no topic even with every name
    /// filled in.
    pub fn new(text: &str) -> Result<TopicTemplate, InvalidTopic> {
        let broken = || InvalidTopic::new(format!("topic template {text:?} has an open brace"));
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(broken)?;
            if name.is_empty() || name.contains(['{', '*']) {
                return Err(broken());
            }
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Parameter(name.to_owned()));
            rest = after;
        }
        if rest.contains('}') {
            return Err(broken());
        }
        parts.push(Part::Text(rest.to_owned()));
        let template = TopicTemplate {
            text: text.to_owned(),
            parts,
        };
        Topic::new(template.fill(|_| Some("x")).unwrap_or_default())?;
        Ok(template)
    }

    /// The names in braces.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Parameter(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The topic for these parameters; `None` unless each has a value that is an id.
    pub fn expand<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> Option<Topic> {
        let id = |name: &str| value(name).filter(|value| Id::new(*value).is_ok());
        Topic::new(self.fill(id)?).ok()
    }

    fn fill<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
        let mut filled = String::with_capacity(self.text.len() + 16);
        for part in &self.parts {
            filled.push_str(match part {
                Part::Text(text) => text,
                Part::Parameter(name) => value(name)?,
            });
        }
        Some(filled)
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_with_ids_only() {
        let template = TopicTemplate::new("recado/agents/{id}/request").unwrap();
        assert_eq!(template.parameters().collect::<Vec<_>>(), ["id"]);
        let expand = |value: &'static str| {
            template
                .expand(|name| (name == "id").then_some(value))
                .map(|topic| topic.to_string())
        };
        assert_eq!(
            expand("demo").as_deref(),
            Some("recado/agents/demo/request")
        );
        for bad in ["", "a/b", "+", "#", "a%20b", "a..b"] {
            assert_eq!(expand(bad), None, "{bad:?}");
        }
        assert_eq!(template.expand(|_| None), None);
    }

    #[test]
    fn impossible_templates_are_refused() {
        for bad in ["", "a/{", "a/}", "a/{}", "a/{*b}", "a/+/{b}", "{a{b}}"] {
            assert!(TopicTemplate::new(bad).is_err(), "{bad:?}");
        }
        assert!(TopicTemplate::new("{a}/{b}").is_ok());
    }
}
