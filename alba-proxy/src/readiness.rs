//! Can volume drivers expect their requests to succeed? What `/health/ready` says.

use std::time::Duration;

use alba_client::{Client, ClientError, Outlook};
use alba_core::daemon::{Health, StopSignal};
use alba_core::env::Env;
use serde_json::json;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(3);

/// How long the metadata servers may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was decided.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judgement {
    /// Why not; none: ready.
    pub(crate) not_ready: Option<String>,
    /// What is not as it should be, ready or not.
    pub(crate) degraded: Vec<String>,
}

/// Decides. Metadata that does not answer, or too few OSDs for every policy of the default preset: not ready. A cache that
/// is bypassed or OSDs that take nothing while there are enough others: ready all the same.
pub(crate) fn judge(outlook: &Result<Outlook, ClientError>, bypassed: Option<&str>) -> Judgement {
    let mut degraded = Vec::new();
    if let Some(why) = bypassed {
        degraded.push(format!("the fragment cache is bypassed: {why}"));
    }
    let not_ready = match outlook {
        Err(error) => Some(format!("the metadata servers do not answer: {error}")),
        Ok(Outlook { osds, usable, no_uploads }) => {
            if usable < osds {
                degraded.push(format!("{} of {osds} OSDs take no new fragments", osds - usable));
            }
            no_uploads.as_ref().map(|why| format!("nothing can be stored with the default preset: {why}"))
        }
    };
    Judgement { not_ready, degraded }
}

/// Keeps `health` true until told to stop; from then on it says so.
pub(crate) async fn watch(env: Env, client: Client, health: Health, stop: StopSignal) {
    let clock = env.clock.as_ref();
    let mut before = None;
    loop {
        let look = async {
            let outlook = client.outlook(env.deadline_in(PATIENCE)).await;
            gauges(&client);
            let cache = client.fragment_cache_statistics();
            let bypassed = cache.disk.as_ref().and_then(|disk| disk.broken.as_deref());
            (judge(&outlook, bypassed), crate::caches::details(&cache))
        };
        let (judgement, mut details) = tokio::select! {
            biased;
            () = stop.wait() => break,
            judgement = look => judgement,
        };
        if before.as_ref() != Some(&judgement) {
            say(&judgement);
        }
        match &judgement.not_ready {
            Some(why) => health.set_not_ready(why.clone()),
            None => health.set_ready(),
        }
        details["degraded"] = json!(judgement.degraded);
        health.set_details(details);
        before = Some(judgement);
        tokio::select! {
            biased;
            () = stop.wait() => break,
            () = clock.sleep_until(clock.now().plus(PAUSE)) => {}
        }
    }
    health.set_not_ready("draining: no new requests are taken");
}

fn say(judgement: &Judgement) {
    match &judgement.not_ready {
        Some(why) => tracing::warn!(why, "not ready"),
        None if judgement.degraded.is_empty() => tracing::info!("ready"),
        None => tracing::warn!(degraded = judgement.degraded.join("; "), "ready, with restrictions"),
    }
}

/// What is only known by asking.
fn gauges(client: &Client) {
    for (pool, bytes) in client.memory() {
        // Exact below 2^53 bytes.
        #[allow(clippy::cast_precision_loss)]
        let bytes = bytes as f64;
        metrics::gauge!("alba_memory_bytes", "pool" => pool).set(bytes);
        if pool == "manifest_cache" {
            metrics::gauge!("alba_cache_bytes", "cache" => "manifest").set(bytes);
        }
    }
    let counted = client.statistics();
    let totals = [
        ("alba_client_late_fragments_added_total", counted.late_fragments_added),
        ("alba_client_late_fragments_failed_total", counted.late_fragments_failed),
        ("alba_client_uploads_retried_total", counted.uploads_retried),
        ("alba_client_chunks_rescued_total", counted.chunks_rescued),
    ];
    for (name, total) in totals {
        metrics::counter!(name).absolute(total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(osds: usize, usable: usize, no_uploads: Option<&str>) -> Result<Outlook, ClientError> {
        Ok(Outlook { osds, usable, no_uploads: no_uploads.map(str::to_owned) })
    }

    #[test]
    fn it_says_why_not() {
        assert_eq!(judge(&outlook(4, 4, None), None), Judgement { not_ready: None, degraded: vec![] });
        let gone = judge(&Err(ClientError::Deadline { waiting_for: "the backend manager" }), None);
        let why = gone.not_ready.unwrap();
        assert!(why.contains("metadata") && why.contains("deadline"), "{why}");
        let few = judge(&outlook(4, 1, Some("(5, 4, 8, 3) needs 8 OSDs")), None);
        let why = few.not_ready.unwrap();
        assert!(why.contains("default preset") && why.contains("needs 8 OSDs"), "{why}");
        assert_eq!(few.degraded, ["3 of 4 OSDs take no new fragments"]);
    }

    #[test]
    fn what_only_costs_speed_leaves_it_ready() {
        let slow = judge(&outlook(12, 11, None), Some("its disk is full"));
        assert_eq!(slow.not_ready, None);
        assert_eq!(
            slow.degraded,
            ["the fragment cache is bypassed: its disk is full", "1 of 12 OSDs take no new fragments"]
        );
    }
}
