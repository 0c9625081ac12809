//! api_1: HTTP requests in, MQTT requests out, replies back to who waits.
//!
//! A request runs on the thread of its connection: register a waiter, publish, block on the
//! waiter's channel. The reply comes in on the `mqtt` thread, which only looks the waiter up and
//! hands it over. The order is what makes it correct: a reply can't overtake its own waiter.

mod access;
mod attempts;
mod broker;
mod brokers;
mod call;
mod carrier;
mod dispatch;
mod forward;
mod hosts;
mod inbox;
mod json;
mod known;
mod onward;
mod outward;
mod part;
pub mod pending;
mod presence;
mod probe;
mod router;
mod scrape;
mod seen;
mod service;
mod settings;
mod table;
mod template;
mod users;
mod views;

pub use part::Part;
pub use service::Gateway;
pub use settings::{
    Access, Admission, DEFAULT_TIMEOUT, GatewaySettings, Host, Mode, Names, OWN_PATHS,
    PresenceSettings, Route, Token,
};
pub use template::TopicTemplate;
pub use users::{User, Users};
