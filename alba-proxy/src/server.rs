//! Listens, admits connections, and ends them in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alba_client::ClientError;
use alba_core::daemon::StopSignal;
use alba_core::env::{Deadline, Env, Listener, Stream, within};
use alba_core::units::ByteCount;
use futures_util::future::join_all;
use tokio::sync::{Semaphore, watch};

use crate::admission::Admission;
use crate::backend::Backend;
use crate::config::ProxyConfig;
use crate::connection::Connection;
use crate::refusal::Refusal;
use crate::statistics::Statistics;

/// Where the server is in its life; only ever goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Takes connections and requests.
    Serving,
    /// Takes no more of them, and lets running requests end.
    Draining,
    /// Cuts off what still runs.
    Ended,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) config: ProxyConfig,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) admission: Admission,
    pub(crate) statistics: Arc<Statistics>,
    phase: watch::Sender<Phase>,
}

impl Shared {
    /// Returns once the server's life has come to `phase`.
    pub(crate) async fn reached(&self, phase: Phase) {
        // An error would mean that the sender is gone, which `self` holds.
        drop(self.phase.subscribe().wait_for(|now| *now >= phase).await);
    }

    /// Are no more requests taken?
    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// A deadline `after` from now.
    pub(crate) fn deadline_in(&self, after: Duration) -> Deadline {
        self.env.deadline_in(after)
    }

    /// Until when a request that moves `bytes` must be done.
    pub(crate) fn deadline_for(&self, bytes: u64) -> Deadline {
        self.env.deadline_in(self.config.time_for(bytes))
    }

    /// Waits for the engine. It keeps deadlines itself; this is for the day it does not.
    pub(crate) async fn within<T>(
        &self,
        deadline: Deadline,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Refusal> {
        match within(self.env.clock.as_ref(), deadline, work).await {
            Ok(result) => Ok(result?),
            Err(exceeded) => Err(Refusal::unknown(exceeded)),
        }
    }
}

/// The proxy's server, on any byte streams and any object engine.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
    /// Second after the one of the last log line about a refused connection; 0: none yet.
    refusal_noted: Arc<AtomicU64>,
}

/// What a semaphore counts at most here; far above any configuration.
const MOST_CONNECTIONS: usize = 1 << 20;

/// Seconds between two log lines about refused connections.
const NOTE_AGAIN: u64 = 10;

/// A connection in the gauge, however its task ends.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!("alba_proxy_connections").increment(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("alba_proxy_connections").decrement(1.0);
    }
}

/// Pause after a failed `accept` (out of file descriptors): time for others to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// A server that serves nothing yet.
    pub fn new(env: Env, config: ProxyConfig, backend: Arc<dyn Backend>) -> Self {
        let (phase, _) = watch::channel(Phase::Serving);
        let admission = Admission::new(ByteCount(config.max_request_bytes_in_flight));
        let connections = Arc::new(Semaphore::new(config.max_client_connections.min(MOST_CONNECTIONS)));
        let statistics = Arc::new(Statistics::new(env.clock.clone()));
        backend.observe(statistics.clone());
        let shared = Arc::new(Shared { env, config, backend, admission, statistics, phase });
        Self { shared, connections, refusal_noted: Arc::default() }
    }

    /// Serves connections of `listener` until `stop`, then lets what runs end, for as long as the configuration says.
    pub async fn run(&self, listener: Box<dyn Listener>, stop: StopSignal) -> io::Result<()> {
        self.run_on(vec![listener], stop).await
    }

    /// The same with several listeners, whose connections count together.
    pub async fn run_on(&self, listeners: Vec<Box<dyn Listener>>, stop: StopSignal) -> io::Result<()> {
        join_all(listeners.into_iter().map(|listener| self.accept_until(listener, &stop))).await;
        self.drain().await;
        Ok(())
    }

    async fn accept_until(&self, mut listener: Box<dyn Listener>, stop: &StopSignal) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.wait() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    let clock = &self.shared.env.clock;
                    clock.sleep_until(clock.now().plus(ACCEPT_PAUSE)).await;
                }
            }
        }
    }

    /// Serves one connection in a task of its own, or closes it at once when there are too many.
    pub fn admit(&self, stream: Stream, peer: SocketAddr) {
        let Ok(slot) = self.connections.clone().try_acquire_owned() else {
            drop(stream);
            return self.note_refused(peer);
        };
        let connection = Connection::new(self.shared.clone(), stream);
        let counted = Counted::new();
        let serve = async move {
            connection.run().await;
            drop((counted, slot));
        };
        // Runs to its end whether anybody holds the handle or not; `drain` waits for its slot.
        drop(self.shared.env.spawn.spawn("proxy connection", Box::pin(serve)));
    }

    /// Counts each, but says so only now and then: they may come by the thousand.
    fn note_refused(&self, peer: SocketAddr) {
        metrics::counter!("alba_proxy_connections_refused_total").increment(1);
        let now = self.shared.env.clock.now().0.as_secs();
        let before = self.refusal_noted.load(Ordering::Relaxed);
        if before == 0 || now >= before + NOTE_AGAIN {
            self.refusal_noted.store(now + 1, Ordering::Relaxed);
            let limit = self.shared.config.max_client_connections;
            tracing::warn!(%peer, max_client_connections = limit, "too many connections: closed this one");
        }
    }

    /// Ends idle connections at once and the others after their request, or when the time for it is over.
    async fn drain(&self) {
        let Shared { env, config, phase, .. } = self.shared.as_ref();
        phase.send_replace(Phase::Draining);
        let all = u32::try_from(config.max_client_connections).unwrap_or(u32::MAX);
        let deadline = env.deadline_in(Duration::from_millis(config.drain_timeout_ms));
        if within(env.clock.as_ref(), deadline, self.connections.acquire_many(all)).await.is_err() {
            tracing::warn!("requests still run after drain_timeout_ms: cut off");
        }
        phase.send_replace(Phase::Ended);
    }
}
