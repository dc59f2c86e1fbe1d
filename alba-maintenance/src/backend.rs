//! The backend as tasks see it: typed questions to the ABM, the groups and the OSDs, each with a deadline.
//!
//! Nothing is cached here but connections: a task decides by what is so when it asks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alba_client::Client;
use alba_core::env::osd::{OsdBatch, OsdKey, Priority};
use alba_core::env::{Deadline, Env, MetaError, Osd, OsdError, within};
use alba_core::ids::{GroupId, NamespaceId, ObjectId, OsdId};
use alba_core::manifest::Manifest;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmOutcome, AbmQuery, NamespaceRecord, OsdFilter, OsdRecord, OsdState,
};
use alba_core::wire::rpc::nsm::{
    NamespaceDetails, NamespaceInfo, NsmAnswer, NsmCommand, NsmOutcome, NsmQuery,
};

use crate::error::TaskError;

/// Longest a call to an OSD takes: maintenance is patient (features §3.1).
const OSD_TIME: Duration = Duration::from_secs(30);

/// Longest a call to a metadata group takes.
const META_TIME: Duration = Duration::from_secs(20);

/// See the module.
pub struct Backend {
    env: Env,
    client: Client,
}

impl Backend {
    /// On top of a client, whose connections it shares.
    pub fn new(env: Env, client: Client) -> Arc<Self> {
        Arc::new(Self { env, client })
    }

    /// The outside.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// The object engine.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks the ABM.
    pub async fn ask_abm(&self, query: AbmQuery) -> Result<AbmAnswer, TaskError> {
        let deadline = self.env.deadline_in(META_TIME);
        let asked = self.client.directory().query(query, deadline);
        self.answered(deadline, "the ABM", asked).await
    }

    /// Tells the ABM.
    pub async fn tell_abm(&self, command: AbmCommand) -> Result<AbmOutcome, TaskError> {
        let deadline = self.env.deadline_in(META_TIME);
        let told = self.client.directory().command(command, deadline);
        self.answered(deadline, "the ABM", told).await
    }

    /// Asks a group. One that does not own the namespace says so, and never that something is absent.
    pub async fn ask_group(&self, group: &GroupId, query: NsmQuery) -> Result<NsmAnswer, TaskError> {
        let deadline = self.env.deadline_in(META_TIME);
        let asked = self.client.namespace_store().query(group, query, deadline);
        self.answered(deadline, "the namespace's group", asked).await
    }

    /// Tells a group.
    pub async fn tell_group(&self, group: &GroupId, command: NsmCommand) -> Result<NsmOutcome, TaskError> {
        let deadline = self.env.deadline_in(META_TIME);
        let told = self.client.namespace_store().command(group, command, deadline);
        self.answered(deadline, "the namespace's group", told).await
    }

    async fn answered<T>(
        &self,
        deadline: Deadline,
        waiting_for: &'static str,
        answer: impl Future<Output = Result<T, MetaError>>,
    ) -> Result<T, TaskError> {
        let answer = within(self.env.clock.as_ref(), deadline, answer).await;
        Ok(answer.map_err(|_| TaskError::Deadline(waiting_for))??)
    }

    /// All namespaces one after the other, ordered by name, whatever their state: read page by page as they are needed.
    pub fn each_namespace(&self) -> Namespaces<'_> {
        Namespaces { backend: self, page: VecDeque::new(), rest: Some(RangeQuery::all()) }
    }

    /// All namespaces at once, ordered by name, whatever their state. Only for tools that end soon: tasks go through them with
    /// [`Self::each_namespace`].
    pub async fn namespaces(&self) -> Result<Vec<NamespaceRecord>, TaskError> {
        let mut all = Vec::new();
        let mut namespaces = self.each_namespace();
        while let Some(record) = namespaces.next().await? {
            all.push(record);
        }
        Ok(all)
    }

    /// All OSDs that pass, ordered by long id.
    pub async fn osds(&self, filter: OsdFilter) -> Result<Vec<OsdRecord>, TaskError> {
        let mut all = Vec::new();
        let mut range = RangeQuery::all();
        loop {
            let query = AbmQuery::Osds { filter, range: range.clone() };
            let AbmAnswer::Osds(page) = self.ask_abm(query).await? else {
                return Err(TaskError::Mismatch("Osds"));
            };
            let last = page.items.last().map(|record| record.info.long_id.clone());
            all.extend(page.items);
            match last {
                Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
                _ => return Ok(all),
            }
        }
    }

    /// Claimed OSDs that are not being forgotten: those that can be asked.
    pub async fn serving_osds(&self) -> Result<Vec<OsdId>, TaskError> {
        let claimed = self.osds(OsdFilter::Claimed).await?;
        let serving = claimed.into_iter().filter(|record| record.state != OsdState::Purging);
        Ok(serving.filter_map(|record| record.osd_id).collect())
    }

    /// What a namespace's group says of it.
    pub async fn namespace_info(&self, namespace: &NamespaceRecord) -> Result<NamespaceInfo, TaskError> {
        match self.ask_group(&namespace.group, NsmQuery::Namespace(namespace.id)).await? {
            NsmAnswer::Namespace(info) => Ok(*info),
            _ => Err(TaskError::Mismatch("Namespace")),
        }
    }

    /// What else the group knows of it.
    pub async fn namespace_details(
        &self,
        namespace: &NamespaceRecord,
    ) -> Result<NamespaceDetails, TaskError> {
        match self.ask_group(&namespace.group, NsmQuery::Details(namespace.id)).await? {
            NsmAnswer::Details(details) => Ok(*details),
            _ => Err(TaskError::Mismatch("Details")),
        }
    }

    /// A manifest by object id, read consistently from the group that owns the namespace.
    pub async fn manifest_by_id(
        &self,
        group: &GroupId,
        namespace: NamespaceId,
        object: ObjectId,
    ) -> Result<Option<Manifest>, TaskError> {
        match self.ask_group(group, NsmQuery::ManifestById { namespace, object }).await? {
            NsmAnswer::Manifest(manifest) => Ok(manifest.map(|manifest| *manifest)),
            _ => Err(TaskError::Mismatch("Manifest")),
        }
    }

    /// A handle on an OSD.
    pub async fn osd(&self, id: OsdId) -> Result<OsdHandle, TaskError> {
        let osd = self.client.osd(id, self.env.deadline_in(META_TIME)).await?;
        Ok(OsdHandle { id, osd, env: self.env.clone() })
    }
}

