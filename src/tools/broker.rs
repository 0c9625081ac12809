//! An embedded MQTT broker, for development and tests. The only file that names `rmqtt`.
//!
//! One port serves MQTT 3.1.1 and 5: retained messages, wills, shared subscriptions, message
//! expiry, persistent sessions, anonymous clients. For production use Mosquitto or an MQTT 5
//! cluster. rmqtt is an async library: its runtime lives in here, on its own threads, and
//! dropping the runtime is what stops the broker.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use rmqtt::context::ServerContext;
use rmqtt::net::{Builder, Listener};
use rmqtt::server::MqttServer;

use crate::base::error::{Error, Result};

/// The largest packet that the embedded broker takes, in bytes.
pub const MAX_PACKET_BYTES: u32 = 16 * 1024 * 1024;

/// A running broker. Dropping it closes every connection and frees the port.
pub struct Broker {
    address: SocketAddr,
    websocket_address: Option<SocketAddr>,
    // Some until drop.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Broker {
    /// Starts a broker on `address`; port 0 takes a free one, see [`Broker::address`].
    ///
    /// Errors: the address is taken ([`Error::Listen`]), or the broker's runtime or plugins do
    /// not start ([`Error::Broker`]).
    pub fn start(address: SocketAddr) -> Result<Broker> {
        Broker::start_with(address, None)
    }

    /// The same, and takes WebSockets on another address, whatever path they ask for.
    ///
    /// Errors: as [`Broker::start`].
    pub fn start_with(address: SocketAddr, websockets: Option<SocketAddr>) -> Result<Broker> {
        let failed = |error: &dyn std::fmt::Display| Error::Broker(error.to_string());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("broker")
            .enable_all()
            .build()
            .map_err(|source| Error::System {
                action: "start the broker's threads",
                source,
            })?;
        let guard = runtime.enter();
        let context = runtime.block_on(
            ServerContext::new()
                // It would refuse connections while the machine is busy, as it is under test.
                .busy_check_enable(false)
                .plugins_config_map_add(
                    "rmqtt-retainer",
                    // Its default is to forget a retained message after five minutes.
                    "storage.type = \"ram\"\nretained_message_ttl = \"0s\"",
                )
                .plugins_config_map_add(
                    "rmqtt-shared-subscription",
                    "strategy = \"round_robin_per_group\"",
                )
                .build(),
        );
        runtime
            .block_on(rmqtt_retainer::register(&context, true, false))
            .map_err(|error| failed(&error))?;
        runtime
            .block_on(rmqtt_shared_subscription::register(&context, true, false))
            .map_err(|error| failed(&error))?;
        let listener = listener("tcp", address, Listener::tcp)?;
        let address = listener.local_addr().map_err(|error| failed(&error))?;
        let mut server = MqttServer::new(context).listener_by_id(listener, 1);
        let mut websocket_address = None;
        if let Some(address) = websockets {
            let listener = self::listener("ws", address, Listener::ws)?;
            let address = listener.local_addr().map_err(|error| failed(&error))?;
            server = server.listener_by_id(listener, 2);
            websocket_address = Some(address);
        }
        runtime.spawn(server.build().run());
        drop(guard);
        log::info!("listening on mqtt://{address}");
        if let Some(address) = websocket_address {
            log::info!("and for WebSockets on ws://{address}/mqtt");
        }
        Ok(Broker {
            address,
            websocket_address,
            runtime: Some(runtime),
        })
    }

    /// The address it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that it takes WebSockets on, if it does.
    pub fn websocket_address(&self) -> Option<SocketAddr> {
        self.websocket_address
    }
}

fn listener(
    name: &str,
    address: SocketAddr,
    kind: impl FnOnce(Listener) -> rmqtt::Result<Listener>,
) -> Result<Listener> {
    let bound = Builder::new()
        .name(name)
        .laddr(address)
        .nodelay(true)
        .reuseaddr(Some(true))
        .max_packet_size(MAX_PACKET_BYTES)
        .max_inflight(NonZeroU16::MAX)
        .max_mqueue_len(10_000)
        // Its default is to give every message that states none an expiry of five minutes.
        .message_expiry_interval(Duration::ZERO)
        .max_session_expiry_interval(Duration::from_secs(7 * 24 * 60 * 60))
        .bind();
    bound.and_then(kind).map_err(|error| Error::Listen {
        address,
        source: std::io::Error::other(error.to_string()),
    })
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}
