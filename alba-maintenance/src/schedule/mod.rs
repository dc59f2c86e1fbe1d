//! When a task is due: pure functions of its timing, of its last run and of the time.
//!
//! Times are wall clock times, since schedules are for people. They decide only when work begins, never whether it is safe: a
//! clock that is wrong makes a task run early or late.

mod parse;
mod plan;
#[cfg(test)]
mod tests;
mod window;

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, FixedOffset, Local, TimeDelta};
use croner::Cron;

pub use parse::{duration, duration_text};
pub use plan::{Plan, plan};
pub use window::Window;

/// A moment on the wall clock, in the zone that schedules are written in.
pub type WallTime = DateTime<FixedOffset>;

/// Microseconds since the Unix epoch as a moment in this machine's time zone.
pub fn wall_time(micros: u64) -> WallTime {
    let utc = i64::try_from(micros).ok().and_then(DateTime::from_timestamp_micros).unwrap_or_default();
    utc.with_timezone(&Local).fixed_offset()
}

/// How often something runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Rhythm {
    /// So long after the last run began to count as done.
    Every(Duration),
    /// At the times that a cron pattern names.
    Cron(Box<Cron>),
}

/// When a task may begin.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// How often.
    pub rhythm: Rhythm,
    /// Only in these hours; none: always.
    pub window: Option<Window>,
}

/// What is known of earlier runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastRun {
    /// When it last ended well.
    pub succeeded: Option<WallTime>,
    /// When it last failed.
    pub failed: Option<WallTime>,
    /// How often it has failed since it last ended well.
    pub failures: u32,
}

/// When something is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Now; it could have begun so long ago.
    Now(Duration),
    /// At this moment, as far as can be said now.
    At(WallTime),
    /// The schedule names no further moment.
    Never,
}

/// First pause after a failure; doubles up to the task's own rhythm and [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

impl Timing {
    /// So long after the last run, at any hour.
    pub fn every(period: Duration) -> Self {
        Self { rhythm: Rhythm::Every(period), window: None }
    }

    /// At the times of a cron pattern, at any hour.
    pub fn cron(pattern: &str) -> Result<Self, String> {
        let cron =
            Cron::from_str(pattern).map_err(|error| format!("{pattern:?} is no cron pattern: {error}"))?;
        Ok(Self { rhythm: Rhythm::Cron(Box::new(cron)), window: None })
    }

    /// May it run now?
    pub fn is_open(&self, now: WallTime) -> bool {
        self.window.is_none_or(|window| window.contains(now.time()))
    }

    /// When it is due. What never ran is due at once, or at the pattern's next moment after `since`, when this process began to
    /// look.
    pub fn due(&self, last: &LastRun, since: WallTime, now: WallTime) -> Due {
        let Some(mut at) = self.after_success(last, since) else { return Due::Never };
        if let Some(failed) = last.failed.filter(|_| last.failures > 0) {
            // A time stamp in the future is a clock's mistake: it counts as now, once.
            at = at.max(plus(failed.min(now), self.pause(last.failures)));
        }
        if let Some(window) = self.window.filter(|window| !window.contains(at.max(now).time())) {
            return Due::At(window.opens_after(at.max(now)));
        }
        match (now - at).to_std() {
            Ok(waited) => Due::Now(waited),
            Err(_) => Due::At(at),
        }
    }

    /// The first moment after the last success that the rhythm names, whatever failed since.
    fn after_success(&self, last: &LastRun, since: WallTime) -> Option<WallTime> {
        match (&self.rhythm, last.succeeded) {
            (Rhythm::Every(period), Some(succeeded)) => Some(plus(succeeded, *period)),
            (Rhythm::Every(_), None) => Some(since),
            (Rhythm::Cron(cron), succeeded) => {
                cron.find_next_occurrence(&succeeded.unwrap_or(since), false).ok()
            }
        }
    }

    /// How long it rests after so many failures.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        match self.rhythm {
            Rhythm::Every(period) => doubled.min(period),
            Rhythm::Cron(_) => doubled,
        }
    }
}

fn plus(at: WallTime, after: Duration) -> WallTime {
    TimeDelta::from_std(after).ok().and_then(|after| at.checked_add_signed(after)).unwrap_or(at)
}
