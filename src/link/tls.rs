//! TLS to the broker: whom to trust, and who we are. The server's name is always checked.

#[cfg(feature = "tls")]
use rumqttc::TlsConfiguration;
use rumqttc::Transport;
#[cfg(feature = "tls")]
use std::sync::Arc;

use super::url::TlsFiles;
use crate::base::error::{Error, Result};
#[cfg(feature = "tls")]
use crate::base::pem;

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

/// The TLS transport. `name`: whose certificate is wanted, where the connection goes to an address.
#[cfg(feature = "tls")]
pub(super) fn transport(files: &TlsFiles, name: Option<&str>) -> Result<Transport> {
    Ok(Transport::tls_with_config(configuration(files, name)?))
}

/// The same below a WebSocket.
#[cfg(all(feature = "tls", feature = "websocket"))]
pub(super) fn websocket_transport(files: &TlsFiles, name: Option<&str>) -> Result<Transport> {
    Ok(Transport::wss_with_config(configuration(files, name)?))
}

#[cfg(feature = "tls")]
fn configuration(files: &TlsFiles, name: Option<&str>) -> Result<TlsConfiguration> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?;
    let roots = pem::roots(files.ca_file.as_deref())?;
    let builder = match name {
        None => builder.with_root_certificates(roots),
        Some(name) => {
            let verifier = named::OfName::new(roots, provider, name)?;
            let builder = builder.dangerous();
            builder.with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut config = match (&files.certificate_file, &files.key_file) {
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
    let protocols = files.alpn.iter();
    config.alpn_protocols = protocols.map(|name| name.clone().into_bytes()).collect();
    Ok(TlsConfiguration::Rustls(Arc::new(config)))
}

#[cfg(not(feature = "tls"))]
pub(super) fn transport(_: &TlsFiles, _: Option<&str>) -> Result<Transport> {
    let message = "this program was built without the feature tls";
    Err(Error::Tls(message.into()))
}

#[cfg(all(not(feature = "tls"), feature = "websocket"))]
pub(super) fn websocket_transport(files: &TlsFiles, name: Option<&str>) -> Result<Transport> {
    transport(files, name)
}

/// rumqttc asks for a certificate of what it connects to. Where that is an address, because another
/// one of the broker's name is dead, the certificate must be the name's all the same.
#[cfg(feature = "tls")]
mod named {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

    use crate::base::error::{Error, Result};

    type Verified<T> = std::result::Result<T, rustls::Error>;

    #[derive(Debug)]
    pub struct OfName {
        usual: Arc<WebPkiServerVerifier>,
        name: ServerName<'static>,
    }

    impl OfName {
        pub fn new(
            roots: RootCertStore,
            provider: Arc<CryptoProvider>,
            name: &str,
        ) -> Result<OfName> {
            let unusable = |error: &dyn std::fmt::Display| Error::Tls(format!("{name}: {error}"));
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            Ok(OfName {
                usual: builder.build().map_err(|error| unusable(&error))?,
                name: ServerName::try_from(name.to_owned()).map_err(|error| unusable(&error))?,
            })
        }
    }

    impl ServerCertVerifier for OfName {
        fn verify_server_cert(
            &self,
            certificate: &CertificateDer<'_>,
            chain: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            ocsp: &[u8],
            now: UnixTime,
        ) -> Verified<ServerCertVerified> {
            self.usual
                .verify_server_cert(certificate, chain, &self.name, ocsp, now)
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Verified<HandshakeSignatureValid> {
            self.usual
                .verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Verified<HandshakeSignatureValid> {
            self.usual
                .verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.usual.supported_verify_schemes()
        }
    }
}
