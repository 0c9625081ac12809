//! What an agent counts, and what it knows of its upstreams.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::settings::Service;
use crate::base::clock::Moment;
use crate::base::threads::lock;
use crate::http::Failure;
use crate::wire::stats::UpstreamState;

/// Errors that are not older than this are told.
const MINUTE: Duration = Duration::from_secs(60);
/// Those that happen within this time are counted together.
const STEP: Duration = Duration::from_secs(1);

/// What an agent counts.
pub(super) struct Figures {
    pub requests: Count,
    pub errors: Count,
    pub refused: Count,
    pub dropped: Count,
    pub connections: Count,
    /// How many are being executed.
    pub in_work: AtomicU64,
    last_errors: Mutex<VecDeque<(Moment, u64)>>,
    // One for each service.
    upstreams: Vec<Known>,
}

/// Something that only grows.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

struct Known {
    service: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    upstream: String,
    seen: Option<Seen>,
}

#[derive(Clone)]
struct Seen {
    at: Moment,
    failure: Option<String>,
}

impl Count {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Figures {
    pub fn new(services: &[Service]) -> Figures {
        let known = |service: &Service| Known {
            service: service
                .name
                .as_ref()
                .map_or("direct".into(), ToString::to_string),
            state: Mutex::default(),
        };
        let figures = Figures {
            requests: Count::default(),
            errors: Count::default(),
            refused: Count::default(),
            dropped: Count::default(),
            connections: Count::default(),
            in_work: AtomicU64::new(0),
            last_errors: Mutex::default(),
            upstreams: services.iter().map(known).collect(),
        };
        figures.reloaded(services);
        figures
    }

    /// Takes note of what the services call now; nothing is known of what is new.
    pub fn reloaded(&self, services: &[Service]) {
        for (known, service) in self.upstreams.iter().zip(services) {
            let upstream = service.upstream.url.to_string();
            let mut state = lock(&known.state);
            if state.upstream != upstream {
                *state = State {
                    upstream,
                    seen: None,
                };
            }
        }
    }

    /// A request has ended with an error of the agent's own.
    pub fn failed(&self, now: Moment) {
        self.errors.add();
        let mut errors = lock(&self.last_errors);
        match errors.back_mut() {
            Some((at, count)) if now.since(*at) < STEP => *count += 1,
            _ => errors.push_back((now, 1)),
        }
        // As many as there are steps in a minute, and no more.
        forget_old(&mut errors, now);
    }

    pub fn errors_last_minute(&self, now: Moment) -> u64 {
        let mut errors = lock(&self.last_errors);
        forget_old(&mut errors, now);
        errors.iter().map(|(_, count)| count).sum()
    }

    /// What the end of a request says of its upstream.
    pub fn called(&self, service: usize, ended: Result<(), &Failure>, now: Moment) {
        match ended {
            Ok(()) | Err(Failure::BadAnswer(_)) => self.reached(service, Ok(()), now),
            Err(Failure::Unreachable(why)) => self.reached(service, Err(why.clone()), now),
            Err(_) => {}
        }
    }

    /// Whether the upstream of a service takes connections; so do those of others that have the same.
    pub fn reached(&self, service: usize, reached: Result<(), String>, now: Moment) {
        let failure = reached.err();
        let upstream = {
            let state = lock(&self.upstreams[service].state);
            // What is known already need not be said again for each request.
            let is_known = state.seen.as_ref().is_some_and(|seen| {
                seen.failure.is_none() && failure.is_none() && now.since(seen.at) < STEP
            });
            if is_known {
                return;
            }
            state.upstream.clone()
        };
        for known in &self.upstreams {
            let mut state = lock(&known.state);
            if state.upstream != upstream {
                continue;
            }
            let was_well = state
                .seen
                .as_ref()
                .is_none_or(|seen| seen.failure.is_none());
            if let Some(why) = failure.as_ref().filter(|_| was_well) {
                log::warn!(
                    "the upstream of {} takes no connections: {why}",
                    known.service
                );
            } else if failure.is_none() && !was_well {
                log::info!("the upstream of {} takes connections again", known.service);
            }
            state.seen = Some(Seen {
                at: now,
                failure: failure.clone(),
            });
        }
    }

    /// Whether nothing has been seen of a service's upstream for so long.
    pub fn is_unseen(&self, service: usize, since: Duration, now: Moment) -> bool {
        let state = lock(&self.upstreams[service].state);
        state
            .seen
            .as_ref()
            .is_none_or(|seen| now.since(seen.at) >= since)
    }

    pub fn upstreams(&self) -> Vec<UpstreamState> {
        let state = |known: &Known| {
            let seen = lock(&known.state).seen.clone();
            UpstreamState {
                service: known.service.clone(),
                accepts: seen.as_ref().map(|seen| seen.failure.is_none()),
                why: seen.and_then(|seen| seen.failure),
            }
        };
        self.upstreams.iter().map(state).collect()
    }
}

fn forget_old(errors: &mut VecDeque<(Moment, u64)>, now: Moment) {
    while errors
        .front()
        .is_some_and(|(at, _)| now.since(*at) >= MINUTE)
    {
        errors.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::AgentSettings;
    use super::*;

    fn figures() -> Figures {
        Figures::new(&AgentSettings::example().services)
    }

    fn at(seconds: u64) -> Moment {
        Moment::at(Duration::from_secs(seconds))
    }

    #[test]
    fn errors_are_those_of_the_last_minute() {
        let figures = figures();
        for second in 0..1000 {
            figures.failed(at(second));
            figures.failed(at(second));
        }
        assert_eq!(figures.errors.get(), 2000);
        assert_eq!(figures.errors_last_minute(at(999)), 120);
        assert!(lock(&figures.last_errors).len() <= 60);
        assert_eq!(figures.errors_last_minute(at(1029)), 60);
        assert_eq!(figures.errors_last_minute(at(2000)), 0);
    }

    #[test]
    fn whoever_has_the_same_upstream_shares_what_is_known_of_it() {
        let figures = figures();
        let ten = Duration::from_secs(10);
        assert!(figures.is_unseen(0, ten, at(1)));
        assert_eq!(figures.upstreams()[1].accepts, None);
        figures.called(0, Err(&Failure::Unreachable("refused".into())), at(1));
        let states = figures.upstreams();
        assert_eq!(states[0].service, "ping");
        assert_eq!(states[1].service, "direct");
        for state in states {
            assert_eq!(state.accepts, Some(false));
            assert_eq!(state.why.as_deref(), Some("refused"));
        }
        // It says nothing of the upstream.
        figures.called(1, Err(&Failure::NotAllowed("GET".into())), at(2));
        assert_eq!(figures.upstreams()[1].accepts, Some(false));
        figures.called(1, Ok(()), at(3));
        assert!(!figures.is_unseen(0, ten, at(12)));
        assert!(figures.is_unseen(0, ten, at(13)));
        assert_eq!(figures.upstreams()[0].accepts, Some(true));
    }
}
