//! What every request works with.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use alba_core::config::Live;
use alba_core::env::{Deadline, Directory, Env, NamespaceStore, blocking, computing, within};
use alba_core::request::{self, Stage};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmOutcome, AbmQuery};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmOutcome, NsmQuery};
use alba_core::wire::rpc::watch::Topic;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use crate::buffers::Buffers;
use crate::counters::Counters;
use crate::download::{Flights, Hedging, Lost, Wanted};
use crate::found::Found;
use crate::fragment_cache::{self, FragmentCache, Fragments};
use crate::keys::Keys;
use crate::manifest_cache::ManifestCache;
use crate::namespaces::{Namespace, Namespaces, ask_directory};
use crate::observer::Observed;
use crate::osd_pool::OsdPool;
use crate::repair::Transfers;
use crate::repairs::Repairs;
use crate::turns::{Turns, Unsettled, UploadSlot};
use crate::untag::Untagging;
use crate::upload::WriteHedges;
use crate::watch::{AbmWatch, Changes, Fresh};
use crate::{ClientConfig, ClientError, OsdConnector, names};

/// Work on fewer bytes than this is done where it stands: handing it to another thread would cost more.
const INLINE_BYTES: u64 = 32 << 10;

/// On threads for bulk, work on up to so many bytes is: the writes of the chunk before go on meanwhile only if this takes little.
const INLINE_BULK_BYTES: u64 = 1 << 20;

/// See the module. Lives as long as any handle or background task.
pub(crate) struct Engine {
    pub(crate) env: Env,
    /// Some of it can be replaced ([`Engine::reconfigure`]); then it is what is read next.
    pub(crate) config: Live<ClientConfig>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) store: Arc<dyn NamespaceStore>,
    pub(crate) namespaces: Namespaces,
    pub(crate) pool: Arc<OsdPool>,
    pub(crate) cache: ManifestCache,
    pub(crate) fragments: Fragments,
    pub(crate) buffers: Buffers,
    pub(crate) counters: Counters,
    pub(crate) keys: Keys,
    pub(crate) write_hedges: Mutex<WriteHedges>,
    /// Reads of fragments under way.
    pub(crate) flights: Arc<Flights<Wanted, Result<Bytes, Lost>>>,
    pub(crate) hedging: Hedging,
    /// What readers found.
    pub(crate) found: Found,
    /// What writers left.
    pub(crate) repairs: Repairs,
    pub(crate) observed: Observed,
    /// Fragments that maintenance has on their way.
    pub(crate) transfers: Transfers,
    /// Tags that are needed no longer.
    pub(crate) untagging: Untagging,
    /// Begins with the first upload: who only reads needs to hear of nothing.
    changes: OnceLock<AbmWatch>,
    turns: Turns,
}

impl Engine {
    pub(crate) fn new(
        env: Env,
        config: ClientConfig,
        directory: Arc<dyn Directory>,
        store: Arc<dyn NamespaceStore>,
        osds: Arc<dyn OsdConnector>,
    ) -> Arc<Self> {
        let fragments = fragment_cache::open(&env, &config.fragment_cache);
        Self::with_cache(env, config, directory, store, osds, fragments)
    }

    /// The same with a cache that is there already.
    pub(crate) fn with_cache(
        env: Env,
        config: ClientConfig,
        directory: Arc<dyn Directory>,
        store: Arc<dyn NamespaceStore>,
        osds: Arc<dyn OsdConnector>,
        fragments: Arc<dyn FragmentCache>,
    ) -> Arc<Self> {
        let namespaces = Namespaces::new(
            Arc::clone(&env.clock),
            Arc::clone(&env.rng),
            Arc::clone(&directory),
            Arc::clone(&store),
        );
        let report_pause = Duration::from_millis(config.report_osds_ms);
        let pool =
            OsdPool::new(env.clone(), Arc::clone(&directory), osds, config.osd_timeout(), report_pause);
        Arc::new(Self {
            cache: ManifestCache::new(config.manifest_cache_bytes),
            fragments: Fragments::new(env.clone(), config.fragment_cache.clone(), fragments),
            buffers: Buffers::new(Arc::clone(&env.clock), &config),
            turns: Turns::new(Arc::clone(&env.clock), &config),
            counters: Counters::default(),
            keys: Keys::new(config.cluster_key.clone()),
            write_hedges: Mutex::new(WriteHedges::new()),
            flights: Flights::new(),
            hedging: Hedging::new(config.hedge),
            found: Found::default(),
            repairs: Repairs::default(),
            observed: Observed::default(),
            transfers: Transfers::default(),
            untagging: Untagging::default(),
            changes: OnceLock::new(),
            env,
            config: Live::new(config),
            directory,
            store,
            namespaces,
            pool,
        })
    }

    /// The moment `after` from now.
    pub(crate) fn deadline_in(&self, after: Duration) -> Deadline {
        self.env.deadline_in(after)
    }

