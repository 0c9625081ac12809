//! Values of the files, each checked as it is read.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::time::Duration;

use http::Method;
use log::LevelFilter;
use serde::Deserialize;
use toml::Spanned;

use crate::base::topic::InvalidTopic;
use crate::gateway::TopicTemplate;
use crate::link::{BrokerUrl, ProxyUrl};

/// A whole number of a file within bounds, so that the file's own error names the place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Within<const MIN: u64, const MAX: u64>(pub u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        struct Visitor<const MIN: u64, const MAX: u64>;

        impl<const MIN: u64, const MAX: u64> serde::de::Visitor<'_> for Visitor<MIN, MAX> {
            type Value = Within<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_u64<E: serde::de::Error>(
                self,
                found: u64,
            ) -> std::result::Result<Self::Value, E> {
                if (MIN..=MAX).contains(&found) {
                    Ok(Within(found))
                } else {
                    Err(E::invalid_value(
                        serde::de::Unexpected::Unsigned(found),
                        &self,
                    ))
                }
            }

            fn visit_i64<E: serde::de::Error>(
                self,
                found: i64,
            ) -> std::result::Result<Self::Value, E> {
                match u64::try_from(found) {
                    Ok(found) => self.visit_u64(found),
                    Err(_) => Err(E::invalid_value(
                        serde::de::Unexpected::Signed(found),
                        &self,
                    )),
                }
            }
        }
        deserializer.deserialize_u64(Visitor::<MIN, MAX>)
    }
}

impl<const MIN: u64, const MAX: u64> Within<MIN, MAX> {
    pub(super) fn millis(self) -> Duration {
        Duration::from_millis(self.0)
    }

    pub(super) fn seconds(self) -> Duration {
        Duration::from_secs(self.0)
    }

    // Every use has a MAX that fits; `usize` has 32 bits at least.
    pub(super) fn size(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

pub(super) type TimeoutMs = Within<1, 600_000>;

pub(super) type KeepAliveS = Within<5, 3_600>;

pub(super) type BodyBytes = Within<0, 4_294_967_295>;

pub(super) type InlineBytes = Within<0, 67_108_864>;

pub(super) type WindowBytes = Within<16_384, 67_108_864>;

pub(super) type Streams = Within<0, 65_535>;

pub(super) type IdleMs = Within<0, 86_400_000>;

/// How often something happens, in milliseconds; 0: never.
pub(super) struct EveryMs(pub Option<Duration>);

impl<'de> Deserialize<'de> for EveryMs {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        let read = Within::<0, 3_600_000>::deserialize(deserializer)?;
        match read.0 {
            0 => Ok(EveryMs(None)),
            // More often would cost more than it tells.
            1..500 => Err(serde::de::Error::invalid_value(
                serde::de::Unexpected::Unsigned(read.0),
                &"0 or a whole number from 500 to 3600000",
            )),
            _ => Ok(EveryMs(Some(read.millis()))),
        }
    }
}

/// One broker's URL, or a list of them.
pub(super) struct BrokerList(pub Vec<BrokerUrl>);

impl<'de> Deserialize<'de> for BrokerList {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = BrokerList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the URL of a broker, or a list of such")
            }

