//! How the kernel shares the processors out among this program's threads and those of others.

use std::fmt;

use serde::Deserialize;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id, thread_schedule_policy,
};

/// The scheduling class of a program's threads (sched(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduling {
    /// `SCHED_BATCH`: a thread that is woken does not interrupt the one that runs.
    ///
    /// A request passes through many threads here, each of which wakes the next one just before it
    /// sleeps. If that one interrupts it, the rest of its work moves to another processor, cold, and is
    /// paid twice.
    #[default]
    Batch,
    /// `SCHED_OTHER`, or whatever the program was started with.
    Normal,
}

impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheduling::Batch => "batch",
            Scheduling::Normal => "normal",
        })
    }
}

const BATCH: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
const OTHER: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);

impl Scheduling {
    /// Puts this thread, and all that it starts from now on, into the class. One that somebody has chosen
    /// from outside (`chrt`, systemd) stays. Where the kernel refuses, that is logged, and all goes on.
    pub fn begin(self) {
        if self == Scheduling::Batch
            && thread_schedule_policy().is_ok_and(|policy| policy == OTHER)
            && let Err(why) = become_batch()
        {
            log::debug!("scheduling: not batch, the kernel says: {why}");
        }
    }
}

fn become_batch() -> Result<(), String> {
    let nice = rustix::process::getpriority_process(None).map_err(|error| error.to_string())?;
    // The library sets the niceness too, on a scale of its own: it gets the place of the one there is.
    let same = (0..=u8::MAX)
        .map_while(|place| ThreadPriorityValue::try_from(place).ok())
        .map(ThreadPriority::Crossplatform)
        .find(|priority| priority.to_posix(BATCH).is_ok_and(|it| it == nice))
        .ok_or_else(|| format!("a niceness of {nice} is not on the scale"))?;
    set_thread_priority_and_policy(thread_native_id(), same, BATCH)
        .map_err(|error| format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use rustix::process::{getpriority_process, setpriority_process};

    use super::*;
    use crate::base::threads::spawn;

    /// What a thread has, and one that it starts.
    fn classes(nice: i32, scheduling: Scheduling) -> Vec<(ThreadSchedulePolicy, i32)> {
        let own = || {
            (
                thread_schedule_policy().unwrap(),
                getpriority_process(None).unwrap(),
            )
        };
        let thread = spawn("parent", 64, move || {
            setpriority_process(None, nice).unwrap();
            scheduling.begin();
            let child = spawn("child", 64, own).unwrap().join().unwrap();
            vec![own(), child]
        });
        thread.unwrap().join().unwrap()
    }

    #[test]
    fn a_thread_and_all_that_it_starts_are_in_the_class_and_as_nice_as_before() {
        let lowest = getpriority_process(None).unwrap();
        for nice in lowest..=19 {
            assert_eq!(classes(nice, Scheduling::Batch), [(BATCH, nice); 2]);
            assert_eq!(classes(nice, Scheduling::Normal), [(OTHER, nice); 2]);
        }
    }
}
