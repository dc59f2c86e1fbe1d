//! How full the OSDs are, and how far the rebalancer is.

use alba_core::ids::TaskName;
use alba_core::range::RangeQuery;
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, OsdState, RunState, TaskRecord};
use serde_json::{Value, json};

use super::observe::OsdSeen;
use crate::commands::backend::{Backend, mismatch};
use crate::commands::drain::eta;
use crate::error::CliError;
use crate::rebalancer::TASK;

/// What the ABM knows of the rebalancer.
pub(super) struct RebalanceSeen {
    record: Option<TaskRecord>,
    paused: bool,
}

/// Asks the ABM.
pub(super) async fn ask(backend: &Backend<'_>) -> Result<RebalanceSeen, CliError> {
    let task = TaskName::new(format!("{TASK}/all"))?;
    let key = task.as_str().as_bytes().to_vec();
    let range = RangeQuery { first: key.clone(), last: Some((key, true)), ..RangeQuery::all() };
    let AbmAnswer::Tasks(page) = backend.ask(AbmQuery::Tasks(range)).await? else {
        return Err(mismatch("Tasks"));
    };
    let paused = crate::commands::tasks::paused(backend).await?.iter().any(|name| name.as_str() == TASK);
    Ok(RebalanceSeen { record: page.items.into_iter().next(), paused })
}

impl RebalanceSeen {
    /// Seconds until it is done, at its pace so far.
    fn eta(&self) -> Option<u64> {
        let record = self.record.as_ref().filter(|record| record.report.state == RunState::Running)?;
        let seconds = record.reported.saturating_sub(record.started) / 1_000_000;
        let total = record.report.total?;
        eta(total, total.saturating_sub(record.report.done), seconds)
    }

    pub(super) fn json(&self) -> Value {
        let report = self.record.as_ref().map(|record| &record.report);
        json!({
            "paused": self.paused,
            "running": report.map(|report| report.state == RunState::Running),
            "moved": report.map(|report| report.bytes),
            "total": report.and_then(|report| report.total),
            "eta_seconds": self.eta(),
        })
    }

    pub(super) fn line(&self) -> String {
        let Some(record) = &self.record else { return "no rebalancer has run yet".to_owned() };
        let report = &record.report;
        let moved = ByteCount(report.bytes);
        match (&report.state, report.total) {
            _ if self.paused => "paused".to_owned(),
            (RunState::Running, Some(total)) => {
                let eta = self.eta().map_or_else(String::new, |eta| format!(", about {eta} s to go"));
                format!("moved {moved} of about {}{eta}", ByteCount(total))
            }
            (RunState::Running, None) => "looking".to_owned(),
            (RunState::Succeeded, _) => format!("done; the last run moved {moved}"),
            (RunState::Failed { reason }, _) => format!("failed, tried again later: {reason}"),
        }
    }
}

/// OSDs by tenths of their capacity, by what they say themselves; those that take part only.
pub(super) fn histogram(osds: &[OsdSeen]) -> [usize; 10] {
    let mut tenths = [0; 10];
    for usage in osds
        .iter()
        .filter(|osd| osd.record.state == OsdState::Active)
        .filter_map(|osd| osd.usage.as_ref()?.as_ref().ok())
    {
        let tenth = tenth(usage.used.get(), usage.capacity.get());
        if let Some(count) = tenths.get_mut(tenth) {
            *count += 1;
        }
    }
    tenths
}

/// Which tenth of its capacity is used; overfull ones are in the last.
fn tenth(used: u64, capacity: u64) -> usize {
    let tenth = (u128::from(used) * 10).checked_div(u128::from(capacity)).unwrap_or(9);
    usize::try_from(tenth).unwrap_or(9).min(9)
}

/// The histogram in one line.
pub(super) fn histogram_line(tenths: [usize; 10]) -> String {
    let of = |(tenth, count): (usize, &usize)| format!("{count} at {} to {} %", tenth * 10, (tenth + 1) * 10);
    let some: Vec<String> = tenths.iter().enumerate().filter(|(_, count)| **count > 0).map(of).collect();
    if some.is_empty() { "no OSD says how full it is".to_owned() } else { some.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_names_the_tenths_that_there_are() {
        assert_eq!(
            [tenth(0, 100), tenth(9, 100), tenth(10, 100), tenth(100, 100), tenth(7, 0)],
            [0, 0, 1, 9, 9]
        );
        let mut tenths = [0; 10];
        (tenths[0], tenths[6]) = (3, 12);
        assert_eq!(histogram_line(tenths), "3 at 0 to 10 %, 12 at 60 to 70 %");
        assert_eq!(histogram_line([0; 10]), "no OSD says how full it is");
    }
}