            fn visit_str<E: serde::de::Error>(
                self,
                text: &str,
            ) -> std::result::Result<BrokerList, E> {
                // The text is not shown: it may hold a password.
                let url = text.parse().map_err(E::custom)?;
                Ok(BrokerList(vec![url]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<BrokerList, A::Error> {
                let mut urls = Vec::new();
                while let Some(url) = list.next_element::<BrokerUrl>()? {
                    urls.push(url);
                }
                Ok(BrokerList(urls))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The proxy on the way to brokers.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum ProxySetting {
    /// This one, for all.
    Fixed(ProxyUrl),
    /// What the usual variables say.
    Environment,
}

impl ProxySetting {
    /// The one on the way to a host, if there is any.
    ///
    /// Errors: a variable can't be used; why.
    pub fn on_the_way_to(&self, host: &str) -> std::result::Result<Option<ProxyUrl>, String> {
        match self {
            ProxySetting::Fixed(url) => Ok(Some(url.clone())),
            ProxySetting::Environment => ProxyUrl::of_environment(host),
        }
    }
}

impl TryFrom<String> for ProxySetting {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<ProxySetting, String> {
        match text.as_str() {
            "environment" => Ok(ProxySetting::Environment),
            url => match url.parse() {
                Ok(url) => Ok(ProxySetting::Fixed(url)),
                Err(why) => Err(format!("{why}, or \"environment\"")),
            },
        }
    }
}

pub(super) type BufferedBytes = Within<1024, 4_294_967_295>;

pub(super) type Count = Within<1, 65_535>;

#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Template(pub TopicTemplate);

impl TryFrom<String> for Template {
    type Error = InvalidTopic;

    fn try_from(text: String) -> std::result::Result<Template, Self::Error> {
        TopicTemplate::new(&text).map(Template)
    }
}

/// Which log lines are shown.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct LogLevel(pub LevelFilter);

impl TryFrom<String> for LogLevel {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<LogLevel, String> {
        text.parse().map(LogLevel).map_err(|_| {
            format!("found {text:?}, allowed are off, error, warn, info, debug and trace")
        })
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct MethodName(pub Method);

impl TryFrom<String> for MethodName {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<MethodName, String> {
        Method::from_bytes(text.as_bytes())
            .map(MethodName)
            .map_err(|_| format!("found {text:?}, allowed is a method such as GET"))
    }
}

/// An address to listen on.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ListenAddress(pub SocketAddr);

impl TryFrom<String> for ListenAddress {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<ListenAddress, String> {
        resolve(&text).map(ListenAddress).ok_or_else(|| {
            format!("found {text:?}, allowed is \"ADDRESS:PORT\", e.g. \"127.0.0.1:5000\"")
        })
    }
}

/// A path that requests can ask for: it begins with a slash and holds no query.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct HttpPath(pub String);

impl TryFrom<String> for HttpPath {
    type Error = String;

    fn try_from(path: String) -> Result<HttpPath, String> {
        let valid = path.starts_with('/')
            && path
                .parse::<http::Uri>()
                .is_ok_and(|uri| uri.path() == path && uri.query().is_none());
        match valid {
            true => Ok(HttpPath(path)),
            false => Err(format!("found {path:?}, allowed is a path such as /ping")),
        }
    }
}

/// What is put before paths: nothing, or a path without a slash at its end.
#[derive(Deserialize, Default)]
#[serde(try_from = "String")]
pub(super) struct PathPrefix(pub String);

impl TryFrom<String> for PathPrefix {
    type Error = String;

    fn try_from(path: String) -> Result<PathPrefix, String> {
        if path.is_empty() {
            return Ok(PathPrefix(path));
        }
        let HttpPath(path) = HttpPath::try_from(path)?;
        Ok(PathPrefix(path.trim_end_matches('/').to_owned()))
    }
}

/// A pattern of paths.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct PathPattern(pub String);

impl TryFrom<String> for PathPattern {
    type Error = String;

    fn try_from(path: String) -> Result<PathPattern, String> {
        let known = matchit::Router::new().insert(path.as_str(), ());
        match known {
            Ok(()) if path.starts_with('/') => Ok(PathPattern(path)),
            _ => Err(format!(
                "found {path:?}, allowed is a pattern such as /public/{{*rest}}"
            )),
        }
    }
}

/// A value of a file, and where it stands.
pub(super) fn apart<T>(value: Spanned<T>) -> (T, Range<usize>) {
    let span = value.span();
    (value.into_inner(), span)
}

pub(super) fn apart_if_any<T>(value: Option<Spanned<T>>) -> (Option<T>, Range<usize>) {
    match value.map(apart) {
        Some((value, span)) => (Some(value), span),
        None => (None, 0..0),
    }
}

pub(super) fn resolve(text: &str) -> Option<SocketAddr> {
    text.to_socket_addrs().ok()?.next()
}
