use recado::gateway::GatewaySettings;
use recado::link::{BrokerMode, BrokerUrl, Brokers};

use crate::support::http::get;
use crate::support::process::Process;
use crate::support::{
    Kind, TempFile, TestBroker, agent_settings, gateway_settings, start_agent_with, start_backend,
    start_gateway_with, wait_until,
};

on_each_broker!(the_next_one_has_its_turn);

fn several(brokers: &[&TestBroker], mode: BrokerMode) -> Brokers {
    let urls = brokers.iter().map(|it| it.url().parse().unwrap());
    Brokers::new(urls.collect::<Vec<BrokerUrl>>(), mode).unwrap()
}

fn pings(address: std::net::SocketAddr) -> bool {
    get(address, "/ping").status == 200
}

/// Two brokers that know nothing of each other, so it shows where everybody is.
fn the_next_one_has_its_turn(kind: Kind) {
    let (first, second) = (TestBroker::start(kind), TestBroker::start(kind));
    let both = [&first, &second];
    let backend = start_backend();
    let mut settings = agent_settings(&first.url(), backend.address());
    settings.brokers = several(&both, BrokerMode::Failover);
    let agent = start_agent_with(settings);
    let settings = GatewaySettings {
        brokers: several(&both, BrokerMode::Failover),
        ..gateway_settings(&first.url())
    };
    let gateway = start_gateway_with(settings.clone());
    let at = gateway.address();
    assert!(pings(at));
    first.stop();
    wait_until("both are at the second broker", || pings(at));
    // There they stay, whoever comes back.
    first.start_again();
    let newcomer = start_gateway_with(settings.clone());
    assert_eq!(
        get(newcomer.address(), "/agents").json()["agents"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    assert!(pings(at));
    // Until they are asked to.
    gateway.reload(settings).unwrap();
    wait_until("the gateway is at the first one", || {
        get(at, "/agents").json()["agents"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    let mut settings = agent_settings(&first.url(), backend.address());
    settings.brokers = several(&both, BrokerMode::Failover);
    agent.reload(settings).unwrap();
    wait_until("the agent too", || pings(at) && pings(newcomer.address()));
    for gateway in [gateway, newcomer] {
        gateway.stop().unwrap();
    }
    agent.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn brokers_by_flag_variable_and_file() {
    let lists = ["--broker mqtt://a,mqtts://me:hush@b:1 --broker ws://c", ""];
    let file = TempFile::new(
        "broker = [\"mqtt://a\", \"mqtts://me:hush@b:1\", \"ws://c\"]\n[brokers]\nmode = \"all\"\n",
    );
    for list in lists {
        let mut arguments = vec!["--check"];
        arguments.extend(list.split_whitespace());
        match list {
            "" => arguments.extend(["--config", file.path()]),
            _ => arguments.extend(["--broker-mode", "all"]),
        }
        for program in ["api_1", "agent"] {
            let (status, output) = Process::own(program, &arguments).wait();
            assert!(status.success(), "{output}");
            let line = "broker = [\"mqtt://a:1883\", \"mqtts://me:***@b:1\", \"ws://c:80/mqtt\"]";
            assert!(output.contains(line), "{output}");
            assert!(output.contains("[brokers]\nmode = \"all\""), "{output}");
        }
    }
    for (bad, why) in [
        ("mqtt://a,mqtt://a:1883", "mqtt://a:1883 is there twice"),
        ("mqtt://a,tcp://me:hush@b", "allowed is mqtt://"),
        ("mqtt://a,,mqtt://b", "allowed is mqtt://"),
    ] {
        let (status, output) = Process::own("api_1", &["--check", "--broker", bad]).wait();
        assert_eq!(status.code(), Some(2), "{output}");
        assert!(output.contains(why) && !output.contains("hush"), "{output}");
    }
}
