//! The messages of a stream: a body that one message can't hold. Pure.
//!
//! A stream goes one way; what goes back are credits. Its messages carry the correlation of the
//! request, and the topic tells the direction.

use bytes::Bytes;

use super::message::{BadProperty, Correlation, Message, Properties};

/// User property of the first message of either side: where messages of streams for it go.
pub const STREAM: &str = "stream";
/// User property: how far beyond what is confirmed may be sent, in bytes.
pub const WINDOW: &str = "window";
/// User property: what a message of a stream is.
const KIND: &str = "s";
/// User property of data and ends: where in the body they stand, in bytes.
const OFFSET: &str = "o";
/// User property of credits: everything before this is there.
const GOT: &str = "got";
/// User property of aborts: why.
const WHY: &str = "why";

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A part of the body.
    Data {
        /// Where its first byte stands.
        offset: u64,
        /// The part.
        bytes: Bytes,
    },
    /// The receiver's word.
    Credit {
        /// It has everything before this.
        got: u64,
        /// So much more may be sent.
        window: u64,
    },
    /// The body is over. The receiver says the same once it has all of it: a credit would not tell
    /// whether it has seen the end.
    End {
        /// How long it was.
        length: u64,
    },
    /// The body is given up, by either side. Nothing answers this.
    Abort {
        /// Why.
        why: String,
    },
}

impl Piece {
    /// The message that says so.
    pub fn write(&self, topic: &str, correlation: Correlation) -> Message {
        let number = |name: &str, value: u64| (name.to_owned(), value.to_string());
        let (kind, further, payload) = match self {
            Piece::Data { offset, bytes } => ("data", vec![number(OFFSET, *offset)], bytes.clone()),
            Piece::Credit { got, window } => {
                let further = vec![number(GOT, *got), number(WINDOW, *window)];
                ("credit", further, Bytes::new())
            }
            Piece::End { length } => ("end", vec![number(OFFSET, *length)], Bytes::new()),
            Piece::Abort { why } => ("abort", vec![(WHY.to_owned(), why.clone())], Bytes::new()),
        };
        let mut user = vec![(KIND.to_owned(), kind.to_owned())];
        user.extend(further);
        Message {
            topic: topic.to_owned(),
            payload,
            properties: Properties {
                correlation_data: Some(Bytes::copy_from_slice(&correlation.0)),
                user,
                ..Properties::default()
            },
            ..Message::default()
        }
    }

    /// Reads a message of a stream, and which stream's it is.
    ///
    /// Errors: the property that is missing, there twice, or malformed.
    pub fn read(message: &Message) -> Result<(Correlation, Piece), BadProperty> {
        let properties = &message.properties;
        let correlation = properties.correlation_data.as_deref();
        let correlation = correlation
            .and_then(Correlation::from_bytes)
            .ok_or(BadProperty("correlation data"))?;
        let number = |name: &'static str| {
            let text = properties.only(name)?.ok_or(BadProperty(name))?;
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|_| digits);
            number.ok_or(BadProperty(name))
        };
        let piece = match properties.only(KIND)? {
            Some("data") => Piece::Data {
                offset: number(OFFSET)?,
                bytes: message.payload.clone(),
            },
            Some("credit") => Piece::Credit {
                got: number(GOT)?,
                window: number(WINDOW)?,
            },
            Some("end") => Piece::End {
                length: number(OFFSET)?,
            },
            Some("abort") => Piece::Abort {
                why: properties.only(WHY)?.unwrap_or_default().to_owned(),
            },
            _ => return Err(BadProperty(KIND)),
        };
        Ok((correlation, piece))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece() -> impl Strategy<Value = Piece> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..50);
        prop_oneof![
            (any::<u64>(), bytes).prop_map(|(offset, bytes)| Piece::Data {
                offset,
                bytes: bytes.into(),
            }),
            (any::<u64>(), any::<u64>()).prop_map(|(got, window)| Piece::Credit { got, window }),
            any::<u64>().prop_map(|length| Piece::End { length }),
            "[a-z -]{0,30}".prop_map(|why| Piece::Abort { why }),
        ]
    }

    proptest! {
        #[test]
        fn every_piece_survives(piece in piece(), name in any::<[u8; 16]>()) {
            let message = piece.write("t", Correlation(name));
            prop_assert_eq!(Piece::read(&message), Ok((Correlation(name), piece)));
        }

        #[test]
        fn no_message_panics(user in proptest::collection::vec(("s|o|got|window|why", "data|credit|end|abort|-?[0-9]{0,21}"), 0..6)) {
            let mut message = Piece::End { length: 1 }.write("t", Correlation([0; 16]));
            message.properties.user = user;
            let _ = Piece::read(&message);
        }
    }

    #[test]
    fn what_is_malformed_is_named() {
        let good = Piece::Credit { got: 1, window: 2 }.write("t", Correlation([0; 16]));
        for (name, value) in [("s", "x"), ("got", "+1"), ("got", ""), ("window", "1e3")] {
            let mut bad = good.clone();
            bad.properties.user.retain(|(key, _)| key != name);
            assert_eq!(Piece::read(&bad), Err(BadProperty(name)), "missing");
            bad.properties.user.push((name.into(), value.into()));
            assert_eq!(Piece::read(&bad), Err(BadProperty(name)), "{value}");
            let mut twice = good.clone();
            twice
                .properties
                .user
                .extend_from_slice(&good.properties.user);
            assert!(Piece::read(&twice).is_err());
        }
        let mut foreign = good;
        foreign.properties.correlation_data = None;
        assert!(Piece::read(&foreign).is_err());
    }
}
