//! What a request says of time: how long its caller waits, and when it was sent. Pure.

use std::time::Duration;

use bytes::Bytes;

use super::message::{BadProperty, Correlation, Properties};
use super::reply::JSON;
use crate::base::topic::{Id, Topic};

/// The user property that says how many milliseconds the caller still waits.
pub const DEADLINE_MS: &str = "deadline-ms";
/// The user property that says when a gateway sent a request, by a clock of its own: the instance of
/// the gateway, a slash, and milliseconds. It tells nothing but the time between two requests of one
/// gateway, and that is enough to see that one of them was held up on its way.
pub const SENT: &str = "sent";

/// When a request was sent, by the clock of the gateway that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent<'a> {
    /// Which gateway process, 1 to 32 characters of an id: clocks of two are not compared.
    pub instance: &'a str,
    /// What its clock said, in milliseconds.
    pub millis: u64,
}

impl<'a> Sent<'a> {
    fn parse(text: &'a str) -> Option<Sent<'a>> {
        let (instance, millis) = text.split_once('/')?;
        let is_instance = instance.len() <= 32 && Id::new(instance).is_ok();
        is_instance.then_some(())?;
        Some(Sent {
            instance,
            millis: digits(millis)?,
        })
    }
}

// Not `parse` alone, which takes a plus sign.
fn digits(text: &str) -> Option<u64> {
    let all = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| all)
}

/// What a gateway puts into the properties of a JSON request.
pub fn request_properties(
    inbox: &Topic,
    correlation: Correlation,
    time_left: Duration,
    sent: Sent<'_>,
) -> Properties {
    let millis = u64::try_from(time_left.as_millis()).unwrap_or(u64::MAX);
    let sent = format!("{}/{}", sent.instance, sent.millis);
    // With room for what the modes add.
    let mut user = Vec::with_capacity(4);
    user.push((DEADLINE_MS.to_owned(), millis.to_string()));
    user.push((SENT.to_owned(), sent));
    Properties {
        response_topic: Some(inbox.as_str().to_owned()),
        correlation_data: Some(Bytes::copy_from_slice(&correlation.0)),
        message_expiry_interval: Some(whole_seconds(time_left)),
        content_type: Some(JSON.to_owned()),
        user,
    }
}

/// A Message Expiry Interval, rounded up: a message may live a little too long at the broker, but
/// never too short, and `deadline-ms` says the rest.
pub fn whole_seconds(time: Duration) -> u32 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// When a request says that it was sent.
///
/// Errors: it says so in a way that can't be read.
pub fn sent(properties: &Properties) -> Result<Option<Sent<'_>>, BadProperty> {
    match properties.only(SENT)? {
        None => Ok(None),
        Some(text) => Sent::parse(text).map(Some).ok_or(BadProperty(SENT)),
    }
}

/// The time left that a request states: `deadline-ms`, unless less is left of its Message Expiry
/// Interval.
///
/// Errors: `deadline-ms` is there and no number of milliseconds.
pub fn time_left(properties: &Properties) -> Result<Option<Duration>, BadProperty> {
    let stated = match properties.only(DEADLINE_MS)? {
        None => None,
        Some(text) => {
            let millis = digits(text).ok_or(BadProperty(DEADLINE_MS))?;
            Some(Duration::from_millis(millis))
        }
    };
    let expiry = properties
        .message_expiry_interval
        .map(|seconds| Duration::from_secs(seconds.into()));
    Ok(match (stated, expiry) {
        // The broker counts the second down while it holds the message, in whole seconds.
        (Some(stated), Some(expiry)) => Some(stated.min(expiry + Duration::from_secs(1))),
        (stated, expiry) => stated.or(expiry),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_the_finer_of_the_two() {
        let both = request_properties(
            &Topic::new("inbox").unwrap(),
            Correlation([7; 16]),
            Duration::from_millis(2500),
            Sent {
                instance: "a",
                millis: 7,
            },
        );
        assert_eq!(both.message_expiry_interval, Some(3));
        assert_eq!(time_left(&both), Ok(Some(Duration::from_millis(2500))));
        let first = sent(&both).unwrap().unwrap();
        assert_eq!((first.instance, first.millis), ("a", 7));
        let expiry_only = Properties {
            message_expiry_interval: Some(3),
            ..Properties::default()
        };
        assert_eq!(time_left(&expiry_only), Ok(Some(Duration::from_secs(3))));
        assert_eq!(time_left(&Properties::default()), Ok(None));
        assert_eq!(sent(&Properties::default()), Ok(None));
    }

    #[test]
    fn what_is_malformed_is_not_passed_over() {
        let with = |name: &str, values: &[&str]| Properties {
            user: values
                .iter()
                .map(|value| (name.to_owned(), (*value).to_owned()))
                .collect(),
            message_expiry_interval: Some(3),
            ..Properties::default()
        };
        for bad in [
            "",
            "abc",
            "-1",
            "+1",
            "1.5",
            " 1",
            "1 ",
            "0x1",
            "99999999999999999999999",
        ] {
            let error = time_left(&with(DEADLINE_MS, &[bad])).unwrap_err();
            assert!(error.to_string().contains("deadline-ms"), "{bad:?}");
        }
        assert!(time_left(&with(DEADLINE_MS, &["1", "1"])).is_err());
        let long = format!("{}/1", "x".repeat(33));
        for bad in ["", "a", "a/", "/1", "a/b", "a/-1", "a b/1", "a/1/2", &long] {
            assert!(sent(&with(SENT, &[bad])).is_err(), "{bad:?}");
        }
        assert!(sent(&with(SENT, &["a/1", "a/2"])).is_err());
    }
}
