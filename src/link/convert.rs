//! Between this crate's types and rumqttc's.

use std::net::SocketAddr;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, LastWill, Publish, PublishProperties};
use rumqttc::v5::{ConnectionError, MqttOptions, StateError};

use super::limits::{BrokerLimits, INFLIGHT};
use super::publish::{LinkOptions, PublishError};
#[cfg(feature = "tls")]
use super::tls;
use super::transport;
use super::url::BrokerUrl;
use crate::base::error::{Result, chain};
use crate::wire::{Message, Properties, Qos};

/// How long one attempt to connect may take, in whole seconds.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest string that fits an MQTT packet, in bytes.
const MAX_STRING: usize = 65_535;

/// What rumqttc connects with: to the broker's name or, where that is given, to one of its addresses.
pub(super) fn mqtt_options(
    options: &LinkOptions,
    broker: &BrokerUrl,
    will: Option<&Message>,
    address: Option<SocketAddr>,
) -> Result<MqttOptions> {
    let mut mqtt = transport::options(&options.client_id, broker, address)?;
    mqtt.set_keep_alive(options.keep_alive.max(Duration::from_secs(5)))
        .set_clean_start(options.session_expiry.is_zero())
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_manual_acks(options.manual_acknowledgement)
        .set_outgoing_inflight_upper_limit(INFLIGHT)
        .set_max_packet_size(Some(options.max_packet_bytes));
    if !options.session_expiry.is_zero() {
        let seconds = u32::try_from(options.session_expiry.as_secs()).unwrap_or(u32::MAX);
        mqtt.set_session_expiry_interval(Some(seconds));
    }
    if let Some(will) = will {
        let will = options.prefix.outside(will.clone());
        let qos = to_qos(will.qos);
        let payload = will.payload.clone();
        mqtt.set_last_will(LastWill::new(
            will.topic.as_str(),
            payload,
            qos,
            will.retain,
            None,
        ));
    }
    // Without it a message waits for the acknowledgement of the one before: 40 ms.
    let mut network = mqtt.network_options();
    network.set_tcp_nodelay(true);
    mqtt.set_network_options(network);
    if let Some((username, password)) = broker.credentials() {
        mqtt.set_credentials(username, password);
    }
    Ok(mqtt)
}

pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(
            code @ (ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized),
        ) => format!("the broker refused the connection: {code:?}; check user name and password"),
        ConnectionError::ConnectionRefused(code) => {
            format!("the broker refused the connection: {code:?}")
        }
        #[cfg(feature = "tls")]
        ConnectionError::Tls(error) => tls::describe(&chain(error)),
        ConnectionError::Timeout(_) => "connecting timed out".into(),
        ConnectionError::Io(error) => chain(error),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            format!("the broker disconnected: {reason_code:?}")
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => {
            "the broker closed the connection".into()
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => {
            "the broker did not answer a ping".into()
        }
        // With TLS 1.3 the broker looks at a client's certificate after the handshake.
        other => match chain(other) {
            #[cfg(feature = "tls")]
            reason if reason.contains("fatal alert") => tls::describe(&reason),
            reason => reason,
        },
    }
}

// An upper bound of the packet's size (MQTT 5, section 3.3), in bytes.
//
// Errors: no packet can hold it, or the broker takes none such.
pub(super) fn check(
    message: &Message,
    limits: &BrokerLimits,
) -> std::result::Result<usize, PublishError> {
    let properties = &message.properties;
    let mut size = 5 + 2 + message.topic.len() + 2 + 4 + message.payload.len();
    let mut longest = message.topic.len();
    let mut add = |overhead: usize, length: usize| {
        size += overhead + length;
        longest = longest.max(length);
    };
    add(3, properties.response_topic.as_ref().map_or(0, String::len));
    add(3, properties.content_type.as_ref().map_or(0, String::len));
    add(
        3,
        properties
            .correlation_data
            .as_ref()
            .map_or(0, |data| data.len()),
    );
    add(5, 0);
    for (name, value) in &properties.user {
        add(3, name.len());
        add(2, value.len());
    }
    let limit = limits.max_packet_bytes as usize;
    if size > limit {
        return Err(PublishError::TooLarge {
            size,
            limit,
            is_brokers: limits.is_brokers,
        });
    }
    if longest > MAX_STRING {
        return Err(PublishError::TooLarge {
            size: longest,
            limit: MAX_STRING,
            is_brokers: true,
        });
    }
    if message.qos > limits.max_qos {
        return Err(PublishError::NotSupported("this quality of service"));
    }
    if message.retain && !limits.retain {
        return Err(PublishError::NotSupported("retained messages"));
    }
    Ok(size)
}

