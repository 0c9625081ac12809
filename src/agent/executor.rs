//! Executing a request: checked, sent to the upstream, its answer checked.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use serde_json::value::RawValue;

use super::allow::Filter;
use super::job::Job;
use super::origin::{outward, set_host};
use super::outcome::{Asked, Executed};
use super::settings::{AgentSettings, HttpMode, ServiceMode};
use super::upload::{NotExchanged, Upload};
use crate::base::error::Result;
use crate::http::{Body, Failure, Request, RequestId, Response, X_REQUEST_ID};
use crate::upstream::{Upstream, UpstreamError, UpstreamLimits};
use crate::wire::http::read_request;
use crate::wire::json::{REQUEST_ID, add_received};
use crate::wire::stream::read_length;
use crate::wire::{Correlation, JSON};

/// Whatever is left of a caller's time, this much of it is the reply's.
const WAY_BACK: Duration = Duration::from_millis(50);

/// Calls the upstreams of an agent's services.
pub(super) struct Executor {
    settings: AgentSettings,
    filters: Vec<Filter>,
    // One for each service.
    upstreams: Vec<Upstream>,
}

impl Executor {
    pub fn new(settings: AgentSettings) -> Result<Executor> {
        let filters = settings.services.iter().map(Filter::new);
        let limits = limits(&settings);
        let upstreams = settings.services.iter();
        let upstreams = upstreams.map(|service| Upstream::new(&service.upstream, limits));
        Ok(Executor {
            filters: filters.collect::<Result<_>>()?,
            upstreams: upstreams.collect::<Result<_>>()?,
            settings,
        })
    }

    pub fn settings(&self) -> &AgentSettings {
        &self.settings
    }

    /// Looks whether the upstream of a service takes connections.
    ///
    /// Errors: it does not, within this time; why.
    pub fn reach(&self, service: usize, time: Duration) -> std::result::Result<(), String> {
        let url = self.settings.services[service].upstream.url.join("/");
        let uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        let reached = self.upstreams[service].reach(&uri, time);
        reached.map_err(|error| error.to_string())
    }

    /// Executes a request within the time that is left for it.
    ///
    /// Errors: what its caller is to be told, and what the log is to call the request.
    pub fn execute(
        &self,
        job: &Job,
        left: Duration,
    ) -> std::result::Result<Executed, (Asked, Failure)> {
        match &self.settings.services[job.service].mode {
            ServiceMode::Json { .. } => self.execute_json(job, left),
            ServiceMode::Http(mode) => self.execute_http(job, mode, left),
        }
    }

    fn execute_json(
        &self,
        job: &Job,
        left: Duration,
    ) -> std::result::Result<Executed, (Asked, Failure)> {
        let payload = &job.message.payload;
        let id = job.message.properties.user(REQUEST_ID);
        let id = id.and_then(|id| HeaderValue::try_from(id).ok());
        let id = RequestId::given(id.as_ref());
        // Not the payload: what it holds is for the level info.
        let asked = |words: String| Asked {
            words,
            id: name(&id).to_owned(),
        };
        let failed = |failure| (asked(job.message.topic.clone()), failure);
        self.check_size(payload).map_err(failed)?;
        if let Err(error) = serde_json::from_slice::<&RawValue>(payload) {
            let flaw = format!("the request is not JSON: {error}");
            return Err(failed(Failure::Unreadable(flaw)));
        }
        let mut request = Request::new(payload.clone().into());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.filters[job.service].target.clone().unwrap_or_default();
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        if let Some(id) = id.as_ref().and_then(RequestId::header) {
            request.headers_mut().insert(X_REQUEST_ID, id);
        }
        let answer = self.call(job, request, left).map_err(failed)?;
        let body = add_received(answer.body().as_bytes(), payload)
            .map_err(|bad| failed(not_json(&answer, &bad.to_string())))?;
        let mut response = Response::new(body.into());
        *response.status_mut() = answer.status();
        Ok(Executed {
            asked: asked(String::new()),
            question: Some(payload.clone()),
            response,
        })
    }

