//! A bound for warnings that repeat themselves: what one place says too often is counted, and the count
//! is said once in a while. Pure, but for the lock.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::kv::Key;
use log::{Level, Record};

use super::threads::lock;

/// How many lines one place may write within this time.
const MOST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);
/// How many places are told apart.
const PLACES: usize = 512;

/// The key-value of a record that tells kinds of one place apart.
pub const KIND: &str = "kind";

/// Who writes how much.
#[derive(Default)]
pub(super) struct Flood {
    places: Mutex<HashMap<Place, Window>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Place {
    file: Option<&'static str>,
    line: Option<u32>,
    kind: Option<String>,
}

struct Window {
    until: Instant,
    written: u32,
    held: Option<Held>,
}

/// Lines that were counted instead of written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub level: Level,
    pub count: u64,
    /// What one of them says.
    pub example: String,
}

impl Flood {
    /// Whether a line is to be written; if not, when the count of such lines is due.
    pub fn admits(&self, record: &Record<'_>, now: Instant) -> Result<(), Instant> {
        let kind = record.key_values().get(Key::from_str(KIND));
        let place = Place {
            file: record.file_static(),
            line: record.line(),
            kind: kind.map(|kind| kind.to_string()),
        };
        let mut places = lock(&self.places);
        if places.len() >= PLACES && !places.contains_key(&place) {
            places.retain(|_, window| window.until > now || window.held.is_some());
            if places.len() >= PLACES {
                return Ok(());
            }
        }
        let window = places.entry(place).or_insert(Window {
            until: now + WINDOW,
            written: 0,
            held: None,
        });
        if now >= window.until && window.held.is_none() {
            window.until = now + WINDOW;
            window.written = 0;
        }
        if window.written < MOST {
            window.written += 1;
            return Ok(());
        }
        let held = window.held.get_or_insert(Held {
            level: record.level(),
            count: 0,
            example: String::new(),
        });
        held.count += 1;
        // One of them is enough, and making it takes its time: a late one, though not each.
        if held.count.is_power_of_two() {
            held.example = record.args().to_string();
        }
        Err(window.until)
    }

    /// Takes the counts that are due, or all of them at the end, and says when the next one is.
    pub fn take(&self, now: Instant, is_end: bool) -> (Vec<Held>, Option<Instant>) {
        let mut taken = Vec::new();
        let mut next: Option<Instant> = None;
        for window in lock(&self.places).values_mut() {
            if window.held.is_none() {
                continue;
            }
            if is_end || now >= window.until {
                taken.extend(window.held.take());
                window.until = now + WINDOW;
                // One that goes on and on is not heard ten times in each window.
                window.written = MOST - 1;
            } else {
                next = Some(next.map_or(window.until, |it| it.min(window.until)));
            }
        }
        (taken, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(flood: &Flood, level: Level, kind: &'static str, now: Instant) -> bool {
        let pair = [(KIND, kind)];
        let record = Record::builder()
            .level(level)
            .file_static(Some("here.rs"))
            .line(Some(1))
            .key_values(&pair)
            .args(format_args!("it fails"))
            .build();
        flood.admits(&record, now).is_ok()
    }

    fn written(flood: &Flood, level: Level, kind: &'static str, now: Instant) -> usize {
        (0..100).filter(|_| write(flood, level, kind, now)).count()
    }

    #[test]
    fn what_repeats_itself_is_counted_and_told() {
        let flood = Flood::default();
        let start = Instant::now();
        assert_eq!(written(&flood, Level::Warn, "a", start), 10);
        assert_eq!(
            written(&flood, Level::Error, "b", start),
            10,
            "another kind"
        );
        let (early, next) = flood.take(start, false);
        assert_eq!((early, next), (Vec::new(), Some(start + WINDOW)));
        let (mut due, next) = flood.take(start + WINDOW, false);
        due.sort_by_key(|held| held.level);
        let held = |level| Held {
            level,
            count: 90,
            example: "it fails".into(),
        };
        assert_eq!(due, [held(Level::Error), held(Level::Warn)]);
        assert_eq!(next, None);
        let later = start + WINDOW;
        assert_eq!(written(&flood, Level::Warn, "a", later), 1, "it goes on");
        assert_eq!(flood.take(later, true).0[0].count, 99);
        let much_later = later + 2 * WINDOW;
        assert_eq!(written(&flood, Level::Warn, "a", much_later), 10);
    }

    #[test]
    fn what_can_not_be_told_apart_any_more_is_written() {
        let flood = Flood::default();
        let now = Instant::now();
        for number in 0..2 * PLACES as u32 {
            let record = Record::builder()
                .level(Level::Warn)
                .line(Some(number))
                .args(format_args!("it fails"))
                .build();
            assert!(flood.admits(&record, now).is_ok());
        }
        assert_eq!(lock(&flood.places).len(), PLACES);
        let later = now + WINDOW;
        assert!(write(&flood, Level::Warn, "a", later));
        assert_eq!(lock(&flood.places).len(), 1);
    }
}