pub(super) fn to_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

pub(super) fn from_qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

pub(super) fn to_properties(properties: Properties) -> PublishProperties {
    PublishProperties {
        message_expiry_interval: properties.message_expiry_interval,
        response_topic: properties.response_topic,
        correlation_data: properties.correlation_data,
        content_type: properties.content_type,
        user_properties: properties.user,
        ..PublishProperties::default()
    }
}

/// As much of a received message as its acknowledgement needs.
pub(super) fn to_publish(message: &Message) -> Publish {
    Publish {
        pkid: message.packet_id,
        qos: to_qos(message.qos),
        ..Publish::default()
    }
}

pub(super) fn from_publish(publish: Publish) -> Message {
    let properties = publish.properties.unwrap_or_default();
    Message {
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload,
        qos: from_qos(publish.qos),
        retain: publish.retain,
        packet_id: publish.pkid,
        properties: Properties {
            response_topic: properties.response_topic,
            correlation_data: properties.correlation_data,
            message_expiry_interval: properties.message_expiry_interval,
            content_type: properties.content_type,
            user: properties.user_properties,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BrokerLimits = BrokerLimits {
        max_packet_bytes: 1000,
        is_brokers: true,
        max_qos: Qos::AtLeastOnce,
        retain: false,
        inflight: 10,
    };

    fn message(payload: usize) -> Message {
        Message {
            topic: "t".into(),
            payload: vec![0; payload].into(),
            ..Message::default()
        }
    }

    #[test]
    fn what_the_broker_would_not_take_is_refused_before_it_is_sent() {
        assert!(check(&message(900), &LIMITS).is_ok_and(|size| size >= 900));
        assert!(matches!(
            check(&message(1000), &LIMITS),
            Err(PublishError::TooLarge { limit: 1000, .. })
        ));
        let qos = Message {
            qos: Qos::ExactlyOnce,
            ..message(1)
        };
        assert!(matches!(
            check(&qos, &LIMITS),
            Err(PublishError::NotSupported(_))
        ));
        let retain = Message {
            retain: true,
            ..message(1)
        };
        assert!(matches!(
            check(&retain, &LIMITS),
            Err(PublishError::NotSupported(_))
        ));
    }

    #[test]
    fn a_string_that_would_be_cut_on_the_wire_is_refused() {
        let mut long = message(1);
        long.properties
            .user
            .push(("h".into(), "x".repeat(MAX_STRING + 1)));
        let limits = BrokerLimits {
            max_packet_bytes: u32::MAX,
            ..LIMITS
        };
        assert!(matches!(
            check(&long, &limits),
            Err(PublishError::TooLarge {
                limit: MAX_STRING,
                ..
            })
        ));
    }

    #[test]
    fn the_size_is_never_underestimated() {
        let mut full = message(100);
        full.qos = Qos::AtLeastOnce;
        full.properties = Properties {
            response_topic: Some("r".repeat(50)),
            correlation_data: Some(vec![1; 16].into()),
            message_expiry_interval: Some(3),
            content_type: Some("application/json".into()),
            user: vec![("deadline-ms".into(), "3000".into()); 20],
        };
        let mut wire = Publish::new(
            "t",
            QoS::AtLeastOnce,
            full.payload.clone(),
            Some(to_properties(full.properties.clone())),
        );
        wire.pkid = 1;
        let limits = BrokerLimits {
            max_packet_bytes: wire.size() as u32 - 1,
            ..LIMITS
        };
        assert!(matches!(
            check(&full, &limits),
            Err(PublishError::TooLarge { .. })
        ));
    }
}
