//! The way to a broker, who we are there, and by whose word we believe that it is the broker.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::values::ProxySetting;
use crate::base::error::{Error, Result};
use crate::link::{BrokerUrl, Scheme, TlsFiles, WebsocketHeaders};

/// What a configuration file says of WebSockets.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Websocket {
    pub headers_file: Option<PathBuf>,
}

/// What a configuration file says of the way to a broker, and of who we are there.
#[derive(Default)]
pub(super) struct Login {
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub tls: TlsFiles,
    pub proxy: Option<ProxySetting>,
    pub websocket: Websocket,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn file(name: &str, set: Option<PathBuf>) -> Option<PathBuf> {
    variable(name).map(PathBuf::from).or(set)
}

impl Login {
    /// Puts environment, file and URLs together, in this order of precedence.
    ///
    /// Errors: a file can't be read or used; TLS files that don't fit together, or that are given where no
    /// connection has TLS, and the like.
    pub fn complete(self, mut urls: Vec<BrokerUrl>) -> Result<Vec<BrokerUrl>> {
        let password_file = file("RECADO_MQTT_PASSWORD_FILE", self.password_file);
        let password = match (variable("RECADO_MQTT_PASSWORD"), password_file) {
            (Some(password), _) => Some(password),
            (None, Some(file)) => Some(first_line(&file)?),
            (None, None) => None,
        };
        let username = variable("RECADO_MQTT_USERNAME").or(self.username);
        let tls = tls(self.tls)?;
        let headers = websocket_headers(self.websocket)?;
        let proxy = proxy(self.proxy)?;
        check_use(&urls, &tls, &headers)?;
        for url in &mut urls {
            url.set_credentials(username.clone(), password.clone());
            if url.is_tls() {
                url.set_tls_files(tls.clone());
            }
            if url.scheme().is_websocket() {
                url.set_websocket_headers(headers.clone());
            }
            if url.scheme() != Scheme::Unix {
                let found = proxy.as_ref().map(|proxy| proxy.on_the_way_to(url.host()));
                let found = found.transpose().map_err(Error::Usage)?;
                url.set_proxy(found.flatten());
            }
        }
        Ok(urls)
    }
}

fn tls(set: TlsFiles) -> Result<TlsFiles> {
    let protocols = variable("RECADO_TLS_ALPN");
    let listed = |names: String| {
        names
            .split(',')
            .map(|name| name.trim().to_owned())
            .collect()
    };
    let tls = TlsFiles {
        ca_file: file("RECADO_TLS_CA_FILE", set.ca_file),
        certificate_file: file("RECADO_TLS_CERTIFICATE_FILE", set.certificate_file),
        key_file: file("RECADO_TLS_KEY_FILE", set.key_file),
        alpn: protocols.map_or(set.alpn, listed),
    };
    if tls.certificate_file.is_some() != tls.key_file.is_some() {
        let message = "certificate_file and key_file belong together: give both or none";
        return Err(Error::Usage(message.into()));
    }
    // RFC 7301, section 3.1.
    if tls.alpn.iter().any(|name| !(1..=255).contains(&name.len())) {
        let message = "a name in alpn has 1 to 255 bytes";
        return Err(Error::Usage(message.into()));
    }
    Ok(tls)
}

fn websocket_headers(set: Websocket) -> Result<WebsocketHeaders> {
    let Some(path) = file("RECADO_WEBSOCKET_HEADERS_FILE", set.headers_file) else {
        return Ok(WebsocketHeaders::default());
    };
    let text = read(&path)?;
    WebsocketHeaders::read(path.clone(), &text).map_err(|message| Error::Setting {
        place: path.display().to_string(),
        message,
    })
}

fn proxy(set: Option<ProxySetting>) -> Result<Option<ProxySetting>> {
    match variable("RECADO_PROXY") {
        None => Ok(set),
        Some(text) => {
            let setting = ProxySetting::try_from(text);
            setting
                .map(Some)
                .map_err(|why| Error::Usage(format!("RECADO_PROXY: {why}")))
        }
    }
}

// What is given and could not be used was meant for another connection.
fn check_use(urls: &[BrokerUrl], tls: &TlsFiles, headers: &WebsocketHeaders) -> Result<()> {
    let list: Vec<String> = urls.iter().map(ToString::to_string).collect();
    let list = list.join(", ");
    if *tls != TlsFiles::default() && !urls.iter().any(BrokerUrl::is_tls) {
        let message = format!("there are settings for TLS, but {list} is not mqtts:// or wss://");
        return Err(Error::Usage(message));
    }
    let is_websocket = |url: &BrokerUrl| url.scheme().is_websocket();
    if headers.file().is_some() && !urls.iter().any(is_websocket) {
        let message =
            format!("there are headers for WebSockets, but {list} is not ws:// or wss://");
        return Err(Error::Usage(message));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::ReadFile {
        path: path.to_owned(),
        source,
    })
}

fn first_line(path: &Path) -> Result<String> {
    let text = read(path)?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(Error::Setting {
            place: path.display().to_string(),
            message: "the password stands in the first line, which is empty".into(),
        }),
    }
}
