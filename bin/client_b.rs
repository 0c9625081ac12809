//! client_b, the smallest publisher. See `recado::clients`.

use std::process::ExitCode;

use recado::{cli, clients};

fn main() -> ExitCode {
    cli::run(|flags: cli::ClientB| clients::publish(&flags))
}
