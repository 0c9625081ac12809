//! **recado**: HTTP request/response carried over an MQTT broker, in plain blocking threads.
//!
//! ```text
//! client ──HTTP──▶ api_1 ──MQTT──▶ broker ──MQTT──▶ agent ──HTTP──▶ api_2
//! client ◀─HTTP── api_1 ◀─MQTT── broker ◀─MQTT── agent ◀─HTTP── api_2
//! ```
//!
//! There is no `async fn` and no `.await` in this crate. A thread that waits is a thread that
//! waits: for a socket, for a channel, or for a time to pass.
//!
//! The threads of api_1:
//!
//! ```text
//! accept  ─▶ http-N   parse, register a waiter, publish, recv_timeout, answer
//!                        │ publish (never blocks)        ▲ one channel per waiter
//!                        ▼                               │
//!            mqtt     the connection to the broker: write, read, complete the waiter
//! signals ─▶ main     stop accepting, answer what is in hand, say goodbye, join
//! ```
//!
//! The threads of the agent:
//!
//! ```text
//!            mqtt ─▶ worker-N   deadline, call the upstream, publish the reply
//! signals ─▶ main     unsubscribe, finish what is in hand, say goodbye, join
//! ```
//!
//! To read the code, begin with what is pure, then the threads, then the services:
//!
//! 1. [`message`]: what travels, byte for byte; [`topic`]: where; [`backoff`]: when again.
//! 2. [`pending`]: the table of who waits for which reply.
//! 3. [`threads`]: named threads and the stop signal; [`pool`]: workers that come and go.
//! 4. [`link`]: the connection to the broker and its thread.
//! 5. [`http`]: the two fronts, problem documents, the upstream client.
//! 6. [`gateway`] (api_1), [`agent`], [`backend`] (api_2), [`clients`] (client_a, client_b),
//!    [`broker`]: these put the pieces together.
//! 7. [`config`], [`cli`], [`service`], [`logging`], [`error`]: what every program needs.

pub mod agent;
pub mod backend;
pub mod backoff;
#[cfg(feature = "broker")]
pub mod broker;
mod budget;
pub mod cli;
pub mod clients;
mod clock;
pub mod config;
mod connect;
pub mod error;
pub mod gateway;
pub mod http;
pub mod link;
pub mod logging;
pub mod message;
pub mod pending;
pub mod pool;
pub mod service;
pub mod threads;
pub mod topic;
