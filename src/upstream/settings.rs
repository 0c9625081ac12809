//! Where an upstream is, and who may be there.

use std::path::PathBuf;

use super::url::UpstreamUrl;

/// An HTTP service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// Where it is.
    pub url: UpstreamUrl,
    /// Who may be there, if that is `https://`.
    pub tls: UpstreamTls,
}

/// Who may be at an upstream with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The certificate authorities to trust, in PEM; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether its certificate must be one for its name from such an authority. Else anybody on the way
    /// can take its place.
    pub verify: bool,
}

impl Default for UpstreamTls {
    fn default() -> UpstreamTls {
        UpstreamTls {
            ca_file: None,
            verify: true,
        }
    }
}

#[cfg(test)]
impl UpstreamSettings {
    /// That at this URL.
    pub(crate) fn at(url: &str) -> UpstreamSettings {
        UpstreamSettings {
            url: url.parse().unwrap(),
            tls: UpstreamTls::default(),
        }
    }
}
