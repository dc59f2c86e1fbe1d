//! Rebalancing as a task of an agent: passes until nothing more is to be gained.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery};
use alba_maintenance::schedule::Timing;
use alba_maintenance::task::{Run, Task, whole};
use alba_maintenance::{Backend, TaskError};
use alba_rebalancer::observe::Observation;
use alba_rebalancer::rest::Outlook;
use alba_rebalancer::{Onlooker, Rebalancer, Report, Settings};
use async_trait::async_trait;

use super::Note;

/// What it is called in commands, leases and metrics.
pub(crate) const NAME: &str = "rebalance";

/// How often the fill is looked at: a few questions to the metadata and one to each OSD.
const EVERY: Duration = Duration::from_secs(60);

/// The task `rebalance`.
pub(crate) struct Rebalance {
    settings: RwLock<Settings>,
    /// It remembers that a search was in vain.
    rebalancer: OnceLock<Rebalancer>,
    /// Of the run that moved something last.
    note: Mutex<Option<Note>>,
}

impl Rebalance {
    /// Moves like this.
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings: RwLock::new(settings), rebalancer: OnceLock::new(), note: Mutex::default() }
    }

    /// Moves like this from the next pass on.
    pub(crate) fn configure(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    fn settings(&self) -> Settings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a pass go by the rates of a run, and the run know of the pass. Things are counted in bytes: moves differ too much for
/// a number of them to say when it will be done.
struct Looking<'a> {
    run: &'a Run,
    note: &'a Mutex<Option<Note>>,
    /// Has a pass of this run begun to look for moves?
    begun: AtomicBool,
}

#[async_trait]
impl Onlooker for Looking<'_> {
    async fn pace(&self, bytes: u64) {
        self.run.pace(1, bytes).await;
    }

    fn begins(&self, before: &Observation) {
        self.run.progress.left(before.least_bytes());
        if !self.begun.swap(true, Ordering::Relaxed) {
            *self.note.lock().unwrap_or_else(PoisonError::into_inner) = Some(Note::of(before));
        }
    }

    fn moved(&self, bytes: u64) {
        self.run.progress.did(bytes, bytes);
        if let Some(note) = self.note.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            note.moves += 1;
        }
    }
}

#[async_trait]
impl Task for Rebalance {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "moves fragments from full OSDs to empty ones, within the policies"
    }

    fn usual(&self) -> Timing {
        Timing::every(EVERY)
    }

    fn at_once(&self) -> usize {
        1
    }

    fn note(&self) -> Option<String> {
        let note = *self.note.lock().unwrap_or_else(PoisonError::into_inner);
        note.map(|note| note.to_string())
    }

    async fn parts(&self, _: &Backend) -> Result<Vec<String>, TaskError> {
        // One order for all: two that fill the same empty OSD would fill it twice.
        Ok(whole())
    }

    async fn run(&self, _: &str, run: &Run) -> Result<(), TaskError> {
        let rebalancer = self
            .rebalancer
            .get_or_init(|| Rebalancer::new(run.backend.client().clone(), run.backend.env().clone()));
        let looking = Looking { run, note: &self.note, begun: AtomicBool::new(false) };
        loop {
            if !is_wanted(&run.backend).await? {
                return Ok(());
            }
            let report = rebalancer.pass(self.settings(), &looking).await?;
            show(&report);
            if report.moves == 0 {
                if let Some(why) = report.why {
                    run.progress.problem(format!("nothing could be moved: {why}"));
                }
                return Ok(());
            }
        }
    }
}

/// Has nobody switched it off for the whole backend (`alba update-maintenance-config --disable-rebalance`)?
async fn is_wanted(backend: &Backend) -> Result<bool, TaskError> {
    match backend.ask_abm(AbmQuery::Maintenance).await? {
        AbmAnswer::Maintenance(config) => Ok(config.enable_rebalance),
        _ => Err(TaskError::Mismatch("Maintenance")),
    }
}

fn show(report: &Report) {
    let left = if report.after.is_even() { 0 } else { report.after.least_bytes() };
    // Gauges are doubles; above 2^53 bytes they round.
    #[allow(clippy::cast_precision_loss)]
    metrics::gauge!("alba_rebalance_bytes_to_move").set(left as f64);
    metrics::gauge!("alba_rebalance_outlook").set(match report.outlook {
        Outlook::Even => 0.0,
        Outlook::Uneven => 1.0,
        Outlook::Incurable { .. } => 2.0,
    });
    let rates: Vec<f64> = report.after.osds.values().map(|fill| fill.rate().as_f64()).collect();
    for (which, rate) in [
        ("least", rates.iter().copied().fold(f64::NAN, f64::min)),
        ("mean", report.after.bounds.mean.as_f64()),
        ("most", rates.iter().copied().fold(f64::NAN, f64::max)),
    ] {
        metrics::gauge!("alba_rebalance_fill_ratio", "which" => which).set(rate);
    }
    let (moves, bytes, stale, refused) = (report.moves, report.bytes, report.stale, report.refused);
    match report.outlook {
        Outlook::Incurable { .. } => {
            tracing::info!(left, "no allowed move makes the fill more even; it rests")
        }
        _ if moves + stale + refused > 0 => {
            tracing::info!(moves, bytes, stale, refused, left, "a pass has ended")
        }
        _ => tracing::debug!("the fill is even"),
    }
}
