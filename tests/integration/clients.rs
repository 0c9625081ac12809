use crate::support::process::Process;
use crate::support::{Kind, TestBroker, free_port, mqtt311};

on_each_broker!(
    a_message_from_b_to_a,
    every_quality_of_service_and_wildcards,
    a_retained_message_is_marked,
    a_session_keeps_what_came_meanwhile,
    a_count_leaves_the_rest_in_the_session,
    a_half_finished_delivery_does_not_stop_the_session,
);

fn a_message_from_b_to_a(kind: Kind) {
    let broker = TestBroker::start(kind);
    let a = Process::own("client_a", &["--broker", &broker.url(), "--count", "1"]);
    a.wait_for_output("subscribed to my/topic, granted QoS 0");
    let (status, _) = Process::own("client_b", &["--broker", &broker.url()]).wait();
    assert!(status.success());
    let (status, output) = a.wait();
    assert!(status.success(), "{output}");
    assert!(
        output.contains("my/topic Hello from client B! Hello Again (QoS 0)\n"),
        "{output}"
    );
}

fn publish(broker: &TestBroker, arguments: &[&str]) {
    let url = broker.url();
    let (status, output) =
        Process::own("client_b", &[&["--broker", &url], arguments].concat()).wait();
    assert!(status.success(), "{output}");
}

fn every_quality_of_service_and_wildcards(kind: Kind) {
    let broker = TestBroker::start(kind);
    let url = broker.url();
    let arguments = [
        "--broker", &url, "--topic", "a/+/#", "--qos", "2", "--count", "3",
    ];
    let a = Process::own("client_a", &arguments);
    a.wait_for_output("granted QoS 2");
    for qos in ["0", "1", "2"] {
        let topic = format!("a/b/{qos}");
        publish(
            &broker,
            &["--topic", &topic, "--qos", qos, "--message", "olá\n"],
        );
    }
    let (status, output) = a.wait();
    assert!(status.success(), "{output}");
    for qos in ["0", "1", "2"] {
        let line = format!("a/b/{qos} olá\\n (QoS {qos})\n");
        assert!(output.contains(&line), "{output}");
    }
}

fn a_retained_message_is_marked(kind: Kind) {
    let broker = TestBroker::start(kind);
    publish(&broker, &["--retain", "--message", "kept"]);
    let a = Process::own("client_a", &["--broker", &broker.url(), "--count", "1"]);
    let (status, output) = a.wait();
    assert!(status.success());
    assert!(
        output.contains("my/topic kept (QoS 0, retained)\n"),
        "{output}"
    );
}

fn a_session_keeps_what_came_meanwhile(kind: Kind) {
    let broker = TestBroker::start(kind);
    let url = broker.url();
    let arguments = ["--broker", &url, "--persistent", "anna", "--qos", "2"];
    let a = Process::own("client_a", &arguments);
    a.wait_for_output("granted QoS 2");
    a.signal("INT");
    assert!(a.wait().0.success());
    for qos in ["1", "2"] {
        publish(
            &broker,
            &["--qos", qos, "--message", &format!("while away {qos}")],
        );
    }
    let a = Process::own("client_a", &[&arguments[..], &["--count", "2"]].concat());
    let (status, output) = a.wait();
    assert!(status.success(), "{output}");
    for qos in ["1", "2"] {
        let line = format!("my/topic while away {qos} (QoS {qos})\n");
        assert_eq!(output.matches(&line).count(), 1, "{output}");
    }
}

fn a_count_leaves_the_rest_in_the_session(kind: Kind) {
    let broker = TestBroker::start(kind);
    let url = broker.url();
    let arguments = [
        "--broker",
        &url,
        "--persistent",
        "berta",
        "--qos",
        "1",
        "--count",
        "1",
    ];
    let a = Process::own("client_a", &arguments);
    a.wait_for_output("granted QoS 1");
    for number in 0..5 {
        publish(
            &broker,
            &["--qos", "1", "--message", &format!("<{number}>")],
        );
    }
    let mut all = a.wait().1;
    for _ in 1..5 {
        let (status, output) = Process::own("client_a", &arguments).wait();
        assert!(status.success(), "{output}");
        all.push_str(&output);
    }
    for number in 0..5 {
        let shown = all.matches(&format!("my/topic <{number}> ")).count();
        assert_eq!(shown, 1, "message {number} of {all}");
    }
}

fn a_half_finished_delivery_does_not_stop_the_session(kind: Kind) {
    let broker = TestBroker::start(kind);
    let url = broker.url();
    let arguments = ["--broker", &url, "--persistent", "carla", "--qos", "2"];
    let a = Process::own("client_a", &arguments);
    a.wait_for_output("granted QoS 2");
    a.signal("INT");
    assert!(a.wait().0.success());
    mqtt311::Client::vanish_in_a_qos_2_delivery(broker.port(), "carla", || {
        publish(&broker, &["--qos", "2", "--message", "half"]);
    });
    let a = Process::own("client_a", &[&arguments[..], &["--count", "1"]].concat());
    a.wait_for_output("granted QoS 2");
    publish(&broker, &["--qos", "2", "--message", "whole"]);
    let (status, output) = a.wait();
    assert!(status.success(), "{output}");
    assert!(output.contains("my/topic whole (QoS 2)\n"), "{output}");
}

#[test]
fn client_b_says_so_when_there_is_no_broker() {
    let url = format!("mqtt://127.0.0.1:{}", free_port());
    let (status, output) = Process::own("client_b", &["--broker", &url, "--qos", "1"]).wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        output.contains("error: cannot reach the broker at mqtt://127.0.0.1:"),
        "{output}"
    );
    assert!(output.contains("refused"), "{output}");
}

#[test]
fn client_a_waits_for_a_broker_that_comes_later() {
    let broker = TestBroker::absent(Kind::Embedded);
    let a = Process::own("client_a", &["--broker", &broker.url(), "--count", "1"]);
    a.wait_for_output("no connection to");
    broker.start_again();
    a.wait_for_output("subscribed to my/topic");
    publish(&broker, &[]);
    assert!(a.wait().0.success());
}
