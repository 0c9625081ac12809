use super::super::table::MAX_TWINS;
use super::*;

fn announcement(id: &str, topics: &[&str]) -> Vec<u8> {
    serde_json::to_vec(&Announcement {
        id: id.into(),
        services: vec!["web".into()],
        since: "2026-01-01T00:00:00Z".into(),
        version: "1".into(),
        topics: topics.iter().map(|name| (*name).to_owned()).collect(),
        instance: "1".into(),
        refresh_s: None,
        stats_ms: None,
        denied: Vec::new(),
        streams: false,
        remembers: false,
        leaving: false,
    })
    .unwrap()
}

fn everybody() -> Wanted {
    Wanted::first(1000)
}

fn long_ago() -> Instant {
    Instant::now().checked_sub(STRAGGLERS).unwrap()
}

fn inbox() -> Topic {
    topic("recado/gateways/g/response")
}

fn topic(text: &str) -> Topic {
    Topic::new(text).unwrap()
}

#[test]
fn who_is_known_is_there_until_it_leaves() {
    let presence = Presence::default();
    let now = Instant::now();
    let requests = topic("recado/agents/demo/request");
    assert_eq!(
        presence.http_target(&requests, &inbox(), now, true),
        Target::NotKnownYet
    );
    presence.complete(long_ago());
    assert_eq!(
        presence.http_target(&requests, &inbox(), now, true),
        Target::Absent
    );
    let at = "recado/agents/demo/presence";
    assert!(presence.update(at, &announcement("demo", &[requests.as_str()]), now));
    assert_eq!(
        presence.http_target(&requests, &inbox(), now, true),
        Target::There { streams: false }
    );
    assert_eq!(
        presence.http_target(&topic("x/y"), &inbox(), now, true),
        Target::Absent
    );
    assert!(presence.update(at, b"", now));
    assert_eq!(
        presence.http_target(&requests, &inbox(), now, true),
        Target::Absent
    );
    presence.forget();
    assert_eq!(
        presence.http_target(&requests, &inbox(), now, true),
        Target::NotKnownYet
    );
    presence.connected(false);
    presence.complete(long_ago());
    assert_eq!(
        presence.http_target(&requests, &inbox(), now, true),
        Target::There { streams: false }
    );
}

#[test]
fn who_is_announced_last_is_waited_for_at_the_beginning() {
    let presence = Presence::default();
    let now = Instant::now();
    let requests = topic("recado/agents/demo/request");
    // It could be waited for much longer than any test takes.
    presence.complete(now + Duration::from_secs(3600));
    std::thread::scope(|scope| {
        let asks = || presence.http_target(&requests, &inbox(), now, true);
        let asked = [scope.spawn(asks), scope.spawn(asks)];
        for (id, topics) in [("other", "x"), ("demo", requests.as_str())] {
            let at = format!("recado/agents/{id}/presence");
            presence.update(&at, &announcement(id, &[topics]), now);
        }
        for target in asked {
            assert_eq!(target.join().unwrap(), Target::There { streams: false });
        }
        let unknown = scope.spawn(|| presence.agent("unknown", now));
        presence.forget();
        assert!(unknown.join().unwrap().is_none());
    });
    presence.complete(now - STRAGGLERS + Duration::from_millis(5));
    assert_eq!(
        presence.http_target(&requests, &inbox(), now, true),
        Target::Absent
    );
}

#[test]
fn garbage_announces_nobody() {
    let presence = Presence::default();
    let now = Instant::now();
    for payload in [&b"x"[..], b"{}", b"null", &announcement("other", &[])] {
        assert!(presence.update("recado/agents/demo/presence", payload, now));
    }
    assert!(!presence.update("recado/agents/a b/presence", &announcement("a b", &[]), now));
    assert!(!presence.update("somewhere/else", b"", now));
    assert!(presence.agents(&everybody(), now).agents.is_empty());
}

