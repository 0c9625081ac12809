//! What a request says of itself: how long it may take, and whether it takes streams.

use std::time::Duration;

use bytes::Bytes;

use super::reply::check_topic;
use super::settings::{AgentSettings, Service, ServiceMode};
use crate::stream::Streams;
use crate::wire::deadline::{Sent, sent, time_left};
use crate::wire::stream::Offer;
use crate::wire::{Correlation, Properties};

/// The longest correlation of a request in HTTP mode, in bytes; ours have 16.
const MAX_CORRELATION: usize = 64;

/// How long a request may take from now on: what its caller had left when it was sent, without what it
/// was held up on its way, its `age`.
///
/// Errors: it says so in no way that can be read, or not at all.
pub(super) fn allowed(
    service: &Service,
    properties: &Properties,
    age: impl FnOnce(Option<Sent<'_>>) -> Duration,
) -> Result<Duration, String> {
    let is_http = matches!(service.mode, ServiceMode::Http { .. });
    let correlation = properties.correlation_data.as_ref().map_or(0, Bytes::len);
    if is_http && correlation > MAX_CORRELATION {
        return Err(format!(
            "its correlation data has {correlation} bytes, allowed are {MAX_CORRELATION}"
        ));
    }
    let stated = time_left(properties).map_err(|bad| bad.to_string())?;
    let sent = sent(properties).map_err(|bad| bad.to_string())?;
    if stated.is_none() && is_http {
        return Err("the request states neither deadline-ms nor an expiry interval".into());
    }
    Ok(stated.unwrap_or(service.timeout).saturating_sub(age(sent)))
}

/// What the caller says of streams, if it takes any.
///
/// Errors: it can't be read, its stream is here already, or it would be sent where no stream is.
pub(super) fn offer(
    properties: &Properties,
    streams: &Streams,
    connection: usize,
    settings: &AgentSettings,
) -> Result<Option<Offer>, String> {
    let offer = Offer::read(properties).map_err(|bad| bad.to_string())?;
    let Some(offer) = offer.filter(|_| streams.is_open(connection)) else {
        return Ok(None);
    };
    check_topic(&offer.topic, settings)?;
    match is_here(properties, streams) {
        true => Err("it came before, and its stream is here".into()),
        false => Ok(Some(offer)),
    }
}

/// Whether the stream of a request is here already.
pub(super) fn is_here(properties: &Properties, streams: &Streams) -> bool {
    let correlation = properties.correlation_data.as_deref();
    let known = correlation.and_then(Correlation::from_bytes);
    known.is_some_and(|known| streams.find(known).is_some())
}
