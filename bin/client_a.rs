//! client_a, the smallest subscriber. See `recado::tools::clients`.

use std::process::ExitCode;

use recado::cli;
use recado::tools::clients;

fn main() -> ExitCode {
    cli::run(|flags: cli::ClientA| clients::subscribe(&flags))
}
