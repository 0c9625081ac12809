//! The fields of a head that was read, as a map.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The fields that were found in `head`, in order. Their values share its memory, instead of having a piece
/// each.
///
/// Errors: one of them is malformed; what of it.
pub fn header_map(
    head: &Bytes,
    fields: &[httparse::Header<'_>],
) -> Result<HeaderMap, &'static str> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| "a header name is malformed")?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| "a header value is malformed")?;
        headers.append(name, value);
    }
    Ok(headers)
}
