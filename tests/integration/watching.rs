use std::net::SocketAddr;
use std::time::Duration;

use recado::agent::Agent;
use serde_json::Value;

use crate::support::http::{Answer, Connection, get, get_agent};
use crate::support::process::Process;
use crate::support::{
    Chain, Kind, TempFile, TestBroker, agent_settings, agent_settings_of, free_port,
    gateway_settings_of, local, start_agent, start_agent_with, start_backend, start_gateway,
    start_gateway_with, wait_until,
};

on_each_broker!(
    an_agent_says_what_it_does,
    a_stopped_agent_is_silent_and_a_killed_one_is_lost,
);

fn scrape(address: SocketAddr) -> String {
    let answer = get(address, "/metrics");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text().to_owned()
}

/// The value of a sample, name and labels as they are written.
fn sample(sheet: &str, name: &str) -> Option<f64> {
    let mut values = sheet
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    values.next().map(|value| value.parse().unwrap())
}

#[test]
fn what_is_counted_can_be_scraped() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    let address = chain.address();
    for path in [
        "/ping",
        "/ping",
        "/nowhere/a",
        "/nowhere/b",
        "/agents/nobody/x",
    ] {
        get(address, path);
    }
    let mut odd = Connection::open(address);
    odd.send(b"BREW /ping HTTP/1.1\r\nHost: x\r\n\r\n");
    odd.read_answer();
    let counted = |labels: &str| format!("recado_http_requests_total{{{labels}}}");
    let not_there = counted(r#"route="none",method="GET",code="404""#);
    wait_until("all of them have ended", || {
        let sheet = scrape(address);
        sample(&sheet, &not_there) == Some(2.0) && sheet.contains("other")
    });
    let sheet = scrape(address);
    for (labels, count) in [
        (r#"route="/ping",method="GET",code="200""#, 2.0),
        (
            r#"route="/agents/{id}/{*path}",method="GET",code="503""#,
            1.0,
        ),
        (r#"route="none",method="other",code="405""#, 1.0),
    ] {
        assert!(
            sample(&sheet, &counted(labels)) >= Some(count),
            "{labels}: {sheet}"
        );
    }
    let failed = r#"recado_request_errors_total{hop="agent",code="503"}"#;
    assert!(sample(&sheet, failed) >= Some(1.0));
    let total = r#"recado_request_duration_seconds_count{hop="upstream"}"#;
    assert_eq!(sample(&sheet, total), Some(2.0));
    let connected = format!("recado_broker_connected{{broker=\"{}\"}}", broker.url());
    for (name, value) in [
        (connected.as_str(), 1.0),
        ("recado_ready", 1.0),
        ("recado_waiting_requests", 0.0),
        ("recado_reconnects_total", 0.0),
    ] {
        assert_eq!(sample(&sheet, name), Some(value), "{name}");
    }
    assert!(sample(&sheet, "process_threads") > Some(4.0));
    let mut client = Connection::open(address);
    client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n");
    let open = client.read_answer();
    assert!(
        open.header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(open.text().ends_with("# EOF\n"));
    chain.stop();
}

fn agent_of<'a>(document: &'a Value, id: &str) -> Option<&'a Value> {
    let agents = document["agents"].as_array().unwrap();
    agents.iter().find(|agent| agent["id"] == id)
}

fn an_agent_says_what_it_does(kind: Kind) {
    let broker = TestBroker::start(kind);
    let port = free_port();
    let gateway = start_gateway(&broker);
    let address = gateway.address();
    let text = format!(
        "id = \"shed\"\nupstream = \"http://127.0.0.1:{port}\"\nstats_ms = 500\nupstream_check_ms = 500\n[direct]\n"
    );
    let mut settings = agent_settings_of(&broker.url(), &text);
    settings.upstream_check = Some(Duration::from_millis(500));
    let agent = start_agent_with(settings);
    let shed = || agent_of(&get(address, "/agents").json(), "shed").cloned();
    let direct = |agent: &Value| agent["upstreams"][0].clone();
    wait_until("its upstream is known to be away", || {
        shed().is_some_and(|agent| direct(&agent)["accepts"] == false)
    });
    let away = direct(&shed().unwrap());
    assert!(away["why"].as_str().unwrap().contains("refused"), "{away}");
    let accepts = r#"recado_agent_upstream_accepts{agent="shed",service="direct"}"#;
    assert_eq!(sample(&scrape(address), accepts), Some(0.0));
    let backend = recado::tools::backend::Backend::start(local(port)).unwrap();
    wait_until(
        "its upstream is known to be back, though nobody called it",
        || direct(&shed().unwrap())["accepts"] == true,
    );
    assert_eq!(get(address, "/agents/shed/nothing").status, 404);
    wait_until("what it did is known", || shed().unwrap()["requests"] == 1);
    let known = get_agent(address, "shed").json();
    assert_eq!(
        (&known["state"], &known["queued"]),
        (&"ready".into(), &0.into())
    );
    assert!(known["last_seen_ms"].as_u64().unwrap() < 10_000);
    let requests = r#"recado_agent_requests_total{agent="shed"}"#;
    assert_eq!(sample(&scrape(address), requests), Some(1.0));
    assert_eq!(
        sample(&scrape(address), r#"recado_agents{state="ready"}"#),
        Some(1.0)
    );
    agent.stop().unwrap();
    wait_until("it has left", || shed().is_none());
    assert!(!scrape(address).contains("shed"), "no label of it is left");
    let lost = get(address, "/agents").json()["lost"].clone();
    assert_eq!(lost, Value::Array(Vec::new()), "it said goodbye");
    gateway.stop().unwrap();
    backend.stop().unwrap();
}

fn a_stopped_agent_is_silent_and_a_killed_one_is_lost(kind: Kind) {
    let broker = TestBroker::start(kind);
    let gateway = start_gateway(&broker);
    let address = gateway.address();
    // So that the broker does not notice it before.
    let file = TempFile::new("id = \"shed\"\nstats_ms = 500\nkeep_alive_s = 3600\n");
    let mut agent = Process::own(
        "agent",
        &["--broker", &broker.url(), "--config", file.path()],
    );
    let state = || {
        let document = get(address, "/agents").json();
        agent_of(&document, "shed").map(|agent| agent["state"].clone())
    };
    wait_until("it is there", || state() == Some("ready".into()));
    agent.signal("STOP");
    wait_until("it is silent", || state() == Some("silent".into()));
    let silent = r#"recado_agents{state="silent"}"#;
    assert_eq!(sample(&scrape(address), silent), Some(1.0));
    agent.signal("CONT");
    wait_until("it is back", || state() == Some("ready".into()));
    agent.kill();
    wait_until("it is gone", || state().is_none());
    let lost = get(address, "/agents").json()["lost"].clone();
    assert_eq!(lost[0]["agent"], "shed");
    let again = Process::own(
        "agent",
        &["--broker", &broker.url(), "--config", file.path()],
    );
    wait_until("another one is there", || state() == Some("ready".into()));
    assert_eq!(
        get(address, "/agents").json()["lost"],
        Value::Array(Vec::new())
    );
    drop(again);
    gateway.stop().unwrap();
}

#[test]
fn an_agent_tells_who_asks_through_the_broker_how_it_is() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let agent = start_agent(&broker, backend.address());
    let ask = |id: &str, url: &str| {
        let arguments = ["--health", "--broker", url, "--id", id];
        Process::own("agent", &arguments).wait()
    };
    let (status, output) = ask("demo", &broker.url());
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(
        output.contains("agent demo: 0 in work, 0 queued"),
        "{output}"
    );
    let (status, output) = ask("nobody", &broker.url());
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("agent nobody does not answer"), "{output}");
    let absent = format!("mqtt://127.0.0.1:{}", free_port());
    let (status, output) = ask("demo", &absent);
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("cannot reach the broker"), "{output}");
    agent.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn a_gateway_tells_who_asks_at_its_address_whether_it_is_ready() {
    let broker = TestBroker::absent(Kind::Embedded);
    let port = free_port();
    // Where it listens everywhere it is asked on this machine.
    let listen = format!("0.0.0.0:{port}");
    let ask = |listen: &str| Process::own("api_1", &["--health", "--listen", listen]).wait();
    let (status, output) = ask(&listen);
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("Connection refused"), "{output}");

    let gateway = Process::own("api_1", &["--listen", &listen, "--broker", &broker.url()]);
    gateway.wait_for_output("listening on");
    let (status, output) = ask(&listen);
    assert_eq!(status.code(), Some(1), "{output}");
    let reason = "is not ready: there is no connection to the broker";
    assert!(output.contains(reason), "{output}");
    broker.start_again();
    gateway.wait_for_output("ready as gateway");
    let (status, output) = ask(&listen);
    assert_eq!(status.code(), Some(0), "{output}");
    assert_eq!(output, format!("gateway at 127.0.0.1:{port}: ready\n"));

    // Something else has the port.
    let backend = start_backend();
    let (status, output) = ask(&backend.address().to_string());
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("is no gateway"), "{output}");
    backend.stop().unwrap();
}

