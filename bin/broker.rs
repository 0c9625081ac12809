//! An MQTT broker for development and tests. See `recado::tools::broker`.

use std::process::ExitCode;

use recado::tools::broker::Broker;
use recado::{cli, config, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Broker| {
        let address = config::listen_address(&flags.listen)?;
        let websockets = flags.listen_ws.as_deref();
        let websockets = websockets.map(config::listen_address).transpose()?;
        service::run(|| Ok(()), |()| Broker::start_with(address, websockets))
    })
}
