use std::os::unix::net::UnixDatagram;

use serde_json::Value;

use crate::support::http::{Connection, get, get_agent};
use crate::support::process::{Process, own_command};
use crate::support::{Kind, PATIENCE, TestBroker, start_backend, wait_until};

/// The lines of a program's log that are requests, as objects.
fn access_lines(process: &Process) -> Vec<Value> {
    let lines = process.output();
    let objects = lines.lines().map(|line| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("no object: {line}"))
    });
    objects
        .filter(|object| object.get("request_id").is_some())
        .collect()
}

#[test]
fn every_request_is_one_line_with_its_id_on_both_sides() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let upstream = format!("http://{}", backend.address());
    let own = |program: &str, arguments: &[&str]| {
        let mut command = own_command(program);
        command.env("RECADO_LOG_FORMAT", "json");
        Process::spawn(command.args(["--broker", &broker.url()]).args(arguments))
    };
    let gateway = own("api_1", &["--listen", "127.0.0.1:0"]);
    let agent = own("agent", &["--upstream", &upstream, "--demo"]);
    let address = {
        let mut found = None;
        wait_until("it says where it listens", || {
            let output = gateway.output();
            let rest = output
                .split_once("listening on http://")
                .map(|(_, rest)| rest);
            found = rest.map(|rest| rest.split('"').next().unwrap().parse().unwrap());
            found.is_some()
        });
        found.unwrap()
    };
    wait_until("the agent is there", || {
        get_agent(address, "demo").status == 200
    });
    let ask = |target: &str, id: &str| {
        let mut client = Connection::open(address);
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n"
        );
        client.send(head.as_bytes());
        client.read_answer()
    };
    let all = [
        ("/ping", "id-ping", 200, "upstream"),
        ("/agents/demo/nothing?a=b", "id-http", 404, "upstream"),
        ("/agents/nobody/", "id-nobody", 503, "agent"),
        ("/no%22thing", "id-stranger", 404, "gateway"),
    ];
    let sizes: Vec<usize> = all
        .iter()
        .map(|(target, id, status, _)| {
            let answer = ask(target, id);
            assert_eq!(answer.status, *status);
            answer.body.len()
        })
        .collect();
    let mut client = Connection::open(address);
    client.send(b"GET / HTTP/1.1\r\nHost : x y\r\n\r\n");
    assert_eq!(client.read_answer().status, 400);
    let mut lines = Vec::new();
    wait_until("all lines are written", || {
        lines = access_lines(&gateway);
        let has = |member: &str, value: Value| lines.iter().any(|line| line[member] == value);
        let all = all
            .iter()
            .all(|(_, id, ..)| has("request_id", (*id).into()));
        all && has("status", 400.into()) && has("level", "WARN".into())
    });
    for ((target, id, status, hop), size) in all.into_iter().zip(sizes) {
        let mut own = lines.iter().filter(|line| line["request_id"] == id);
        let line = own.find(|line| line["level"] == "INFO").unwrap();
        assert_eq!(line["client"], "127.0.0.1", "{line}");
        assert_eq!(line["method"], "GET");
        assert_eq!(line["target"], target);
        assert_eq!(line["status"], status);
        assert_eq!(line["hop"], hop);
        assert_eq!(line["bytes_out"], size);
        assert_eq!(line["bytes_in"], 0);
        assert!(line["duration_ms"].as_f64().unwrap() > 0.0);
        assert_eq!(line.get("detail").is_some(), hop != "upstream", "{line}");
        let agent = if hop == "upstream" { "demo" } else { "nobody" };
        assert!(line.get("agent").is_none_or(|it| it == agent), "{line}");
        // A stranger's mistake is nothing to act on; a missing agent is.
        let warned = lines
            .iter()
            .any(|line| line["level"] == "WARN" && line["request_id"] == id);
        assert_eq!(warned, status == 503, "{id}");
    }
    let refused = lines.iter().find(|line| line["status"] == 400).unwrap();
    assert_eq!(
        (&refused["method"], &refused["level"]),
        (&"-".into(), &"INFO".into())
    );
    let output = agent.output();
    for id in ["id-ping", "id-http"] {
        let line = output.lines().find(|line| line.contains(id)).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["request_id"], id);
        assert!(
            line["status"].is_u64() && line["upstream_ms"].is_f64(),
            "{line}"
        );
    }
}

#[test]
fn warnings_that_repeat_themselves_are_counted() {
    let broker = TestBroker::start(Kind::Embedded);
    let gateway = Process::own(
        "api_1",
        &["--listen", "127.0.0.1:0", "--broker", &broker.url()],
    );
    let address = gateway.address();
    wait_until("it is ready", || get(address, "/readyz").status == 200);
    let mut client = Connection::open(address);
    for _ in 0..200 {
        assert_eq!(client.get("/agents/nobody/x").status, 503);
    }
    gateway.signal("TERM");
    let (_, output) = gateway.wait();
    let lines = output.lines();
    let warned = lines
        .clone()
        .filter(|line| line.contains("WARN") && line.contains(": 503 at the"));
    assert!(warned.count() < 30, "{output}");
    assert!(output.contains(" more like this: request "), "{output}");
    let access = lines.filter(|line| line.contains("\"GET /agents/nobody/x\" 503"));
    assert_eq!(access.count(), 200, "each has its line all the same");
}

#[test]
fn systemd_is_told_how_a_program_is() {
    let broker = TestBroker::absent(Kind::Embedded);
    let path = std::env::temp_dir().join(format!("recado-notify-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = |what: &str| {
        let mut message = [0; 1024];
        loop {
            let count = socket
                .recv(&mut message)
                .unwrap_or_else(|why| panic!("{what}: {why}"));
            let text = String::from_utf8_lossy(&message[..count]).into_owned();
            if text.contains(what) {
                return text;
            }
        }
    };
    let mut command = own_command("api_1");
    let command = command.env("NOTIFY_SOCKET", &path);
    let arguments = ["--listen", "127.0.0.1:0", "--broker", &broker.url()];
    let gateway = Process::spawn(command.args(arguments));
    told("READY=1");
    told("STATUS=not ready: there is no connection to the broker");
    told("WATCHDOG=1");
    broker.start_again();
    told("STATUS=ready");
    gateway.signal("HUP");
    assert!(told("RELOADING=1").contains("MONOTONIC_USEC="));
    told("READY=1");
    gateway.signal("TERM");
    told("STOPPING=1");
    assert!(gateway.wait().0.success());
    std::fs::remove_file(&path).unwrap();
}