/// See [`Backend::each_namespace`]. Holds a page of some hundred records, however many there are.
pub struct Namespaces<'b> {
    backend: &'b Backend,
    page: VecDeque<NamespaceRecord>,
    /// What was not read yet; none: nothing.
    rest: Option<RangeQuery>,
}

impl Namespaces<'_> {
    /// The next one; none after the last.
    pub async fn next(&mut self) -> Result<Option<NamespaceRecord>, TaskError> {
        loop {
            if let Some(record) = self.page.pop_front() {
                return Ok(Some(record));
            }
            let Some(range) = self.rest.clone() else { return Ok(None) };
            let AbmAnswer::Namespaces(page) =
                self.backend.ask_abm(AbmQuery::Namespaces(range.clone())).await?
            else {
                return Err(TaskError::Mismatch("Namespaces"));
            };
            let last = page.items.last().filter(|_| page.has_more);
            self.rest = last.map(|last| range.after(last.name.as_bytes()));
            self.page = page.items.into();
        }
    }
}

/// An OSD, asked and told at low priority.
pub struct OsdHandle {
    id: OsdId,
    osd: Arc<dyn Osd>,
    env: Env,
}

impl OsdHandle {
    /// Which it is.
    pub fn id(&self) -> OsdId {
        self.id
    }

    async fn call<T, F>(&self, call: impl FnOnce(Arc<dyn Osd>, Deadline) -> F) -> Result<T, TaskError>
    where
        F: Future<Output = Result<T, OsdError>>,
    {
        let deadline = self.env.deadline_in(OSD_TIME);
        let answer = within(self.env.clock.as_ref(), deadline, call(self.osd.clone(), deadline)).await;
        answer.unwrap_or(Err(OsdError::Timeout)).map_err(|error| TaskError::Osd { osd: self.id, error })
    }

    /// Applies a batch.
    pub async fn apply(&self, batch: OsdBatch) -> Result<(), TaskError> {
        self.call(|osd, deadline| async move { osd.apply(batch, Priority::Low, deadline).await }).await
    }

    /// Applies a batch; false when one of its asserts does not hold, and so nothing has happened.
    pub async fn apply_if(&self, batch: OsdBatch) -> Result<bool, TaskError> {
        match self.apply(batch).await {
            Ok(()) => Ok(true),
            Err(TaskError::Osd { error: OsdError::AssertFailed(_), .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A page of keys.
    pub async fn range(&self, range: RangeQuery) -> Result<Page<OsdKey>, TaskError> {
        self.call(|osd, deadline| async move { osd.range(range, Priority::Low, deadline).await }).await
    }

    /// Is the key there?
    pub async fn has(&self, key: OsdKey) -> Result<bool, TaskError> {
        let found = self
            .call(|osd, deadline| async move { osd.multi_exists(vec![key], Priority::Low, deadline).await })
            .await?;
        Ok(found.first().copied().unwrap_or(false))
    }

    /// Small values, in the order of the keys.
    pub async fn get_all(&self, keys: Vec<OsdKey>) -> Result<Vec<Option<bytes::Bytes>>, TaskError> {
        let found = self
            .call(|osd, deadline| async move { osd.multi_get(keys, Priority::Low, deadline).await })
            .await?;
        Ok(found.into_iter().map(|stored| stored.map(|stored| stored.value)).collect())
    }

    /// One small value.
    pub async fn get(&self, key: OsdKey) -> Result<Option<bytes::Bytes>, TaskError> {
        let found = self
            .call(|osd, deadline| async move { osd.multi_get(vec![key], Priority::Low, deadline).await })
            .await?;
        Ok(found.into_iter().flatten().next().map(|stored| stored.value))
    }
}
