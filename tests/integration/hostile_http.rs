use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::http::{Connection, get};
use crate::support::process::{Process, Resources};
use crate::support::{PATIENCE, TempFile, wait_until};

/// What the process may ever take beyond what it takes when idle, in KiB. Idle, the optimized one
/// takes 5 MiB, so that it stays below 32.
const MEMORY_KIB: u64 = 27 * 1024;

/// One line of `hostile_http.txt`, which says what the columns mean.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    answers: Vec<u16>,
    closes: bool,
}

fn cases() -> Vec<Case> {
    let lines = include_str!("hostile_http.txt").lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let columns: Vec<&str> = line.split('|').map(str::trim).collect();
            let [name, bytes, answers, then] = columns[..] else {
                panic!("not four columns: {line}");
            };
            let answers = answers.split_whitespace().filter(|answer| *answer != "-");
            assert!(then == "close" || then == "keep", "{name}: {then}");
            Case {
                name,
                bytes: unescaped(bytes),
                answers: answers.map(|status| status.parse().unwrap()).collect(),
                closes: then == "close",
            }
        })
        .collect()
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("{{") {
            bytes.push(b'{');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let (inside, after) = after.split_once('}').unwrap();
            let (times, what) = inside.split_once('*').unwrap();
            bytes.extend(unescaped(what).repeat(times.parse().unwrap()));
            rest = after;
        } else if first == '\\' {
            let mut length = 2;
            bytes.push(match rest.as_bytes()[1] {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                b'p' => b'|',
                b'\\' => b'\\',
                b'x' => {
                    length = 4;
                    u8::from_str_radix(&rest[2..4], 16).unwrap()
                }
                other => panic!("no escape: {other}"),
            });
            rest = &rest[length..];
        } else {
            bytes.push(first as u8);
            rest = &rest[1..];
        }
    }
    bytes
}

/// api_1 without a broker, as a process, so that what it takes of the system can be seen.
struct Server {
    process: Process,
    address: SocketAddr,
    before: Resources,
}

impl Server {
    fn start(settings: &str) -> Server {
        let file = TempFile::new(settings);
        let process = Process::own(
            "api_1",
            &[
                "--listen",
                "127.0.0.1:0",
                "--broker",
                "mqtt://127.0.0.1:1",
                "--config",
                file.path(),
            ],
        );
        let address = process.address();
        let mut server = Server {
            process,
            address,
            before: Resources::default(),
        };
        server.before = server.process.resources();
        server
    }

