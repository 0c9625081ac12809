//! api_2, the demo service behind the agent. See `recado::tools::backend`.

use std::process::ExitCode;

use recado::tools::backend::Backend;
use recado::{cli, config, service};

fn main() -> ExitCode {
    cli::run(|flags: cli::Api2| {
        let address = config::listen_address(&flags.listen)?;
        service::run(|| Ok(()), |()| Backend::start(address))
    })
}
