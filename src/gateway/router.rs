//! Which name and which path is whose. Pure.

use std::sync::Arc;

use http::{Method, header};

use super::hosts::{Hosts, Led};
use super::settings::{Host, Mode, Names, OWN_PATHS, Route, SHOWN_PATHS};
use crate::base::error::{Error, Result};
use crate::base::topic::Topic;
use crate::http::{Failure, Request};
use crate::wire::JSON;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/healthz`: the process lives.
    Health,
    /// `/readyz`: it is connected, subscribed, and knows who is there.
    Ready,
    /// `/agents`: who is there.
    Agents,
    /// `/agents/{id}`: one of them, for who asks for JSON; else as [`Endpoint::Slash`].
    Agent,
    /// A path that is only there with a slash at its end, where it leads to the route with this index.
    Slash(usize),
    /// The route with this index.
    Route(usize),
    /// `/`: the live page, where no route has that path; likewise the next two.
    Page,
    /// `/events`: what the page shows.
    Events,
    /// `/metrics`: what is counted.
    Metrics,
}

/// A request that leads somewhere, with what its pattern found in it.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub endpoint: Endpoint,
    parameters: Parameters<'a>,
}

#[derive(Debug)]
enum Parameters<'a> {
    Path(matchit::Params<'a, 'a>),
    Name(Option<String>),
}

impl Found<'_> {
    /// The part of the path that a pattern's `{name}` stands for, or that of the name that `*` does.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        match &self.parameters {
            Parameters::Path(parameters) => parameters.get(name),
            Parameters::Name(label) => label.as_deref().filter(|_| name == Host::LABEL),
        }
    }

    /// Whether what is asked for has a name of its own.
    pub fn is_named(&self) -> bool {
        matches!(self.parameters, Parameters::Name(_))
    }
}

/// The names and paths of a gateway.
pub(super) struct Router {
    hosts: Hosts,
    paths: matchit::Router<Endpoint>,
    routes: Vec<Route>,
    labels: Vec<Arc<str>>,
    own_labels: [Arc<str>; 7],
}

impl Router {
    /// Takes the names and the routes, beside the gateway's own paths.
    ///
    /// Errors: two of them claim the same paths ([`Error::Usage`]).
    pub fn new(routes: &[Route], names: &Names) -> Result<Router> {
        let mut router = Router {
            hosts: Hosts::new(names.is_strict),
            paths: matchit::Router::new(),
            routes: routes.to_vec(),
            own_labels: std::array::from_fn(|number| {
                let own = OWN_PATHS.iter().chain(&SHOWN_PATHS).nth(number);
                Arc::from(*own.unwrap_or(&""))
            }),
            labels: routes
                .iter()
                .map(|route| route.path.as_str().into())
                .collect(),
        };
        for Host { name, route } in &names.hosts {
            let number = route.is_some().then_some(router.routes.len());
            router.hosts.insert(name, number);
            router.routes.extend(route.clone());
            router
                .labels
                .extend(number.map(|_| Arc::from(name.as_str())));
        }
        let own = [
            Endpoint::Health,
            Endpoint::Ready,
            Endpoint::Agents,
            Endpoint::Agent,
        ];
        for (path, endpoint) in OWN_PATHS.into_iter().zip(own) {
            router.insert(path, endpoint)?;
        }
        for (number, route) in routes.iter().enumerate() {
            for pattern in route.patterns() {
                router.insert(pattern, Endpoint::Route(number))?;
            }
        }
        // The rest only where nothing else has that path.
        let shown = [Endpoint::Page, Endpoint::Events, Endpoint::Metrics];
        for (path, endpoint) in SHOWN_PATHS.into_iter().zip(shown) {
            if router.paths.at(path).is_err() {
                router.insert(path, endpoint)?;
            }
        }
        for (number, route) in routes.iter().enumerate() {
            if let Some(path) = route.without_slash() {
                let _ = router.insert(path, Endpoint::Slash(number));
            }
        }
        Ok(router)
    }

    fn insert(&mut self, path: &str, endpoint: Endpoint) -> Result<()> {
        self.paths
            .insert(path, endpoint)
            .map_err(|error| Error::Usage(format!("the route {path:?} is in conflict: {error}")))
    }

    /// What a request asks for.
    ///
    /// Errors: 421 where nobody has its name, 404 where nothing has its path, 405 where its method is not
    /// served there.
    pub fn find<'a>(&'a self, request: &'a Request) -> std::result::Result<Found<'a>, Failure> {
        let found = match self.hosts.find(request) {
            Led::Paths => self.find_path(request)?,
            Led::Route(number, label) => Found {
                endpoint: Endpoint::Route(number),
                parameters: Parameters::Name(label),
            },
            Led::Nowhere(name) => return Err(Failure::UnknownHost(name)),
        };
        let own = [Method::GET, Method::HEAD];
        let methods: &[Method] = match found.endpoint {
            Endpoint::Route(number) | Endpoint::Slash(number) => &self.routes[number].methods,
            _ => &own,
        };
        if !methods.is_empty() && !methods.contains(request.method()) {
            return Err(Failure::MethodNotAllowed {
                method: request.method().clone(),
                allowed: methods.to_vec(),
            });
        }
        Ok(found)
    }

    fn find_path<'a>(&'a self, request: &'a Request) -> std::result::Result<Found<'a>, Failure> {
        let path = request.uri().path();
        let Ok(matched) = self.paths.at(path) else {
            return Err(Failure::NoRoute(path.to_owned()));
        };
        let endpoint = match *matched.value {
            Endpoint::Agent if !wants_json(request) => {
                self.below(path).map_or(Endpoint::Agent, Endpoint::Slash)
            }
            other => other,
        };
        Ok(Found {
            endpoint,
            parameters: Parameters::Path(matched.params),
        })
    }

    // The route that this path with a slash at its end leads to.
    fn below(&self, path: &str) -> Option<usize> {
        match self.paths.at(&format!("{path}/")).ok()?.value {
            Endpoint::Route(number) => Some(*number),
            _ => None,
        }
    }

    /// What a request that leads there is counted as: the pattern of its route, or its name.
    pub fn label(&self, endpoint: Endpoint) -> Arc<str> {
        let own = |number: usize| &self.own_labels[number];
        Arc::clone(match endpoint {
            Endpoint::Route(number) | Endpoint::Slash(number) => &self.labels[number],
            Endpoint::Health => own(0),
            Endpoint::Ready => own(1),
            Endpoint::Agents => own(2),
            Endpoint::Agent => own(3),
            Endpoint::Page => own(4),
            Endpoint::Events => own(5),
            Endpoint::Metrics => own(6),
        })
    }

    /// Whether `GET /ping` is a route in JSON mode.
    pub fn has_ping(&self) -> bool {
        let found = self.paths.at("/ping").map(|matched| *matched.value);
        match found {
            Ok(Endpoint::Route(number)) => matches!(self.routes[number].mode, Mode::Json { .. }),
            _ => false,
        }
    }

    /// The topic of a request to a route.
    ///
    /// Errors: 404 where a part of the path that the topic needs is not an id.
    pub fn topic(&self, number: usize, found: &Found<'_>) -> std::result::Result<Topic, Failure> {
        let template = &self.routes[number].request_topic;
        template
            .expand(|name| found.parameter(name))
            .ok_or_else(|| Failure::NoTopic(template.to_string()))
    }

    /// The part of the path that an HTTP route does not pass on.
    pub fn prefix<'a>(&self, number: usize, request: &'a Request) -> &'a str {
        let path = request.uri().path();
        path.strip_suffix(self.rest(number, path))
            .unwrap_or_default()
    }

    /// The part of the path that an HTTP route passes on, query included; byte for byte.
    pub fn target(&self, number: usize, request: &Request) -> String {
        let rest = self.rest(number, request.uri().path());
        match request.uri().query() {
            None => rest.to_owned(),
            Some(query) => format!("{rest}?{query}"),
        }
    }

    fn rest<'a>(&self, number: usize, path: &'a str) -> &'a str {
        // What stands before `{*…}` has as many slashes in the path as in the pattern.
        let pattern = &self.routes[number].path;
        match pattern.split_once("{*") {
            None => path,
            Some((before, _)) => {
                let slashes = before.matches('/').count();
                let starts = path.match_indices('/').nth(slashes - 1);
                starts.map_or("/", |(at, _)| &path[at..])
            }
        }
    }

    /// The routes, in the order of their indices.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The routes in JSON mode, and the topics of old peers.
    pub fn json_routes(&self) -> impl Iterator<Item = (&Route, &Topic)> {
        self.routes.iter().filter_map(|route| match &route.mode {
            Mode::Json { response_topic } => Some((route, response_topic)),
            Mode::Http => None,
        })
    }
}

/// Where a path is that has a slash at its end, for the field Location: relative, so that it holds
/// behind a proxy that has changed the path, and beginning with `./`, so that no part of it can be
/// taken for a scheme.
pub(super) fn with_slash(request: &Request) -> String {
    let (path, query) = (request.uri().path(), request.uri().query());
    let last = path.rsplit('/').next().unwrap_or_default();
    match query {
        None => format!("./{last}/"),
        Some(query) => format!("./{last}/?{query}"),
    }
}

// Whether JSON is asked for by name; `*/*` is what everybody sends.
fn wants_json(request: &Request) -> bool {
    let mut fields = request.headers().get_all(header::ACCEPT).iter();
    fields.any(|field| {
        let ranges = field.to_str().unwrap_or_default().split(',');
        let mut kinds = ranges.map(|range| range.split(';').next().unwrap_or_default().trim());
        kinds.any(|kind| kind.eq_ignore_ascii_case(JSON))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, target: &str) -> Request {
        let mut request = Request::default();
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().unwrap();
        request
    }

    fn router() -> Router {
        Router::new(&Route::built_in(), &Names::built_in()).unwrap()
    }

    #[test]
    fn paths_lead_to_topics_and_targets() {
        let router = router();
        for (path, topic, target) in [
            (
                "/agents/demo/ping?ask=ping",
                "recado/agents/demo/request",
                "/ping?ask=ping",
            ),
            ("/agents/demo/", "recado/agents/demo/request", "/"),
            ("/agents/demo/?q", "recado/agents/demo/request", "/?q"),
            (
                "/agents/a_-9/a%2Fb//c/../d;e?f=%20&&",
                "recado/agents/a_-9/request",
                "/a%2Fb//c/../d;e?f=%20&&",
            ),
            ("/services/web/x", "recado/services/web/request", "/x"),
        ] {
            let request = request(Method::PUT, path);
            let found = router.find(&request).unwrap();
            let Endpoint::Route(number) = found.endpoint else {
                panic!("{path}")
            };
            assert_eq!(
                router.topic(number, &found).unwrap().as_str(),
                topic,
                "{path}"
            );
            assert_eq!(router.target(number, &request), target, "{path}");
            let whole = format!("{}{target}", router.prefix(number, &request));
            assert_eq!(whole, path);
        }
    }

    #[test]
    fn own_paths_and_errors() {
        let router = router();
        let find = |method, path| {
            let request = request(method, path);
            router
                .find(&request)
                .map(|found| found.endpoint)
                .map_err(|failure| failure.meaning().0.as_u16())
        };
        assert_eq!(find(Method::GET, "/healthz"), Ok(Endpoint::Health));
        assert_eq!(find(Method::GET, "/agents"), Ok(Endpoint::Agents));
        assert_eq!(find(Method::GET, "/agents/demo"), Ok(Endpoint::Slash(1)));
        assert_eq!(find(Method::PUT, "/services/web"), Ok(Endpoint::Slash(2)));
        assert_eq!(find(Method::POST, "/agents"), Err(405));
        assert_eq!(find(Method::POST, "/ping"), Err(405));
        assert_eq!(find(Method::GET, "/nowhere"), Err(404));
        assert_eq!(find(Method::GET, "/agents//x"), Err(404));
        let request = request(Method::GET, "/agents/a%20b/x");
        let found = router.find(&request).unwrap();
        assert_eq!(router.topic(1, &found).unwrap_err().meaning().0, 404);
    }

    #[test]
    fn an_agent_is_json_for_who_asks_for_it() {
        let router = router();
        let endpoint = |accept: &str, target| {
            let mut request = request(Method::GET, target);
            let accept = accept.parse().unwrap();
            request.headers_mut().insert(header::ACCEPT, accept);
            (
                router.find(&request).unwrap().endpoint,
                with_slash(&request),
            )
        };
        let slash = |location: &str| (Endpoint::Slash(1), location.to_owned());
        assert_eq!(endpoint("*/*", "/agents/py"), slash("./py/"));
        assert_eq!(endpoint("text/html", "/agents/py?a=b"), slash("./py/?a=b"));
        for json in ["application/json", "text/html, Application/JSON;q=0.5"] {
            assert_eq!(endpoint(json, "/agents/py").0, Endpoint::Agent);
        }
        let alone = Router::new(&[Route::ping()], &Names::built_in()).unwrap();
        let request = request(Method::GET, "/agents/py");
        let found = alone.find(&request).unwrap().endpoint;
        assert_eq!(found, Endpoint::Agent, "nothing is below it");
    }

    #[test]
    fn conflicts_are_refused() {
        for path in ["/healthz", "/agents/{other}", "/ping"] {
            let mut routes = Route::built_in();
            routes.push(Route {
                path: path.into(),
                ..Route::ping()
            });
            assert!(Router::new(&routes, &Names::built_in()).is_err(), "{path}");
        }
    }
}
