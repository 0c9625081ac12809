//! Certificates and keys in PEM.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::base::error::{Error, Result, chain};

/// The authorities in a file; without one, those that the system trusts.
///
/// Errors: there are none, or the file can't be used ([`Error::Tls`]).
pub fn roots(ca_file: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca_file else {
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

/// All certificates in a file.
///
/// Errors: there are none, or the file can't be used ([`Error::Tls`]).
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

/// The key in a file.
///
/// Errors: the file can't be used ([`Error::Tls`]).
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Tls(format!("{}: {error}", path.display()))
}
