//! The programs around the two: a service to call, a subscriber, a publisher, a broker.

pub mod backend;
#[cfg(feature = "broker")]
pub mod broker;
pub mod clients;
pub mod health;
