//! A client that speaks MQTT 3.1.1 at QoS 0 and nothing else: it knows no properties, so nothing
//! of MQTT 5 can slip in. Also the old peer of the tests.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{PATIENCE, local};

pub struct Client {
    stream: TcpStream,
    // Messages that came while something else was waited for.
    early: VecDeque<Message>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
}

impl Message {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

impl Client {
    pub fn connect(port: u16) -> Client {
        Client::connect_with_will(port, None)
    }

    /// Connects, leaving a message that the broker publishes if the connection just ends.
    pub fn connect_with_will(port: u16, will: Option<(&str, &[u8])>) -> Client {
        let stream = TcpStream::connect(local(port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client {
            stream,
            early: VecDeque::new(),
        };
        let mut body = Vec::new();
        string(&mut body, b"MQTT");
        let clean_session = 0b0000_0010;
        let will_flag = if will.is_some() { 0b0000_0100 } else { 0 };
        body.extend([4, clean_session | will_flag, 0, 60]);
        let id = format!("old{}", client.stream.local_addr().unwrap().port());
        string(&mut body, id.as_bytes());
        if let Some((topic, payload)) = will {
            string(&mut body, topic.as_bytes());
            string(&mut body, payload);
        }
        client.packet(0x10, &body);
        let (kind, connack) = client.read();
        assert_eq!((kind, connack.as_slice()), (0x20, &[0, 0][..]), "refused");
        client
    }

    /// Takes the first half of a QoS 2 delivery in the session of `client_id` and vanishes: the
    /// broker has released the message and was not told that this was received.
    pub fn vanish_in_a_qos_2_delivery(port: u16, client_id: &str, deliver: impl FnOnce()) {
        let stream = TcpStream::connect(local(port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client {
            stream,
            early: VecDeque::new(),
        };
        let mut body = Vec::new();
        string(&mut body, b"MQTT");
        body.extend([4, 0, 0, 60]);
        string(&mut body, client_id.as_bytes());
        client.packet(0x10, &body);
        assert_eq!(client.read().0, 0x20);
        deliver();
        let (kind, publish) = client.read();
        assert_eq!(kind & 0b1111_0110, 0b0011_0100, "a PUBLISH with QoS 2");
        let topic = usize::from(u16::from_be_bytes([publish[0], publish[1]]));
        let packet_id = publish[2 + topic..4 + topic].to_vec();
        client.packet(0x50, &packet_id);
        assert_eq!(client.read(), (0x62, packet_id), "PUBREL");
    }

    pub fn subscribe(&mut self, filter: &str) {
        let mut body = vec![0, 1];
        string(&mut body, filter.as_bytes());
        body.push(0);
        self.packet(0x82, &body);
        loop {
            match self.read() {
                (0x90, suback) => return assert_eq!(suback, [0, 1, 0], "{filter} refused"),
                (kind, body) => self.early.extend(message(kind, &body)),
            }
        }
    }

    pub fn publish(&mut self, topic: &str, payload: &[u8]) {
        self.publish_with(topic, payload, false);
    }

    pub fn publish_with(&mut self, topic: &str, payload: &[u8], retain: bool) {
        let mut body = Vec::new();
        string(&mut body, topic.as_bytes());
        body.extend(payload);
        self.packet(0x30 | u8::from(retain), &body);
    }

    pub fn receive(&mut self) -> Message {
        if let Some(early) = self.early.pop_front() {
            return early;
        }
        loop {
            let (kind, body) = self.read();
            if let Some(message) = message(kind, &body) {
                return message;
            }
        }
    }

    /// Sends a ping and returns what came before its answer: with a broker that keeps the order,
    /// that is all there was.
    pub fn received_so_far(&mut self) -> Vec<Message> {
        self.packet(0xc0, &[]);
        let mut messages: Vec<Message> = self.early.drain(..).collect();
        loop {
            match self.read() {
                (0xd0, _) => return messages,
                (kind, body) => messages.extend(message(kind, &body)),
            }
        }
    }

    /// The same client, to be used on another thread for publishing.
    pub fn publisher(&self) -> Client {
        Client {
            stream: self.stream.try_clone().unwrap(),
            early: VecDeque::new(),
        }
    }

    /// Receives with a limit; None when nothing came.
    pub fn receive_within(&mut self, limit: Duration) -> Option<Message> {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        let mut first = [0];
        let came = self.stream.peek(&mut first);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(came, Ok(1)).then(|| self.receive())
    }

    fn packet(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut length = body.len();
        loop {
            let digit = (length % 128) as u8;
            length /= 128;
            packet.push(if length > 0 { digit | 0x80 } else { digit });
            if length == 0 {
                break;
            }
        }
        packet.extend(body);
        self.stream.write_all(&packet).unwrap();
    }

    fn read(&mut self) -> (u8, Vec<u8>) {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        let kind = byte[0];
        let (mut length, mut shift) = (0, 0);
        loop {
            self.stream.read_exact(&mut byte).unwrap();
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (kind, body)
    }
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend(text);
}

fn message(kind: u8, body: &[u8]) -> Option<Message> {
    if kind & 0xf0 != 0x30 {
        return None;
    }
    assert_eq!(kind & 0b0110, 0, "only QoS 0 was asked for");
    let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
    Some(Message {
        topic: String::from_utf8(body[2..2 + length].to_vec()).unwrap(),
        payload: body[2 + length..].to_vec(),
        retain: kind & 1 == 1,
    })
}
