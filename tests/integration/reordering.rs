use crate::streams::{content, number};
use crate::support::http::Connection;
use crate::support::reorder::Reordering;
use crate::support::upstream::RawUpstream;
use crate::support::{
    Kind, TestBroker, agent_settings, gateway_settings, start_agent_with, start_gateway_with,
};

on_each_broker!(messages_that_overtake_each_other_change_nothing);

fn messages_that_overtake_each_other_change_nothing(kind: Kind) {
    let broker = TestBroker::start(kind);
    let proxies = [(); 2].map(|()| Reordering::start(broker.port()));
    let upstream = RawUpstream::start(|mut visit| {
        let head = visit.head().unwrap();
        let body = match head.starts_with("POST") {
            true => visit.read_chunks().unwrap(),
            false => content(number(&head)),
        };
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
        visit.send(&body);
    });
    let agent = start_agent_with(agent_settings(&proxies[0].url(), upstream.address()));
    let gateway = start_gateway_with(gateway_settings(&proxies[1].url()));
    for length in [100_000, 3_000_000] {
        let body = content(length);
        let mut client = Connection::open(gateway.address());
        let answer = client.get(&format!("/agents/demo/{length}"));
        assert!(
            answer.body == body,
            "{length} bytes came as {}",
            answer.body.len()
        );
        let mut client = Connection::open(gateway.address());
        client
            .send(b"POST /agents/demo/x HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
        for part in body.chunks(20_000) {
            client.send(format!("{:x}\r\n", part.len()).as_bytes());
            client.send(part);
            client.send(b"\r\n");
        }
        client.send(b"0\r\n\r\n");
        let answer = client.read_answer();
        assert!(
            answer.body == body,
            "{length} bytes came as {}",
            answer.body.len()
        );
    }
    for proxy in &proxies {
        assert!(
            proxy.overtaken() > 10,
            "all came in order: {}",
            proxy.overtaken()
        );
    }
    gateway.stop().unwrap();
    agent.stop().unwrap();
}
