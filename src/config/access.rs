//! Who may call api_1: bearer tokens, passwords, and the proxies that are believed.

use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::values::apart_if_any;
use crate::base::error::{Error, Result};
use crate::gateway::{Access, Admission, Token, User, Users};

/// The shortest token, in characters: shorter ones can be guessed.
const MIN_TOKEN: usize = 16;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAccess {
    tokens_file: Option<PathBuf>,
    users_file: Option<PathBuf>,
    monitors: Option<Spanned<Vec<String>>>,
    trusted_proxies: Vec<Proxy>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Proxy(IpNet);

impl TryFrom<String> for Proxy {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Proxy, String> {
        let alone = || text.parse::<IpAddr>().map(IpNet::from).ok();
        let net = text.parse().ok().or_else(alone);
        net.map(Proxy).ok_or_else(|| {
            format!("found {text:?}, allowed is an address or a network such as \"10.0.0.0/8\"")
        })
    }
}

impl RawAccess {
    /// Reads the tokens and the users. Returns where those stand who may look, too.
    ///
    /// Errors: a file can't be read, or a line of it is wrong.
    pub fn load(self) -> Result<(Access, Range<usize>)> {
        let tokens = match &self.tokens_file {
            Some(path) => read_tokens(path)?,
            None => Vec::new(),
        };
        let users = self.users_file.map(read_users).transpose()?;
        let (monitors, monitors_at) = apart_if_any(self.monitors);
        let access = Access {
            monitors,
            tokens,
            tokens_file: self.tokens_file,
            users,
            trusted_proxies: self.trusted_proxies.into_iter().map(|it| it.0).collect(),
        };
        Ok((access, monitors_at))
    }
}

/// Who may call, as a file says it.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub(super) enum AccessName {
    Public,
    Token,
}

/// Who may call what has these settings.
///
/// Errors: they contradict each other.
pub(super) fn admission(
    access: Option<AccessName>,
    tokens: Option<Vec<String>>,
    users_file: Option<&PathBuf>,
) -> std::result::Result<Admission, String> {
    match (access, tokens) {
        (Some(AccessName::Public), _) if users_file.is_some() => {
            Err("users_file: what has access = \"public\" needs none".into())
        }
        (Some(AccessName::Public), Some(_)) => {
            Err("tokens: what has access = \"public\" needs none".into())
        }
        (Some(AccessName::Public), None) => Ok(Admission::Public),
        (_, Some(names)) if names.is_empty() => {
            Err("tokens: found none; without the key, every token is admitted".into())
        }
        (_, Some(names)) => Ok(Admission::Tokens(names)),
        (_, None) => Ok(Admission::AnyToken),
    }
}

// The lines of a file that say something. They are never shown: they hold what is secret.
fn read_lines(path: &Path) -> Result<Vec<(usize, String)>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::ReadFile {
        path: path.to_owned(),
        source,
    })?;
    let lines = text.lines().map(str::trim).zip(1..);
    let says = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    Ok(says
        .map(|(line, number)| (number, line.to_owned()))
        .collect())
}

fn wrong_line(path: &Path, number: usize, message: &str) -> Error {
    Error::Setting {
        place: format!("{} line {number}", path.display()),
        message: message.into(),
    }
}

/// Reads names and hashed passwords.
///
/// Errors: the file can't be read, or a line of it is wrong.
pub(super) fn read_users(path: PathBuf) -> Result<Arc<Users>> {
    let mut users: Vec<User> = Vec::new();
    for (number, line) in read_lines(&path)? {
        let wrong = |message| wrong_line(&path, number, message);
        let user = User::read(&line).map_err(wrong)?;
        if users.iter().any(|other| other.name() == user.name()) {
            return Err(wrong("this name is there twice"));
        }
        users.push(user);
    }
    match users.is_empty() {
        true => Err(Error::Setting {
            place: path.display().to_string(),
            message: "there is no name in it".into(),
        }),
        false => Ok(Arc::new(Users::new(path, users))),
    }
}

fn read_tokens(path: &Path) -> Result<Vec<Token>> {
    let mut tokens: Vec<Token> = Vec::new();
    for (number, line) in read_lines(path)? {
        let wrong = |message: &str| wrong_line(path, number, message);
        let mut words = line.split_whitespace();
        let (Some(name), Some(secret), None) = (words.next(), words.next(), words.next()) else {
            return Err(wrong("allowed is a name, a space and a token"));
        };
        // RFC 6750, section 2.1.
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if secret.len() < MIN_TOKEN || !secret.bytes().all(fits) {
            return Err(wrong(
                "a token is 16 or more of A-Z a-z 0-9 - . _ ~ + / =, for example from \
                 `openssl rand -hex 32`",
            ));
        }
        if crate::base::topic::Id::new(name).is_err() {
            return Err(wrong(
                "a name is 1 to 64 of A-Z a-z 0-9 _ -, and . between them",
            ));
        }
        if tokens
            .iter()
            .any(|it| it.name == name || it.secret == secret)
        {
            return Err(wrong("this name or this token is there twice"));
        }
        tokens.push(Token {
            name: name.into(),
            secret: secret.into(),
        });
    }
    match tokens.is_empty() {
        true => Err(Error::Setting {
            place: path.display().to_string(),
            message: "there is no token in it".into(),
        }),
        false => Ok(tokens),
    }
}
