//! What is it that listens where the broker should? Asked only once a connection has failed in a way
//! that rumqttc can't explain: it reads nothing but MQTT 5.

use std::io::{Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::base::connect::connect;

/// How long the other side may take.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A CONNECT of MQTT 5 with an empty client identifier, which asks for nothing.
const CONNECT: [u8; 15] = [
    0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 5, 0b10, 0, 10, 0, 0, 0,
];

/// Says what answers there, if that can be told.
pub(super) fn explain(host: &str, port: u16) -> Option<String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().ok()?.collect();
    let mut stream = connect(&addresses, Instant::now() + TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    stream.write_all(&CONNECT).ok()?;
    let mut answer = [0; 16];
    let length = stream.read(&mut answer).ok()?;
    describe(&answer[..length])
}

fn describe(answer: &[u8]) -> Option<String> {
    match answer {
        // MQTT 3.1.1, section 3.2: two bytes; an MQTT 5 one has at least three.
        [0x20, 2, _, code, ..] => {
            let meaning = match code {
                1 => "unacceptable protocol version",
                2 => "identifier rejected",
                3 => "server unavailable",
                4 => "bad user name or password",
                5 => "not authorized",
                _ => "unknown",
            };
            Some(format!(
                "the broker speaks MQTT 3.1.1 only, MQTT 5 is needed (it said CONNACK code {code}: {meaning})"
            ))
        }
        [b'H', b'T', b'T', b'P', b'/', ..] => {
            Some("an HTTP server answers there, no MQTT broker".into())
        }
        // An alert, in any version of TLS.
        [0x15, 3, ..] => Some("that port speaks TLS: use mqtts://".into()),
        [b'S', b'S', b'H', ..] => Some("an SSH server answers there, no MQTT broker".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_is_named() {
        for (answer, words) in [
            (&[0x20, 2, 0, 1][..], "CONNACK code 1"),
            (b"HTTP/1.1 400 Bad Request", "HTTP server"),
            (&[0x15, 3, 1, 0, 2, 2, 70], "mqtts://"),
            (b"SSH-2.0-OpenSSH", "SSH server"),
        ] {
            let said = describe(answer).unwrap();
            assert!(said.contains(words), "{said}");
        }
        for unknown in [&b""[..], &[0x20, 3, 0, 0, 0], b"\xff\xff"] {
            assert_eq!(describe(unknown), None);
        }
    }
}
