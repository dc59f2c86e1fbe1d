//! A request's span, its id, and what is said of it when it was slow.
//!
//! The id stands in every log line of the request, here and, where our own RPC carries it, in those of the metadata
//! servers: one search finds them all. The old protocols have no place for it.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Env, Moment};
use alba_core::request::{Request, STAGES, TraceId};
use alba_core::wire::proxy::Command;
use tracing::Span;

use crate::op;

/// How its frame came in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    /// When its first bytes were there.
    pub(crate) began: Moment,
    /// Of the time since then, what was waited for room.
    pub(crate) waited: Duration,
}

/// A request that is being served.
pub(crate) struct Traced {
    pub(crate) request: Arc<Request>,
    pub(crate) span: Span,
    op: &'static str,
    arrival: Arrival,
    arrived: Moment,
}

impl Traced {
    /// Of a whole frame. `client` numbers the connection.
    pub(crate) fn new(env: &Env, client: u64, frame: &[u8], arrival: Arrival) -> Self {
        let command = frame.first_chunk().copied().map(u32::from_le_bytes).and_then(Command::from_code);
        let op = command.map_or("unknown", op::name);
        // 0 would be none.
        let id = TraceId::new(env.rng.u64().max(1));
        let span = match id {
            Some(id) => tracing::info_span!("request", %id, client, op),
            None => Span::none(),
        };
        Self { request: Request::new(id, Some(client)), span, op, arrival, arrived: env.clock.now() }
    }

    /// The client went away before its answer was ready.
    pub(crate) fn cancelled(&self) {
        metrics::counter!("alba_proxy_requests_cancelled_total", "op" => self.op).increment(1);
        self.span.in_scope(|| tracing::debug!("client has gone; request cancelled"));
    }

    /// Its answer, ready at `answered`, has been sent. Says where the time went if it took `slow` or more.
    pub(crate) fn sent(&self, answered: Moment, now: Moment, slow: Duration) {
        let took = now.since(self.arrival.began);
        if slow.is_zero() || took < slow {
            return;
        }
        metrics::counter!("alba_proxy_slow_requests_total", "op" => self.op).increment(1);
        let arriving = self.arrived.since(self.arrival.began).saturating_sub(self.arrival.waited);
        let serving = answered.since(self.arrived);
        let stages: Vec<String> = STAGES
            .iter()
            .map(|stage| (stage, self.request.spent(*stage)))
            .filter(|(_, spent)| spent.steps > 0)
            .map(|(stage, spent)| {
                let (name, steps, total, longest) = (stage.name(), spent.steps, spent.total, spent.longest);
                format!("{name} {steps} × {total:?} (longest {longest:?})")
            })
            .collect();
        let namespace = self.request.namespace().map(ToString::to_string).unwrap_or_default();
        self.span.in_scope(|| {
            tracing::info!(
                namespace,
                ?took,
                ?arriving,
                waiting_for_room = ?self.arrival.waited,
                ?serving,
                sending = ?now.since(answered),
                stages = stages.join(", "),
                "slow request"
            );
        });
    }
}
