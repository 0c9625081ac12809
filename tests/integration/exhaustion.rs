use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use recado::front::HttpLimits;
use recado::front::{Client, Front, guarded};
use recado::http::{Request, Response};

use crate::support::http::{Connection, get, get_agent};
use crate::support::process::{Process, own_command};
use crate::support::{Kind, TestBroker, free_port, local, start_agent, wait_until};

/// How many clients there may be, both ends of their connections within this machine's limits.
fn clients() -> usize {
    let limit = Command::new("sh")
        .args(["-c", "ulimit -n"])
        .output()
        .unwrap();
    let limit = String::from_utf8(limit.stdout).unwrap();
    let limit = limit.trim().parse().unwrap_or(usize::MAX);
    2_000.min(limit.saturating_sub(500))
}

/// One request on a connection of its own, from a client that is put off by nothing.
fn ask(address: SocketAddr, path: &str) -> Option<(u16, Option<String>)> {
    let mut client = Connection::open(address);
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    // Whoever is refused may be so before it has asked.
    client.try_send(request.as_bytes());
    let answer = client.try_read_answer(true)?;
    let retry_after = answer.header("retry-after").map(str::to_owned);
    Some((answer.status, retry_after))
}

#[test]
fn a_wave_of_clients_and_a_slow_upstream() {
    let broker = TestBroker::start(Kind::Embedded);
    let slow = |_: Request, _: &Client<'_>| {
        std::thread::sleep(Duration::from_millis(400));
        Response::default()
    };
    let listener = TcpListener::bind(local(0)).unwrap();
    let upstream = guarded::start(listener, HttpLimits::default(), slow).unwrap();
    let agent = start_agent(&broker, upstream.address());
    let gateway = Process::own(
        "api_1",
        &["--listen", "127.0.0.1:0", "--broker", &broker.url()],
    );
    let address = gateway.address();
    let path = "/agents/demo/slow";
    wait_until("the agent is known", || {
        get_agent(address, "demo").status == 200
    });
    let before = gateway.resources();

    let clients = clients();
    let [accepted, refused, lost] = [const { AtomicUsize::new(0) }; 3];
    let barrier = Barrier::new(clients);
    std::thread::scope(|scope| {
        for number in 0..clients {
            let (barrier, accepted, refused, lost) = (&barrier, &accepted, &refused, &lost);
            let thread = std::thread::Builder::new().stack_size(128 * 1024);
            let client = move || {
                barrier.wait();
                match ask(address, path) {
                    Some((200, _)) => accepted,
                    Some((503, Some(seconds))) if seconds == "1" => refused,
                    Some(other) => panic!("client {number}: {other:?}"),
                    // A refusal may be lost in a reset: the client went on to send.
                    None => lost,
                }
                .fetch_add(1, Ordering::SeqCst);
            };
            thread.spawn_scoped(scope, client).unwrap();
        }
    });
    let [accepted, refused, lost] = [accepted, refused, lost].map(AtomicUsize::into_inner);
    println!("{clients} clients: {accepted} accepted, {refused} refused, {lost} lost");
    // The agent has 64 workers, and the gateway 256 connections.
    assert!(accepted >= 64, "{accepted} accepted");
    assert!(
        refused + lost >= clients - 320 - accepted,
        "{refused} refused"
    );
    assert!(lost < clients / 20, "{lost} lost");

    let after = gateway.resources();
    assert!(
        after.most_memory_kib - before.memory_kib < 27 * 1024,
        "{after:?}"
    );
    assert!(after.threads < 300, "{after:?}");
    assert_eq!(get(address, path).status, 200, "as before");
    wait_until("the threads have ended", || {
        gateway.resources().threads <= before.threads + 2
    });
    agent.stop().unwrap();
    crate::http_mode::stop(Box::new(upstream));
}

/// A program whose log goes nowhere serves all the same.
fn serves_with(stderr: Stdio) {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut command = own_command("api_1");
    command.args(["--listen", &listen, "--broker", "mqtt://127.0.0.1:1"]);
    let mut child = command.stderr(stderr).spawn().unwrap();
    let address = local(port);
    wait_until("it listens", || match TcpStream::connect(address) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            false
        }
    });
    for _ in 0..100 {
        assert_eq!(get(address, "/ping").status, 503);
        assert_eq!(get(address, "/healthz").status, 200);
    }
    assert!(child.try_wait().unwrap().is_none(), "it runs");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_full_disk_does_not_stop_it() {
    serves_with(
        File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
            .into(),
    );
}

#[test]
fn a_log_that_nobody_reads_does_not_stop_it() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    serves_with(writer.into());
}

#[test]
fn a_closed_standard_error_does_not_stop_it() {
    let port = free_port();
    let script = "exec \"$0\" --listen \"$1\" --broker mqtt://127.0.0.1:1 2>&-";
    let program = own_command("api_1");
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(program.get_program());
    let process = Process::spawn(command.arg(format!("127.0.0.1:{port}")));
    wait_until("it listens", || TcpStream::connect(local(port)).is_ok());
    assert_eq!(get(local(port), "/ping").status, 503);
    assert_eq!(get(local(port), "/healthz").status, 200);
    drop(process);
}
