//! Command lines: flags and their environment variables, unchecked.
//!
//! Every program ends through [`run`], which knows the exit codes: 0 done, 1 failed, 2 usage.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::base::error::{Error, Result};
use crate::base::topic::{Id, Topic, TopicFilter};
use crate::base::version;
use crate::front::FrontKind;
use crate::link::BrokerMode;

macro_rules! log_variables {
    () => {
        "Variables:
  RECADO_LOG  The level of log lines: off, error, warn, info, debug or trace [default: info]
  RECADO_LOG_FORMAT
              How they look: text, or json, an object each [default: text]"
    };
}

macro_rules! login_variables {
    () => {
        "
  RECADO_MQTT_USERNAME, RECADO_MQTT_PASSWORD, RECADO_MQTT_PASSWORD_FILE
              Who this program is to the broker
  RECADO_TLS_CA_FILE, RECADO_TLS_CERTIFICATE_FILE, RECADO_TLS_KEY_FILE, RECADO_TLS_ALPN
              The certificates, and the protocols to offer, for mqtts:// and wss://
  RECADO_WEBSOCKET_HEADERS_FILE
              Fields for the request for ws:// and wss://, a `Name: value` in each line
  RECADO_PROXY
              An HTTP proxy on the way to the broker: its URL, or environment for the usual
              variables, https_proxy, all_proxy and no_proxy"
    };
}

macro_rules! exit_codes {
    () => {
        "\nExit codes: 0 done, 1 failed, 2 usage"
    };
}

/// What `--help` says of the variables that no flag has.
const LOG: &str = concat!(log_variables!(), "\n", exit_codes!());

/// The same for what connects to a broker.
const LOG_AND_LOGIN: &str = concat!(log_variables!(), login_variables!(), "\n", exit_codes!());

/// The same for what goes on with other settings when it is told to.
const SERVICE: &str = concat!(
    log_variables!(),
    login_variables!(),
    "
  NOTIFY_SOCKET
              Where systemd wants to be told how this is (Type=notify)

Signals: SIGHUP reads the settings again, SIGTERM and SIGINT stop in order",
    exit_codes!()
);

/// The gateway: answers HTTP requests with what an agent behind an MQTT broker replies.
#[derive(Debug, Default, Parser)]
#[command(name = "api_1", version = version::WHOLE, after_help = SERVICE)]
pub struct Api1 {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The MQTT broker; several with commas, or the flag again [default: mqtt://127.0.0.1:1883]
    #[arg(
        long,
        value_name = "URL",
        env = "RECADO_BROKER",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub broker: Vec<String>,
    /// What several brokers are for: one at a time, or all at once [default: failover]
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        env = "RECADO_BROKER_MODE",
        hide_env_values = true
    )]
    pub broker_mode: Option<BrokerMode>,
    /// Listen for HTTP on this address; port 0 takes a free one [default: 127.0.0.1:5000]
    #[arg(
        long,
        value_name = "ADDR",
        env = "RECADO_LISTEN",
        hide_env_values = true
    )]
    pub listen: Option<String>,
    /// The HTTP server to use [default: guarded]
    #[arg(long, value_enum)]
    pub front: Option<FrontKind>,
    /// Ask the running gateway with these settings whether it is ready, at the address where it listens, print
    /// what it says, and exit: 0 if it is, 1 if not
    #[arg(long, conflicts_with = "check")]
    pub health: bool,
    /// Check the settings, print what would be used, and exit
    #[arg(long)]
    pub check: bool,
}

/// The demo service behind the agent: answers ping with pong.
#[derive(Debug, Parser)]
#[command(name = "api_2", version = version::WHOLE, after_help = LOG)]
pub struct Api2 {
    /// Listen for HTTP on this address; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDR",
        env = "RECADO_LISTEN",
        hide_env_values = true,
        default_value = "127.0.0.1:5001"
    )]
    pub listen: String,
}

