//! Reading a configuration file, with errors that name the line.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::file;
use crate::base::error::{Error, Result};
use crate::gateway::OWN_PATHS;

/// The text of a configuration file, for what is found wrong only once all of it is read.
pub(super) struct Source {
    name: String,
    text: String,
}

impl Source {
    /// The name of the file.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// An error about what stands at `span`.
    pub(super) fn wrong(&self, span: &Range<usize>, key: &str, message: String) -> Error {
        let line = line_number(&self.text, span.start);
        Error::Setting {
            place: format!("{} line {line}, key {key}", self.name),
            message,
        }
    }

    /// Errors: one of the values stands there twice.
    pub(super) fn no_repeats<'a>(
        &self,
        key: &str,
        values: impl Iterator<Item = (&'a str, &'a Range<usize>)>,
    ) -> Result<()> {
        let mut seen = HashMap::new();
        for (value, span) in values {
            if let Some(before) = seen.insert(value, span) {
                let line = line_number(&self.text, before.start);
                let message =
                    format!("found {value:?} twice, allowed is once; it is in line {line} too");
                return Err(self.wrong(span, key, message));
            }
        }
        Ok(())
    }

    /// Errors: two routes claim the same paths, or one those of the gateway itself.
    pub(super) fn check_paths(&self, routes: &[file::Route]) -> Result<()> {
        let mut paths = matchit::Router::new();
        for own in OWN_PATHS {
            // They are apart from each other.
            let _ = paths.insert(own, ());
        }
        for file::Route { route, path_at, .. } in routes {
            for pattern in route.patterns() {
                paths.insert(pattern, ()).map_err(|error| {
                    let other = match error {
                        matchit::InsertError::Conflict { with } => with,
                        other => other.to_string(),
                    };
                    let message = format!(
                        "found {:?}, which is in conflict with {other:?}; allowed is a path that no other route and none of {OWN_PATHS:?} matches",
                        route.path
                    );
                    self.wrong(path_at, "path", message)
                })?;
            }
        }
        Ok(())
    }
}

fn line_number(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

/// Reads a configuration file; without one, every setting has its default.
///
/// Errors: it can't be read ([`Error::ReadFile`]), or a line is wrong ([`Error::Setting`]).
pub(super) fn load<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<(T, Source)> {
    let mut source = Source {
        name: String::new(),
        text: String::new(),
    };
    let Some(path) = path else {
        return Ok((T::default(), source));
    };
    source.name = path.display().to_string();
    source.text = std::fs::read_to_string(path).map_err(|source| Error::ReadFile {
        path: path.to_owned(),
        source,
    })?;
    Ok((parse(&source.text, path)?, source))
}

pub(super) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let mut place = path.display().to_string();
        let mut message = error.message().to_owned();
        if let Some(span) = error.span() {
            let number = line_number(text, span.start);
            place.push_str(&format!(" line {number}"));
            let line = text.lines().nth(number - 1).unwrap_or_default();
            if let Some((key, _)) = line.split_once('=') {
                place.push_str(&format!(", key {}", key.trim()));
            }
            // What was found, unless it may be secret or the message says it.
            let found = text.get(span).unwrap_or_default().trim();
            let may_be_secret = found.contains("://") || found.contains('@');
            if !message.contains("found") && !may_be_secret && found.lines().count() == 1 {
                message.push_str(&format!("; found {found}"));
            }
        }
        Error::Setting { place, message }
    })
}
