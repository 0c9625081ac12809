use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use recado::agent::{Allow, HttpMode, ServiceMode};
use recado::front::HttpLimits;
use recado::front::{Client, Front, guarded};
use recado::http::Request;

use crate::http_mode::{answer, ask, start_upstream, stop};
use crate::support::http::get;
use crate::support::{
    Kind, TestBroker, agent_settings, agent_settings_of, local, start_agent, start_agent_with,
    start_gateway, wait_until,
};

on_each_broker!(agents_share_a_service);

fn agents_share_a_service(kind: Kind) {
    let broker = TestBroker::start(kind);
    let gateways = [start_gateway(&broker), start_gateway(&broker)];
    let counters: [Arc<AtomicUsize>; 3] = Default::default();
    let mut agents = Vec::new();
    let mut upstreams = Vec::new();
    for (number, counter) in counters.iter().enumerate() {
        let counted = Arc::clone(counter);
        let handler = move |request: Request, client: &Client<'_>| {
            counted.fetch_add(1, Ordering::SeqCst);
            answer(request, client)
        };
        let listener = TcpListener::bind(local(0)).unwrap();
        let upstream = guarded::start(listener, HttpLimits::default(), handler).unwrap();
        let file = format!(
            "id = \"agent-{number}\"\nupstream = \"http://{}\"\n[[service]]\nname = \"web\"\nmode = \"http\"\n",
            upstream.address()
        );
        agents.push(start_agent_with(agent_settings_of(&broker.url(), &file)));
        upstreams.push(upstream);
    }
    for gateway in &gateways {
        wait_until("all agents are there", || {
            get(gateway.address(), "/agents").json()["agents"]
                .as_array()
                .unwrap()
                .len()
                == 3
        });
    }
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let address = gateways[caller % 2].address();
            scope.spawn(move || {
                for number in 0..50 {
                    let body = format!("{caller}-{number}");
                    let echoed = ask(address, "POST", "/services/web/mirror", "", body.as_bytes());
                    assert_eq!(echoed.text(), body);
                }
            });
        }
    });
    let executed: Vec<usize> = counters
        .iter()
        .map(|count| count.load(Ordering::SeqCst))
        .collect();
    assert_eq!(
        executed.iter().sum::<usize>(),
        400,
        "each once: {executed:?}"
    );
    assert!(
        executed.iter().all(|count| *count > 0),
        "shared: {executed:?}"
    );
    for gateway in gateways {
        gateway.stop().unwrap();
    }
    for agent in agents {
        agent.stop().unwrap();
    }
    for upstream in upstreams {
        stop(Box::new(upstream));
    }
}

#[test]
fn only_what_is_allowed_reaches_the_upstream() {
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = start_upstream();
    let mut settings = agent_settings(&broker.url(), upstream.address());
    settings.services[1].mode = ServiceMode::Http(HttpMode {
        path_prefix: "/app".into(),
        allow: Allow {
            methods: vec![Method::GET],
            paths: vec!["/public/{*rest}".into(), "/status".into()],
        },
        ..HttpMode::default()
    });
    let agent = start_agent_with(settings);
    let gateway = start_gateway(&broker);
    let allowed = get(gateway.address(), "/agents/demo/public/a?b");
    assert!(
        allowed.text().starts_with("GET /app/public/a?b\n"),
        "{}",
        allowed.text()
    );
    assert_eq!(get(gateway.address(), "/agents/demo/status").status, 200);
    for path in [
        "/",
        "/private",
        "/public",
        "/public/../private",
        "/public/%2e%2e/private",
        "/public%2fa",
        "/status/x",
    ] {
        let refused = get(gateway.address(), &format!("/agents/demo{path}"));
        assert_eq!(refused.status, 403, "{path}");
        assert_eq!(refused.json()["hop"], "agent");
        assert_eq!(refused.json()["outcome"], "not-executed");
    }
    let refused = ask(gateway.address(), "POST", "/agents/demo/status", "", b"");
    assert_eq!(refused.status, 403);
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

#[test]
fn a_repeated_request_is_executed_once() {
    let broker = TestBroker::start(Kind::Embedded);
    let executed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&executed);
    let handler = move |request: Request, client: &Client<'_>| {
        counted.fetch_add(1, Ordering::SeqCst);
        answer(request, client)
    };
    let listener = TcpListener::bind(local(0)).unwrap();
    let upstream = guarded::start(listener, HttpLimits::default(), handler).unwrap();
    let agent = start_agent(&broker, upstream.address());
    let gateway = start_gateway(&broker);
    let post = |key: &str, body: &[u8]| {
        let fields = format!("Idempotency-Key: {key}\r\n");
        let answer = ask(
            gateway.address(),
            "POST",
            "/agents/demo/mirror",
            &fields,
            body,
        );
        assert_eq!((answer.status, answer.body.as_slice()), (200, body));
    };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| post("one", b"body"));
        }
    });
    post("one", b"body");
    assert_eq!(executed.load(Ordering::SeqCst), 1);
    post("two", b"body");
    post("one", b"another body");
    assert_eq!(executed.load(Ordering::SeqCst), 3);
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(Box::new(upstream));
}
