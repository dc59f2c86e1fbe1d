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
use crate::rebalancer::{Note, TASK, Tenths, tenths};

/// What the ABM knows of the rebalancer.
pub(super) struct RebalanceSeen {
    record: Option<TaskRecord>,
    paused: bool,
    /// By the agent that has moved something last, while it is there.
    note: Option<Note>,
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
    let record = page.items.into_iter().next();
    let AbmAnswer::Participants(agents) = backend.ask(AbmQuery::Participants).await? else {
        return Err(mismatch("Participants"));
    };
    let notes = || agents.iter().filter_map(|agent| Some((&agent.agent, agent.about.parse().ok()?)));
    // Of several the one that is at it, or was last.
    let at_it = notes().find(|(agent, _)| record.as_ref().is_some_and(|record| record.agent == **agent));
    let note = at_it.or_else(|| notes().next()).map(|(_, note)| note);
    Ok(RebalanceSeen { record, paused, note })
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
            "moves": self.note.map(|note| note.moves),
            "fill_tenths_before": self.note.map(|note| note.before),
        })
    }

    pub(super) fn line(&self) -> String {
        let Some(record) = &self.record else { return "no rebalancer has run yet".to_owned() };
        let report = &record.report;
        let moved = ByteCount(report.bytes);
        let moves = self.note.map_or_else(String::new, |note| format!(" in {} moves", note.moves));
        match (&report.state, report.total) {
            _ if self.paused => "paused".to_owned(),
            (RunState::Running, Some(total)) => {
                let eta = self.eta().map_or_else(String::new, |eta| format!(", about {eta} s to go"));
                format!("moved {moved} of about {}{moves}{eta}", ByteCount(total))
            }
            (RunState::Running, None) => "looking".to_owned(),
            // Runs that find the fill even come every minute.
            (RunState::Succeeded, _) if report.bytes == 0 && self.note.is_some() => {
                format!("done{moves} when it was last uneven")
            }
            (RunState::Succeeded, _) => format!("done; the last run moved {moved}{moves}"),
            (RunState::Failed { reason }, _) => format!("failed, tried again later: {reason}"),
        }
    }
}

/// Used and capacity of the OSDs that take part, by what they say themselves.
fn filled(osds: &[OsdSeen]) -> impl Iterator<Item = (u64, u64)> {
    let active = osds.iter().filter(|osd| osd.record.state == OsdState::Active);
    active.filter_map(|osd| {
        let usage = osd.usage.as_ref()?.as_ref().ok()?;
        Some((usage.used.get(), usage.capacity.get()))
    })
}

/// OSDs by tenths of their capacity, now.
pub(super) fn histogram(osds: &[OsdSeen]) -> Tenths {
    tenths(filled(osds))
}

/// The same if the fill were even, and which part of its capacity each of them would use then.
pub(super) fn goal(osds: &[OsdSeen]) -> (Tenths, Option<f64>) {
    even(filled(osds).collect())
}

fn even(osds: Vec<(u64, u64)>) -> (Tenths, Option<f64>) {
    let (used, capacity) = osds.iter().fold((0_u64, 0_u64), |(used, capacity), osd| {
        (used.saturating_add(osd.0), capacity.saturating_add(osd.1))
    });
    // Shown to people; above 2^53 bytes it rounds.
    #[allow(clippy::cast_precision_loss)]
    let rate = (capacity > 0).then(|| used as f64 / capacity as f64);
    (tenths(osds.iter().map(|_| (used, capacity))), rate)
}

/// A histogram in one line.
fn histogram_line(tenths: Tenths) -> String {
    let of = |(tenth, count): (usize, &u64)| format!("{count} at {} to {} %", tenth * 10, (tenth + 1) * 10);
    let some: Vec<String> = tenths.iter().enumerate().filter(|(_, count)| **count > 0).map(of).collect();
    if some.is_empty() { "no OSD says how full it is".to_owned() } else { some.join(", ") }
}

/// The fill as it was, is, and is to be; what was is known while the agent that moved something last is there.
pub(super) fn fill_lines(seen: &RebalanceSeen, osds: &[OsdSeen]) -> Vec<String> {
    let (goal, rate) = goal(osds);
    lines(seen.note.map(|note| note.before), histogram(osds), goal, rate)
}

fn lines(before: Option<Tenths>, now: Tenths, goal: Tenths, rate: Option<f64>) -> Vec<String> {
    let mut lines = vec![format!("fill      {}", histogram_line(now))];
    let rate = rate.map_or_else(String::new, |rate| format!("; all at {:.1} %", rate * 100.0));
    lines.push(format!("          goal: {}{rate}", histogram_line(goal)));
    lines.extend(
        before.map(|before| format!("          before it moved anything: {}", histogram_line(before))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_names_the_tenths_that_there_are() {
        let mut tenths = [0; 10];
        (tenths[0], tenths[6]) = (3, 12);
        assert_eq!(histogram_line(tenths), "3 at 0 to 10 %, 12 at 60 to 70 %");
        assert_eq!(histogram_line([0; 10]), "no OSD says how full it is");
    }

    #[test]
    fn the_fill_is_shown_as_it_was_is_and_is_to_be() {
        let osds: Vec<(u64, u64)> = [(60, 100); 12].into_iter().chain([(0, 100); 3]).collect();
        let now = tenths(osds.iter().copied());
        let (goal, rate) = even(osds);
        assert_eq!(
            lines(Some(now), now, goal, rate),
            [
                "fill      3 at 0 to 10 %, 12 at 60 to 70 %",
                "          goal: 15 at 40 to 50 %; all at 48.0 %",
                "          before it moved anything: 3 at 0 to 10 %, 12 at 60 to 70 %",
            ]
        );
        assert_eq!(even(Vec::new()), ([0; 10], None));
        assert_eq!(lines(None, [0; 10], [0; 10], None).len(), 2);
    }
}
