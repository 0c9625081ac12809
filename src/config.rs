//! Settings: from flags, environment and file to one checked value.
//!
//! Precedence: flag, then environment, then file, then default. What leaves this room is valid;
//! nothing downstream checks a setting again. Nothing here logs or exits.

mod access;
mod file;
mod host;
mod load;
mod login;
mod service;
mod show;
mod source;
mod values;

pub use load::{agent, broker_urls, gateway, listen_address};
