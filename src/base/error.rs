//! What can go wrong, one name for each failure.
//!
//! `Display` says what failed and where; the cause, where there is one, is the
//! [`source`](std::error::Error::source). [`Error::chain`] joins both for a log line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

/// A result whose error is this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Every failure that this crate reports to a caller that owns a service.
///
/// Failures of one HTTP request are not here: they are answers, see
/// `http::problem`.
#[derive(Debug)]
pub enum Error {
    /// A flag or an environment variable is wrong; what was found and what is allowed.
    Usage(String),
    /// A setting in a file is wrong.
    Setting {
        /// Where it was found: `config/api_1.toml line 3, key timeout_ms`.
        place: String,
        /// What was found and what is allowed.
        message: String,
    },
    /// A configuration file could not be read.
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A server could not listen on its address.
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The embedded broker did not start.
    Broker(String),
    /// The system refused something that a service can't run without.
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Certificates for the connection to the broker could not be prepared.
    Tls(String),
    /// The broker refused a subscription.
    SubscriptionRefused {
        /// The topic filter.
        filter: String,
        /// The reason that the broker gave.
        reason: String,
    },
    /// The broker has not taken a message that it had to acknowledge.
    NotDelivered {
        /// The topic it was published to.
        topic: String,
        /// What came instead.
        reason: String,
    },
    /// The broker can't be reached, for programs that don't wait for it.
    BrokerUnreachable {
        /// Host and port.
        broker: String,
        /// What the last attempt said.
        reason: String,
    },
    /// A running agent does not answer.
    NoAnswer {
        /// Its id.
        agent: String,
        /// How long it had.
        patience: Duration,
    },
    /// A running gateway is not ready, or nothing answers in its place.
    NotReady {
        /// Where it was asked.
        address: SocketAddr,
        /// What it says, or why there is no answer.
        reason: String,
    },
    /// A thread did not end in time, or ended in a panic.
    Thread {
        /// The thread's name.
        name: String,
        /// What happened to it.
        reason: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(message) => f.write_str(message),
            Error::Setting { place, message } => write!(f, "{place}: {message}"),
            Error::ReadFile { path, .. } => write!(f, "cannot read {}", path.display()),
            Error::Listen { address, .. } => write!(
                f,
                "cannot listen on {address} (is another program using the port?)"
            ),
            Error::Broker(message) => write!(f, "the embedded broker failed: {message}"),
            Error::System { action, .. } => write!(f, "cannot {action}"),
            Error::Tls(message) => write!(f, "cannot prepare TLS: {message}"),
            Error::SubscriptionRefused { filter, reason } => {
                write!(
                    f,
                    "the broker refused the subscription to {filter}: {reason}"
                )
            }
            Error::NotDelivered { topic, reason } => {
                write!(f, "the message to {topic} was not delivered: {reason}")
            }
            Error::BrokerUnreachable { broker, reason } => {
                write!(f, "cannot reach the broker at {broker}: {reason}")
            }
            Error::NoAnswer { agent, patience } => write!(
                f,
                "agent {agent} does not answer within {} s: is it running, connected to this broker, of this version, and may both read and write recado/agents/{agent}/stats?",
                patience.as_secs()
            ),
            Error::NotReady { address, reason } => {
                write!(f, "the gateway at {address} is not ready: {reason}")
            }
            Error::Thread { name, reason } => write!(f, "thread {name} {reason}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::ReadFile { source, .. }
            | Error::Listen { source, .. }
            | Error::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Error {
    /// The error and all its causes on one line: `what failed: why: why that`.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and all its causes on one line, for errors of other crates.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_what_failed_and_why() {
        let error = Error::ReadFile {
            path: "nowhere.toml".into(),
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        assert_eq!(error.chain(), "cannot read nowhere.toml: entity not found");
    }
}
