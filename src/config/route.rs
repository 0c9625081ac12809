//! What a gateway's route is: path pattern, topic template, mode.

use std::fmt;
use std::time::Duration;

use http::Method;

use super::Admission;
use crate::message::Qos;
use crate::topic::{Id, InvalidTopic, Topic};

/// The gateway's own paths, which no route may claim.
pub const OWN_PATHS: [&str; 4] = ["/healthz", "/readyz", "/agents", "/agents/{id}"];

/// How requests of a route travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// As JSON that any program with MQTT 3.1.1 can read; such programs answer on this topic.
    /// The gateway's own inbox is the level `<gateway-id>` below it.
    Json {
        /// Where peers that know no Response Topic answer.
        response_topic: Topic,
    },
    /// As HTTP: method, target, headers and body, to an agent.
    Http,
}

/// One route of the gateway.
#[derive(Debug, Clone)]
pub struct Route {
    /// The pattern of the paths that it serves: `/agents/{id}/{*path}`. `{name}` stands for one
    /// segment, a final `{*name}` for the rest.
    pub path: String,
    /// The methods that it serves; empty: every one.
    pub methods: Vec<Method>,
    /// Where requests are published.
    pub request_topic: TopicTemplate,
    /// How they travel.
    pub mode: Mode,
    /// How long a client waits for the reply at the most.
    pub timeout: Duration,
    /// With which quality of service requests are published.
    pub qos: Qos,
    /// Who may call it.
    pub admission: Admission,
}

impl Route {
    /// The patterns of every path that it answers: with `{*path}` what stands before it too, which
    /// leads to the root of what is behind it.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        let root = self.path.split_once("{*").map(|(root, _)| root);
        [self.path.as_str()]
            .into_iter()
            .chain(root.filter(|root| root.ends_with('/')))
    }

    /// The path without a slash at its end for which a route of HTTP mode has only the one with it.
    pub fn without_slash(&self) -> Option<&str> {
        let root = self.patterns().nth(1)?.trim_end_matches('/');
        (self.mode == Mode::Http && !root.is_empty()).then_some(root)
    }

    /// The routes out of the box.
    pub fn built_in() -> Vec<Route> {
        vec![Route::ping(), Route::agents(), Route::services()]
    }

    /// `GET /ping`: a question in JSON to whoever answers it.
    pub fn ping() -> Route {
        Route {
            path: "/ping".into(),
            methods: vec![Method::GET, Method::HEAD],
            request_topic: constant("api/ping/request"),
            mode: Mode::Json {
                response_topic: constant_topic("api/ping/response"),
            },
            timeout: super::DEFAULT_TIMEOUT,
            qos: Qos::AtMostOnce,
            admission: Admission::AnyToken,
        }
    }

    /// `ANY /agents/{id}/…`: any HTTP request to one agent.
    pub fn agents() -> Route {
        Route::http("/agents/{id}/{*path}", "recado/agents/{id}/request")
    }

    /// `ANY /services/{name}/…`: any HTTP request to one of the agents that serve it.
    pub fn services() -> Route {
        Route::http("/services/{name}/{*path}", "recado/services/{name}/request")
    }

    fn http(path: &str, request_topic: &str) -> Route {
        Route {
            path: path.into(),
            methods: Vec::new(),
            request_topic: constant(request_topic),
            mode: Mode::Http,
            ..Route::ping()
        }
    }
}

#[allow(clippy::expect_used)] // constants, covered by tests
fn constant(text: &str) -> TopicTemplate {
    TopicTemplate::new(text).expect("a constant topic template")
}

#[allow(clippy::expect_used)] // constants, covered by tests
pub(super) fn constant_topic(name: &str) -> Topic {
    Topic::new(name).expect("a constant topic")
}

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
        for bad in ["", "a/b", "+", "#", "a%20b", "a.b"] {
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

    #[test]
    fn the_built_in_routes_are_whole() {
        assert_eq!(Route::built_in().len(), 3);
    }
}
