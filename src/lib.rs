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
//! The rooms, each of which uses only those before it; read them in this order:
//!
//! 1. [`base`]: errors, topics, named threads and the stop signal, workers that come and go.
//! 2. [`wire`]: what travels, byte for byte. [`http`]: HTTP without sockets.
//! 3. [`link`]: the connection to the broker and its thread. [`stream`]: bodies in pieces.
//! 4. [`front`]: the two HTTP servers. [`upstream`]: the HTTP client.
//! 5. [`monitor`]: the access log, metrics, the live page.
//! 6. [`gateway`] (api_1) and [`agent`]: these put the pieces together.
//! 7. [`cli`], [`config`], [`tools`], [`service`]: what makes programs of them.

pub mod agent;
pub mod base;
pub mod cli;
pub mod config;
pub mod front;
pub mod gateway;
pub mod http;
pub mod link;
pub mod monitor;
pub mod service;
pub mod stream;
pub mod tools;
pub mod upstream;
pub mod wire;