#[test]
fn old_peers_have_the_benefit_of_the_doubt() {
    let presence = Presence::default();
    presence.complete(long_ago());
    let now = Instant::now();
    let at = "recado/agents/demo/presence";
    let ping = topic("api/ping/request");
    assert_eq!(
        presence.json_target(&ping, &inbox(), now).0,
        Target::There { streams: false }
    );
    presence.update(at, &announcement("demo", &[ping.as_str()]), now);
    presence.update(at, b"", now);
    assert_eq!(presence.json_target(&ping, &inbox(), now).0, Target::Absent);
    assert_eq!(
        presence.json_target(&topic("other"), &inbox(), now).0,
        Target::There { streams: false }
    );
    let later = now + BENEFIT_OF_DOUBT;
    assert_eq!(
        presence.json_target(&ping, &inbox(), later).0,
        Target::There { streams: false }
    );
    assert_eq!(
        presence.json_target(&ping, &inbox(), later).0,
        Target::Absent
    );
    presence.answered(&ping, now);
    assert_eq!(
        presence.json_target(&ping, &inbox(), later).0,
        Target::Absent,
        "a last reply"
    );
    presence.answered(&ping, later);
    assert_eq!(
        presence.json_target(&ping, &inbox(), later).0,
        Target::There { streams: false }
    );
}

// An announcement with further members.
fn saying(further: serde_json::Value) -> Vec<u8> {
    let announcement = announcement("demo", &["recado/agents/demo/request"]);
    let mut value: serde_json::Value = serde_json::from_slice(&announcement).unwrap();
    let further = further.as_object().unwrap().clone();
    value.as_object_mut().unwrap().extend(further);
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn who_is_silent_for_too_long_is_gone() {
    let presence = Presence::default();
    presence.complete(long_ago());
    let begun = Instant::now();
    let requests = topic("recado/agents/demo/request");
    let at = "recado/agents/demo/presence";
    let target = |seconds| {
        let now = begun + Duration::from_secs(seconds);
        presence.http_target(&requests, &inbox(), now, true)
    };
    let announce = |seconds| {
        let now = begun + Duration::from_secs(seconds);
        presence.update(at, &saying(serde_json::json!({ "refresh_s": 20 })), now);
    };
    announce(0);
    assert_eq!(target(49), Target::There { streams: false });
    announce(20);
    assert_eq!(target(69), Target::There { streams: false });
    assert_eq!(target(70), Target::Absent);
    let much_later = begun + Duration::from_secs(70);
    assert!(presence.agents(&everybody(), much_later).agents.is_empty());
    let now = begun + Duration::from_secs(71);
    assert_eq!(
        presence.json_target(&requests, &inbox(), now).0,
        Target::Absent
    );
    announce(80);
    assert_eq!(target(81), Target::There { streams: false });
    // Old agents say it once.
    presence.update(at, &saying(serde_json::json!({ "instance": "old" })), begun);
    assert_eq!(target(1_000_000), Target::There { streams: false });
}

#[test]
fn two_with_one_id_are_two() {
    let presence = Presence::default();
    let now = Instant::now();
    let at = "recado/agents/demo/presence";
    for instance in ["1", "2", "1"] {
        presence.update(
            at,
            &saying(serde_json::json!({ "instance": instance })),
            now,
        );
    }
    let instances = || {
        let agents = presence.agents(&everybody(), now).agents.into_iter();
        agents
            .map(|it| it.announcement.instance)
            .collect::<Vec<_>>()
    };
    assert_eq!(instances(), ["1", "2"]);
    let goodbye = serde_json::json!({ "instance": "1", "leaving": true });
    presence.update(at, &saying(goodbye), now);
    assert_eq!(instances(), ["2"]);
    for number in 0..100 {
        let instance = number.to_string();
        presence.update(
            at,
            &saying(serde_json::json!({ "instance": instance })),
            now,
        );
    }
    assert_eq!(instances().len(), MAX_TWINS);
    presence.update(at, b"", now);
    assert!(instances().is_empty());
    assert_eq!(lock(&presence.table).count, 0);
}

#[test]
fn what_the_broker_denies_an_agent_is_said() {
    let presence = Presence::default();
    let now = Instant::now();
    let requests = topic("recado/agents/demo/request");
    let at = "recado/agents/demo/presence";
    for (denied, verb) in [(requests.as_str(), "read"), (inbox().as_str(), "write")] {
        presence.update(at, &saying(serde_json::json!({ "denied": [denied] })), now);
        let expected = format!("the broker does not let agent demo {verb} {denied}");
        let target = presence.http_target(&requests, &inbox(), now, true);
        assert_eq!(target, Target::Denied(expected.clone()));
        assert_eq!(presence.denied(&requests, &inbox()), Some(expected));
    }
    presence.update(at, &saying(serde_json::json!({ "denied": ["other"] })), now);
    assert_eq!(
        presence.http_target(&requests, &inbox(), now, true),
        Target::There { streams: false }
    );
    assert_eq!(presence.denied(&requests, &inbox()), None);
}
