//! What goes with a request through all layers without being an argument of each: its id, whose it is, and where its time
//! goes.
//!
//! Whoever takes a request in wraps its work in [`Request::scope`]; below, [`current`] finds it, in this task only: a
//! task that is spawned for the request is its own. Nothing may depend on it but logs, statistics and whose turn it
//! is among those that wait.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::fair::Flow;
use crate::ids::NamespaceName;

/// Names a request in the log lines of all processes that work on it. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(u64);

impl TraceId {
    /// 0 stands for none.
    pub fn new(id: u64) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    /// As it travels.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a request waits for or works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Room for its bytes, or another's turn.
    Queue,
    /// Coding, compressing, hashing.
    Compute,
    /// The metadata groups.
    Metadata,
    /// The OSDs.
    Osds,
}

/// All stages.
pub const STAGES: [Stage; 4] = [Stage::Queue, Stage::Compute, Stage::Metadata, Stage::Osds];

impl Stage {
    /// As log lines name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Compute => "compute",
            Self::Metadata => "metadata",
            Self::Osds => "osds",
        }
    }
}

/// Of one stage: how often, how long together and at most. Of steps that ran side by side the sum is more than the time
/// that passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Steps.
    pub steps: u64,
    /// All of them together.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
}

#[derive(Debug, Default)]
struct Meter {
    steps: AtomicU64,
    micros: AtomicU64,
    longest: AtomicU64,
}

/// A request in this process.
#[derive(Debug)]
pub struct Request {
    id: Option<TraceId>,
    client: Option<u64>,
    namespace: OnceLock<NamespaceName>,
    taken: AtomicU64,
    meters: [Meter; 4],
}

tokio::task_local! {
    static CURRENT: Arc<Request>;
}

/// The request that this task works on.
pub fn current() -> Option<Arc<Request>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Whose turn counts here.
pub fn flow() -> Flow {
    CURRENT.try_with(|request| request.flow()).unwrap_or_default()
}

/// Makes `work`, which another task will do, a part of what this one works on.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let request = current();
    async move {
        match request {
            Some(request) => request.scope(work).await,
            None => work.await,
        }
    }
}

/// The id for what is sent to other processes; 0: none.
pub fn trace() -> u64 {
    CURRENT.try_with(|request| request.id.map_or(0, TraceId::get)).unwrap_or(0)
}

/// Counts `bytes` of room that the current request asks for, and says how many that makes since it began. One step may be small
/// and the request it is of not.
pub fn grown_by(bytes: u64) -> u64 {
    let grown = CURRENT.try_with(|request| request.taken.fetch_add(bytes, Ordering::Relaxed));
    grown.unwrap_or(0).saturating_add(bytes)
}

/// Counts a step of the current request, if there is one.
pub fn spent(stage: Stage, time: Duration) {
    // An error says that there is none.
    let _ = CURRENT.try_with(|request| request.count(stage, time));
}

impl Request {
    /// Of a client of this process.
    pub fn new(id: Option<TraceId>, client: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            id,
            client,
            namespace: OnceLock::new(),
            taken: AtomicU64::new(0),
            meters: Default::default(),
        })
    }

    /// Its id.
    pub fn id(&self) -> Option<TraceId> {
        self.id
    }

    /// Which namespace it is about; the first one said stays.
    pub fn set_namespace(&self, namespace: &NamespaceName) {
        self.namespace.get_or_init(|| namespace.clone());
    }

    /// Which namespace it is about, once that is known.
    pub fn namespace(&self) -> Option<&NamespaceName> {
        self.namespace.get()
    }

    /// Whose turn counts.
    pub fn flow(&self) -> Flow {
        Flow { namespace: self.namespace.get().cloned(), client: self.client }
    }

    /// Works on it.
    pub fn scope<F: Future>(self: Arc<Self>, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    fn meter(&self, stage: Stage) -> &Meter {
        let [queue, compute, metadata, osds] = &self.meters;
        match stage {
            Stage::Queue => queue,
            Stage::Compute => compute,
            Stage::Metadata => metadata,
            Stage::Osds => osds,
        }
    }

    fn count(&self, stage: Stage, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let meter = self.meter(stage);
        meter.steps.fetch_add(1, Ordering::Relaxed);
        meter.micros.fetch_add(micros, Ordering::Relaxed);
        meter.longest.fetch_max(micros, Ordering::Relaxed);
    }

    /// Where its time went.
    pub fn spent(&self, stage: Stage) -> Spent {
        let meter = self.meter(stage);
        Spent {
            steps: meter.steps.load(Ordering::Relaxed),
            total: Duration::from_micros(meter.micros.load(Ordering::Relaxed)),
            longest: Duration::from_micros(meter.longest.load(Ordering::Relaxed)),
        }
    }
}

/// Works for `namespace`: within the current request, or within one without id or client.
pub async fn for_namespace<F: Future>(namespace: &NamespaceName, work: F) -> F::Output {
    match current() {
        Some(request) => {
            request.set_namespace(namespace);
            work.await
        }
        None => {
            let request = Request::new(None, None);
            request.set_namespace(namespace);
            request.scope(work).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_found_below_and_nowhere_else() {
        assert!(current().is_none());
        assert_eq!((trace(), flow()), (0, Flow::default()));
        let request = Request::new(TraceId::new(0xab), Some(7));
        let seen = request.clone().scope(async {
            let name = NamespaceName::new("ns").unwrap();
            for_namespace(&name, async { spent(Stage::Osds, Duration::from_millis(3)) }).await;
            spent(Stage::Osds, Duration::from_millis(5));
            (trace(), flow())
        });
        let (trace, flow) = seen.await;
        assert_eq!(trace, 0xab);
        assert_eq!(flow, Flow { namespace: Some(NamespaceName::new("ns").unwrap()), client: Some(7) });
        let spent = request.spent(Stage::Osds);
        assert_eq!((spent.steps, spent.total.as_millis(), spent.longest.as_millis()), (2, 8, 5));
        assert_eq!(request.spent(Stage::Queue), Spent::default());
        assert!(current().is_none());
        let grown = request.scope(async { [grown_by(5), grown_by(6)] }).await;
        assert_eq!((grown, grown_by(7), grown_by(8)), ([5, 11], 7, 8));
    }

    #[test]
    fn an_id_is_sixteen_digits_wherever_it_is_logged() {
        assert_eq!(TraceId::new(0xab).unwrap().to_string(), "00000000000000ab");
        assert_eq!(TraceId::new(0), None);
    }
}
