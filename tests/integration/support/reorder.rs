//! A proxy that lets messages of bodies overtake each other, as a cluster of brokers may.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Random, local};

/// How long a message is held back at the most, if nothing comes that it could be held behind.
const HELD: Duration = Duration::from_millis(20);
/// How many are held back at a time.
const MOST: usize = 3;

/// A running proxy; it ends with the test's process.
pub struct Reordering {
    address: SocketAddr,
    overtaken: Arc<AtomicUsize>,
}

impl Reordering {
    /// Passes on to a broker at a port of this machine.
    pub fn start(target: u16) -> Reordering {
        let listener = TcpListener::bind(local(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let overtaken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&overtaken);
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(local(target)) else {
                    continue;
                };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = io::copy(&mut &from, &mut &to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let counted = Arc::clone(&counted);
                std::thread::spawn(move || {
                    let _ = reorder(&server, &client, number as u64, &counted);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Reordering { address, overtaken }
    }

    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// How many messages were overtaken by others so far.
    pub fn overtaken(&self) -> usize {
        self.overtaken.load(Ordering::SeqCst)
    }
}

fn reorder(
    mut from: &TcpStream,
    mut to: &TcpStream,
    seed: u64,
    overtaken: &AtomicUsize,
) -> io::Result<()> {
    from.set_read_timeout(Some(HELD))?;
    to.set_nodelay(true)?;
    let mut random = Random::new(seed + 1);
    let (mut read, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    let mut held: VecDeque<Vec<u8>> = VecDeque::new();
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => read.extend_from_slice(&buffer[..count]),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                while let Some(packet) = held.pop_front() {
                    to.write_all(&packet)?;
                }
            }
            Err(error) => return Err(error),
        }
        while let Some(length) = packet_length(&read) {
            let packet: Vec<u8> = read.drain(..length).collect();
            if is_of_a_body(&packet) && held.len() < MOST && random.below(3) == 0 {
                held.push_back(packet);
                continue;
            }
            to.write_all(&packet)?;
            if !held.is_empty() && random.below(2) == 0 {
                overtaken.fetch_add(1, Ordering::SeqCst);
                let number = random.below(held.len());
                to.write_all(&held.remove(number).unwrap())?;
            }
        }
    }
}

// MQTT 5, section 2.1: the length of the first packet, if all of it is here.
fn packet_length(bytes: &[u8]) -> Option<usize> {
    let mut length = 0;
    for (number, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * number);
        if byte & 0x80 == 0 {
            let all = 2 + number + length;
            return (bytes.len() >= all).then_some(all);
        }
    }
    None
}

// A PUBLISH with QoS 0 on a topic of streams.
fn is_of_a_body(packet: &[u8]) -> bool {
    let is_publish = packet[0] & 0xf6 == 0x30;
    let start = 1
        + packet[1..]
            .iter()
            .take_while(|byte| *byte & 0x80 != 0)
            .count()
        + 1;
    let topic = |start: usize| {
        let length = usize::from(packet[start]) << 8 | usize::from(packet[start + 1]);
        String::from_utf8_lossy(&packet[start + 2..start + 2 + length]).into_owned()
    };
    is_publish && topic(start).contains("/streams")
}
