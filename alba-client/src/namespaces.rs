//! Which namespace a name means, and what its group says about it: preset, active OSDs, gc epochs.
//!
//! Only what was found is kept: "there is none" is always asked afresh. A kept answer that no longer holds is noticed by
//! the refusal of the group or of an OSD, or when the ABM tells that namespaces have changed ([`crate::names`]), never by age
//! alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::{Clock, Deadline, Directory, MetaError, Moment, NamespaceStore, Rng, within};
use alba_core::ids::{GroupId, NamespaceId, NamespaceName};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, NamespaceRecord, NamespaceState};
use alba_core::wire::rpc::nsm::{NamespaceInfo, NsmAnswer, NsmError, NsmQuery};

use crate::ClientError;
use crate::watch::{Fresh, Generation};

/// Namespaces kept at most; the one asked for longest ago goes first.
const KEPT: usize = 10_000;

/// Bytes kept of what groups said of namespaces, as estimated: with a thousand OSDs that of one takes a quarter of a MiB. The
/// namespace asked for longest ago goes first.
const KEPT_BYTES: usize = 64 << 20;

/// Of them for each active OSD: ids, names, addresses.
const OSD_BYTES: usize = 256;

/// And for everything else of a namespace.
const NAMESPACE_BYTES: usize = 1024;

/// A namespace as its name was last resolved.
pub(crate) struct Namespace {
    pub(crate) name: NamespaceName,
    pub(crate) id: NamespaceId,
    pub(crate) group: GroupId,
    /// When the group was last asked, at which generation of what groups are told, and what it said.
    info: Mutex<Option<(Moment, Generation, Arc<NamespaceInfo>)>>,
    /// When the group last refused to keep a small object in the metadata.
    inline_refused: Mutex<Option<Moment>>,
}

/// How long small objects go to OSDs after the group refused one.
const NO_INLINE: Duration = Duration::from_secs(60);

impl Namespace {
    /// May the group be asked to keep small objects in the metadata?
    pub(crate) fn takes_inline(&self, now: Moment) -> bool {
        let refused = *self.inline_refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.is_none_or(|refused| now.since(refused) >= NO_INLINE)
    }

    /// It refused.
    pub(crate) fn inline_refused(&self, now: Moment) {
        *self.inline_refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }
}

/// See the module.
pub(crate) struct Namespaces {
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    directory: Arc<dyn Directory>,
    store: Arc<dyn NamespaceStore>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_name: BTreeMap<NamespaceName, Entry>,
    by_use: BTreeMap<u64, NamespaceName>,
    next_use: u64,
    bytes: usize,
}

struct Entry {
    last_use: u64,
    namespace: Arc<Namespace>,
    bytes: usize,
}

impl Kept {
    fn get(&mut self, name: &NamespaceName) -> Option<Arc<Namespace>> {
        let entry = self.by_name.get_mut(name)?;
        let key = self.by_use.remove(&entry.last_use)?;
        entry.last_use = self.next_use;
        self.by_use.insert(self.next_use, key);
        self.next_use += 1;
        Some(Arc::clone(&entry.namespace))
    }

    fn remove(&mut self, name: &NamespaceName) {
        if let Some(entry) = self.by_name.remove(name) {
            self.by_use.remove(&entry.last_use);
            self.bytes -= entry.bytes;
        }
    }

    fn insert(&mut self, namespace: &Arc<Namespace>) {
        self.remove(&namespace.name);
        let (last_use, bytes) = (self.next_use, NAMESPACE_BYTES);
        let entry = Entry { last_use, namespace: Arc::clone(namespace), bytes };
        self.by_name.insert(namespace.name.clone(), entry);
        self.by_use.insert(last_use, namespace.name.clone());
        self.next_use += 1;
        self.bytes += bytes;
        self.shrink();
    }

