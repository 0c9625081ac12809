//! The agent: MQTT requests in, calls to the upstream, replies out.
//!
//! The `mqtt` thread only sorts requests into bounded pools, one for each service; the workers
//! check the deadline, call the upstream and publish. It opens no port: all it needs is a way out
//! to the broker.

mod age;
mod allow;
mod announcer;
mod executor;
mod figures;
mod intake;
mod job;
mod origin;
mod outcome;
mod repeats;
mod reply;
mod reports;
mod service;
mod settings;
mod terms;
#[cfg(test)]
mod tests;
mod upload;

pub use service::Agent;
pub use settings::{AgentSettings, Allow, HostHeader, HttpMode, Service, ServiceMode};