    /// It serves as before, has given everything back, and has never taken too much.
    fn check(&self, after: &str) {
        assert_eq!(get(self.address, "/healthz").status, 200, "{after}");
        wait_until("it has given everything back", || {
            let now = self.process.resources();
            now.descriptors <= self.before.descriptors && now.threads <= self.before.threads + 1
        });
        let peak = self.process.resources().most_memory_kib - self.before.memory_kib;
        assert!(peak < MEMORY_KIB, "{after}: {peak} KiB");
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn run(&self, case: &Case) -> Result<(), String> {
        let mut client = Connection::open(self.address);
        // It may answer and close before it has been told everything.
        client.try_send(&case.bytes);
        for (number, status) in case.answers.iter().enumerate() {
            let is_head = case.name.starts_with("head-");
            let Some(answer) = client.try_read_answer(!is_head) else {
                return Err(format!("closed instead of answer {number}"));
            };
            if answer.status != *status {
                return Err(format!("answer {number}: {}", answer.status));
            }
            let last = number + 1 == case.answers.len();
            let says_close = answer.header("connection") == Some("close");
            if says_close != (last && case.closes) {
                return Err(format!("answer {number} says close: {says_close}"));
            }
        }
        if case.closes {
            return match client.is_closed_by_server() {
                true => Ok(()),
                false => Err("more came instead of the end".into()),
            };
        }
        if !client.try_send(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n") {
            return Err("it is closed".into());
        }
        match client.try_read_answer(true) {
            Some(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("then {other:?}")),
        }
    }
}

#[test]
fn every_case_of_the_table() {
    let usual = Server::start("");
    let hasty = Server::start("[http]\nhead_timeout_ms = 300\nbody_timeout_ms = 300\n");
    let cases = cases();
    assert!(cases.len() > 600, "{} cases", cases.len());
    let mut failures = Vec::new();
    let mut slow = 0;
    for case in &cases {
        let server = match case.answers.contains(&408) {
            true => &hasty,
            false => &usual,
        };
        if let Err(what) = server.run(case) {
            failures.push(format!("{}: {what}", case.name));
        }
        let begun = Instant::now();
        assert_eq!(get(server.address, "/healthz").status, 200, "{}", case.name);
        slow += usize::from(begun.elapsed() > Duration::from_millis(100));
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // None, but for what else this machine has to do.
    assert!(slow <= cases.len() / 20, "{slow} good requests were slow");
    usual.check("the table");
    hasty.check("the table");
}

/// Sends until the server refuses to take more; returns how much it took.
fn pour(stream: &mut TcpStream, bytes: &[u8], times: usize) -> usize {
    let mut taken = 0;
    for _ in 0..times {
        if stream.write_all(bytes).is_err() {
            break;
        }
        taken += bytes.len();
    }
    taken
}

#[test]
fn more_than_any_memory_holds() {
    let server = Server::start("[http]\nbody_timeout_ms = 600000\n");
    let mut line = server.connect();
    line.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nA: ").unwrap();
    pour(&mut line, &[b'a'; 65_536], 3200);
    server.check("a header line of 200 MB");

    let mut headers = server.connect();
    headers.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
    pour(&mut headers, &b"A: b\r\n".repeat(1000), 1000);
    server.check("a million headers");

    let mut chunks = server.connect();
    let head = b"POST /services/web/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    chunks.write_all(head).unwrap();
    assert_eq!(
        pour(&mut chunks, &b"1\r\nx\r\n".repeat(1000), 1000),
        6_000_000
    );
    chunks.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    chunks.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503");
    drop(chunks);
    server.check("a million tiny chunks");

    let mut length = server.connect();
    let head =
        b"POST /services/web/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000000\r\n\r\n";
    length.write_all(head).unwrap();
    length.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    drop(length);
    server.check("a body of a petabyte");
}

#[test]
fn bodies_that_never_end_share_a_budget() {
    let server = Server::start("[http]\nbody_timeout_ms = 60000\n");
    let head = b"POST /services/web/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n";
    let mut clients: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.write_all(head).unwrap();
        client.set_nonblocking(true).unwrap();
    }
    // All but the last byte, until the server has had enough.
    let mut left = vec![1_048_575; clients.len()];
    let mut refused = vec![false; clients.len()];
    wait_until("only what fits the budget is held", || {
        for (number, client) in clients.iter_mut().enumerate() {
            let piece = vec![b'x'; left[number].min(65_536)];
            if let Ok(count) = client.write(&piece) {
                left[number] -= count;
            }
            let mut answer = [0; 12];
            match client.peek(&mut answer) {
                Ok(12) => {
                    assert_eq!(&answer, b"HTTP/1.1 503");
                    refused[number] = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Reset: the answer is lost, as the client went on to send.
                _ => refused[number] = true,
            }
        }
        refused.iter().filter(|refused| !**refused).count() <= 8
    });
    assert!(refused.contains(&false), "some fit");
    drop(clients);
    server.check("200 unfinished bodies");
}

#[test]
fn clients_that_take_their_time() {
    let server = Server::start("[http]\nhead_timeout_ms = 1500\nbody_timeout_ms = 1500\n");
    let heads = ["G", "GET / HTTP/1.1\r\nHost: x\r\nA: "];
    let body = "POST /services/web/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
    let chunks =
        "POST /services/web/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n";
    let mut clients = Vec::new();
    for begin in [heads[0], heads[1], body, chunks] {
        for _ in 0..50 {
            let mut client = server.connect();
            client.write_all(begin.as_bytes()).unwrap();
            clients.push(client);
        }
    }
    // A byte now and then doesn't buy more time.
    let mut open = vec![true; clients.len()];
    wait_until("all are sent away", || {
        for (client, open) in clients.iter_mut().zip(&mut open) {
            *open = *open && client.write_all(b"a").is_ok();
        }
        std::thread::park_timeout(Duration::from_millis(100));
        open.iter().all(|open| !open)
    });
    for mut client in clients {
        let mut answer = [0; 12];
        // A reset may have destroyed the answer, as the client went on to send.
        if client.read_exact(&mut answer).is_ok() {
            assert_eq!(&answer, b"HTTP/1.1 408");
        }
    }
    server.check("slow clients");
}

#[test]
fn clients_that_vanish() {
    let server = Server::start("[http]\nbody_timeout_ms = 1500\n");
    let whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    for number in 0..1000 {
        let mut client = server.connect();
        // With a reset instead of an end: before it was accepted, within a head, with answers to
        // come, or after one.
        let bytes: &[u8] = match number % 4 {
            0 => b"",
            1 => &whole[..20],
            _ => whole,
        };
        client.write_all(bytes).unwrap();
        if number % 4 == 3 {
            client.read_exact(&mut [0; 12]).unwrap();
        }
        SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    server.check("a thousand resets");

    // Answers that nobody reads, to as many requests as the server takes.
    let mut deaf: Vec<TcpStream> = (0..10).map(|_| server.connect()).collect();
    for client in &mut deaf {
        SockRef::from(&*client).set_recv_buffer_size(4096).unwrap();
        client.set_nonblocking(true).unwrap();
    }
    let requests = whole.repeat(1000);
    let mut full = vec![false; deaf.len()];
    wait_until("the server takes no more requests", || {
        for (client, full) in deaf.iter_mut().zip(&mut full) {
            *full = *full || client.write(&requests).is_err();
        }
        full.iter().all(|full| *full)
    });
    server.check("clients that never read");
    drop(deaf);
}
