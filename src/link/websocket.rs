//! MQTT in a WebSocket (RFC 6455; MQTT 5, section 6).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Fields that the request for a WebSocket has of its own.
const OWN: [&str; 7] = [
    "host",
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "content-length",
];

/// Fields to add to the request for a WebSocket: a token, for example.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct WebsocketHeaders {
    file: Option<PathBuf>,
    fields: Arc<HeaderMap>,
}

impl WebsocketHeaders {
    /// Takes them from the text of a file: one `Name: value` in each line.
    ///
    /// Errors: a line is something else, or sets a field that the request has of its own; which.
    pub fn read(file: PathBuf, text: &str) -> Result<WebsocketHeaders, String> {
        let mut fields = HeaderMap::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |what: &str| format!("line {}: {what}", number + 1);
            // The value is not shown: it may be secret.
            let shape = || wrong("allowed is `Name: value`");
            let (name, value) = line.split_once(':').ok_or_else(shape)?;
            let name: HeaderName = name.parse().map_err(|_| shape())?;
            if OWN.contains(&name.as_str()) {
                return Err(wrong(&format!("{name} is set by the WebSocket itself")));
            }
            let mut value: HeaderValue = value.trim().parse().map_err(|_| shape())?;
            value.set_sensitive(true);
            fields.append(name, value);
        }
        Ok(WebsocketHeaders {
            file: Some(file),
            fields: Arc::new(fields),
        })
    }

    /// Each of them.
    pub fn fields(&self) -> &HeaderMap {
        &self.fields
    }

    /// The file that they are from.
    pub fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }
}

impl fmt::Debug for WebsocketHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.file, self.fields.keys())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<WebsocketHeaders, String> {
        WebsocketHeaders::read("headers".into(), text)
    }

    #[test]
    fn fields_are_added_but_none_of_the_handshake() {
        let two = read("Authorization: Bearer hush\n\nX-A:b\n").unwrap();
        assert_eq!(two.fields.len(), 2);
        assert_eq!(two.fields["authorization"], "Bearer hush");
        assert!(!format!("{two:?}").contains("hush"));
        for (bad, why) in [
            ("x", "line 1: allowed is"),
            ("a: b\nb c: d", "line 2: allowed is"),
            (
                "Sec-WebSocket-Protocol: x",
                "line 1: sec-websocket-protocol is set",
            ),
            ("Host: x", "line 1: host is set"),
        ] {
            let said = read(bad).unwrap_err();
            assert!(said.starts_with(why), "{said}");
        }
    }
}