/// One who reads events.
struct Viewer(Connection);

impl Viewer {
    fn open(address: SocketAddr, fields: &str) -> (Viewer, Answer) {
        let mut client = Connection::open(address);
        client.send(format!("GET /events HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes());
        let with_body = false;
        let answer = client.try_read_answer(with_body).unwrap();
        (Viewer(client), answer)
    }

    /// The data of the next event with this name; `None`: there are no more.
    fn next(&mut self, name: &str) -> Option<Value> {
        loop {
            let chunk = self.0.read_chunk().unwrap()?;
            for event in String::from_utf8(chunk).unwrap().split("\n\n") {
                let wanted = format!("event: {name}\ndata: ");
                if let Some(data) = event.strip_prefix(&wanted) {
                    return Some(serde_json::from_str(data).unwrap());
                }
            }
        }
    }
}

#[test]
fn who_looks_sees_each_request_as_it_happens() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    let address = chain.address();
    let (mut viewer, answer) = Viewer::open(address, "");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let hello = viewer.next("hello").unwrap();
    assert_eq!(hello["ping"], true);
    let state = viewer.next("state").unwrap();
    assert_eq!(
        (&state["connected"], &state["viewers"]),
        (&true.into(), &1.into())
    );
    assert_eq!(state["agents"][0]["id"], "demo");
    get(address, "/ping?ask=hush");
    let ended = viewer.next("ended").unwrap();
    assert_eq!(
        (&ended["status"], &ended["hop"]),
        (&400.into(), &"upstream".into())
    );
    assert_eq!(ended["target"], "/ping?ask=hush");
    assert_eq!(
        (&ended["agent"], &ended["topic"]),
        (&"demo".into(), &"api/ping/request".into())
    );
    assert_eq!(ended["correlation"].as_str().unwrap().len(), 32);
    let shares = ended["ms"].as_object().unwrap();
    for hop in ["total", "gateway", "broker", "queue", "upstream"] {
        assert!(shares[hop].is_f64(), "{ended}");
    }
    get(address, "/agents/nobody/x");
    let failed = viewer.next("ended").unwrap();
    assert_eq!(
        (&failed["status"], &failed["hop"]),
        (&503.into(), &"agent".into())
    );
    assert!(failed["detail"].as_str().unwrap().contains("no agent"));
    // There is a place for so many, and each that goes makes one.
    let others: Vec<_> = (1..16).map(|_| Viewer::open(address, "")).collect();
    assert!(others.iter().all(|(_, answer)| answer.status == 200));
    assert_eq!(get(address, "/events").status, 503);
    drop(others);
    wait_until("there is a place again", || {
        Viewer::open(address, "").1.status == 200
    });
    chain.stop();
    while viewer.next("state").is_some() {}
}

#[test]
fn the_page_is_the_gateways_own_and_nobody_elses() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    let page = get(chain.address(), "/");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let mut client = Connection::open(chain.address());
    for path in ["/", "/events", "/metrics"] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: demo.localhost\r\n\r\n").as_bytes());
        assert_eq!(
            client.read_answer().status,
            404,
            "{path}: what the agent's service says"
        );
    }
    chain.stop();
    // Whoever has routes there keeps them.
    let text = "[[route]]\npath = \"/{*path}\"\nmode = \"http\"\nrequest_topic = \"recado/agents/demo/request\"\n";
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), text));
    for path in ["/", "/events", "/metrics"] {
        assert_eq!(
            get(gateway.address(), path).status,
            503,
            "{path}: no agent is there"
        );
    }
    gateway.stop().unwrap();
}

