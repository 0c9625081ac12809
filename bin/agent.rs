//! The agent: MQTT in, HTTP calls out. See `recado::agent`.

use std::process::ExitCode;

use recado::agent::Agent;
use recado::config;
use recado::{cli, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Agent| {
        let settings = config::agent(&flags)?;
        if flags.check {
            Agent::check(&settings)?;
            return cli::print(&settings);
        }
        service::run(|| Agent::start(settings), Agent::stop)
    })
}
