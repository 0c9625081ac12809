//! The life of a program that runs until it is told to stop: signals, and what systemd is told.

use std::time::Duration;

use crossbeam_channel::{Receiver, after, never, select};
use log::LevelFilter;

use crate::agent::{Agent, AgentSettings};
use crate::base::error::Result;
use crate::base::scheduling::Scheduling;
use crate::base::threads::{Hangup, SignalThread, stop_signal};
use crate::base::{logging, supervisor};
use crate::gateway::{Gateway, GatewaySettings};
use crate::tools::backend::Backend;

/// How often whoever supervises this program is told how it is.
const TOLD: Duration = Duration::from_secs(1);

/// A program that serves until it is stopped.
pub trait Service: Sized {
    /// What it runs with.
    type Settings;

    /// Whether it can do its work; if not, why.
    fn ready(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// Whether its threads go on.
    fn is_alive(&self) -> bool {
        true
    }

    /// Which log lines these settings ask for; none: those that there are.
    fn log_level(_settings: &Self::Settings) -> Option<LevelFilter> {
        None
    }

    /// In which scheduling class it runs with these settings.
    fn scheduling(_settings: &Self::Settings) -> Scheduling {
        Scheduling::Normal
    }

    /// Goes on with other settings. Returns the keys that can't change so.
    ///
    /// Errors: these settings can't be used; then nothing has changed.
    fn reload(&self, settings: Self::Settings) -> Result<Vec<String>>;

    /// Stops it in order.
    ///
    /// Errors: what could not be stopped.
    fn stop(self) -> Result<()>;
}

impl Service for Gateway {
    type Settings = GatewaySettings;

    fn ready(&self) -> std::result::Result<(), String> {
        Gateway::ready(self)
    }

    fn is_alive(&self) -> bool {
        Gateway::is_alive(self)
    }

    fn log_level(settings: &GatewaySettings) -> Option<LevelFilter> {
        Some(settings.log)
    }

    fn scheduling(settings: &GatewaySettings) -> Scheduling {
        settings.scheduling
    }

    fn reload(&self, settings: GatewaySettings) -> Result<Vec<String>> {
        Gateway::reload(self, settings)
    }

    fn stop(self) -> Result<()> {
        Gateway::stop(self)
    }
}

impl Service for Agent {
    type Settings = AgentSettings;

    fn ready(&self) -> std::result::Result<(), String> {
        Agent::ready(self)
    }

    fn is_alive(&self) -> bool {
        Agent::is_alive(self)
    }

    fn log_level(settings: &AgentSettings) -> Option<LevelFilter> {
        Some(settings.log)
    }

    fn scheduling(settings: &AgentSettings) -> Scheduling {
        settings.scheduling
    }

    fn reload(&self, settings: AgentSettings) -> Result<Vec<String>> {
        Agent::reload(self, settings)
    }

    fn stop(self) -> Result<()> {
        Agent::stop(self)
    }
}

impl Service for Backend {
    type Settings = ();

    fn reload(&self, (): ()) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn stop(self) -> Result<()> {
        Backend::stop(self)
    }
}

#[cfg(feature = "broker")]
impl Service for crate::tools::broker::Broker {
    type Settings = ();

    fn reload(&self, (): ()) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn stop(self) -> Result<()> {
        Ok(())
    }
}

/// Starts a service with its settings, and stops it at SIGINT or SIGTERM. At SIGHUP the settings are read
/// again. The first failure is the result.
///
/// Errors: what `settings` and `start` return, or the stop, or no signal handler.
pub fn run<S: Service>(
    settings: impl Fn() -> Result<S::Settings>,
    start: impl FnOnce(S::Settings) -> Result<S>,
) -> Result<()> {
    let (trigger, stop) = stop_signal();
    let (on_hangup, hangups) = crossbeam_channel::bounded(1);
    // Before the service: a signal must not meet a half-started one unprepared.
    let signals = SignalThread::start(trigger, Hangup::Tell(on_hangup))?;
    let first = settings()?;
    if let Some(level) = S::log_level(&first) {
        logging::set_level(level);
    }
    // Before the service: its threads are in the class of the one that starts them.
    S::scheduling(&first).begin();
    let service = start(first)?;
    supervisor::started();
    loop {
        tell_supervisor(&service);
        select! {
            recv(stop.channel()) -> _ => break,
            recv(hangups) -> _ => reload(&service, &settings),
            recv(next_tell()) -> _ => {}
        }
    }
    supervisor::stopping();
    let stopped = service.stop();
    let joined = signals.join();
    log::info!("stopped");
    stopped.and(joined)
}

fn next_tell() -> Receiver<std::time::Instant> {
    match supervisor::is_there() {
        true => after(TOLD),
        false => never(),
    }
}

fn tell_supervisor<S: Service>(service: &S) {
    if supervisor::is_there() {
        let state = match service.ready() {
            Ok(()) => "ready".to_owned(),
            Err(why) => format!("not ready: {why}"),
        };
        supervisor::tell(&state, service.is_alive());
    }
}

fn reload<S: Service>(service: &S, settings: impl Fn() -> Result<S::Settings>) {
    supervisor::reloading();
    let changed = settings().and_then(|settings| {
        let level = S::log_level(&settings);
        let fixed = service.reload(settings)?;
        if let Some(level) = level {
            logging::set_level(level);
        }
        Ok(fixed)
    });
    match changed {
        Ok(fixed) if fixed.is_empty() => log::info!("SIGHUP: the settings were read again"),
        Ok(fixed) => log::warn!(
            "SIGHUP: the settings were read again; these need a restart, and keep their values: {}",
            fixed.join("; ")
        ),
        Err(error) => log::error!("SIGHUP: nothing has changed: {}", error.chain()),
    }
    supervisor::started();
}
