//! Hours of the day in which a task may run, such as `22:00-06:00`.

use std::fmt;
use std::str::FromStr;

use chrono::{NaiveTime, TimeDelta};

use super::WallTime;

/// From the first time of day (included) to the second (excluded), over midnight when the second is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: NaiveTime,
    to: NaiveTime,
}

impl Window {
    /// Is this time of day in it?
    pub fn contains(self, time: NaiveTime) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&time)
        } else {
            time >= self.from || time < self.to
        }
    }

    /// The next moment after `at` at which it opens.
    pub(super) fn opens_after(self, at: WallTime) -> WallTime {
        let today = at.date_naive().and_time(self.from);
        let opens = if today > at.naive_local() { today } else { today + TimeDelta::days(1) };
        // A fixed offset has each moment exactly once.
        opens.and_local_timezone(*at.offset()).single().unwrap_or(at)
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time window: write it like 22:00-06:00");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let time = |text: &str| NaiveTime::parse_from_str(text.trim(), "%H:%M").map_err(|_| wrong());
        let (from, to) = (time(from)?, time(to)?);
        if from == to { Err(wrong()) } else { Ok(Self { from, to }) }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from.format("%H:%M"), self.to.format("%H:%M"))
    }
}
