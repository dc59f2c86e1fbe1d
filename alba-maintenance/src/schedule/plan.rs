//! Which parts of a task begin now: a pure function of what there is, of what ran when, and of the time.

use std::collections::{BTreeMap, BTreeSet};

use super::{Due, LastRun, Timing, WallTime};

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Parts that are due, the longest overdue first.
    pub now: Vec<String>,
    /// When the next of the others is.
    pub next: Option<WallTime>,
}

/// Plans the parts of a task. `since` is when this process began to look; parts in `running` are left alone.
pub fn plan(
    timing: &Timing,
    parts: &[String],
    last: &BTreeMap<String, LastRun>,
    running: &BTreeSet<String>,
    since: WallTime,
    now: WallTime,
) -> Plan {
    let mut due = Vec::new();
    let mut next: Option<WallTime> = None;
    for part in parts.iter().filter(|part| !running.contains(*part)) {
        match timing.due(last.get(part).unwrap_or(&LastRun::default()), since, now) {
            Due::Now(waited) => due.push((waited, part)),
            Due::At(at) => next = Some(next.map_or(at, |next| next.min(at))),
            Due::Never => {}
        }
    }
    due.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    Plan { now: due.into_iter().map(|(_, part)| part.clone()).collect(), next }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::{DateTime, TimeDelta};

    use super::*;

    #[test]
    fn the_longest_overdue_part_is_first_and_what_runs_is_left_alone() {
        let now = DateTime::parse_from_rfc3339("2030-05-07T10:00:00+02:00").unwrap();
        let ago = |minutes| now - TimeDelta::minutes(minutes);
        let ran = |minutes| LastRun { succeeded: Some(ago(minutes)), ..LastRun::default() };
        let last = BTreeMap::from([
            ("a".to_owned(), ran(20)),
            ("b".to_owned(), ran(60)),
            ("c".to_owned(), ran(90)),
            ("d".to_owned(), ran(5)),
            ("e".to_owned(), ran(10)),
            // Of a part that is gone.
            ("z".to_owned(), ran(1000)),
        ]);
        let parts: Vec<String> = ["a", "b", "c", "d", "e", "new"].map(str::to_owned).into();
        let running = BTreeSet::from(["c".to_owned()]);
        let timing = Timing::every(Duration::from_secs(900));
        let planned = plan(&timing, &parts, &last, &running, ago(1), now);
        assert_eq!(planned.now, ["b", "a", "new"]);
        assert_eq!(planned.next, Some(ago(-5)));
    }
}
