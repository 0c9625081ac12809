//! An MQTT broker for development and tests. See `recado::tools::broker`.

use std::process::ExitCode;

use recado::tools::broker::Broker;
use recado::{cli, config, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Broker| {
        let address = config::listen_address(&flags.listen)?;
        service::run(|| Ok(()), |()| Broker::start(address))
    })
}
