use crate::support::http::{get, get_agent};
use crate::support::upstream::RawUpstream;
use crate::support::{
    Kind, TestBroker, agent_settings_of, gateway_settings_of, start_agent_with, start_gateway_with,
    wait_until,
};

on_each_broker!(
    prefixes_keep_tenants_apart,
    a_gateway_has_its_part_of_the_world
);

fn answering(words: &str) -> RawUpstream {
    let length = words.len();
    RawUpstream::answering(format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{words}"
    ))
}

/// Two tenants with agents of one name: everything but the prefix is the same.
fn prefixes_keep_tenants_apart(kind: Kind) {
    let broker = TestBroker::start(kind);
    let long = "b".repeat(300_000);
    let tenants = [
        ("acme/recado", "a"),
        ("recado", "plain"),
        ("x", long.as_str()),
    ];
    let mut running = Vec::new();
    for (prefix, words) in tenants {
        let upstream = answering(words);
        let settings = format!(
            "prefix = \"{prefix}\"\nid = \"shed\"\nupstream = \"http://{}\"\n",
            upstream.address()
        );
        let agent = start_agent_with(agent_settings_of(&broker.url(), &settings));
        let settings = format!("prefix = \"{prefix}\"\n");
        let gateway = start_gateway_with(gateway_settings_of(&broker.url(), &settings));
        running.push((upstream, agent, gateway));
    }
    for ((_, _, gateway), (prefix, words)) in running.iter().zip(tenants) {
        let answer = get(gateway.address(), "/agents/shed/");
        assert_eq!((answer.status, answer.text()), (200, words), "{prefix}");
        let agents = get(gateway.address(), "/agents").json();
        assert_eq!(agents["agents"].as_array().unwrap().len(), 1, "{prefix}");
    }
    // Each leaves its own.
    let (_, agent, gateway) = running.remove(0);
    agent.stop().unwrap();
    wait_until("it is gone", || {
        get_agent(gateway.address(), "shed").status == 404
    });
    gateway.stop().unwrap();
    for (_upstream, agent, gateway) in running {
        assert_eq!(get(gateway.address(), "/agents/shed/").status, 200);
        gateway.stop().unwrap();
        agent.stop().unwrap();
    }
}

fn a_gateway_has_its_part_of_the_world(kind: Kind) {
    let broker = TestBroker::start(kind);
    let upstream = answering("here");
    let agent = |id: &str, service: &str| {
        let text = format!(
            "id = \"{id}\"\nupstream = \"http://{}\"\n[[service]]\nname = \"{service}\"\nmode = \"http\"\n",
            upstream.address()
        );
        start_agent_with(agent_settings_of(&broker.url(), &text))
    };
    let agents = [("eu-1", "web"), ("eu-2", "git"), ("us-1", "web")].map(|(id, it)| agent(id, it));
    let settings = "[presence]\nfilter = \"recado/agents/eu-+/presence\"\n";
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), settings));
    let at = gateway.address();
    let ids = |path: &str| {
        let list = get(at, path).json();
        let agents = list["agents"].as_array().unwrap().iter();
        let ids: Vec<String> = agents.map(|it| it["id"].as_str().unwrap().into()).collect();
        (ids.join(" "), list["next"].as_str().map(str::to_owned))
    };
    assert_eq!(ids("/agents"), ("eu-1 eu-2".into(), None));
    assert_eq!(get(at, "/agents/eu-1/").status, 200);
    assert_eq!(get(at, "/agents/us-1/").status, 503);
    assert_eq!(ids("/agents?limit=1"), ("eu-1".into(), Some("eu-1".into())));
    assert_eq!(ids("/agents?limit=1&after=eu-1"), ("eu-2".into(), None));
    assert_eq!(ids("/agents?service=git"), ("eu-2".into(), None));
    let page = get(at, "/agents?limit=1&service=web&x=y");
    assert_eq!(page.header("link"), None, "there is one only");
    let page = get(at, "/agents?limit=1");
    assert_eq!(
        page.header("link"),
        Some("</agents?after=eu-1&limit=1>; rel=\"next\"")
    );
    for bad in ["0", "10001", "x", "-1", ""] {
        assert_eq!(
            get(at, &format!("/agents?limit={bad}")).status,
            400,
            "{bad}"
        );
    }
    gateway.stop().unwrap();
    for agent in agents {
        agent.stop().unwrap();
    }
}