#[test]
fn nothing_is_shown_to_who_may_not_ask() {
    let broker = TestBroker::start(Kind::Embedded);
    let tokens = TempFile::new("anna 0123456789abcdef\n");
    let text = format!("[access]\ntokens_file = {:?}\n", tokens.path());
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), &text));
    let address = gateway.address();
    for path in ["/agents", "/events", "/metrics"] {
        let answer = get(address, path);
        assert_eq!(answer.status, 401, "{path}");
        assert!(!answer.text().contains("mqtt://"), "{path}");
    }
    // It asks for a token, and shows nothing of its own.
    assert_eq!(get(address, "/").status, 200);
    let field = "Authorization: Bearer 0123456789abcdef\r\n";
    let (_, answer) = Viewer::open(address, field);
    assert_eq!(answer.status, 200);
    gateway.stop().unwrap();
    // Who may call need not be one who may look.
    std::fs::write(
        tokens.path(),
        "anna 0123456789abcdef\nben fedcba9876543210\n",
    )
    .unwrap();
    let text = format!("{text}monitors = [\"ben\"]\n");
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), &text));
    let status = |field: &str| Viewer::open(gateway.address(), field).1.status;
    assert_eq!(status(field), 403);
    assert_eq!(status("Authorization: Bearer fedcba9876543210\r\n"), 200);
    gateway.stop().unwrap();
    // A browser asks for a password by itself, once the page wants one.
    let users = TempFile::new("ben:$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe\n");
    let text = format!("[access]\nusers_file = {:?}\n", users.path());
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), &text));
    let page = get(gateway.address(), "/");
    assert_eq!(page.status, 401);
    assert!(
        page.header("www-authenticate")
            .unwrap()
            .starts_with("Basic")
    );
    gateway.stop().unwrap();
}

#[test]
fn an_agent_without_statistics_is_there_without_figures() {
    let broker = TestBroker::start(Kind::Embedded);
    let gateway = start_gateway(&broker);
    let backend = start_backend();
    let mut settings = agent_settings(&broker.url(), backend.address());
    settings.stats = None;
    let agent = Agent::start(settings).unwrap();
    wait_until("it is there", || {
        get_agent(gateway.address(), "demo").status == 200
    });
    let known = get_agent(gateway.address(), "demo").json();
    assert_eq!(
        (&known["state"], known.get("requests")),
        (&"ready".into(), None)
    );
    agent.stop().unwrap();
    gateway.stop().unwrap();
    backend.stop().unwrap();
}
