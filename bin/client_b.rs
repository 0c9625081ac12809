//! client_b, the smallest publisher. See `recado::tools::clients`.

use std::process::ExitCode;

use recado::cli;
use recado::tools::clients;

fn main() -> ExitCode {
    cli::run(|flags: cli::ClientB| clients::publish(&flags))
}
