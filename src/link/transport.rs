//! The way that MQTT takes to a broker.

use std::net::{IpAddr, SocketAddr};

use rumqttc::Transport;
use rumqttc::v5::MqttOptions;

use super::tls;
use super::url::{BrokerUrl, Scheme};
#[cfg(not(all(feature = "websocket", feature = "proxy")))]
use crate::base::error::Error;
use crate::base::error::Result;

/// What rumqttc connects with: to the broker's name or, where that is given, to one of its addresses.
///
/// Errors: the files for TLS can't be used ([`Error::Tls`](crate::base::error::Error::Tls)), or this
/// program was built without what is needed ([`Error::Usage`](crate::base::error::Error::Usage)).
pub(super) fn options(
    client_id: &str,
    broker: &BrokerUrl,
    address: Option<SocketAddr>,
) -> Result<MqttOptions> {
    let host = match address.map(|address| address.ip()) {
        None => broker.host().to_owned(),
        Some(IpAddr::V4(ip)) => ip.to_string(),
        Some(IpAddr::V6(ip)) => format!("[{ip}]"),
    };
    // Whose certificate is wanted, where the connection goes to an address.
    let name = address.map(|_| broker.host());
    let mut mqtt = match broker.scheme() {
        Scheme::Unix => MqttOptions::new(client_id, broker.path(), 0),
        Scheme::Mqtt | Scheme::Mqtts => MqttOptions::new(client_id, host, broker.port()),
        // Built here, so that no `ws://` ever goes with TLS: rumqttc would send it in clear.
        Scheme::Ws => MqttOptions::new(client_id, websocket_url("ws", &host, broker), 0),
        Scheme::Wss => MqttOptions::new(client_id, websocket_url("wss", &host, broker), 0),
    };
    match broker.scheme() {
        Scheme::Mqtt => {}
        Scheme::Unix => {
            mqtt.set_transport(Transport::unix());
        }
        Scheme::Mqtts => {
            mqtt.set_transport(tls::transport(broker.tls_files(), name)?);
        }
        Scheme::Ws | Scheme::Wss => set_websocket(&mut mqtt, broker, name)?,
    }
    set_proxy(&mut mqtt, broker)?;
    Ok(mqtt)
}

fn websocket_url(scheme: &str, host: &str, broker: &BrokerUrl) -> String {
    format!("{scheme}://{host}:{}{}", broker.port(), broker.path())
}

#[cfg(feature = "websocket")]
fn set_websocket(mqtt: &mut MqttOptions, broker: &BrokerUrl, name: Option<&str>) -> Result<()> {
    mqtt.set_transport(match broker.scheme() {
        Scheme::Wss => tls::websocket_transport(broker.tls_files(), name)?,
        _ => Transport::Ws,
    });
    let (broker, is_default) = (broker.clone(), broker.port() == broker.scheme().port());
    mqtt.set_request_modifier(move |mut request| {
        let headers = request.headers_mut();
        // The name, where the connection goes to one of its addresses.
        let authority = match is_default {
            true => broker.host().to_owned(),
            false => format!("{}:{}", broker.host(), broker.port()),
        };
        if let Ok(host) = http::HeaderValue::try_from(authority) {
            headers.insert(http::header::HOST, host);
        }
        for (name, value) in broker.websocket_headers().fields() {
            headers.append(name, value.clone());
        }
        std::future::ready(request)
    });
    Ok(())
}

#[cfg(not(feature = "websocket"))]
fn set_websocket(_: &mut MqttOptions, _: &BrokerUrl, _: Option<&str>) -> Result<()> {
    let message = "this program was built without the feature websocket: use mqtt:// or mqtts://";
    Err(Error::Usage(message.into()))
}

#[cfg(feature = "proxy")]
fn set_proxy(mqtt: &mut MqttOptions, broker: &BrokerUrl) -> Result<()> {
    if let Some(proxy) = broker.proxy() {
        mqtt.set_proxy(proxy.of_rumqttc());
    }
    Ok(())
}

#[cfg(not(feature = "proxy"))]
fn set_proxy(_: &mut MqttOptions, broker: &BrokerUrl) -> Result<()> {
    match broker.proxy() {
        None => Ok(()),
        Some(_) => {
            let message = "this program was built without the feature proxy";
            Err(Error::Usage(message.into()))
        }
    }
}
