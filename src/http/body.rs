//! What a request or an answer carries.

use bytes::Bytes;

/// The content of a request or an answer (RFC 9110, section 6.4). Everything that makes, carries or
/// sends one does so through this.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// All of it.
    Whole(Bytes),
}

impl Body {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Body::Empty => &[],
            Body::Whole(bytes) => bytes,
        }
    }

    /// Its bytes, to be kept; they are shared, not copied.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Body::Empty => Bytes::new(),
            Body::Whole(bytes) => bytes.clone(),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(content: T) -> Body {
        let bytes = content.into();
        match bytes.is_empty() {
            true => Body::Empty,
            false => Body::Whole(bytes),
        }
    }
}
