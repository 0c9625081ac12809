//! The agent: MQTT in, HTTP calls out. See `recado::agent`.

use std::process::ExitCode;

use recado::agent::Agent;
use recado::config::AgentSettings;
use recado::{cli, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Agent| {
        let settings = AgentSettings::load(&flags)?;
        if flags.check {
            Agent::check(&settings)?;
            return cli::print(&settings);
        }
        service::run(|| Agent::start(settings), Agent::stop)
    })
}
