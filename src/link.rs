//! The connection to the broker. Nothing outside this room names `rumqttc`.

mod address;
mod connection;
mod convert;
mod driver;
mod greeting;
mod limits;
mod outgoing;
mod publish;
mod publisher;
mod tls;
mod url;

pub use connection::{Link, check_tls};
pub use publish::{
    Acknowledgement, Delivery, LinkEvent, LinkOptions, Offer, PublishError, Subscription,
};
pub use publisher::Publisher;
pub use url::{BrokerUrl, TlsFiles};
