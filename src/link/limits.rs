//! What the broker says at connect that it takes (MQTT 5, section 3.2.2.3).

use rumqttc::v5::mqttbytes::v5::ConnAckProperties;

use crate::wire::Qos;

/// QoS 1 and 2 messages under way at a time. rumqttc reserves a slot for each: its own default
/// costs 20 MB.
pub(super) const INFLIGHT: u16 = 100;

#[derive(Clone, Copy)]
pub(super) struct BrokerLimits {
    pub max_packet_bytes: u32,
    // It is the broker that takes no larger ones.
    pub is_brokers: bool,
    pub max_qos: Qos,
    pub retain: bool,
    // QoS 1 and 2 messages under way at a time.
    pub inflight: usize,
}

impl BrokerLimits {
    /// What is in a CONNACK; what isn't is not limited, but packets by `own`.
    pub fn offered(offered: Option<&ConnAckProperties>, own: u32) -> BrokerLimits {
        let theirs = offered.and_then(|p| p.max_packet_size);
        BrokerLimits {
            max_packet_bytes: theirs.map_or(own, |theirs| theirs.min(own)),
            is_brokers: theirs.is_some_and(|theirs| theirs < own),
            max_qos: match offered.and_then(|p| p.max_qos) {
                Some(0) => Qos::AtMostOnce,
                Some(1) => Qos::AtLeastOnce,
                _ => Qos::ExactlyOnce,
            },
            retain: offered.and_then(|p| p.retain_available) != Some(0),
            inflight: offered
                .and_then(|p| p.receive_max)
                .map_or(INFLIGHT, |theirs| theirs.min(INFLIGHT))
                .into(),
        }
    }

    /// The same for messages that are longer than they look by so many bytes.
    pub fn less(self, bytes: usize) -> BrokerLimits {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        BrokerLimits {
            max_packet_bytes: self.max_packet_bytes.saturating_sub(bytes),
            ..self
        }
    }

    /// Says what the broker does not do, and what that costs.
    pub fn note_what_is_missing(&self) {
        if self.is_brokers {
            log::warn!(
                "the broker takes packets of {} bytes at the most: larger requests and replies are refused",
                self.max_packet_bytes
            );
        }
        if self.max_qos < Qos::AtLeastOnce {
            log::warn!("the broker knows QoS 0 only: routes with qos = 1 are refused");
        }
        if !self.retain {
            log::warn!(
                "the broker keeps no retained messages: gateways can't know which agents are there"
            );
        }
    }
}

/// Whether it has shared subscriptions.
pub(super) fn shares_subscriptions(offered: Option<&ConnAckProperties>) -> bool {
    offered.and_then(|p| p.shared_subscription_available) != Some(0)
}
