//! Which namespace a name means, and what its group says about it: preset, active OSDs, gc epochs.
//!
//! Only what was found is kept: "there is none" is always asked afresh. A kept answer that no longer holds is noticed by
//! the refusal of the group or of an OSD, never by age alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::{Clock, Deadline, Directory, MetaError, Moment, NamespaceStore, within};
use alba_core::ids::{GroupId, NamespaceId, NamespaceName};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, NamespaceRecord, NamespaceState};
use alba_core::wire::rpc::nsm::{NamespaceInfo, NsmAnswer, NsmError, NsmQuery};

use crate::ClientError;

/// Namespaces kept at most; the one asked for longest ago goes first.
const KEPT: usize = 10_000;

/// A namespace as its name was last resolved.
pub(crate) struct Namespace {
    pub(crate) name: NamespaceName,
    pub(crate) id: NamespaceId,
    pub(crate) group: GroupId,
    /// When the group was last asked, and what it said.
    info: Mutex<Option<(Moment, Arc<NamespaceInfo>)>>,
}

/// See the module.
pub(crate) struct Namespaces {
    clock: Arc<dyn Clock>,
    directory: Arc<dyn Directory>,
    store: Arc<dyn NamespaceStore>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_name: BTreeMap<NamespaceName, (u64, Arc<Namespace>)>,
    by_use: BTreeMap<u64, NamespaceName>,
    next_use: u64,
}

impl Kept {
    fn get(&mut self, name: &NamespaceName) -> Option<Arc<Namespace>> {
        let (last_use, namespace) = self.by_name.get_mut(name)?;
        let key = self.by_use.remove(last_use)?;
        *last_use = self.next_use;
        self.by_use.insert(self.next_use, key);
        self.next_use += 1;
        Some(Arc::clone(namespace))
    }

    fn remove(&mut self, name: &NamespaceName) {
        if let Some((last_use, _)) = self.by_name.remove(name) {
            self.by_use.remove(&last_use);
        }
    }

    fn insert(&mut self, namespace: &Arc<Namespace>) {
        self.remove(&namespace.name);
        self.by_name.insert(namespace.name.clone(), (self.next_use, Arc::clone(namespace)));
        self.by_use.insert(self.next_use, namespace.name.clone());
        self.next_use += 1;
        while self.by_name.len() > KEPT {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.by_name.remove(&oldest);
        }
    }
}

/// The group that was asked does not own the namespace (any more).
pub(crate) fn is_moved(error: &ClientError) -> bool {
    matches!(error, ClientError::Meta(MetaError::Nsm(NsmError::NamespaceMoved(_))))
}

impl Namespaces {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        directory: Arc<dyn Directory>,
        store: Arc<dyn NamespaceStore>,
    ) -> Self {
        Self { clock, directory, store, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A panic cannot leave it half changed: the maps' operations don't.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of a name, asked afresh.
    pub(crate) async fn record(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<Option<NamespaceRecord>, ClientError> {
        match ask_directory(&*self.clock, &*self.directory, AbmQuery::Namespace(name.clone()), deadline)
            .await?
        {
            AbmAnswer::Namespace(record) => Ok(record),
            _ => Err(unexpected("Namespace")),
        }
    }

    /// The namespace of that name; waits while it is being created.
    pub(crate) async fn resolve(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<Arc<Namespace>, ClientError> {
        if let Some(namespace) = self.kept().get(name) {
            return Ok(namespace);
        }
        let mut pause = Duration::from_millis(20);
        loop {
            let record = self.record(name, deadline).await?;
            match record {
                Some(record) if record.state.is_usable() => return Ok(self.remember(record)),
                Some(record) if record.state == NamespaceState::Creating => {
                    if deadline.left(&*self.clock) < pause {
                        return Err(ClientError::Deadline { waiting_for: "the namespace to be created" });
                    }
                    self.clock.sleep_until(self.clock.now().plus(pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                _ => return Err(ClientError::NamespaceUnknown(name.clone())),
            }
        }
    }

    /// Keeps a record that was just read or made.
    pub(crate) fn remember(&self, record: NamespaceRecord) -> Arc<Namespace> {
        let namespace = Arc::new(Namespace {
            name: record.name,
            id: record.id,
            group: record.group,
            info: Mutex::new(None),
        });
        self.kept().insert(&namespace);
        namespace
    }

    /// Forgets what a name meant.
    pub(crate) fn forget(&self, name: &NamespaceName) {
        self.kept().remove(name);
    }

    /// After the group of `stale` disowned it: the namespace that the name means now, if that is another one.
    pub(crate) async fn resolve_again(
        &self,
        stale: &Namespace,
        deadline: Deadline,
    ) -> Result<Option<Arc<Namespace>>, ClientError> {
        self.forget(&stale.name);
        let now = self.resolve(&stale.name, deadline).await?;
        Ok((now.id != stale.id || now.group != stale.group).then_some(now))
    }

    /// What the group said at most `max_age` ago.
    pub(crate) async fn info(
        &self,
        namespace: &Namespace,
        max_age: Duration,
        deadline: Deadline,
    ) -> Result<Arc<NamespaceInfo>, ClientError> {
        let now = self.clock.now();
        if let Some((fetched, info)) = &*namespace.info.lock().unwrap_or_else(PoisonError::into_inner)
            && now.since(*fetched) < max_age
        {
            return Ok(Arc::clone(info));
        }
        let query = NsmQuery::Namespace(namespace.id);
        match ask_group(&*self.clock, &*self.store, &namespace.group, query, deadline).await? {
            NsmAnswer::Namespace(info) => {
                let info: Arc<NamespaceInfo> = Arc::from(info);
                *namespace.info.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((now, Arc::clone(&info)));
                Ok(info)
            }
            _ => Err(unexpected("Namespace")),
        }
    }
}

/// An answer to another question: the versions do not fit.
pub(crate) fn unexpected(expected: &'static str) -> ClientError {
    ClientError::Meta(MetaError::Protocol(format!("no answer of kind {expected}")))
}

/// A read of the ABM, under the deadline whatever the implementation does.
pub(crate) async fn ask_directory(
    clock: &dyn Clock,
    directory: &dyn Directory,
    query: AbmQuery,
    deadline: Deadline,
) -> Result<AbmAnswer, ClientError> {
    within(clock, deadline, directory.query(query, deadline))
        .await
        .map_err(ClientError::deadline("the backend manager"))?
        .map_err(ClientError::Meta)
}

/// A read of an NSM group, under the deadline whatever the implementation does.
pub(crate) async fn ask_group(
    clock: &dyn Clock,
    store: &dyn NamespaceStore,
    group: &GroupId,
    query: NsmQuery,
    deadline: Deadline,
) -> Result<NsmAnswer, ClientError> {
    within(clock, deadline, store.query(group, query, deadline))
        .await
        .map_err(ClientError::deadline("the namespace manager"))?
        .map_err(ClientError::Meta)
}
