//! The agent: MQTT in, HTTP calls out. See `recado::agent`.

use std::process::ExitCode;

use recado::agent::Agent;
use recado::config::AgentSettings;
use recado::{cli, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Agent| {
        let settings = AgentSettings::load(&flags)?;
        if flags.check {
            print!("{settings}");
            return Ok(());
        }
        service::run(|| Agent::start(settings), Agent::stop)
    })
}
