//! What this process takes of its machine, as Linux says (proc(5)).

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many of the units that Linux counts processor time in make a second. It is so on all that there
/// are (`USER_HZ`).
const TICKS: u64 = 100;

/// What a process takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Taken {
    /// Memory, in bytes.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// File descriptors.
    pub descriptors: u64,
    /// How many of these there may be.
    pub most_descriptors: u64,
    /// Processor time, in seconds.
    pub processor_seconds: f64,
}

/// What this process takes now; zero where the system does not say.
pub fn taken() -> Taken {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    };
    Taken {
        resident_bytes: 1024 * field("VmRSS:"),
        threads: field("Threads:"),
        descriptors: fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64),
        most_descriptors: most_descriptors(&read("/proc/self/limits")),
        processor_seconds: processor_seconds(&read("/proc/self/stat")),
    }
}

fn most_descriptors(limits: &str) -> u64 {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    soft.unwrap_or(0)
}

// The fields behind the name of the program, which may hold anything.
fn processor_seconds(stat: &str) -> f64 {
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return 0.0;
    };
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
    ticks as f64 / TICKS as f64
}

/// A time as seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let taken = taken();
        assert!(taken.resident_bytes > 100_000, "{taken:?}");
        assert!(taken.threads >= 1 && taken.descriptors >= 3, "{taken:?}");
        assert!(taken.most_descriptors >= taken.descriptors, "{taken:?}");
    }

    #[test]
    fn a_name_with_blanks_and_brackets_confuses_nobody() {
        let stat = "1 (a ) b) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 7 8 9";
        assert_eq!(processor_seconds(stat), 3.0);
        assert_eq!(processor_seconds(""), 0.0);
    }
}
