//! What runs have done, are doing and could not do: for the ABM's records, for metrics and for the page `/tasks`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::env::Moment;
use serde_json::{Value, json};

/// Problems kept of one run; more are counted.
const PROBLEMS_MAX: usize = 20;

/// Counters of one run.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    bytes: AtomicU64,
    total: AtomicU64,
    total_known: AtomicBool,
    problems: Mutex<(u64, Vec<String>)>,
    waits: Mutex<Option<&'static str>>,
}

impl Progress {
    /// What the run waits for, when it waits: shown to whoever wonders why nothing is done.
    pub fn waits_for(&self, what: Option<&'static str>) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn waits(&self) -> Option<&'static str> {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So much more is done.
    pub fn did(&self, things: u64, bytes: u64) {
        self.done.fetch_add(things, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many more things were found that are to be done.
    pub fn found(&self, things: u64) {
        self.total.fetch_add(things, Ordering::Relaxed);
        self.total_known.store(true, Ordering::Relaxed);
    }

    /// So many things are left to be done, as far as is known now.
    pub fn left(&self, things: u64) {
        self.total.store(self.done().saturating_add(things), Ordering::Relaxed);
        self.total_known.store(true, Ordering::Relaxed);
    }

    /// Something is wrong that does not keep the run from going on. The run counts as failed in the end, so that it is tried again
    /// and seen.
    pub fn problem(&self, what: impl Into<String>) {
        let what = what.into();
        tracing::warn!(problem = %what, "maintenance");
        let mut problems = self.problems();
        problems.0 += 1;
        if problems.1.len() < PROBLEMS_MAX {
            problems.1.push(what);
        }
    }

    fn problems(&self) -> MutexGuard<'_, (u64, Vec<String>)> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Things done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes moved or freed.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Things to do in all, as far as is known.
    pub fn total(&self) -> Option<u64> {
        self.total_known.load(Ordering::Relaxed).then(|| self.total.load(Ordering::Relaxed).max(self.done()))
    }

    /// The problems in one line; none when there are none.
    pub fn problems_text(&self) -> Option<String> {
        let problems = self.problems();
        let (first, count) = (problems.1.first()?, problems.0);
        Some(if count == 1 { first.clone() } else { format!("{first} (and {} more)", count - 1) })
    }

    fn list(&self) -> Vec<String> {
        self.problems().1.clone()
    }
}

/// One part of a task, as this agent knows it.
#[derive(Debug, Clone)]
struct Row {
    progress: Arc<Progress>,
    began: Moment,
    ended: Option<Moment>,
    error: Option<String>,
}

/// All that this agent does and has done. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<&'static str, TaskRow>>>);

#[derive(Debug, Default)]
struct TaskRow {
    /// Why it does not run, when it does not.
    idle: Option<String>,
    parts: BTreeMap<String, Row>,
    runs: u64,
    failures: u64,
    last_success: Option<Moment>,
    last_error: Option<String>,
    done: u64,
    bytes: u64,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, TaskRow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task does not begin anything now, for this reason; or it does.
    pub(crate) fn idle(&self, task: &'static str, why: Option<String>) {
        self.lock().entry(task).or_default().idle = why;
    }

    /// A run begins.
    pub(crate) fn begin(&self, task: &'static str, part: &str, progress: &Arc<Progress>, now: Moment) {
        metrics::gauge!("alba_maintenance_running", "task" => task).increment(1);
        let row = Row { progress: progress.clone(), began: now, ended: None, error: None };
        self.lock().entry(task).or_default().parts.insert(part.to_owned(), row);
    }

    /// A run has ended.
    pub(crate) fn end(&self, task: &'static str, part: &str, error: Option<String>, now: Moment) {
        let mut rows = self.lock();
        let row = rows.entry(task).or_default();
        row.runs += 1;
        metrics::gauge!("alba_maintenance_running", "task" => task).decrement(1);
        let outcome = if error.is_some() { "failed" } else { "succeeded" };
        metrics::counter!("alba_maintenance_runs_total", "task" => task, "outcome" => outcome).increment(1);
        if let Some(part) = row.parts.get_mut(part) {
            part.ended = Some(now);
            part.error.clone_from(&error);
            let (done, bytes) = (part.progress.done(), part.progress.bytes());
            row.done += done;
            row.bytes += bytes;
            metrics::counter!("alba_maintenance_done_total", "task" => task).increment(done);
            metrics::counter!("alba_maintenance_bytes_total", "task" => task).increment(bytes);
            metrics::histogram!("alba_maintenance_run_seconds", "task" => task)
                .record(now.since(part.began).as_secs_f64());
        }
        match error {
            None => row.last_success = Some(now),
            Some(error) => {
                row.failures += 1;
                row.last_error = Some(error);
            }
        }
        // Parts that were shown long enough: the board stays small.
        row.parts.retain(|_, part| part.ended.is_none_or(|ended| now.since(ended).as_secs() < 3600));
    }

    /// What one task does now, in one line.
    pub fn running(&self, task: &str, now: Moment) -> String {
        let rows = self.lock();
        let parts = rows.get(task).into_iter().flat_map(|row| &row.parts);
        let running = parts.filter(|(_, row)| row.ended.is_none()).map(|(part, row)| {
            let seconds = now.since(row.began).as_secs();
            let waits = row.progress.waits().map(|what| format!(", waits for {what}")).unwrap_or_default();
            format!("{part}: {seconds} s, {} done{waits}", row.progress.done())
        });
        running.collect::<Vec<_>>().join("; ")
    }

    /// All of it, as JSON.
    pub fn show(&self, now: Moment) -> Value {
        let rows = self.lock();
        let tasks = rows.iter().map(|(name, row)| {
            let parts = row.parts.iter().map(|(part, row)| (part.clone(), show_part(row, now)));
            let value = json!({
                "idle": row.idle,
                "runs": row.runs,
                "failures": row.failures,
                "seconds_since_success": row.last_success.map(|at| now.since(at).as_secs_f64()),
                "last_error": row.last_error,
                "done": row.done,
                "bytes": row.bytes,
                "parts": parts.collect::<serde_json::Map<_, _>>(),
            });
            ((*name).to_owned(), value)
        });
        Value::Object(tasks.collect())
    }
}

fn show_part(row: &Row, now: Moment) -> Value {
    let seconds = row.ended.unwrap_or(now).since(row.began).as_secs_f64();
    let (done, total) = (row.progress.done(), row.progress.total());
    let count = |n: u64| u32::try_from(n).map_or(f64::from(u32::MAX), f64::from);
    let rate = if seconds > 0.0 { count(done) / seconds } else { 0.0 };
    let left = total.map(|total| count(total.saturating_sub(done)));
    let eta = left.filter(|_| row.ended.is_none() && rate > 0.0).map(|left| left / rate);
    json!({
        "state": match (row.ended, &row.error) {
            (None, _) => "running",
            (Some(_), None) => "succeeded",
            (Some(_), Some(_)) => "failed",
        },
        "seconds": seconds,
        "done": done,
        "total": total,
        "bytes": row.progress.bytes(),
        "rate": rate,
        "eta_seconds": eta,
        "waits_for": row.progress.waits().filter(|_| row.ended.is_none()),
        "error": row.error,
        "problems": row.progress.list(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_board_shows_how_far_a_run_is_and_what_came_of_it() {
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let board = Board::default();
        let progress = Arc::new(Progress::default());
        board.begin("gc", "lane-00", &progress, at(10));
        progress.found(100);
        progress.did(25, 4096);
        let shown = board.show(at(20));
        let part = &shown["gc"]["parts"]["lane-00"];
        assert_eq!(
            (&part["state"], &part["done"], &part["total"]),
            (&json!("running"), &json!(25), &json!(100))
        );
        assert_eq!((&part["rate"], &part["eta_seconds"]), (&json!(2.5), &json!(30.0)));
        assert_eq!(board.running("gc", at(20)), "lane-00: 10 s, 25 done");
        progress.waits_for(Some("uploads"));
        assert_eq!(board.running("gc", at(21)), "lane-00: 11 s, 25 done, waits for uploads");
        assert_eq!(board.show(at(21))["gc"]["parts"]["lane-00"]["waits_for"], json!("uploads"));
        progress.waits_for(None);
        progress.problem("OSD 3 does not answer");
        progress.problem("OSD 4 neither");
        assert_eq!(progress.problems_text().unwrap(), "OSD 3 does not answer (and 1 more)");
        board.end("gc", "lane-00", progress.problems_text(), at(30));
        assert_eq!(board.running("gc", at(30)), "");
        let shown = board.show(at(31));
        assert_eq!(shown["gc"]["parts"]["lane-00"]["state"], json!("failed"));
        assert_eq!((&shown["gc"]["failures"], &shown["gc"]["done"]), (&json!(1), &json!(25)));
        board.end("gc", "lane-00", None, at(40));
        assert_eq!(board.show(at(45))["gc"]["seconds_since_success"], json!(5.0));
    }
}
