//! The connection to the broker. Nothing outside this room names `rumqttc`.

mod address;
mod connection;
mod convert;
mod driver;
mod greeting;
mod limits;
#[cfg(test)]
mod memory;
mod outbox;
mod outlet;
mod publish;
mod session;
mod tls;
mod url;

#[cfg(test)]
pub(crate) use memory::Memory;

pub use connection::{Link, check_tls};
pub use publish::{
    Acknowledgement, Delivery, LinkEvent, LinkOptions, Offer, Pieces, Publish, PublishError,
    Publisher, Subscription,
};
pub use url::{BrokerUrl, TlsFiles};
