//! TLS to the broker: whom to trust, and who we are. The server's name is always checked.

use rumqttc::Transport;

use crate::config::TlsFiles;
use crate::error::{Error, Result};

/// Says what a failed handshake means.
#[cfg(feature = "tls")]
pub(super) fn describe(reason: &str) -> String {
    let advice = match reason {
        _ if reason.contains("UnknownIssuer") => {
            "; its certificate is not from an authority that is trusted here, see ca_file"
        }
        _ if reason.contains("NotValidForName") || reason.contains("not valid for name") => {
            "; its certificate is for another name than the one in the broker's URL"
        }
        _ if reason.contains("CertificateRequired") => {
            "; it wants a client certificate, see certificate_file"
        }
        _ => "",
    };
    format!("no TLS connection to the broker: {reason}{advice}")
}

#[cfg(feature = "tls")]
pub(super) fn transport(files: &TlsFiles) -> Result<Transport> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_root_certificates(pem::roots(files)?);
    let config = match (&files.certificate_file, &files.key_file) {
        (Some(certificate_file), Some(key_file)) => {
            let chain = pem::certificates(certificate_file)?;
            let key = pem::key(key_file)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let (certificate, key) = (certificate_file.display(), key_file.display());
                Error::Tls(format!("{certificate} and {key}: {error}"))
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Transport::tls_with_config(
        rumqttc::TlsConfiguration::Rustls(std::sync::Arc::new(config)),
    ))
}

#[cfg(not(feature = "tls"))]
pub(super) fn transport(_: &TlsFiles) -> Result<Transport> {
    let message = "this program was built without the feature tls";
    Err(Error::Tls(message.into()))
}

#[cfg(feature = "tls")]
mod pem {
    use std::path::Path;

    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::TlsFiles;
    use crate::error::{Error, Result, chain};

    pub fn roots(files: &TlsFiles) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &files.ca_file else {
            return system_roots(roots);
        };
        for certificate in certificates(path)? {
            roots
                .add(certificate)
                .map_err(|error| unusable(path, &error))?;
        }
        Ok(roots)
    }

    fn system_roots(mut roots: RootCertStore) -> Result<RootCertStore> {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added > 0 {
            return Ok(roots);
        }
        let reason = found.errors.first().map(|error| chain(error));
        Err(Error::Tls(format!(
            "this system has no trusted root certificates (package ca-certificates) {}",
            reason.unwrap_or_default()
        )))
    }

    pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error))?;
        let all: std::result::Result<Vec<_>, _> = read.collect();
        match all {
            Ok(all) if all.is_empty() => {
                let message = format!("{}: there is no certificate in it", path.display());
                Err(Error::Tls(message))
            }
            Ok(all) => Ok(all),
            Err(error) => Err(unusable(path, &error)),
        }
    }

    pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_file(path).map_err(|error| unusable(path, &error))
    }

    fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Error {
        Error::Tls(format!("{}: {error}", path.display()))
    }
}
