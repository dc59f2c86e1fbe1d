//! Says which metadata groups an agent waits for: in its health, beside the metrics that the client keeps.
//!
//! Without the backend manager an agent does nothing: it has no leases. Without another group it goes on with the namespaces of
//! all others.

use std::sync::Arc;
use std::time::Duration;

use alba_client::metadata::{Outage, Outages};
use alba_core::daemon::Health;
use alba_core::env::{Env, Moment};
use serde_json::{Value, json};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);

/// The group that an agent can do nothing without.
const ABM: &str = "abm";

/// Keeps the health by what is lost, for as long as it is polled. Called once the agent works.
pub async fn tell(env: Env, outages: Arc<Outages>, health: Health) {
    loop {
        let now = env.clock.now();
        let lost = outages.all();
        match lost.iter().find(|outage| outage.group.as_str() == ABM) {
            Some(outage) => health.set_not_ready(text(outage, now)),
            None => health.set_ready(),
        }
        health.set_details(details(&lost, now));
        env.clock.sleep_until(now.plus(EVERY)).await;
    }
}

fn text(outage: &Outage, now: Moment) -> String {
    format!(
        "waits for metadata group {}: nothing heard for {} s, asked {} times, next in {} s at the earliest; {}",
        outage.group,
        now.since(outage.since).as_secs(),
        outage.attempts,
        outage.next.since(now).as_secs(),
        outage.reason
    )
}

fn details(lost: &[Outage], now: Moment) -> Value {
    if lost.is_empty() {
        return Value::Null;
    }
    let outage = |outage: &Outage| {
        json!({
            "group": outage.group.as_str(),
            "seconds": now.since(outage.since).as_secs(),
            "attempts": outage.attempts,
            "next_in_seconds": outage.next.since(now).as_secs(),
            "reason": outage.reason,
        })
    };
    json!({ "waits_for": lost.iter().map(outage).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use alba_core::ids::GroupId;

    use super::*;

    #[test]
    fn what_is_waited_for_is_told_with_numbers() {
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let outage = Outage {
            group: GroupId::new("abm").unwrap(),
            since: at(10),
            attempts: 7,
            next: at(60),
            reason: "refused".to_owned(),
        };
        let text = text(&outage, at(52));
        assert_eq!(
            text,
            "waits for metadata group abm: nothing heard for 42 s, asked 7 times, next in 8 s at the earliest; refused"
        );
        let shown = details(&[outage], at(52));
        assert_eq!(
            (&shown["waits_for"][0]["seconds"], &shown["waits_for"][0]["attempts"]),
            (&json!(42), &json!(7))
        );
        assert_eq!(details(&[], at(52)), Value::Null);
    }
}
