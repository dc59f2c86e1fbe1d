//! What the object engine counted about reads, as metrics.

use std::sync::Arc;
use std::time::Duration;

use alba_client::{Client, Statistics};
use alba_core::env::Clock;

/// How old what a scrape sees may be.
const PERIOD: Duration = Duration::from_secs(1);

/// Brings the metrics up to date again and again; ends when it is dropped.
pub(crate) async fn publish(client: Client, clock: Arc<dyn Clock>) {
    loop {
        record(&client.statistics());
        clock.sleep_until(clock.now().plus(PERIOD)).await;
    }
}

fn record(counted: &Statistics) {
    let lost = counted.hedged_reads.saturating_sub(counted.hedged_reads_won);
    metrics::counter!("alba_proxy_hedged_reads_total", "won" => "true").absolute(counted.hedged_reads_won);
    metrics::counter!("alba_proxy_hedged_reads_total", "won" => "false").absolute(lost);
    metrics::counter!("alba_proxy_fragment_reads_needed_total").absolute(counted.fragments_needed);
    metrics::counter!("alba_proxy_fragment_reads_total").absolute(counted.fragments_asked);
    metrics::counter!("alba_proxy_fragment_reads_merged_total").absolute(counted.fragments_merged);
    metrics::counter!("alba_proxy_fragments_damaged_total").absolute(counted.fragments_damaged);
    metrics::counter!("alba_proxy_repairs_handed_over_total").absolute(counted.repairs_handed_over);
}
