//! Asks some OSDs, over and over, whether clients are there and how long these wait; and sets the pace by the answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alba_core::env::osd::Priority;
use alba_core::env::{Deadline, within};
use alba_core::ids::OsdId;
use bytes::Bytes;
use futures_util::future::{join, join_all};

use super::{Company, FULL, Pace, Politeness, transfers};
use crate::backend::Backend;

/// Between two rounds of probes.
const PAUSE: Duration = Duration::from_secs(1);

/// OSDs probed per round: enough to notice load soon, too few to be load.
const PER_ROUND: usize = 8;

/// Longest an answer is waited for; clients go around one that takes longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The key that is asked for: what probes of clients write (wire-protocol §5.2).
const KEY: &[u8] = b"test";

/// Between two rounds of questions about clients, and the longest an answer is waited for: clients are noticed within a second.
const LOOK: Duration = Duration::from_millis(500);

/// OSDs that are asked about clients: in fragments of 5+4 the reads and writes of any client reach most of twelve.
const SAMPLE: usize = 16;

/// So often others are asked, and is it looked how many there are.
const SAMPLE_ROUNDS: u32 = 60;

/// Keeps rates and transfers at what clients notice little, for as long as it is polled: beside them one transfer for so many OSDs
/// ([`super::OSDS_PER_REPAIR`], [`super::OSDS_PER_MOVE`]).
pub async fn give_way(backend: Arc<Backend>, pace: Pace, osds_per_transfer: usize) {
    let clients = AtomicBool::new(true);
    join(
        watch_clients(&backend, &pace, osds_per_transfer, &clients),
        watch_latency(&backend, &pace, &clients),
    )
    .await;
}

/// Few fragments at once while clients are there.
async fn watch_clients(backend: &Backend, pace: &Pace, osds_per_transfer: usize, clients: &AtomicBool) {
    let clock = backend.env().clock.clone();
    let mut company = Company::new(clock.now());
    let (mut osds, mut round): (Vec<OsdId>, u32) = (Vec::new(), 0);
    loop {
        if round.is_multiple_of(SAMPLE_ROUNDS) || osds.is_empty() {
            // Without an ABM no task runs either.
            osds = backend.serving_osds().await.unwrap_or_default();
            if !osds.is_empty() {
                let by = usize::try_from(backend.env().rng.u64() >> 32).unwrap_or(0) % osds.len();
                osds.rotate_left(by);
            }
            company.keep(osds.get(..SAMPLE).unwrap_or(&osds));
        }
        round = round.wrapping_add(1);
        let deadline = Deadline::after(clock.as_ref(), LOOK);
        let count = async |id: &OsdId| {
            let osd =
                within(clock.as_ref(), deadline, backend.client().osd(*id, deadline)).await.ok()?.ok()?;
            let counted = within(clock.as_ref(), deadline, osd.client_operations(deadline)).await;
            Some((*id, counted.ok()?.ok()?))
        };
        let asked = join_all(osds.iter().take(SAMPLE).map(count)).await;
        let answered: Vec<_> = asked.iter().flatten().collect();
        company.answered(answered.len(), asked.len(), clock.now());
        for (osd, counted) in answered {
            company.counted(*osd, *counted, clock.now());
        }
        let are_there = company.is_there(clock.now());
        clients.store(are_there, Ordering::Relaxed);
        let limit = transfers(osds.len(), osds_per_transfer, are_there, pace.is_urgent());
        backend.client().transfers().limit(limit);
        metrics::gauge!("alba_maintenance_beside_clients").set(f64::from(u8::from(are_there)));
        metrics::gauge!("alba_maintenance_transfers_limit").set(f64::from(limit));
        clock.sleep_until(clock.now().plus(LOOK)).await;
    }
}

/// Lower rates while these wait for long.
async fn watch_latency(backend: &Backend, pace: &Pace, clients: &AtomicBool) {
    let clock = backend.env().clock.clone();
    let mut politeness = Politeness::default();
    let mut osds: Vec<OsdId> = Vec::new();
    loop {
        if osds.is_empty() {
            osds = backend.serving_osds().await.unwrap_or_default().into_iter().rev().collect();
        }
        for _ in 0..PER_ROUND.min(osds.len()) {
            let Some(id) = osds.pop() else { break };
            let deadline = Deadline::after(clock.as_ref(), PATIENCE);
            let Ok(osd) = backend.client().osd(id, deadline).await else { continue };
            let began = clock.now();
            let asked = osd.multi_exists(vec![Bytes::from_static(KEY)], Priority::High, deadline);
            match within(clock.as_ref(), deadline, asked).await {
                Ok(Ok(_)) => politeness.observe(id, clock.now().since(began), clock.now()),
                Ok(Err(_)) | Err(_) => politeness.forget(id),
            }
        }
        // What only its own work delays disturbs nobody.
        let polite = clients.load(Ordering::Relaxed) && !pace.is_urgent();
        let share = if polite { politeness.share() } else { FULL };
        pace.set_share(share);
        metrics::gauge!("alba_maintenance_rate_share").set(f64::from(share) / f64::from(FULL));
        clock.sleep_until(clock.now().plus(PAUSE)).await;
    }
}
