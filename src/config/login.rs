//! Who we are to the broker, and by whose word we believe that it is the broker.

use std::path::{Path, PathBuf};

use crate::base::error::{Error, Result};
use crate::link::{BrokerUrl, TlsFiles};

/// What a configuration file says of it.
#[derive(Default)]
pub(super) struct Login {
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub tls: TlsFiles,
}

impl Login {
    pub fn new(username: Option<String>, password_file: Option<PathBuf>, tls: TlsFiles) -> Login {
        Login {
            username,
            password_file,
            tls,
        }
    }

    /// Puts environment, file and URL together, in this order of precedence.
    ///
    /// Errors: a password file can't be read; TLS files that don't fit together or are given for a
    /// connection without TLS.
    pub fn complete(self, mut url: BrokerUrl) -> Result<BrokerUrl> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = |name: &str, set: Option<PathBuf>| variable(name).map(PathBuf::from).or(set);
        let password_file = file("RECADO_MQTT_PASSWORD_FILE", self.password_file);
        let password = match (variable("RECADO_MQTT_PASSWORD"), password_file) {
            (Some(password), _) => Some(password),
            (None, Some(file)) => Some(first_line(&file)?),
            (None, None) => None,
        };
        let username = variable("RECADO_MQTT_USERNAME").or(self.username);
        url.set_credentials(username, password);
        let tls = TlsFiles {
            ca_file: file("RECADO_TLS_CA_FILE", self.tls.ca_file),
            certificate_file: file("RECADO_TLS_CERTIFICATE_FILE", self.tls.certificate_file),
            key_file: file("RECADO_TLS_KEY_FILE", self.tls.key_file),
        };
        if tls.certificate_file.is_some() != tls.key_file.is_some() {
            let message = "certificate_file and key_file belong together: give both or none";
            return Err(Error::Usage(message.into()));
        }
        if tls != TlsFiles::default() && !url.is_tls() {
            let message = format!("there are files for TLS, but {url} is not mqtts://");
            return Err(Error::Usage(message));
        }
        url.set_tls_files(tls);
        Ok(url)
    }
}

fn first_line(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::ReadFile {
        path: path.to_owned(),
        source,
    })?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(Error::Setting {
            place: path.display().to_string(),
            message: "the password stands in the first line, which is empty".into(),
        }),
    }
}
