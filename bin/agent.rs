//! The agent: MQTT in, HTTP calls out. See `recado::agent`.

use std::process::ExitCode;

use recado::agent::Agent;
use recado::config;
use recado::tools::health;
use recado::{cli, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Agent| {
        if flags.health {
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