    /// What is known of changes of the ABM.
    pub(crate) fn changes(self: &Arc<Self>) -> Changes {
        let listen = || {
            let watch = AbmWatch::start(&self.env, Arc::clone(&self.directory));
            names::follow(self, &watch);
            watch
        };
        self.changes.get_or_init(listen).now()
    }

    /// How new what an upload starts with must be. To be asked for before the question about it.
    pub(crate) fn fresh(self: &Arc<Self>, topic: Topic) -> Fresh {
        let changes = self.changes();
        let max_age = if changes.told() { self.config.refresh_watched_ms } else { self.config.refresh_ms };
        Fresh { max_age: Duration::from_millis(max_age), generation: changes.of(topic) }
    }

    /// Takes what can change while it runs. False when that was done too often.
    pub(crate) fn reconfigure(&self, config: ClientConfig) -> bool {
        if !self.config.replace(config) {
            return false;
        }
        self.buffers.resize(&self.config);
        self.turns.resize(&self.config);
        true
    }

    /// Requests that wait for room or their turn.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.buffers.waiting() + self.turns.waiting()
    }

    /// The right to upload `bytes`, kept until all that follows from the upload is done.
    pub(crate) async fn upload_slot(
        &self,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<UploadSlot, ClientError> {
        self.turns.upload(bytes, deadline).await
    }

    /// While it is there, [`Engine::settle`] waits.
    pub(crate) async fn unsettled(&self, deadline: Deadline) -> Result<Arc<Unsettled>, ClientError> {
        self.turns.unsettled(deadline).await
    }

    /// Waits until no upload and nothing that follows from one, or from a repair, is left.
    pub(crate) async fn settle(&self, deadline: Deadline) -> Result<(), ClientError> {
        let _hurry = self.untagging.hurry();
        self.turns.settle(deadline).await
    }

    /// Computes over about `bytes` bytes without holding up the executor, when it is its turn.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        bytes: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ClientError> {
        let started = self.env.clock.now();
        if bytes < INLINE_BYTES {
            return Ok(work());
        }
        let turn = self.turns.compute(bytes).await?;
        let begun = self.env.clock.now();
        request::spent(Stage::Queue, begun.since(started));
        let work = move || {
            let done = work();
            // Also when nobody waits for it any more, the thread is busy to here.
            drop(turn);
            done
        };
        let spawn = &*self.env.spawn;
        let done = if bytes <= INLINE_BULK_BYTES {
            computing(spawn, work).await
        } else {
            blocking(spawn, work).await
        };
        request::spent(Stage::Compute, self.env.clock.now().since(begun));
        Ok(done?)
    }

    /// A read of the ABM.
    pub(crate) async fn ask_directory(
        &self,
        query: AbmQuery,
        deadline: Deadline,
    ) -> Result<AbmAnswer, ClientError> {
        ask_directory(&*self.env.clock, &*self.directory, query, deadline).await
    }

    /// A change of the ABM's state.
    pub(crate) async fn tell_directory(
        &self,
        command: AbmCommand,
        deadline: Deadline,
    ) -> Result<AbmOutcome, ClientError> {
        within(&*self.env.clock, deadline, self.directory.command(command, deadline))
            .await
            .map_err(ClientError::deadline("the backend manager"))?
            .map_err(ClientError::Meta)
    }

    /// A read of the group that has a namespace; waits while it is being moved.
    pub(crate) async fn ask_group(
        &self,
        namespace: &Arc<Namespace>,
        query: impl Fn() -> NsmQuery,
        deadline: Deadline,
    ) -> Result<NsmAnswer, ClientError> {
        self.namespaces.ask(namespace, query, deadline).await
    }

    /// A change of the state of the group that has a namespace; waits while it is being moved. Each sending is a command of its own:
    /// what a group refuses because of a move it has not executed and never will.
    pub(crate) async fn tell_group(
        &self,
        namespace: &Arc<Namespace>,
        command: impl Fn() -> NsmCommand,
        deadline: Deadline,
    ) -> Result<NsmOutcome, ClientError> {
        let mut namespace = Arc::clone(namespace);
        let mut round = 0;
        loop {
            let told = self.store.command(&namespace.group, command(), deadline);
            let told = within(&*self.env.clock, deadline, told).await;
            match told.map_err(ClientError::deadline("the namespace manager"))?.map_err(ClientError::Meta) {
                Ok(outcome) => return Ok(outcome),
                Err(error) => {
                    namespace = self.namespaces.after_refusal(namespace, error, round, deadline).await?;
                }
            }
            round += 1;
        }
    }
}

/// Waits for `work` while `others` go on; what they give goes to `take`.
pub(crate) async fn alongside<S, T>(
    others: &mut S,
    mut take: impl FnMut(S::Item),
    work: impl Future<Output = T>,
) -> T
where
    S: Stream + Unpin,
{
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(item) = others.next() => take(item),
            output = &mut work => return output,
        }
    }
}