/// The agent: takes requests from an MQTT broker, calls an HTTP service, publishes the replies.
#[derive(Debug, Default, Parser)]
#[command(name = "agent", version = version::WHOLE, after_help = SERVICE)]
pub struct Agent {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The MQTT broker; several with commas, or the flag again [default: mqtt://127.0.0.1:1883]
    #[arg(
        long,
        value_name = "URL",
        env = "RECADO_BROKER",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub broker: Vec<String>,
    /// What several brokers are for: one at a time, or all at once [default: failover]
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        env = "RECADO_BROKER_MODE",
        hide_env_values = true
    )]
    pub broker_mode: Option<BrokerMode>,
    /// The HTTP service to call [default: http://127.0.0.1:5001]
    #[arg(
        long,
        value_name = "URL",
        env = "RECADO_UPSTREAM",
        hide_env_values = true
    )]
    pub upstream: Option<String>,
    /// Answer the demo's ping too; without --upstream it does so anyway
    #[arg(long)]
    pub demo: bool,
    /// The name of this agent [default: demo]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Ask the running agent with these settings how it is, through the broker, print it, and exit: 0 if it
    /// answers, 1 if not
    #[arg(long, conflicts_with = "check")]
    pub health: bool,
    /// Check the settings, print what would be used, and exit
    #[arg(long)]
    pub check: bool,
}

/// The smallest subscriber: prints the messages that reach a topic filter.
#[derive(Debug, Parser)]
#[command(name = "client_a", version = version::WHOLE, after_help = LOG_AND_LOGIN)]
pub struct ClientA {
    /// The MQTT broker; several with commas, or the flag again [default: mqtt://127.0.0.1:1883]
    #[arg(
        long,
        value_name = "URL",
        env = "RECADO_BROKER",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub broker: Vec<String>,
    /// The topic filter to subscribe to; + and # are wildcards
    #[arg(long, value_name = "FILTER", default_value = "my/topic", value_parser = |text: &str| TopicFilter::new(text))]
    pub topic: TopicFilter,
    /// The highest quality of service to receive with
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Exit after this many messages [default: run until stopped]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Keep the session under this client id, one day long, so that messages of QoS 1 and 2 sent
    /// meanwhile arrive at the next start
    #[arg(long, value_name = "NAME", value_parser = |text: &str| Id::new(text))]
    pub persistent: Option<Id>,
}

/// The smallest publisher: sends one message and makes sure that the broker has it.
#[derive(Debug, Parser)]
#[command(name = "client_b", version = version::WHOLE, after_help = LOG_AND_LOGIN)]
pub struct ClientB {
    /// The MQTT broker; several with commas, or the flag again [default: mqtt://127.0.0.1:1883]
    #[arg(
        long,
        value_name = "URL",
        env = "RECADO_BROKER",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub broker: Vec<String>,
    /// The topic to publish to
    #[arg(long, default_value = "my/topic", value_parser = |text: &str| Topic::new(text))]
    pub topic: Topic,
    /// The message
    #[arg(long, default_value = "Hello from client B! Hello Again")]
    pub message: String,
    /// The quality of service: 1 and 2 are acknowledged
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Let the broker keep the message for who subscribes later
    #[arg(long)]
    pub retain: bool,
}

/// An embedded MQTT broker, for development and tests.
#[derive(Debug, Parser)]
#[command(name = "broker", version = version::WHOLE, after_help = LOG)]
pub struct Broker {
    /// Listen for MQTT 3.1.1 and 5 on this address; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDR",
        env = "RECADO_LISTEN",
        hide_env_values = true,
        default_value = "127.0.0.1:1883"
    )]
    pub listen: String,
    /// Take MQTT in WebSockets too, on this address; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub listen_ws: Option<String>,
}

/// Parses the command line, starts logging, runs the program and turns its result into an exit
/// code; an error goes to standard error with its whole chain.
pub fn run<Flags: Parser>(program: impl FnOnce(Flags) -> Result<()>) -> ExitCode {
    let matches = command::<Flags>().get_matches();
    let flags = Flags::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = crate::base::logging::init().and_then(|logging| {
        let result = program(flags);
        // Before anything else is printed.
        drop(logging);
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            match error {
                Error::Usage(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

// The command line under the name that it was called by: a program is installed as `recado-agent`, say.
fn command<Flags: CommandFactory>() -> clap::Command {
    let path = std::env::args_os().next().map(PathBuf::from);
    let name = path.as_deref().and_then(|path| path.file_stem()?.to_str());
    match name {
        // clap wants names that last; this one does, as there is one for each run.
        Some(name) => Flags::command().name(&*name.to_owned().leak()),
        None => Flags::command(),
    }
}

/// Prints what `--check` found.
///
/// Errors: standard output is closed.
pub fn print(settings: impl fmt::Display) -> Result<()> {
    write!(std::io::stdout(), "{settings}").map_err(|source| Error::System {
        action: "write to standard output",
        source,
    })
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn the_command_lines_are_consistent() {
        for command in [
            Api1::command(),
            Api2::command(),
            Agent::command(),
            ClientA::command(),
            ClientB::command(),
            Broker::command(),
        ] {
            command.debug_assert();
        }
    }
}
