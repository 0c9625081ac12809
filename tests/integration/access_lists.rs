use recado::agent::Agent;
use recado::gateway::Gateway;

use crate::failures::problem;
use crate::http_mode::{start_upstream, stop};
use crate::support::http::{get, get_agent};
use crate::support::{TempFile, TestBroker, agent_settings_of, gateway_settings_of, wait_until};

/// A chain at a Mosquitto with this access list; users are gateway-1 and demo, without passwords.
fn with_access_list(text: &str, check: impl FnOnce(&Gateway)) {
    let acl = TempFile::new(text);
    let settings = format!("acl_file {}\n", acl.path());
    let Some(broker) = TestBroker::mosquitto_with(&settings) else {
        return;
    };
    let upstream = start_upstream();
    let text = format!(
        "upstream = \"http://{}\"\nusername = \"demo\"\n",
        upstream.address()
    );
    let agent = Agent::start(agent_settings_of(&broker.url(), &text)).unwrap();
    let text = "id = \"gateway-1\"\nusername = \"gateway-1\"\n[[route]]\n\
                path = \"/agents/{id}/{*path}\"\nrequest_topic = \"recado/agents/{id}/request\"\n\
                mode = \"http\"\ntimeout_ms = 600000\n";
    let gateway = Gateway::start(gateway_settings_of(&broker.url(), text)).unwrap();
    check(&gateway);
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

const ALL_BUT: [(&str, &str); 5] = [
    ("gateway-1", "topic write recado/agents/+/request"),
    ("gateway-1", "topic read recado/gateways/gateway-1/response"),
    ("demo", "topic read recado/agents/demo/request"),
    ("demo", "topic write recado/gateways/+/response"),
    // Nobody lacks this one.
    ("demo", "topic write recado/agents/demo/request"),
];

fn access_list_without(missing: usize) -> String {
    let mut text = String::new();
    for user in ["gateway-1", "demo"] {
        text.push_str(&format!("user {user}\n"));
        match user {
            "demo" => text.push_str("topic readwrite recado/agents/demo/presence\n"),
            _ => text.push_str(
                "topic read recado/agents/+/presence\n\
                 topic write recado/gateways/gateway-1/response\n\
                 topic write recado/gateways/gateway-1/response/+\n",
            ),
        }
        for (number, (whose, line)) in ALL_BUT.iter().enumerate() {
            if *whose == user && number != missing {
                text.push_str(&format!("{line}\n"));
            }
        }
    }
    text
}

#[test]
fn a_right_that_is_missing_at_the_broker_is_named_at_once() {
    // Nothing is missing.
    with_access_list(&access_list_without(usize::MAX), |gateway| {
        wait_until("it is answered", || {
            get(gateway.address(), "/agents/demo/x").status == 200
        });
    });
    for (missing, words) in [
        (0, "recado/agents/demo/request"),
        (2, "let agent demo read recado/agents/demo/request"),
        (3, "let agent demo write recado/gateways/gateway-1/response"),
    ] {
        with_access_list(&access_list_without(missing), |gateway| {
            wait_until("the agent is known", || {
                get_agent(gateway.address(), "demo").status == 200
            });
            // The route waits for ten minutes.
            let answer = get(gateway.address(), "/agents/demo/x");
            assert_eq!(answer.status, 502, "{missing}: {}", answer.text());
            assert_eq!(answer.json()["hop"], "broker");
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(words), "{missing}: {detail}");
        });
    }
    with_access_list(&access_list_without(1), |gateway| {
        let words = "let this gateway read recado/gateways/gateway-1/response";
        wait_until("it is not ready, and says why", || {
            let ready = get(gateway.address(), "/readyz");
            ready.status == 503 && ready.text().contains(words)
        });
        let answer = get(gateway.address(), "/agents/demo/x");
        let detail = problem(&answer, 502, "broker", "not-executed");
        assert!(detail.contains(words), "{detail}");
    });
}
