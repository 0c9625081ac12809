use std::time::Duration;

use crate::support::{Kind, TestBroker, mqtt311, wait_until};

// What the embedded broker promises; Mosquitto is held to the same, which shows that the cases
// are fair.
on_each_broker!(
    wildcards_reach_the_right_subscribers,
    retained_messages_are_kept_and_removed,
    a_will_is_published_when_a_client_vanishes,
    a_shared_subscription_gives_each_message_to_one,
);

fn wildcards_reach_the_right_subscribers(kind: Kind) {
    let broker = TestBroker::start(kind);
    let mut plus = mqtt311::Client::connect(broker.port());
    plus.subscribe("house/+/temperature");
    let mut hash = mqtt311::Client::connect(broker.port());
    hash.subscribe("house/#");
    let mut sender = mqtt311::Client::connect(broker.port());
    sender.publish("house/kitchen/temperature", b"21");
    sender.publish("house/kitchen/light", b"on");
    sender.publish("house/hall/temperature", b"18");
    assert_eq!(plus.receive().text(), "21");
    assert_eq!(plus.receive().text(), "18");
    for payload in ["21", "on", "18"] {
        assert_eq!(hash.receive().text(), payload);
    }
}

fn retained_messages_are_kept_and_removed(kind: Kind) {
    let broker = TestBroker::start(kind);
    let mut sender = mqtt311::Client::connect(broker.port());
    sender.publish_with("kept", b"first", true);
    sender.publish_with("kept", b"second", true);
    assert_eq!(sender.received_so_far(), []);
    let mut late = mqtt311::Client::connect(broker.port());
    late.subscribe("kept");
    let message = late.receive();
    assert_eq!((message.text(), message.retain), ("second", true));
    sender.publish_with("kept", b"", true);
    assert!(!late.receive().retain, "live, so not marked");
    let mut later = mqtt311::Client::connect(broker.port());
    later.subscribe("kept");
    assert_eq!(later.received_so_far(), []);
}

fn a_will_is_published_when_a_client_vanishes(kind: Kind) {
    let broker = TestBroker::start(kind);
    let mut observer = mqtt311::Client::connect(broker.port());
    observer.subscribe("wills");
    drop(mqtt311::Client::connect_with_will(
        broker.port(),
        Some(("wills", b"gone")),
    ));
    assert_eq!(observer.receive().text(), "gone");
}

fn a_shared_subscription_gives_each_message_to_one(kind: Kind) {
    let broker = TestBroker::start(kind);
    let mut members: Vec<_> = (0..3)
        .map(|_| {
            let mut member = mqtt311::Client::connect(broker.port());
            member.subscribe("$share/group/work");
            member
        })
        .collect();
    let mut sender = mqtt311::Client::connect(broker.port());
    for number in 0..30 {
        sender.publish("work", format!("{number}").as_bytes());
    }
    let mut received = Vec::new();
    let mut shares = [0; 3];
    wait_until("all messages have come", || {
        for (member, share) in members.iter_mut().zip(&mut shares) {
            while let Some(message) = member.receive_within(Duration::from_millis(1)) {
                received.push(message.text().parse::<u32>().unwrap());
                *share += 1;
            }
        }
        received.len() >= 30
    });
    received.sort_unstable();
    assert_eq!(received, (0..30).collect::<Vec<_>>());
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
}

#[test]
fn a_stopped_broker_frees_its_port() {
    let broker = TestBroker::start(Kind::Embedded);
    for _ in 0..3 {
        broker.stop();
        broker.start_again();
        let mut client = mqtt311::Client::connect(broker.port());
        client.subscribe("a");
    }
}
