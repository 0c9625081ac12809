//! The connection to the broker. Nothing outside this room names `rumqttc`.

mod address;
mod anywhere;
mod brokers;
mod connection;
mod convert;
mod driver;
mod greeting;
mod limits;
mod links;
#[cfg(test)]
mod memory;
mod outbox;
mod outlet;
mod prefix;
mod proxy;
mod publish;
mod session;
mod tls;
mod transport;
mod url;
mod websocket;

#[cfg(test)]
pub(crate) use memory::Memory;

pub(crate) use brokers::list;
pub use brokers::{BrokerMode, Brokers};
pub use connection::{Link, check};
pub use links::{Links, Way};
pub use prefix::Prefix;
pub use proxy::ProxyUrl;
pub use publish::{
    Acknowledgement, Delivery, LinkEvent, LinkOptions, Offer, Pieces, Publish, PublishError,
    Publisher, Subscription,
};
pub use url::{BrokerUrl, Scheme, TlsFiles};
pub use websocket::WebsocketHeaders;
