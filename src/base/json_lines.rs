//! A log line as one JSON object, for programs that read logs.

use std::time::SystemTime;

use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Record};
use serde::ser::{SerializeMap, Serializer};

/// What every line has; nothing that a record carries may take its place.
const OWN: [&str; 4] = ["time", "level", "thread", "message"];

/// A record as a line: `time` (RFC 3339), `level`, `thread`, `message`, and what else it carries by name.
pub(super) fn line(record: &Record<'_>) -> Vec<u8> {
    // Strings and numbers only, into memory: it can't fail.
    let mut line = object(record).unwrap_or_default();
    line.push(b'\n');
    line
}

fn object(record: &Record<'_>) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut object = serializer.serialize_map(None)?;
    let thread = std::thread::current();
    let time = humantime::format_rfc3339_micros(SystemTime::now());
    object.serialize_entry(OWN[0], &format_args!("{time}"))?;
    object.serialize_entry(OWN[1], record.level().as_str())?;
    object.serialize_entry(OWN[2], thread.name().unwrap_or_default())?;
    object.serialize_entry(OWN[3], record.args())?;
    let _ = record.key_values().visit(&mut Members(&mut object));
    object.end()?;
    Ok(line)
}

/// The line that says how many others were lost.
pub(super) fn lost(lost: usize) -> String {
    let pair = [("lost_lines", lost)];
    let record = Record::builder()
        .level(Level::Warn)
        .args(format_args!("log lines were lost: they came too fast"))
        .key_values(&pair)
        .build();
    String::from_utf8_lossy(line(&record).trim_ascii_end()).into_owned()
}

struct Members<'a, Map>(&'a mut Map);

impl<'kvs, Map: SerializeMap> VisitSource<'kvs> for Members<'_, Map> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let name = key.as_str();
        if OWN.contains(&name) {
            return Ok(());
        }
        let written = match (value.to_u64(), value.to_f64(), value.to_bool()) {
            (Some(number), ..) => self.0.serialize_entry(name, &number),
            (_, Some(number), _) => self.0.serialize_entry(name, &number),
            (.., Some(truth)) => self.0.serialize_entry(name, &truth),
            _ => self.0.serialize_entry(name, &format_args!("{value}")),
        };
        written.map_err(|_| Error::msg("it can't be written"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_object_whatever_it_says() {
        let pairs = [
            ("status", Value::from(503_u64)),
            ("duration_ms", Value::from(1.5)),
            ("target", Value::from("/\"\n\u{7}")),
            ("level", Value::from("forged")),
        ];
        let record = &mut Record::builder();
        let record = record.level(Level::Warn).key_values(&pairs);
        let what = "\"quotes\"";
        let line = line(&record.args(format_args!("two\nlines and {what}")).build());
        let text = String::from_utf8(line).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["level"], "WARN");
        assert_eq!(read["message"], "two\nlines and \"quotes\"");
        assert_eq!(read["status"], 503);
        assert_eq!(read["duration_ms"], 1.5);
        assert_eq!(read["target"], "/\"\n\u{7}");
        let time = read["time"].as_str().unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
    }
}
