//! client_a and client_b: the smallest subscriber and the smallest publisher, to try a broker and
//! its topics by hand.

use std::io::Write;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select};

use crate::base::error::{Error, Result};
use crate::base::logging::printable;
use crate::base::threads::{Hangup, SignalThread, stop_signal};
use crate::base::topic::Id;
use crate::cli;
use crate::config::broker_urls;
use crate::link::{Delivery, Link, LinkEvent, LinkOptions, Prefix, Publisher, Subscription, list};
use crate::wire::{Message, Qos};

/// How long a persistent session is kept while its client is away.
const SESSION_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the broker may take to have a message.
const DELIVERY: Duration = Duration::from_secs(10);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(4);
/// The largest packet to take or send, in bytes.
const MAX_PACKET_BYTES: u32 = 16 * 1024 * 1024;

fn qos(number: u8) -> Qos {
    match number {
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        _ => Qos::ExactlyOnce,
    }
}

fn options(brokers: &[String], client_id: String) -> Result<LinkOptions> {
    Ok(LinkOptions {
        brokers: broker_urls(brokers)?,
        prefix: Prefix::default(),
        client_id,
        session_expiry: Duration::ZERO,
        keep_alive: Duration::from_secs(10),
        max_packet_bytes: MAX_PACKET_BYTES,
        // Acknowledgements wait here too, and a broker sends no more than this without them.
        queue: 65_535,
        queue_bytes: MAX_PACKET_BYTES as usize,
        proves_topics: false,
        manual_acknowledgement: false,
        will: None,
        subscriptions: Vec::new(),
    })
}

/// client_a: subscribes, and prints each message as a line on standard output until it is stopped
/// or has seen `--count` of them.
///
/// Errors: a bad flag, a refused subscription, or standard output is closed.
pub fn subscribe(flags: &cli::ClientA) -> Result<()> {
    let client_id = match &flags.persistent {
        Some(name) => name.to_string(),
        None => format!("recado-client-a-{}", Id::random()),
    };
    let mut options = options(&flags.broker, client_id)?;
    if flags.persistent.is_some() {
        options.session_expiry = SESSION_EXPIRY;
        // Acknowledged once it is printed: what is not may come again, but is never lost.
        options.manual_acknowledgement = true;
    }
    options.subscriptions.push(Subscription {
        filter: flags.topic.clone(),
        qos: qos(flags.qos),
        group: None,
        retained: true,
        is_needed: true,
    });
    let (trigger, stop) = stop_signal();
    let signals = SignalThread::start(trigger, Hangup::Stop)?;
    let (on_end, ended) = bounded(1);
    let mut left = flags.count;
    // Printing on the mqtt thread: a terminal that can't keep up holds the broker back, and
    // nothing piles up here.
    let link = Link::start(options, move |publisher, event| {
        if left == Some(0) {
            return;
        }
        let result = show(publisher, event, &mut left);
        if result.is_err() || left == Some(0) {
            let _ = on_end.try_send(result);
        }
    })?;
    let result = select! {
        recv(ended) -> result => result.unwrap_or(Ok(())),
        recv(stop.channel()) -> _ => Ok(()),
    };
    let stopped = link.stop(Instant::now() + GOODBYE);
    result.and(stopped).and(signals.join())
}

fn show(publisher: &Publisher, event: LinkEvent, left: &mut Option<u64>) -> Result<()> {
    match event {
        LinkEvent::Granted { filter, qos } => {
            log::info!("subscribed to {filter}, granted QoS {qos}");
            Ok(())
        }
        LinkEvent::Refused { filter, reason } => Err(Error::SubscriptionRefused { filter, reason }),
        LinkEvent::Message(message) => {
            print_message(&message)?;
            publisher.acknowledge(&message);
            if let Some(left) = left {
                *left -= 1;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn print_message(message: &Message) -> Result<()> {
    let line = format!(
        "{} {} (QoS {}{})\n",
        printable(message.topic.as_bytes()),
        printable(&message.payload),
        message.qos,
        if message.retain { ", retained" } else { "" }
    );
    std::io::stdout()
        .write_all(line.as_bytes())
        .and_then(|()| std::io::stdout().flush())
        .map_err(|source| Error::System {
            action: "write to standard output",
            source,
        })
}

/// client_b: publishes one message, and waits until the broker has it: for QoS 1 and 2 until the
/// broker has acknowledged it, for QoS 0 until it is written and the connection closed in order.
///
/// Errors: a bad flag, no broker, or the broker does not take the message.
pub fn publish(flags: &cli::ClientB) -> Result<()> {
    let client_id = format!("recado-client-b-{}", Id::random());
    let options = options(&flags.broker, client_id)?;
    let broker = list(&options.brokers);
    let topic = flags.topic.to_string();
    let mut message = Some(Message {
        topic: topic.clone(),
        payload: flags.message.clone().into(),
        qos: qos(flags.qos),
        retain: flags.retain,
        ..Message::default()
    });
    let (on_end, ended) = bounded(1);
    let not_delivered = move |reason: String| Error::NotDelivered {
        topic: topic.clone(),
        reason,
    };
    let failed = not_delivered.clone();
    let link = Link::start(options, move |publisher, event| {
        let result = match event {
            LinkEvent::Ready => match message
                .take()
                .map(|message| publisher.publish(message, None))
            {
                Some(Err(error)) => Err(failed(error.to_string())),
                _ => return,
            },
            LinkEvent::Down(reason) => match message {
                Some(_) => Err(Error::BrokerUnreachable {
                    broker: broker.clone(),
                    reason,
                }),
                None => Err(failed(reason)),
            },
            LinkEvent::Written => Ok(()),
            LinkEvent::Acknowledged(answer) => match answer.delivery {
                Delivery::Taken | Delivery::NobodySubscribed => Ok(()),
                Delivery::Refused(reason) => {
                    Err(failed(format!("the broker refused it: {reason}")))
                }
            },
            _ => return,
        };
        let _ = on_end.try_send(result);
    })?;
    let result = ended
        .recv_timeout(DELIVERY)
        .unwrap_or_else(|_| Err(not_delivered("the broker did not acknowledge it".into())));
    let stopped = link.stop(Instant::now() + GOODBYE);
    result.and(stopped)?;
    log::info!("sent to {}: {}", flags.topic, flags.message);
    Ok(())
}
