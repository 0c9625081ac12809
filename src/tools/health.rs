//! `--health`: asks a running agent how it is, through the broker, so that it needs no port; and a gateway,
//! at its own.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use crate::agent::AgentSettings;
use crate::base::error::{Error, Result};
use crate::base::topic::{Id, TopicFilter};
use crate::link::{Link, LinkEvent, LinkOptions, Subscription};
use crate::wire::stats::{self, Stats};
use crate::wire::{Message, Qos};

/// How long the broker and the agent together may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked again: with QoS 0 a question may be lost.
const AGAIN: Duration = Duration::from_secs(1);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How an agent is.
#[derive(Debug)]
pub struct Health(Stats);

/// Asks the agent that runs with these settings.
///
/// Errors: it does not answer ([`Error::NoAnswer`]), the broker can't be reached
/// ([`Error::BrokerUnreachable`]), or it does not let this program ask
/// ([`Error::SubscriptionRefused`]).
pub fn ask(settings: &AgentSettings) -> Result<Health> {
    let topic = stats::topic(&settings.id).map_err(|error| Error::Usage(error.to_string()))?;
    let options = LinkOptions {
        brokers: settings.brokers.urls().to_vec(),
        prefix: settings.prefix.clone(),
        client_id: format!("recado-health-{}", Id::random()),
        session_expiry: Duration::ZERO,
        keep_alive: settings.keep_alive,
        max_packet_bytes: 1024 * 1024,
        queue: 16,
        queue_bytes: 1024 * 1024,
        proves_topics: false,
        manual_acknowledgement: false,
        will: None,
        subscriptions: vec![Subscription {
            filter: TopicFilter::from(&topic),
            qos: Qos::AtMostOnce,
            group: None,
            retained: false,
            is_needed: true,
        }],
    };
    let question = Message {
        topic: topic.to_string(),
        ..Message::default()
    };
    let (on_event, events) = bounded(16);
    let own = settings.id.to_string();
    let broker = settings.brokers.to_string();
    let link = Link::start(options, move |_, event| {
        let told = match event {
            // Anything may be said there.
            LinkEvent::Message(message) => match Stats::read(&message.payload) {
                Some(stats) if stats.id == own => Ok(Some(stats)),
                _ => return,
            },
            LinkEvent::Ready => Ok(None),
            LinkEvent::Refused { filter, reason } => {
                Err(Error::SubscriptionRefused { filter, reason })
            }
            LinkEvent::Down(reason) => Err(Error::BrokerUnreachable {
                broker: broker.clone(),
                reason,
            }),
            _ => return,
        };
        let _ = on_event.try_send(told);
    })?;
    let until = Instant::now() + PATIENCE;
    let mut failure = None;
    let mut answer = None;
    while answer.is_none() && Instant::now() < until {
        let _ = link
            .publisher()
            .publish_before(question.clone(), until.min(Instant::now() + AGAIN));
        match events.recv_deadline(until.min(Instant::now() + AGAIN)) {
            Ok(Ok(told)) => {
                failure = None;
                answer = told;
            }
            // What goes down after a refusal is explained by that.
            Ok(Err(error)) => {
                failure.get_or_insert(error);
            }
            Err(_) => {}
        }
    }
    let stopped = link.stop(Instant::now() + GOODBYE);
    match (answer, failure) {
        (Some(stats), _) => stopped.map(|()| Health(stats)),
        (None, Some(failure)) => Err(failure),
        (None, None) => Err(Error::NoAnswer {
            agent: settings.id.to_string(),
            patience: PATIENCE,
        }),
    }
}

/// Asks the gateway that listens at this address whether it is ready, on this machine. Returns that in words.
///
/// Errors: it is not ready, and why, or it does not answer ([`Error::NotReady`]).
pub fn ask_gateway(listen: SocketAddr) -> Result<String> {
    let mut address = listen;
    // One that listens everywhere is here too.
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let not_ready = |reason: String| Error::NotReady { address, reason };
    let answer = get(address, "/readyz").map_err(|error| not_ready(error.to_string()))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(format!("gateway at {address}: ready\n")),
        Some("503") => Err(not_ready(detail(body).unwrap_or_else(|| body.to_owned()))),
        _ => Err(not_ready("what answers there is no gateway".to_owned())),
    }
}

// What a problem (RFC 9457) says in words.
fn detail(body: &str) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_str(body).ok()?;
    problem["detail"].as_str().map(str::to_owned)
}

// The beginning of an answer, of the kind that needs no library to be read.
fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(16 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Health(stats) = self;
        writeln!(
            f,
            "agent {}: {} in work, {} queued, {} errors in the last minute",
            stats.id, stats.work.in_work, stats.work.queued, stats.work.errors_last_minute
        )?;
        for upstream in &stats.work.upstreams {
            let (service, why) = (&upstream.service, upstream.why.as_deref());
            match upstream.accepts {
                Some(true) => writeln!(f, "upstream of {service}: takes connections")?,
                Some(false) => writeln!(f, "upstream of {service}: {}", why.unwrap_or("no"))?,
                None => writeln!(f, "upstream of {service}: nobody has tried")?,
            }
        }
        Ok(())
    }
}
