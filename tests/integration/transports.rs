//! Each test is a ping through the whole chain, by another way to the broker.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use recado::tools::broker::Broker;

use crate::support::bridge::{Socket, start_tls};
use crate::support::http::get;
use crate::support::process::{Certificates, Process, is_installed};
use crate::support::{
    TempFile, TestBroker, agent_settings_of, free_port, gateway_settings_of, local,
    start_agent_with, start_backend, start_gateway_with, wait_until,
};

/// A relay that writes down what clients send.
struct Recorder {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    fn start(target: SocketAddr) -> Recorder {
        let listener = TcpListener::bind(local(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&sent);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(target).unwrap();
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let written = Arc::clone(&written);
                std::thread::spawn(move || {
                    relay(from, to, |bytes| {
                        written.lock().unwrap().extend_from_slice(bytes);
                    })
                });
                std::thread::spawn(move || relay(server, client, |_| {}));
            }
        });
        Recorder { address, sent }
    }

    fn sent(&self) -> String {
        let sent = self.sent.lock().unwrap();
        sent.iter().copied().map(char::from).collect()
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, note: impl Fn(&[u8])) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        note(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// A ping where agent and gateway reach the broker at this URL, with these lines in their files.
fn ping_through(url: &str, settings: &str) {
    let backend = start_backend();
    let upstream = format!("upstream = \"http://{}\"\n", backend.address());
    let with_demo = format!("{upstream}{settings}\n{DEMO}");
    let agent = start_agent_with(agent_settings_of(url, &with_demo));
    let gateway = start_gateway_with(gateway_settings_of(url, settings));
    let answer = get(gateway.address(), "/ping");
    assert_eq!(answer.status, 200, "{answer:?}");
    gateway.stop().unwrap();
    agent.stop().unwrap();
    backend.stop().unwrap();
}

const DEMO: &str = "[[service]]
name = \"ping\"
request_topic = \"api/ping/request\"
response_topic = \"api/ping/response\"
mode = \"json\"
path = \"/ping\"
";

fn websocket_broker() -> (Broker, SocketAddr) {
    let broker = Broker::start_with(local(0), Some(local(0))).unwrap();
    let address = broker.websocket_address().unwrap();
    (broker, address)
}

#[test]
fn a_websocket() {
    let (_broker, address) = websocket_broker();
    let recorder = Recorder::start(address);
    let headers = TempFile::new("Authorization: Bearer hush\nX-Site: shed\n");
    let settings = format!("[websocket]\nheaders_file = {:?}", headers.path());
    let url = format!("ws://{}/a/path?x=y", recorder.address);
    ping_through(&url, &settings);
    let sent = recorder.sent();
    assert!(sent.starts_with("GET /a/path?x=y HTTP/1.1\r\n"), "{sent}");
    let host = recorder.address.to_string();
    for (name, value) in [
        ("sec-websocket-protocol", "mqtt"),
        ("authorization", "Bearer hush"),
        ("x-site", "shed"),
        ("host", host.as_str()),
    ] {
        let has = |line: &str| {
            let field = line.split_once(": ");
            field.is_some_and(|it| it.0.eq_ignore_ascii_case(name) && it.1 == value)
        };
        assert!(sent.lines().any(has), "{name}: {sent}");
    }
}

#[test]
fn a_websocket_below_tls() {
    let Some(files) = Certificates::make("websocket") else {
        return;
    };
    let (_broker, address) = websocket_broker();
    let [authority, certificate, key] =
        ["ca.pem", "server.pem", "server.key"].map(|name| files.file(name));
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let port = start_tls(loopback, address, &certificate, &key, &["mqtt-test"]);
    let recorder = Recorder::start(local(port));
    let url = format!("wss://localhost:{}", recorder.address.port());
    let settings = |alpn: &str| format!("[tls]\nca_file = {authority:?}\nalpn = {alpn}\n");
    ping_through(&url, &settings("[\"other\", \"mqtt-test\"]"));
    let sent = recorder.sent();
    // The names of the handshake are all that can be read (RFC 8446, section 4.2).
    assert!(sent.contains("mqtt-test") && sent.contains("localhost"));
    for secret in ["GET /", "Upgrade", "recado", "api/ping", "MQTT"] {
        assert!(!sent.contains(secret), "{secret} can be read");
    }
    // Neither with another certificate nor with another protocol.
    for (lines, why) in [
        (settings("[\"other\"]"), "NoApplicationProtocol"),
        (String::new(), "UnknownIssuer"),
    ] {
        let file = TempFile::new(&lines);
        let gateway = gateway_that_fails(&url, &file);
        gateway.wait_for_output(why);
    }
}

fn gateway_that_fails(url: &str, file: &TempFile) -> Process {
    let listen = ["--listen", "127.0.0.1:0"];
    let flags = ["--broker", url, "--config", file.path()];
    Process::own("api_1", &[&listen[..], &flags[..]].concat())
}

#[test]
fn a_unix_socket() {
    let broker = Broker::start(local(0)).unwrap();
    let socket = Socket::start(broker.address());
    ping_through(&format!("unix:{}", socket.path().display()), "");
    let nothing = TempFile::new("");
    let gateway = gateway_that_fails("unix:/nowhere/at/all", &nothing);
    gateway.wait_for_output("no connection to unix:/nowhere/at/all: No such file or directory");
}

#[test]
fn a_proxy() {
    if !is_installed("tinyproxy") {
        return;
    }
    let broker = TestBroker::start(crate::support::Kind::Embedded);
    let port = free_port();
    let file = TempFile::new(&format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 600\nLogLevel Connect\nBasicAuth me hush\nAllow 127.0.0.1\n"
    ));
    let proxy =
        Process::spawn(std::process::Command::new("tinyproxy").args(["-d", "-c", file.path()]));
    wait_until("the proxy listens", || {
        TcpStream::connect(local(port)).is_ok()
    });
    let url = broker.url();
    ping_through(
        &url,
        &format!("proxy = \"http://me:hush@127.0.0.1:{port}\""),
    );
    // It really went there.
    proxy.wait_for_output("CONNECT 127.0.0.1");
    for (proxy, why) in [
        (format!("http://me:wrong@127.0.0.1:{port}"), "401"),
        ("http://127.0.0.1:1".to_owned(), "Connection refused"),
    ] {
        let file = TempFile::new(&format!("proxy = \"{proxy}\""));
        let gateway = gateway_that_fails(&url, &file);
        gateway.wait_for_output("no connection to mqtt://");
        gateway.wait_for_output(why);
        assert!(!gateway.output().contains("wrong"), "{}", gateway.output());
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    let files: [(&str, &str); 4] = [
        (
            "broker = \"ws://a\"\n[tls]\nalpn = [\"x\"]",
            "is not mqtts:// or wss://",
        ),
        (
            "broker = \"mqtt://a\"\n[websocket]\nheaders_file = \"/dev/null\"",
            "is not ws:// or wss://",
        ),
        (
            "proxy = \"socks5://a:1\"",
            "allowed is http://[user:password@]host:port",
        ),
        (
            "broker = \"wss://a\"\n[tls]\nalpn = [\"\"]",
            "a name in alpn has 1 to 255 bytes",
        ),
    ];
    for (text, why) in files {
        let file = TempFile::new(text);
        let arguments = ["--check", "--config", file.path()];
        let (status, output) = Process::own("agent", &arguments).wait();
        assert!(!status.success(), "{output}");
        assert!(output.contains(why), "{output}");
    }
}
