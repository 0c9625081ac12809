//! api_1, the gateway: HTTP in, MQTT out. See `recado::gateway`.

use std::process::ExitCode;

use recado::config;
use recado::gateway::Gateway;
use recado::tools::health;
use recado::{cli, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Api1| {
        if flags.health {
            return cli::print(health::ask_gateway(config::gateway(&flags)?.listen)?);
        }
        if flags.check {
            let settings = config::gateway(&flags)?;
            Gateway::check(&settings)?;
            return cli::print(&settings);
        }
        service::run(|| config::gateway(&flags), Gateway::start)
    })
}
