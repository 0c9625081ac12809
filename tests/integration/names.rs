use std::net::SocketAddr;

use recado::agent::{Agent, AgentSettings, HostHeader, ServiceMode};
use recado::front::FrontKind;

use crate::failures::problem;
use crate::support::http::{Answer, Connection};
use crate::support::upstream::RawUpstream;
use crate::support::{
    Kind, TestBroker, agent_settings, agent_settings_of, gateway_settings, gateway_settings_of,
    start_agent_with, start_gateway, start_gateway_with,
};

on_each_broker!(an_agent_is_reached_by_its_name);

/// Answers with the name of the agent that it stands behind, and the request as it came.
fn echo(name: &'static str) -> RawUpstream {
    RawUpstream::choosing(move |head| {
        let body = format!("{name}\n{}", head.to_ascii_lowercase());
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    })
}

fn start_agent(broker: &TestBroker, id: &str, upstream: &RawUpstream) -> Agent {
    let settings = agent_settings_of(
        &broker.url(),
        &format!(
            "id = \"{id}\"\nupstream = \"http://{}\"",
            upstream.address()
        ),
    );
    start_agent_with(settings)
}

/// What somebody gets who asks for this target with this field Host.
fn ask(address: SocketAddr, target: &str, host: &str) -> Answer {
    let mut client = Connection::open(address);
    client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
    client.read_answer()
}

fn an_agent_is_reached_by_its_name(kind: Kind) {
    let broker = TestBroker::start(kind);
    let (demo, shed) = (echo("demo"), echo("shed"));
    let agents = [
        start_agent(&broker, "demo", &demo),
        start_agent(&broker, "shed.lan", &shed),
    ];
    let gateway = start_gateway_with(gateway_settings_of(
        &broker.url(),
        "[[host]]\nname = \"*.localhost\"\n[[host]]\nname = \"shed.lan\"\nagent = \"shed.lan\"",
    ));
    let address = gateway.address();
    for (host, name) in [
        ("demo.localhost", "demo"),
        ("Demo.LOCALHOST:5000", "demo"),
        ("demo.localhost.:80", "demo"),
        ("shed.lan:5000", "shed"),
    ] {
        // The gateway's own paths are the agent's here.
        for target in [
            "/a%2Fb?c=/d",
            "/",
            "/healthz",
            "/readyz",
            "/agents",
            "/agents/demo/x",
        ] {
            let answer = ask(address, target, host);
            let host = host.to_ascii_lowercase();
            let text = answer.text();
            assert!(
                text.starts_with(&format!("{name}\nget {}", target.to_ascii_lowercase())),
                "{text}"
            );
            assert!(text.contains(&format!("\r\nhost: {host}\r\n")), "{text}");
            assert!(
                text.contains(&format!("\r\nx-forwarded-host: {host}\r\n")),
                "{text}"
            );
            assert!(!text.contains("x-forwarded-prefix"), "{text}");
        }
    }
    problem(
        &ask(address, "/", "nobody.localhost"),
        503,
        "agent",
        "not-executed",
    );
    problem(
        &ask(address, "/", "a+b.localhost"),
        404,
        "gateway",
        "not-executed",
    );
    // By its path it is told the address that its settings name.
    let below = ask(address, "/agents/demo/x", "localhost:5000");
    let host = format!("\r\nhost: {}\r\n", demo.address());
    assert!(below.text().contains(&host), "{}", below.text());
    assert!(
        below
            .text()
            .contains("\r\nx-forwarded-prefix: /agents/demo\r\n"),
        "{}",
        below.text()
    );
    gateway.stop().unwrap();
    for agent in agents {
        agent.stop().unwrap();
    }
}

