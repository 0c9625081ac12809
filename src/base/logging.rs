//! Log lines on standard error: time, level, thread, text; or each as a JSON object.

use std::cell::{OnceCell, RefCell};
use std::io::Write;
use std::{fmt, io};

use log::{Log, Metadata, Record};
use simplelog::{ConfigBuilder, LevelFilter, LevelPadding, ThreadLogMode, WriteLogger};

use super::error::{Error, Result};
use super::{json_lines, writer};

/// The most bytes of a payload that a log line shows.
const EXCERPT_BYTES: usize = 256;

/// Logging, for as long as this is held. Dropping it writes the lines that are left.
pub struct Logging {
    _writer: writer::Writer,
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// Starts logging at the level that `RECADO_LOG` names, `info` by default, in the form that
/// `RECADO_LOG_FORMAT` names, `text` by default.
///
/// Only this crate's lines are shown: rumqttc and rmqtt log every packet at debug. Errors: a variable
/// has another value than those allowed ([`Error::Usage`]), or there is no thread.
pub fn init() -> Result<Logging> {
    let level = level_from_environment()?.unwrap_or(LevelFilter::Info);
    let format = match variable("RECADO_LOG_FORMAT").as_deref() {
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some(text) => {
            return Err(Error::Usage(format!(
                "RECADO_LOG_FORMAT: found {text:?}, allowed are text and json"
            )));
        }
    };
    let lost_line = match format {
        Format::Text => |lost| format!("{lost} log lines were lost: they came too fast"),
        Format::Json => json_lines::lost,
    };
    let (writer, lines) = writer::Writer::start(io::stderr(), lost_line)?;
    // A second call, as in tests that start several services, keeps the first logger.
    if log::set_boxed_logger(Box::new(PerThread { format, lines })).is_ok() {
        log::set_max_level(level);
    }
    Ok(Logging { _writer: writer })
}

/// The level that `RECADO_LOG` names, if it is set.
///
/// Errors: it is not one of off, error, warn, info, debug and trace ([`Error::Usage`]).
pub fn level_from_environment() -> Result<Option<LevelFilter>> {
    let Some(text) = variable("RECADO_LOG") else {
        return Ok(None);
    };
    let level = text.parse().map_err(|_| {
        Error::Usage(format!(
            "RECADO_LOG: found {text:?}, allowed are off, error, warn, info, debug and trace"
        ))
    })?;
    Ok(Some(level))
}

// One that is no text is as good as one that is wrong.
fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|text| text.to_string_lossy().into_owned())
}

/// Shows the lines of this level and those that matter more, from now on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// A logger for each thread: one for all would let threads wait for each other while it formats a
/// line.
struct PerThread {
    format: Format,
    lines: writer::Lines,
}

enum Own {
    Text(Box<WriteLogger<writer::Lines>>),
    Json(RefCell<writer::Lines>),
}

thread_local! {
    static LOGGER: OnceCell<Own> = const { OnceCell::new() };
}

impl PerThread {
    fn logger(&self) -> Own {
        if self.format == Format::Json {
            return Own::Json(RefCell::new(self.lines.clone()));
        }
        let config = ConfigBuilder::new()
            .set_time_format_rfc3339()
            .set_thread_level(LevelFilter::Error)
            .set_thread_mode(ThreadLogMode::Names)
            .set_target_level(LevelFilter::Off)
            .set_location_level(LevelFilter::Off)
            .set_level_padding(LevelPadding::Right)
            .add_filter_allow_str("recado")
            .build();
        // The level is decided before, and may change.
        Own::Text(WriteLogger::new(
            LevelFilter::Trace,
            config,
            self.lines.clone(),
        ))
    }
}

impl Log for PerThread {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && metadata.target().starts_with("recado")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || !self.lines.admits(record) {
            return;
        }
        // None: the thread is just ending.
        let _ = LOGGER.try_with(|own| match own.get_or_init(|| self.logger()) {
            Own::Text(logger) => logger.log(record),
            Own::Json(lines) => {
                // Made before it is borrowed: whatever is shown may log something itself.
                let line = json_lines::line(record);
                let _ = lines.borrow_mut().write_all(&line);
            }
        });
    }

    fn flush(&self) {}
}

/// Shows bytes from the network on one line: nothing in them can forge another line or steer a
/// terminal.
pub struct Excerpt<'a> {
    bytes: &'a [u8],
    limit: usize,
}

/// The beginning of `bytes`, for a log line.
pub fn excerpt(bytes: &[u8]) -> Excerpt<'_> {
    Excerpt {
        bytes,
        limit: EXCERPT_BYTES,
    }
}

/// All of `bytes`, for a person who asked for them.
pub fn printable(bytes: &[u8]) -> Excerpt<'_> {
    Excerpt {
        bytes,
        limit: usize::MAX,
    }
}

// What steers a terminal, or makes text look like another.
fn is_unseen(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.bytes[..self.bytes.len().min(self.limit)];
        for chunk in shown.utf8_chunks() {
            let mut plain = chunk.valid();
            while let Some(at) = plain.find(is_unseen) {
                f.write_str(&plain[..at])?;
                let control = plain[at..].chars().next().unwrap_or_default();
                write!(f, "{}", control.escape_default())?;
                plain = &plain[at + control.len_utf8()..];
            }
            f.write_str(plain)?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        match self.bytes.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, "… ({more} bytes more)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_can_not_forge_a_line() {
        let shown = excerpt(b"{\"ask\": \"ping\"}\n2026 [INFO] \x1b[31mall well\xff").to_string();
        assert_eq!(
            shown,
            "{\"ask\": \"ping\"}\\n2026 [INFO] \\u{1b}[31mall well\\xff"
        );
    }

    #[test]
    fn text_that_would_look_like_another_is_shown_as_it_is() {
        let shown = excerpt("a\u{202e}b\u{2028}c\u{e9}".as_bytes()).to_string();
        assert_eq!(shown, "a\\u{202e}b\\u{2028}c\u{e9}");
    }

    #[test]
    fn a_long_payload_is_cut_and_says_so() {
        let shown = excerpt(&[b'x'; 1000]).to_string();
        assert!(shown.ends_with("x… (744 bytes more)"), "{shown}");
    }
}
