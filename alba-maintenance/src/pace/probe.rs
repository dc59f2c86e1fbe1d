//! Times small requests of a client's priority on the OSDs in turn.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::osd::Priority;
use alba_core::env::{Deadline, within};
use alba_core::ids::OsdId;
use bytes::Bytes;

use super::{Pace, Politeness};
use crate::backend::Backend;

/// Between two rounds of probes.
const PAUSE: Duration = Duration::from_secs(1);

/// OSDs asked per round: enough to notice load soon, too few to be load.
const PER_ROUND: usize = 8;

/// Longest an answer is waited for; clients go around one that takes longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The key that is asked for: what probes of clients write (wire-protocol §5.2).
const KEY: &[u8] = b"test";

/// Keeps the share of the rates at what clients do not notice, for as long as it is polled.
pub async fn watch_latency(backend: Arc<Backend>, pace: Pace) {
    let clock = backend.env().clock.clone();
    let mut politeness = Politeness::default();
    let mut osds: Vec<OsdId> = Vec::new();
    loop {
        if osds.is_empty() {
            // Without an ABM no task runs either.
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
        pace.set_share(politeness.share());
        metrics::gauge!("alba_maintenance_rate_share")
            .set(f64::from(politeness.share()) / f64::from(super::FULL));
        clock.sleep_until(clock.now().plus(PAUSE)).await;
    }
}