#[test]
fn no_trick_with_a_name_reaches_an_agent() {
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = echo("demo");
    let agent = start_agent(&broker, "demo", &upstream);
    for front in [FrontKind::Guarded, FrontKind::TinyHttp] {
        let mut settings = gateway_settings(&broker.url());
        settings.front = front;
        let gateway = start_gateway_with(settings);
        let send = |head: &str| {
            let mut client = Connection::open(gateway.address());
            client.send(head.as_bytes());
            client.read_answer()
        };
        let get = |target: &str, host: &str| {
            send(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
        };
        assert_eq!(get("/secret", "demo.localhost").status, 200, "{front:?}");
        for host in [
            "demo.localhost.evil.example",
            "x.demo.localhost",
            "demo.localhost..",
            "demo-localhost",
            "localhost",
            "127.0.0.1",
            "[::1]",
        ] {
            assert_eq!(get("/secret", host).status, 404, "{front:?} {host}");
        }
        // What is absolute counts, whatever Host says (RFC 9112, section 3.2.2).
        let absolute = get("http://demo.localhost:5000/secret", "other.example");
        assert_eq!(absolute.status, 200, "{front:?}");
        let absolute = get("http://other.example/secret", "demo.localhost");
        assert_eq!(absolute.status, 404, "{front:?}");
        let twice = "GET /secret HTTP/1.1\r\nHost: demo.localhost\r\nHost: other.example\r\n\r\n";
        assert!([400, 421].contains(&send(twice).status), "{front:?}");
        let own_word = "GET /secret HTTP/1.1\r\nHost: other.example\r\nX-Forwarded-Host: demo.localhost\r\nForwarded: host=demo.localhost\r\n\r\n";
        assert_eq!(send(own_word).status, 404, "{front:?}");
        gateway.stop().unwrap();
    }
    agent.stop().unwrap();
}

#[test]
fn a_strict_gateway_answers_to_its_own_names_only() {
    let broker = TestBroker::start(Kind::Embedded);
    let gateway = start_gateway_with(gateway_settings_of(
        &broker.url(),
        "strict_hosts = true\n[[host]]\nname = \"test\"\n[[host]]\nname = \"gate.example\"\n[[host]]\nname = \"shop.example\"\nservice = \"shop\"\nmethods = [\"GET\"]",
    ));
    let address = gateway.address();
    for host in ["gate.example", "127.0.0.1:5000", "localhost", "[::1]:1"] {
        assert_eq!(ask(address, "/healthz", host).status, 200, "{host}");
    }
    for host in ["other.example", "demo.localhost"] {
        problem(
            &ask(address, "/healthz", host),
            421,
            "gateway",
            "not-executed",
        );
    }
    problem(
        &ask(address, "/healthz", "shop.example"),
        503,
        "agent",
        "not-executed",
    );
    let mut client = Connection::open(address);
    client.send(b"PUT / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.read_answer().status, 405);
    gateway.stop().unwrap();
}

#[test]
fn whoever_has_routes_of_his_own_has_no_other_names() {
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = echo("demo");
    let agent = start_agent(&broker, "demo", &upstream);
    let gateway = start_gateway_with(gateway_settings_of(
        &broker.url(),
        "[[route]]\npath = \"/only/{*path}\"\nmode = \"http\"\nrequest_topic = \"recado/agents/demo/request\"",
    ));
    assert_eq!(ask(gateway.address(), "/x", "demo.localhost").status, 404);
    assert_eq!(
        ask(gateway.address(), "/only/x", "demo.localhost").status,
        200
    );
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

/// An upstream that speaks of itself: by its address, by the host that it was told, by paths.
fn speaking() -> RawUpstream {
    RawUpstream::choosing(|head| {
        let field = |name: &str| {
            let line = head
                .lines()
                .find(|line| line.to_ascii_lowercase().starts_with(name));
            line.map(|line| line.split_once(": ").unwrap().1.to_owned())
        };
        let host = field("host:").unwrap();
        let location = match head.split(' ').nth(1).unwrap() {
            "/by-host" => format!("http://{host}/docs/"),
            "/by-path" => "/docs/".to_owned(),
            "/relative" => "docs/".to_owned(),
            "/elsewhere" => "https://other.example/docs/".to_owned(),
            _ => format!("{}/docs/", field("x-forwarded-prefix:").unwrap_or_default()),
        };
        format!(
            "HTTP/1.1 302 Found\r\nLocation: {location}\r\nSet-Cookie: a=b; Path=/\r\nSet-Cookie: c=d; Domain=localhost\r\nContent-Length: 0\r\n\r\n"
        )
    })
}

#[test]
fn what_an_application_says_of_itself_leads_back_to_it() {
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = speaking();
    let set = |host_header: HostHeader| {
        let mut settings: AgentSettings = agent_settings(&broker.url(), upstream.address());
        for service in &mut settings.services {
            if let ServiceMode::Http(mode) = &mut service.mode {
                mode.host_header = host_header.clone();
            }
        }
        settings
    };
    let fixed = HostHeader::Fixed("app.example".parse().unwrap());
    for host_header in [
        HostHeader::Named,
        HostHeader::Upstream,
        HostHeader::Caller,
        fixed,
    ] {
        let agent = start_agent_with(set(host_header.clone()));
        let gateway = start_gateway(&broker);
        let address = gateway.address();
        let location = |target: &str, host: &str| {
            let answer = ask(address, target, host);
            let cookies: Vec<_> = answer
                .headers()
                .iter()
                .filter(|(name, _)| name == "set-cookie")
                .map(|(_, value)| value.clone())
                .collect();
            (answer.header("location").unwrap().to_owned(), cookies)
        };
        let cookies = |path: &str| vec![format!("a=b; Path={path}"), "c=d".to_owned()];
        let caller = host_header == HostHeader::Caller;
        for (target, expected) in [
            ("by-path", "/agents/demo/docs/"),
            ("by-prefix", "/agents/demo/docs/"),
            ("relative", "docs/"),
            ("elsewhere", "https://other.example/docs/"),
            (
                "by-host",
                match caller {
                    true => "http://gate.example:5000/agents/demo/docs/",
                    false => "/agents/demo/docs/",
                },
            ),
        ] {
            let found = location(&format!("/agents/demo/{target}"), "gate.example:5000");
            assert_eq!(
                found,
                (expected.to_owned(), cookies("/agents/demo/")),
                "{host_header:?}"
            );
        }
        let is_named = caller || host_header == HostHeader::Named;
        let by_host = match is_named {
            true => "http://demo.localhost:5000/docs/",
            false => "/docs/",
        };
        let found = location("/by-host", "demo.localhost:5000");
        assert_eq!(found, (by_host.to_owned(), cookies("/")), "{host_header:?}");
        gateway.stop().unwrap();
        agent.stop().unwrap();
    }
}

#[test]
fn who_wants_no_rewriting_gets_none() {
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = speaking();
    let agent = start_agent_with(agent_settings_of(
        &broker.url(),
        &format!(
            "upstream = \"http://{}\"\n[direct]\nrewrite = false",
            upstream.address()
        ),
    ));
    let gateway = start_gateway_with(gateway_settings_of(
        &broker.url(),
        "[[route]]\npath = \"/agents/{id}/{*path}\"\nmode = \"http\"\nrequest_topic = \"recado/agents/{id}/request\"\nrewrite = false",
    ));
    let location = |target: &str| {
        let answer = ask(gateway.address(), target, "gate.example");
        answer.header("location").unwrap().to_owned()
    };
    assert_eq!(location("/agents/demo/by-path"), "/docs/");
    assert_eq!(location("/agents/demo/by-prefix"), "/docs/");
    assert_eq!(
        location("/agents/demo/by-host"),
        format!("http://{}/docs/", upstream.address())
    );
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

#[test]
fn a_request_in_a_circle_ends() {
    let broker = TestBroker::start(Kind::Embedded);
    let gateway = start_gateway(&broker);
    let agent = start_agent_with(agent_settings_of(
        &broker.url(),
        &format!("upstream = \"http://{}/agents/demo\"", gateway.address()),
    ));
    let answer = ask(gateway.address(), "/agents/demo/x", "t");
    let detail = problem(&answer, 508, "gateway", "not-executed");
    assert!(detail.contains("upstream"), "{detail}");
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

#[test]
fn via_is_sent_where_it_is_asked_for() {
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = echo("demo");
    let agent = start_agent(&broker, "demo", &upstream);
    for (text, is_sent) in [("", false), ("via = true", true)] {
        let gateway = start_gateway_with(gateway_settings_of(&broker.url(), text));
        let answer = ask(gateway.address(), "/agents/demo/x", "t");
        assert_eq!(answer.text().contains("\r\nvia: 1.1 recado\r\n"), is_sent);
        assert_eq!(answer.header("via"), Some("1.1 recado"));
        gateway.stop().unwrap();
    }
    agent.stop().unwrap();
}
