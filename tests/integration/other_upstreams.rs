use crate::failures::problem;
use crate::streams::content;
use crate::support::bridge::{Socket, start_tls};
use crate::support::http::{Connection, get};
use crate::support::process::Certificates;
use crate::support::upstream::{RawUpstream, Visit};
use crate::support::{Kind, TestBroker, agent_settings_of, start_agent_with, start_gateway};

/// Sends back what it gets: a body in chunks, `/N` bytes, or whatever comes once it is upgraded.
fn serve(mut visit: Visit) {
    while let Some(head) = visit.head() {
        let fields = head.to_ascii_lowercase();
        if fields.contains("upgrade: echo") {
            visit.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n",
            );
            let mut bytes = [0; 4096];
            loop {
                match visit.read_some(&mut bytes) {
                    0 => return visit.shut_down_sending(),
                    count => visit.send(&bytes[..count]),
                }
            }
        }
        let body = match fields.contains("transfer-encoding: chunked") {
            true => visit.read_chunks().unwrap(),
            false => {
                let path = head.split(' ').nth(1).unwrap();
                content(path[1..].parse().unwrap())
            }
        };
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
        visit.send(&body);
    }
}

/// Everything that can be asked of an upstream reaches one that is at this URL.
fn all_of_it_works(settings: &str) {
    let broker = TestBroker::start(Kind::Embedded);
    let agent = start_agent_with(agent_settings_of(&broker.url(), settings));
    let gateway = start_gateway(&broker);
    let mut client = Connection::open(gateway.address());
    for length in [0, 1, 1000, 65_536, 65_537, 3_000_000] {
        for _ in 0..2 {
            let answer = client.get(&format!("/agents/demo/{length}"));
            assert!(
                answer.body == content(length),
                "{length}: {}",
                answer.body.len()
            );
        }
    }
    let body = content(1_000_000);
    client.send(b"POST /agents/demo/x HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in body.chunks(30_000) {
        client.send(format!("{:x}\r\n", part.len()).as_bytes());
        client.send(part);
        client.send(b"\r\n");
    }
    client.send(b"0\r\n\r\n");
    assert!(client.read_answer().body == body);
    client.send(
        b"GET /agents/demo/x HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
    );
    assert_eq!(client.try_read_answer(false).unwrap().status, 101);
    for length in [1, 5000, 70_000] {
        let sent = content(length);
        client.send(&sent);
        assert!(client.read_bytes(length).unwrap() == sent);
    }
    client.shut_down_sending();
    assert_eq!(client.read_to_end().unwrap(), b"");
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

#[test]
fn a_unix_socket_is_an_upstream() {
    let upstream = RawUpstream::start(serve);
    let socket = Socket::start(upstream.address());
    all_of_it_works(&format!("upstream = \"unix:{}\"", socket.path().display()));
}

#[test]
fn a_socket_that_is_not_there_is_named() {
    let broker = TestBroker::start(Kind::Embedded);
    let settings = "upstream = \"unix:/nowhere/app.sock\"";
    let agent = start_agent_with(agent_settings_of(&broker.url(), settings));
    let gateway = start_gateway(&broker);
    let answer = get(gateway.address(), "/agents/demo/x");
    let detail = problem(&answer, 502, "upstream", "not-executed");
    assert!(
        detail.contains("/nowhere/app.sock: No such file"),
        "{detail}"
    );
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

const HERE: [u8; 4] = [127, 0, 0, 1];

fn start_secure(files: &Certificates, at: [u8; 4], upstream: &RawUpstream) -> u16 {
    let (certificate, key) = (files.file("server.pem"), files.file("server.key"));
    start_tls(at.into(), upstream.address(), &certificate, &key, &[])
}

#[test]
fn an_upstream_with_tls_is_one_as_any() {
    let Some(certificates) = Certificates::make("whole") else {
        return;
    };
    let upstream = RawUpstream::start(serve);
    let port = start_secure(&certificates, HERE, &upstream);
    let ca_file = certificates.file("ca.pem");
    all_of_it_works(&format!(
        "upstream = \"https://localhost:{port}\"\nupstream_ca_file = {ca_file:?}"
    ));
}

#[test]
fn who_is_at_an_upstream_with_tls_is_checked_unless_told_otherwise() {
    let Some(certificates) = Certificates::make("checked") else {
        return;
    };
    let upstream = RawUpstream::start(serve);
    let secure = start_secure(&certificates, HERE, &upstream);
    let elsewhere = start_secure(&certificates, [127, 0, 0, 2], &upstream);
    let unencrypted = RawUpstream::start(|mut visit| {
        visit.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        visit.wait_for_close();
    });
    let plain = unencrypted.address().port();
    let ca_file = certificates.file("ca.pem");
    let trusted = format!("upstream_ca_file = {ca_file:?}");
    let broker = TestBroker::start(Kind::Embedded);
    for (url, further, expected) in [
        (
            format!("https://localhost:{secure}"),
            trusted.as_str(),
            None,
        ),
        (format!("https://127.0.0.1:{secure}"), &trusted, None),
        (
            format!("https://localhost:{secure}"),
            "upstream_verify = false",
            None,
        ),
        (
            format!("https://127.0.0.2:{elsewhere}"),
            &trusted,
            Some("another name"),
        ),
        (
            format!("https://localhost:{secure}"),
            "",
            Some("upstream_ca_file"),
        ),
        (
            format!("https://localhost:{plain}"),
            &trusted,
            Some("does not speak TLS"),
        ),
    ] {
        let settings = format!("upstream = \"{url}\"\n{further}");
        let agent = start_agent_with(agent_settings_of(&broker.url(), &settings));
        let gateway = start_gateway(&broker);
        let answer = get(gateway.address(), "/agents/demo/10");
        match expected {
            None => assert_eq!(answer.status, 200, "{settings}: {}", answer.text()),
            Some(hint) => {
                let detail = problem(&answer, 502, "upstream", "not-executed");
                assert!(detail.contains(hint), "{settings}: {detail}");
            }
        }
        gateway.stop().unwrap();
        agent.stop().unwrap();
    }
}
