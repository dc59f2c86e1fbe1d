//! The fragment cache in metrics and at `/health/ready`. A cache that does not work is no reason not to be ready: the OSDs are
//! asked instead. It is said, not more.

use std::sync::Arc;
use std::time::Duration;

use alba_client::{Client, FragmentCacheStatistics, TierStatistics};
use alba_core::env::Clock;

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// Publishes until it is dropped.
pub(crate) async fn publish(client: Client, clock: Arc<dyn Clock>) {
    loop {
        measure(&client.fragment_cache_statistics());
        clock.sleep_until(clock.now().plus(EVERY)).await;
    }
}

fn tier(cache: &'static str, tier: &TierStatistics) {
    metrics::counter!("alba_cache_hits_total", "cache" => cache).absolute(tier.hits);
    metrics::counter!("alba_cache_misses_total", "cache" => cache).absolute(tier.misses);
    gauge("alba_cache_bytes", cache, tier.bytes);
}

fn gauge(name: &'static str, cache: &'static str, value: u64) {
    // Exact up to 2^53, far beyond any cache.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    let value = value as f64;
    metrics::gauge!(name, "cache" => cache).set(value);
}

fn measure(statistics: &FragmentCacheStatistics) {
    let FragmentCacheStatistics { ram, disk, damaged, dropped, filled } = statistics;
    tier("fragment-ram", ram);
    metrics::counter!("alba_cache_damaged_total").absolute(*damaged);
    metrics::counter!("alba_cache_filled_total").absolute(*filled);
    let lost = |reason: &'static str, count: u64| {
        metrics::counter!("alba_cache_dropped_total", "reason" => reason).absolute(count);
    };
    lost("busy", *dropped);
    let Some(disk) = disk else { return };
    tier("fragment-ssd", &disk.tier);
    lost("ssd-queue", disk.dropped_queue_full);
    lost("ssd-rate", disk.dropped_rate);
    lost("ssd-not-admitted", disk.not_admitted);
    metrics::counter!("alba_cache_ssd_timeouts_total").absolute(disk.timeouts);
    metrics::counter!("alba_cache_ssd_errors_total").absolute(disk.errors);
    metrics::counter!("alba_cache_ssd_bypassed_total").absolute(disk.bypassed);
    metrics::counter!("alba_cache_ssd_written_total").absolute(disk.written);
    gauge("alba_cache_ssd_in_use", "fragment-ssd", u64::from(disk.broken.is_none()));
}

/// For people, at `/health/ready`.
pub(crate) fn details(statistics: &FragmentCacheStatistics) -> serde_json::Value {
    let ssd = match &statistics.disk {
        None => "none".to_owned(),
        Some(disk) => match &disk.broken {
            None => "in use".to_owned(),
            Some(reason) => format!("not in use: {reason}"),
        },
    };
    serde_json::json!({ "fragment_cache": { "ssd": ssd } })
}

#[cfg(test)]
mod tests {
    use alba_client::DiskStatistics;

    use super::*;

    #[test]
    fn the_details_say_why_the_ssd_is_not_in_use() {
        let with = |disk| details(&FragmentCacheStatistics { disk, ..Default::default() }).to_string();
        assert_eq!(with(None), r#"{"fragment_cache":{"ssd":"none"}}"#);
        assert_eq!(with(Some(DiskStatistics::default())), r#"{"fragment_cache":{"ssd":"in use"}}"#);
        let broken = DiskStatistics { broken: Some("it is full".to_owned()), ..Default::default() };
        assert!(with(Some(broken)).contains("not in use: it is full"));
    }
}