    fn execute_http(
        &self,
        job: &Job,
        mode: &HttpMode,
        left: Duration,
    ) -> std::result::Result<Executed, (Asked, Failure)> {
        let unread = |failure| {
            let (words, id) = (job.message.topic.clone(), "-".to_owned());
            (Asked { words, id }, failure)
        };
        self.check_size(&job.message.payload).map_err(unread)?;
        let read = read_request(&job.message).map_err(|bad| {
            let (status, flaw) = (bad.status, bad.to_string());
            unread(Failure::NotExecutable { status, flaw })
        })?;
        let mut request = read.map(Body::from);
        let id = RequestId::given(request.headers().get(X_REQUEST_ID));
        let asked = Asked {
            words: format!("{} {}", request.method(), request.uri()),
            id: name(&id).to_owned(),
        };
        let failed = |failure| (asked.clone(), failure);
        self.filters[job.service]
            .check(&request, &mode.allow)
            .map_err(failed)?;
        set_host(request.headers_mut(), &mode.host_header);
        let host = request.headers().get(header::HOST).cloned();
        let (service, path_prefix) = (&self.settings.services[job.service], &mode.path_prefix);
        let target = match request.uri().path() {
            "*" => service.upstream.url.join(&format!("{path_prefix}/")),
            _ => service
                .upstream
                .url
                .join(&format!("{path_prefix}{}", request.uri())),
        };
        *request.uri_mut() = target.parse().map_err(|error| {
            failed(Failure::Unreadable(format!(
                "{target:?} is no URL: {error}"
            )))
        })?;
        let follows = read_length(&job.message.properties).ok().flatten();
        let response = match follows {
            None => self.call(job, request, left),
            Some(length) => self.exchange(job, request, length, left),
        };
        let mut response = response.map_err(failed)?;
        if mode.rewrite {
            outward(&mut response, &service.upstream.url, mode, host.as_ref());
        }
        Ok(Executed {
            asked,
            question: None,
            response,
        })
    }

    fn check_size(&self, payload: &Bytes) -> std::result::Result<(), Failure> {
        let limit = self.settings.whole_bytes();
        if payload.len() <= limit {
            return Ok(());
        }
        Err(Failure::RequestOver(limit))
    }

    // A little less than the caller has left, so that the error of a slow upstream arrives before
    // the caller gives up.
    fn call(
        &self,
        job: &Job,
        request: Request,
        left: Duration,
    ) -> std::result::Result<Response, Failure> {
        let time = left - (left / 10).min(WAY_BACK);
        let upstream = &self.upstreams[job.service];
        let streams = job.offer.is_some();
        // Who takes streams says so when it has stopped waiting.
        let correlation = job.message.properties.correlation_data.as_deref();
        let known = correlation
            .and_then(Correlation::from_bytes)
            .filter(|_| streams);
        // Made in any case: with it, what ended the call before is forgotten.
        let cutter = upstream.cutter();
        let _endable = known.map(|known| job.streams.ends(known, cutter));
        let response = upstream.call(request, time, streams);
        response.map_err(|error| self.failure(job, error, time))
    }

    // The same for a request whose body is no single message.
    fn exchange(
        &self,
        job: &Job,
        request: Request,
        length: Option<u64>,
        left: Duration,
    ) -> std::result::Result<Response, Failure> {
        let limit = Some(self.settings.max_body_bytes).filter(|limit| *limit > 0);
        let upload = Upload::open(job, length, limit)?;
        let exchanged = upload.exchange(&self.upstreams[job.service], request, left);
        exchanged.map_err(|why| match why {
            NotExchanged::Upstream(error) => self.failure(job, error, left),
            NotExchanged::Agent(failure) => failure,
        })
    }

    fn failure(&self, job: &Job, error: UpstreamError, time: Duration) -> Failure {
        let mut words = error.to_string();
        match error {
            UpstreamError::Unreachable(_) => Failure::Unreachable(words),
            UpstreamError::TimedOut | UpstreamError::Unfinished(_) => {
                words += &format!(" ({} ms)", time.as_millis());
                if job.is_shortened {
                    let limit = self.settings.max_timeout.as_millis();
                    words += &format!(
                        "; max_timeout_ms = {limit} of the agent is less than what the caller allows"
                    );
                }
                Failure::UpstreamTooSlow(words)
            }
            UpstreamError::TooLarge(_) | UpstreamError::Endless(_) | UpstreamError::Broken(_) => {
                Failure::BadAnswer(words)
            }
        }
    }
}

fn limits(settings: &AgentSettings) -> UpstreamLimits {
    let max_body_bytes = settings.max_body_bytes as u64;
    UpstreamLimits {
        whole_bytes: settings.whole_bytes(),
        inline_bytes: settings.streams.inline_bytes.min(settings.whole_bytes()),
        max_body_bytes: (max_body_bytes > 0).then_some(max_body_bytes),
    }
}

fn name(id: &Option<RequestId>) -> &str {
    id.as_ref().map_or("-", RequestId::as_str)
}

fn not_json(answer: &Response, why: &str) -> Failure {
    let status = answer.status().as_u16();
    Failure::BadAnswer(format!(
        "the upstream answered {status} with a body that can't be used: {why}"
    ))
}
