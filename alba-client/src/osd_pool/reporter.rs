//! Tells the ABM now and then what calls to OSDs gave (features §2.5). Nothing waits for it, and what could not be told is
//! told the next time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use alba_core::env::{Clock, Deadline, Directory, MetaError, within};
use alba_core::ids::LongId;
use alba_core::wire::rpc::abm::{AbmCommand, OsdReport};

use super::{Member, OsdPool};

/// Most OSDs of one command, as the ABM has it.
const PER_COMMAND: usize = 200;

/// See the module.
pub(super) struct Reporter {
    directory: Arc<dyn Directory>,
    pause: Duration,
    started: AtomicBool,
}

impl Reporter {
    pub(super) fn new(directory: Arc<dyn Directory>, pause: Duration) -> Self {
        Self { directory, pause, started: AtomicBool::new(false) }
    }

    /// Begins with the first call to an OSD: there is nothing to be told before.
    pub(super) fn start(&self, pool: &Arc<OsdPool>) {
        if self.started.load(Ordering::Relaxed) || self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        let task = reports(Arc::downgrade(pool), Arc::clone(&pool.env.clock), self.pause);
        pool.env.spawn.spawn("osd-reports", Box::pin(task));
    }
}

async fn reports(pool: Weak<OsdPool>, clock: Arc<dyn Clock>, pause: Duration) {
    loop {
        // Only the pool's handle keeps the pool alive: this must not.
        let Some(random) = pool.upgrade().map(|pool| pool.env.rng.u64()) else { return };
        // Give or take a tenth, so that many clients spread out.
        let permille = 900 + u32::try_from(random % 201).unwrap_or(0);
        clock.sleep_until(clock.now().plus(pause.saturating_mul(permille) / 1000)).await;
        let Some(pool) = pool.upgrade() else { return };
        report(&pool).await;
    }
}

async fn report(pool: &OsdPool) {
    let members = pool.view.all();
    for some in members.chunks(PER_COMMAND) {
        let taken = pool.now();
        let reports: Vec<(&Arc<Member>, LongId, OsdReport)> = some
            .iter()
            .filter_map(|member| {
                let report = member.health().take_report(taken)?;
                Some((member, member.info().long_id.clone(), report))
            })
            .collect();
        if reports.is_empty() {
            continue;
        }
        let told = reports.iter().map(|(_, id, report)| (id.clone(), report.clone())).collect();
        let deadline = Deadline::after(&*pool.env.clock, pool.timeout);
        let command = pool.reporter.directory.command(AbmCommand::ReportOsds(told), deadline);
        let answer = within(&*pool.env.clock, deadline, command).await;
        match answer {
            Ok(Ok(_)) => {}
            // Refused for good: the same again would be refused again.
            Ok(Err(MetaError::Abm(error))) => tracing::warn!(%error, "report of OSDs refused"),
            Ok(Err(_)) | Err(_) => {
                tracing::debug!(answer = ?answer, "report of OSDs not told");
                for (member, _, report) in reports {
                    member.health().restore_report(taken, report);
                }
            }
        }
    }
}
