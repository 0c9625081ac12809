//! The agent: MQTT in, HTTP calls out. See `recado::agent`.

use std::process::ExitCode;

use log::LevelFilter;
use recado::agent::Agent;
use recado::base::logging;
use recado::config;
use recado::tools::health;
use recado::{cli, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Agent| {
        if flags.health {
            // Whoever asks wants the answer, not how it was got.
            logging::set_level(logging::level_from_environment()?.unwrap_or(LevelFilter::Warn));
            return cli::print(health::ask(&config::agent(&flags)?)?);
        }
        if flags.check {
            let settings = config::agent(&flags)?;
            Agent::check(&settings)?;
            return cli::print(&settings);
        }
        service::run(|| config::agent(&flags), Agent::start)
    })
}
