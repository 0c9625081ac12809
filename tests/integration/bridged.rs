use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::http_mode::ask;
use crate::support::http::{get, get_agent};
use crate::support::process::Process;
use crate::support::upstream::RawUpstream;
use crate::support::{
    TempFile, TestBroker, agent_settings_of, gateway_settings_of, start_agent_with,
    start_gateway_with, wait_until,
};

/// Two brokers with the bridge that `config/` ships.
fn bridged() -> Option<[TestBroker; 2]> {
    let second = TestBroker::mosquitto_with("")?;
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/mosquitto-bridge.conf");
    let bridge = std::fs::read_to_string(shipped).unwrap();
    let own = format!("address 127.0.0.1:{}", second.port());
    let first = TestBroker::mosquitto_with(&bridge.replace("address other.example:1883", &own))?;
    Some([first, second])
}

fn agent_text(id: &str, upstream: &RawUpstream) -> String {
    format!(
        "id = \"{id}\"\nupstream = \"http://{}\"\n[[service]]\nname = \"web\"\nmode = \"http\"\n",
        upstream.address()
    )
}

type Counts = Arc<Mutex<HashMap<String, usize>>>;

fn counting() -> (RawUpstream, Counts) {
    let counts = Counts::default();
    let own = Arc::clone(&counts);
    let upstream = RawUpstream::choosing(move |head| {
        let asked = head.lines().next().unwrap().to_owned();
        *own.lock().unwrap().entry(asked).or_default() += 1;
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok".into()
    });
    (upstream, counts)
}

#[test]
fn an_agent_behind_a_bridge_is_one_as_any() {
    let Some([near, far]) = bridged() else {
        return;
    };
    let (upstream, counts) = counting();
    let gateway = start_gateway_with(gateway_settings_of(&near.url(), ""));
    let at = gateway.address();
    let agent = start_agent_with(agent_settings_of(
        &far.url(),
        &agent_text("shed", &upstream),
    ));
    wait_until("its presence has crossed", || {
        get_agent(at, "shed").status == 200
    });
    for path in ["/agents/shed/x", "/services/web/x"] {
        for number in 0..20 {
            let answer = ask(at, "POST", &format!("{path}{number}"), "", b"body");
            assert_eq!((answer.status, answer.text()), (200, "ok"));
        }
    }
    // All agents of a service are on one side: each request is executed once.
    assert!(
        counts
            .lock()
            .unwrap()
            .values()
            .all(|count| *count == 2 || *count == 1)
    );
    assert_eq!(counts.lock().unwrap().values().sum::<usize>(), 40);
    agent.stop().unwrap();
    wait_until("its goodbye has crossed", || {
        get_agent(at, "shed").status == 404
    });
    // One that is killed says no goodbye: its will crosses.
    let file = TempFile::new(&agent_text("barn", &upstream));
    let flags = ["--broker", &far.url(), "--config", file.path()];
    let mut barn = Process::own("agent", &flags);
    wait_until("it is there", || get_agent(at, "barn").status == 200);
    barn.kill();
    wait_until("its will has crossed", || {
        get_agent(at, "barn").status == 404
    });
    gateway.stop().unwrap();
}

/// What docs/brokers.md warns of: a bridge is one more subscriber, so each side has its own share.
#[test]
fn a_service_on_both_sides_of_a_bridge_is_executed_on_both() {
    let Some([near, far]) = bridged() else {
        return;
    };
    let (upstream, counts) = counting();
    let agents = [(&near, "a"), (&far, "b")].map(|(broker, id)| {
        start_agent_with(agent_settings_of(&broker.url(), &agent_text(id, &upstream)))
    });
    let gateway = start_gateway_with(gateway_settings_of(&near.url(), ""));
    let at = gateway.address();
    wait_until("both are known", || {
        let agents = get(at, "/agents").json();
        agents["agents"]
            .as_array()
            .is_some_and(|all| all.len() == 2)
    });
    for number in 0..20 {
        let answer = get(at, &format!("/services/web/{number}"));
        assert_eq!(answer.status, 200, "one answer all the same");
    }
    wait_until("each is executed on both sides", || {
        counts.lock().unwrap().values().sum::<usize>() == 40
    });
    for agent in agents {
        agent.stop().unwrap();
    }
    gateway.stop().unwrap();
}
