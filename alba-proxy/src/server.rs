//! Listens, admits connections, and ends them in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alba_client::ClientError;
use alba_core::config::Live;
use alba_core::daemon::StopSignal;
use alba_core::env::{
    Deadline, DeadlineExceeded, Env, Listener, SMALL_REQUEST, Stream, TaskGone, elsewhere, within,
};
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::admission::Admission;
use crate::backend::Backend;
use crate::config::ProxyConfig;
use crate::connection::Connection;
use crate::refusal::Refusal;
use crate::statistics::Statistics;

/// How long after its deadline a large request may say why it failed.
const LAST_WORD: Duration = Duration::from_millis(250);

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
    /// Some of it can be replaced ([`Server::reload`]); then it is what is read next.
    pub(crate) config: Live<ProxyConfig>,
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

    /// The same for work on `bytes` of objects. Where that is much, small requests go first.
    pub(crate) async fn moving<T: Send + 'static>(
        &self,
        bytes: u64,
        deadline: Deadline,
        work: impl Future<Output = Result<T, ClientError>> + Send + 'static,
    ) -> Result<T, Refusal> {
        if bytes <= SMALL_REQUEST {
            return self.within(deadline, work).await;
        }
        match self.as_bulk("large request", deadline, work).await {
            Ok(Ok(done)) => Ok(done?),
            Ok(Err(gone)) => Err(ClientError::Internal(gone.to_string()).into()),
            Err(exceeded) => Err(Refusal::unknown(exceeded)),
        }
    }

    /// Does `work`, which keeps `deadline` itself, on threads that give way to small requests.
    pub(crate) async fn as_bulk<T: Send + 'static>(
        &self,
        name: &'static str,
        deadline: Deadline,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<Result<T, TaskGone>, DeadlineExceeded> {
        // What it says at its deadline has a way to go, and says more than that it was late.
        let last = Deadline(deadline.0.plus(LAST_WORD));
        within(self.env.clock.as_ref(), last, elsewhere(self.env.bulk.as_ref(), name, work)).await
    }
}

/// The proxy's server, on any byte streams and any object engine.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    /// How many there are.
    connections: Arc<watch::Sender<usize>>,
    /// How many there have been.
    admitted: Arc<AtomicU64>,
    /// Second after the one of the last log line about a refused connection; 0: none yet.
    refusal_noted: Arc<AtomicU64>,
}

/// Seconds between two log lines about refused connections.
const NOTE_AGAIN: u64 = 10;

/// A connection among those that there are, however its task ends.
struct Counted(Arc<watch::Sender<usize>>);

impl Counted {
    /// None when there are `limit` already.
    fn new(connections: &Arc<watch::Sender<usize>>, limit: usize) -> Option<Self> {
        let admitted = connections.send_if_modified(|count| {
            let admitted = *count < limit;
            *count += usize::from(admitted);
            admitted
        });
        if admitted {
            metrics::gauge!("alba_proxy_connections").increment(1.0);
        }
        admitted.then(|| Self(connections.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
        metrics::gauge!("alba_proxy_connections").decrement(1.0);
    }
}

/// Pause after a failed `accept` (out of file descriptors): time for others to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// A server that serves nothing yet.
    pub fn new(env: Env, config: ProxyConfig, backend: Arc<dyn Backend>) -> Self {
        let (phase, _) = watch::channel(Phase::Serving);
        let admission = Admission::new(&config);
        let connections = Arc::new(watch::channel(0).0);
        let statistics = Arc::new(Statistics::new(env.clock.clone()));
        backend.observe(statistics.clone());
        let config = Live::new(config);
        let shared = Arc::new(Shared { env, config, backend, admission, statistics, phase });
        Self { shared, connections, admitted: Arc::default(), refusal_noted: Arc::default() }
    }

    /// Takes of a configuration that was read again what can change while it runs, says so, and returns what is in force
    /// now. The engine's part is for the caller to hand on.
    pub fn reload(&self, new: &ProxyConfig) -> Option<ProxyConfig> {
        let config = &self.shared.config;
        let reloaded = match config.reloaded(new) {
            Ok(reloaded) => reloaded,
            Err(error) => {
                tracing::error!(error, "configuration not reloaded; the old one stays");
                return None;
            }
        };
        if !reloaded.need_restart.is_empty() {
            let keys = reloaded.need_restart.join(", ");
            tracing::warn!(keys, "these keys have changed and take effect at the next start");
        }
        if reloaded.changed.is_empty() {
            return None;
        }
        if !config.replace(reloaded.config.clone()) {
            tracing::error!("configuration reloaded too often; restart to change it again");
            return None;
        }
        self.shared.admission.resize(config);
        tracing::info!(keys = reloaded.changed.join(", "), "these keys have changed and are in force");
        Some(reloaded.config)
    }

    /// Bytes of large requests in memory.
    pub fn request_bytes(&self) -> u64 {
        self.shared.admission.used()
    }

    /// Connections that there are.
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
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
        let Some(counted) = Counted::new(&self.connections, self.shared.config.max_client_connections) else {
            drop(stream);
            return self.note_refused(peer);
        };
        let number = self.admitted.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::new(self.shared.clone(), number, stream);
        let serve = async move {
            connection.run().await;
            drop(counted);
        };
        // Runs to its end whether anybody holds the handle or not; `drain` waits for it.
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
        let deadline = env.deadline_in(Duration::from_millis(config.drain_timeout_ms));
        let mut connections = self.connections.subscribe();
        let gone = connections.wait_for(|count| *count == 0);
        if within(env.clock.as_ref(), deadline, gone).await.is_err() {
            let count = self.connections();
            tracing::warn!(count, "requests still run after drain_timeout_ms: cut off");
        }
        phase.send_replace(Phase::Ended);
    }
}
