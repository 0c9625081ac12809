//! Which of the broker's addresses to connect to.
//!
//! rumqttc tries the addresses of a name one after the other, within one time-out for all: a first
//! one that is dead would keep every other from being tried, for ever. So where a name has several,
//! they are tried here first (RFC 8305, section 5), and rumqttc is told which one answers.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::url::{BrokerUrl, Scheme};
use crate::base::connect::connect;
use crate::base::threads;

/// Where to connect to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The broker's name: it has one address, its first one answers, or rumqttc shall say what is
    /// wrong with it.
    Name,
    /// This one of its addresses.
    Address(SocketAddr),
}

/// Finds the address of a broker that answers. `last` is the one that did the last time.
///
/// Errors: it has several, and none answers within `timeout`; or no name server does.
pub(super) fn choose(
    broker: &BrokerUrl,
    last: &mut Option<SocketAddr>,
    timeout: Duration,
) -> io::Result<Choice> {
    let host = broker.host();
    let is_literal = host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    // What a proxy connects to is for it to look up.
    if is_literal || broker.scheme() == Scheme::Unix || broker.proxy().is_some() {
        return Ok(Choice::Name);
    }
    match look_up(host, broker.port(), timeout)? {
        Some(addresses) => choose_from(&addresses, last, timeout),
        None => Ok(Choice::Name),
    }
}

/// Looks whether something listens where a broker should. What is behind a proxy is taken to be there.
///
/// Errors: nothing does, or it can't be found out within `timeout`.
pub(super) fn reach(broker: &BrokerUrl, timeout: Duration) -> io::Result<()> {
    if broker.scheme() == Scheme::Unix {
        return UnixStream::connect(broker.path()).map(|_| ());
    }
    if broker.proxy().is_some() {
        return Ok(());
    }
    let host = broker.host().trim_matches(['[', ']']);
    let addresses = look_up(host, broker.port(), timeout)?;
    let addresses = addresses.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    connect(&addresses, Instant::now() + timeout).map(|_| ())
}

// On a thread of its own: a name server that is silent must not keep the mqtt thread from stopping. None: it
// does not know the name.
//
// Errors: it says nothing within `timeout`.
fn look_up(host: &str, port: u16, timeout: Duration) -> io::Result<Option<Vec<SocketAddr>>> {
    let (on_found, found) = crossbeam_channel::bounded(1);
    let name = host.to_owned();
    let _detached = threads::spawn("resolver", 256, move || {
        let addresses = (name.as_str(), port).to_socket_addrs();
        let _ = on_found.send(addresses.map(Iterator::collect));
    });
    match found.recv_timeout(timeout) {
        Ok(found) => Ok(found.ok()),
        Err(_) => {
            let words = format!("no name server says where {host} is");
            Err(io::Error::new(io::ErrorKind::TimedOut, words))
        }
    }
}

fn choose_from(
    addresses: &[SocketAddr],
    last: &mut Option<SocketAddr>,
    timeout: Duration,
) -> io::Result<Choice> {
    let [first, _, ..] = addresses else {
        return Ok(Choice::Name);
    };
    let mut ordered = addresses.to_vec();
    // The one that worked before comes first.
    ordered.sort_by_key(|address| Some(*address) != *last);
    let stream = connect(&ordered, Instant::now() + timeout)?;
    let answers = stream.peer_addr()?;
    *last = Some(answers);
    match answers == *first {
        true => Ok(Choice::Name),
        false => Ok(Choice::Address(answers)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_address_that_answers_is_chosen_and_remembered() {
        let dead = |_| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let [dead_1, dead_2] = [0, 1].map(dead);
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [alive_1, alive_2] = listeners.each_ref().map(|it| it.local_addr().unwrap());
        let mut last = None;
        let mut choose = |addresses: &[SocketAddr]| {
            choose_from(addresses, &mut last, Duration::from_secs(30)).ok()
        };
        assert_eq!(choose(&[dead_1]), Some(Choice::Name), "no choice");
        assert_eq!(choose(&[]), Some(Choice::Name), "no choice");
        assert_eq!(choose(&[alive_1, dead_1]), Some(Choice::Name));
        assert_eq!(choose(&[dead_1, alive_2]), Some(Choice::Address(alive_2)));
        let remembered = choose(&[alive_1, alive_2]);
        assert_eq!(remembered, Some(Choice::Address(alive_2)));
        assert_eq!(choose(&[dead_1, dead_2]), None);
    }

    #[test]
    fn an_address_is_not_looked_up() {
        for literal in ["mqtt://127.0.0.1", "ws://[::1]", "unix:/run/x"] {
            let broker = literal.parse().unwrap();
            let choice = choose(&broker, &mut None, Duration::ZERO).unwrap();
            assert_eq!(choice, Choice::Name);
        }
        let broker = "mqtt://nowhere.invalid".parse().unwrap();
        let unknown = choose(&broker, &mut None, Duration::from_secs(30));
        assert_eq!(unknown.unwrap(), Choice::Name, "rumqttc shall say so");
    }
}
