//! client_a, the smallest subscriber. See `recado::clients`.

use std::process::ExitCode;

use recado::{cli, clients};

fn main() -> ExitCode {
    cli::run(|flags: cli::ClientA| clients::subscribe(&flags))
}