    /// The group has said something of it.
    fn weigh(&mut self, namespace: &Arc<Namespace>, info: &NamespaceInfo) {
        let bytes = NAMESPACE_BYTES + info.active_osds.len() * OSD_BYTES;
        let Some(entry) = self.by_name.get_mut(&namespace.name) else { return };
        if Arc::ptr_eq(&entry.namespace, namespace) {
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        // The last one stays, however large: it is in use.
        while self.by_name.len() > KEPT || (self.bytes > KEPT_BYTES && self.by_name.len() > 1) {
            let Some(oldest) = self.by_use.first_key_value().map(|(_, name)| name.clone()) else { break };
            self.remove(&oldest);
        }
    }
}

/// The group that was asked does not own the namespace (any more).
pub(crate) fn is_moved(error: &ClientError) -> bool {
    matches!(error, ClientError::Meta(MetaError::Nsm(NsmError::NamespaceMoved(_))))
}

/// The group has refused because the namespace is being moved, or because it has been. Nothing was executed, so the same may be
/// sent again, also to another group, as a new request.
fn is_about_a_move(error: &ClientError) -> bool {
    is_moved(error) || matches!(error, ClientError::Meta(MetaError::Nsm(NsmError::NamespaceFrozen(_))))
}

/// First pause before a namespace that is being moved is asked again; doubles up to [`LONGEST_PAUSE`], each time jittered
/// down to half. A move holds clients up for some ten milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How often a group may disown a namespace that the ABM says is there and stays there: the two may be looked at a moment apart.
const DISOWNED: u32 = 3;

impl Namespaces {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        directory: Arc<dyn Directory>,
        store: Arc<dyn NamespaceStore>,
    ) -> Self {
        Self { clock, rng, directory, store, kept: Mutex::default() }
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
            inline_refused: Mutex::new(None),
        });
        self.kept().insert(&namespace);
        namespace
    }

    /// What names mean as far as is kept, ordered by name.
    pub(crate) fn all_kept(&self) -> Vec<Arc<Namespace>> {
        self.kept().by_name.values().map(|entry| Arc::clone(&entry.namespace)).collect()
    }

    /// Forgets what a name meant, unless it means something else by now.
    pub(crate) fn forget_this(&self, stale: &Arc<Namespace>) {
        let mut kept = self.kept();
        if kept.by_name.get(&stale.name).is_some_and(|now| Arc::ptr_eq(&now.namespace, stale)) {
            kept.remove(&stale.name);
        }
    }

    /// What a name means, as far as this process knows.
    pub(crate) fn known(&self, name: &NamespaceName) -> Option<Arc<Namespace>> {
        self.kept().by_name.get(name).map(|entry| Arc::clone(&entry.namespace))
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

    /// After the `round`-th refusal of a request about `namespace`: the same namespace where it is now, when it is time to send
    /// the request again as a new one. The refusal, when that is of no use, or there is no time left.
    pub(crate) async fn after_refusal(
        &self,
        namespace: Arc<Namespace>,
        error: ClientError,
        round: u32,
        deadline: Deadline,
    ) -> Result<Arc<Namespace>, ClientError> {
        if !is_about_a_move(&error) {
            return Err(error);
        }
        let (mut namespace, mut error) = (namespace, error);
        if is_moved(&error) {
            self.forget(&namespace.name);
            let record = self.record(&namespace.name, deadline).await?;
            // Of another namespace of that name the caller knows nothing yet.
            let Some(record) = record.filter(|now| now.id == namespace.id && now.state.is_usable()) else {
                return Err(error);
            };
            if record.group != namespace.group {
                return Ok(self.remember(record));
            }
            // Between the hand-over and the word of the ABM nobody serves it.
            if matches!(record.state, NamespaceState::Moving { .. }) {
                // Should time run out: it is there, and must never be taken for one that is gone.
                error = ClientError::Meta(MetaError::Nsm(NsmError::NamespaceFrozen(namespace.id)));
            } else if round >= DISOWNED {
                return Err(error);
            }
            namespace = self.remember(record);
        }
        let longest = FIRST_PAUSE.saturating_mul(1 << round.min(10)).min(LONGEST_PAUSE);
        let thousandths = u32::try_from(self.rng.u64() % 500).unwrap_or(0) + 500;
        let pause = longest / 1000 * thousandths;
        if pause >= deadline.left(&*self.clock) {
            return Err(error);
        }
        self.clock.sleep_until(self.clock.now().plus(pause)).await;
        Ok(namespace)
    }

    /// A read of the group that has the namespace, wherever that is by now.
    pub(crate) async fn ask(
        &self,
        namespace: &Arc<Namespace>,
        query: impl Fn() -> NsmQuery,
        deadline: Deadline,
    ) -> Result<NsmAnswer, ClientError> {
        let mut namespace = Arc::clone(namespace);
        let mut round = 0;
        loop {
            match ask_group(&*self.clock, &*self.store, &namespace.group, query(), deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => namespace = self.after_refusal(namespace, error, round, deadline).await?,
            }
            round += 1;
        }
    }

    /// What the group said, as new as wanted.
    pub(crate) async fn info(
        &self,
        namespace: &Arc<Namespace>,
        wanted: Fresh,
        deadline: Deadline,
    ) -> Result<Arc<NamespaceInfo>, ClientError> {
        let now = self.clock.now();
        if let Some((asked, generation, info)) =
            &*namespace.info.lock().unwrap_or_else(PoisonError::into_inner)
            && wanted.is_met_by((*asked, *generation), now)
        {
            return Ok(Arc::clone(info));
        }
        match self.ask(namespace, || NsmQuery::Namespace(namespace.id), deadline).await? {
            NsmAnswer::Namespace(info) => {
                let info: Arc<NamespaceInfo> = Arc::from(info);
                *namespace.info.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((now, wanted.generation, Arc::clone(&info)));
                self.kept().weigh(namespace, &info);
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

#[cfg(test)]
mod tests {
    use alba_core::ids::{LongId, NodeId, OsdId, Place};
    use alba_core::preset::Preset;
    use alba_core::units::ByteCount;
    use alba_core::wire::rpc::abm::{OsdEndpoint, OsdInfo};

    use super::*;

    fn namespace(id: u32) -> Arc<Namespace> {
        Arc::new(Namespace {
            name: NamespaceName::new(format!("n-{id}")).unwrap(),
            id: NamespaceId::from_u32(id),
            group: GroupId::new("nsm-0").unwrap(),
            info: Mutex::new(None),
            inline_refused: Mutex::new(None),
        })
    }

    fn info(osds: u32) -> NamespaceInfo {
        let osd = |id: u32| OsdInfo {
            long_id: LongId::new(format!("{id:064}")).unwrap(),
            place: Place::of_node(NodeId::new("node").unwrap()),
            endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 1),
            capacity: ByteCount(1),
            used: ByteCount(0),
        };
        NamespaceInfo {
            name: NamespaceName::new("n").unwrap(),
            preset: Preset::built_in(),
            preset_version: 0,
            active_osds: (0..osds).map(|id| (OsdId::from_u32(id), osd(id))).collect(),
            min_epoch: alba_core::ids::GcEpoch::from_u32(0),
            newest_epoch: alba_core::ids::GcEpoch::from_u32(0),
        }
    }

    #[test]
    fn what_groups_say_is_kept_within_a_bound_in_bytes() {
        let mut kept = Kept::default();
        let large = info(4000);
        let room = KEPT_BYTES / (NAMESPACE_BYTES + 4000 * OSD_BYTES);
        let all: Vec<_> = (0..100).map(namespace).collect();
        for one in &all {
            kept.insert(one);
            kept.weigh(one, &large);
            assert!(kept.bytes <= KEPT_BYTES);
        }
        assert_eq!(kept.by_name.len(), room);
        assert!(kept.get(&all[0].name).is_none(), "the oldest went");
        assert!(kept.get(&all[99].name).is_some());
        // It says less than before, and what is forgotten weighs nothing.
        for one in &all {
            kept.weigh(one, &info(0));
        }
        assert_eq!(kept.bytes, room * NAMESPACE_BYTES);
        for one in &all {
            kept.remove(&one.name);
        }
        assert_eq!((kept.bytes, kept.by_use.len()), (0, 0));
        // One that is larger than the bound is kept while it is the only one.
        kept.insert(&all[0]);
        kept.weigh(&all[0], &info(300_000));
        assert_eq!(kept.by_name.len(), 1);
    }

    #[test]
    fn the_namespace_asked_for_longest_ago_goes_first() {
        let mut kept = Kept::default();
        for id in 0..u32::try_from(KEPT).unwrap() {
            kept.insert(&namespace(id));
        }
        assert!(kept.get(&namespace(0).name).is_some());
        kept.insert(&namespace(1_000_000));
        assert_eq!(kept.by_name.len(), KEPT);
        assert!(kept.get(&namespace(0).name).is_some() && kept.get(&namespace(1).name).is_none());
    }
}
