//! Every test of the whole, against real brokers, real sockets and real processes.
//!
//! In this order they can be read as a description of what the project does.

// A failed assertion is what a test is for, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// Brokers, services, an HTTP client and an MQTT 3.1.1 client for the tests.
#[macro_use]
mod support;

/// Who may call api_1, and what the other side learns of it.
mod access;
/// Rights that are missing at the broker.
mod access_lists;
/// Brokers with a bridge between them.
mod bridged;
/// Brokers that lack something, or refuse.
mod brokers;
/// Everything that can fail, at random, under load.
mod chaos;
/// Agents and brokers that come and go under load.
mod churn;
/// client_a and client_b.
mod clients;
/// Three brokers that are one: nodes that die, or are cut off.
mod clusters;
/// Many callers at once, and never an answer to the wrong one.
mod concurrency;
/// What the demo promised, word for word.
mod contract;
/// The embedded broker on its own.
mod embedded_broker;
/// Too many clients, no room for logs.
mod exhaustion;
/// What a caller sees when a part is missing, slow or wrong.
mod failures;
/// What was found in the field, and mended with its whole kind.
mod field;
/// HTTP as the two fronts speak it.
mod fronts;
/// What strangers may send to the guarded front.
mod hostile_http;
/// What others at the broker may send to an agent.
mod hostile_mqtt;
/// Any HTTP service through the broker: agents, services, presence.
mod http_mode;
/// What the RFCs ask of an intermediary, each with what proves it.
mod intermediary;
/// Parts that start in any order, go away and come back.
mod life;
/// Names of their own for what is behind an agent, and what an application says of itself.
mod names;
/// Messages that nobody should have sent.
mod odd_messages;
/// Programs that speak MQTT 3.1.1, as requester and as agent.
mod old_peers;
/// Upstreams that are reached by other ways than plain TCP.
mod other_upstreams;
/// SIGHUP: other settings, and no request lost.
mod reloading;
/// Messages of such bodies that overtake each other on the way.
mod reordering;
/// Everything restarted, one after the other, under load.
mod rolling;
/// A broker with TLS, passwords and an access list: the files in `config/`.
mod secure_broker;
/// What an agent's services let through, share and execute once.
mod services;
/// Flags, environment, files and exit codes.
mod settings;
/// Several brokers: one after the other, or all at once.
mod several_brokers;
/// Stopping without dropping what was accepted.
mod shutdown;
/// What becomes of such bodies when somebody breaks off, vanishes or takes his time.
mod stream_failures;
/// Bodies that are no single message, as they come and go.
mod streams;
/// What programs tell by themselves: to the log, and to systemd.
mod telling;
/// Many who share a broker: prefixes, parts, pages.
mod tenants;
/// Other ways to a broker than TCP.
mod transports;
/// WebSockets and whatever else a connection is upgraded to.
mod upgrades;
/// What an upstream may answer, and how its connection may end.
mod upstream_answers;
/// What can be seen of it all: metrics, the live page, who is well.
mod watching;
