//! How safe objects are, which cannot be repaired, and storing one anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alba_client::repair::survey::suppose_dead;
use alba_client::repair::{Registry, Repaired, Repairer, Safety, Weakest, is_gone};
use alba_client::{Client, Consistency};
use alba_core::env::within;
use alba_core::ids::{LongId, NamespaceId, NamespaceName, NodeId, ObjectName, OsdId, text_or_hex};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmError, AbmQuery, CARE_PAGE, NamespaceRecord, NamespaceState, OsdFilter, OsdRecord,
    OsdState, UnrepairedRecord, WORK_PAGE, WorkItem,
};
use clap::Args;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::backend::{Backend, mismatch};
use super::windows;
use crate::answer::Answer;
use crate::error::CliError;
use crate::names;
use crate::ranges::Pager;
use crate::session::Session;
use crate::table::table;

/// How long an OSD may take to answer before it counts as not answering.
const ANSWER: Duration = Duration::from_secs(3);

/// OSDs asked at once.
const AT_ONCE: usize = 32;

/// Longest these commands take, unless told otherwise: they may go through many objects.
const PATIENCE: Duration = Duration::from_secs(600);

/// Print how many more fragments the objects of each namespace can lose: exactly, and if more OSDs were dead
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba get-disk-safety --node-id node-3      what if that node were lost?\n\n\
                  Purged OSDs always count as dead. Below 0 an object cannot be read."
)]
pub(crate) struct GetDiskSafety {
    /// Suppose that this OSD is dead
    #[arg(long, value_name = "LONG_ID")]
    long_id: Vec<LongId>,
    /// Suppose that all OSDs of this node are dead
    #[arg(long, value_name = "NODE")]
    node_id: Vec<NodeId>,
    /// Only this namespace
    #[arg(long, value_parser = names::namespace())]
    namespace: Option<NamespaceName>,
    /// Suppose that OSDs that are being decommissioned are dead
    #[arg(long)]
    include_decommissioning_as_dead: bool,
    /// OSDs that do not answer now count as dead
    #[arg(long)]
    include_errored_as_dead: bool,
}

/// What is there to be asked about: served by its group, the trash included.
fn is_served(record: &NamespaceRecord) -> bool {
    matches!(
        record.state,
        NamespaceState::Active | NamespaceState::Trashed { .. } | NamespaceState::Moving { .. }
    )
}

async fn namespaces(
    backend: &Backend<'_>,
    only: Option<&NamespaceName>,
) -> Result<Vec<NamespaceRecord>, CliError> {
    match only {
        Some(name) => Ok(vec![backend.namespace(name).await?]),
        None => Ok(backend.namespaces(Pager::all()).await?.into_iter().filter(is_served).collect()),
    }
}

/// The OSDs; with `ask` those that do not answer now are silent.
async fn registry(
    client: &Client,
    backend: &Backend<'_>,
    session: &Session,
    ask: bool,
) -> Result<Registry, CliError> {
    let claimed = backend.osds(OsdFilter::Claimed, Pager::all()).await?;
    let records: BTreeMap<OsdId, _> =
        claimed.into_iter().filter_map(|record| Some((record.osd_id?, record))).collect();
    let mut silent = BTreeSet::new();
    if ask {
        let osds: Vec<OsdId> = records.keys().copied().collect();
        let answers = stream::iter(osds).map(|osd| async move {
            let deadline = session.env.deadline_in(ANSWER);
            let asked = async { client.osd(osd, deadline).await.ok()?.disk_usage(deadline).await.ok() };
            let answered = within(session.env.clock.as_ref(), deadline, asked).await;
            (osd, matches!(answered, Ok(Some(_))))
        });
        let mut answers = answers.buffer_unordered(AT_ONCE);
        while let Some((osd, answered)) = answers.next().await {
            if !answered {
                silent.insert(osd);
            }
        }
    }
    let windows = windows::open(backend).await?.1;
    let is_away = |record: &OsdRecord| {
        windows.iter().any(|window| window.covers(&record.info.long_id, record.info.place.node()))
    };
    let away = records.iter().filter(|(_, record)| is_away(record)).map(|(osd, _)| *osd).collect();
    Ok(Registry { records, silent, away })
}

impl GetDiskSafety {
    /// Those supposed dead. Who names an OSD or a node that is not there has to hear of it.
    fn supposed(&self, registry: &Registry) -> Result<BTreeSet<OsdId>, CliError> {
        let mut dead = BTreeSet::new();
        for long_id in &self.long_id {
            let found = registry.records.iter().find(|(_, record)| record.info.long_id == *long_id);
            let (osd, _) = found.ok_or_else(|| CliError::from(AbmError::OsdUnknown(long_id.clone())))?;
            dead.insert(*osd);
        }
        for node in &self.node_id {
            if !registry.records.values().any(|record| record.info.place.node() == node) {
                return Err(CliError::failure(format!("no OSD of this backend is on node {node}")));
            }
        }
        if self.include_decommissioning_as_dead {
            let leaving =
                registry.records.iter().filter(|(_, record)| record.state == OsdState::Decommissioning);
            dead.extend(leaving.map(|(osd, _)| *osd));
        }
        Ok(dead)
    }

    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline_or(PATIENCE));
        let registry = registry(&client, &backend, session, self.include_errored_as_dead).await?;
        let dead = self.supposed(&registry)?;
        let nodes: BTreeSet<NodeId> = self.node_id.iter().cloned().collect();
        let repairer = client.repairer();
        let mut shown = Vec::new();
        let mut rows = Vec::new();
        for record in namespaces(&backend, self.namespace.as_ref()).await? {
            let name = record.name.clone();
            let patient = repairer.patient(record);
            let safety = async {
                let mut osds = repairer.osds(&patient, &registry).await?;
                suppose_dead(&mut osds, &dead, &nodes);
                repairer.safety(&patient, &osds).await
            };
            match safety.await {
                Ok(safety) => {
                    shown.push(shown_safety(&name, &safety));
                    rows.push(row(&name, &safety));
                }
                // Deleted while this went on.
                Err(error) if is_gone(&error) && self.namespace.is_none() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let text = table(&["NAMESPACE", ">CAN LOSE", ">OBJECTS AS WEAK", ">OBJECTS"], rows);
        Answer::new(shown, text)
    }
}

fn shown_safety(namespace: &NamespaceName, safety: &Safety) -> Value {
    let buckets = safety.rows().into_iter().map(|row| {
        let (k, m) = row.bucket.shape.as_u8();
        json!({
            "bucket": [u32::from(k), u32::from(m), row.bucket.fragments, row.bucket.max_per_node],
            "count": row.count,
            "applicable_dead_osds": row.lost,
            "remaining_safety": row.remaining,
        })
    });
    let least = safety.least();
    json!({
        "namespace": text_or_hex(namespace.as_bytes()),
        "safety": least.map(|(safety, _)| safety),
        "safety_count": least.map(|(_, count)| count),
        "bucket_safety": buckets.collect::<Vec<_>>(),
    })
}

fn row(namespace: &NamespaceName, safety: &Safety) -> Vec<String> {
    let objects: u64 = safety.rows().iter().map(|row| row.count).sum();
    let (least, weak) =
        safety.least().map_or_else(|| ("-".to_owned(), 0), |(least, count)| (least.to_string(), count));
    vec![namespace.to_string(), least, weak.to_string(), objects.to_string()]
}

/// List objects that cannot be repaired as things are, and why
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-unrepairable --to-json")]
pub(crate) struct ListUnrepairable {
    /// Only this namespace
    #[arg(long, value_parser = names::namespace())]
    namespace: Option<NamespaceName>,
}

/// One of them.
struct Sick {
    namespace: String,
    object: String,
    object_id: String,
    reason: String,
}

impl ListUnrepairable {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline_or(PATIENCE));
        let registry = registry(&client, &backend, session, true).await?;
        let repairer = client.repairer();
        let records = namespaces(&backend, self.namespace.as_ref()).await?;
        let by_id: BTreeMap<NamespaceId, NamespaceName> =
            records.iter().map(|record| (record.id, record.name.clone())).collect();
        let mut sick = Vec::new();
        for record in records {
            let name = text_or_hex(record.name.as_bytes());
            match surveyed(&repairer, record, &registry).await {
                Ok(listed) => sick.extend(listed.into_iter().map(|(object, object_id, reason)| Sick {
                    namespace: name.clone(),
                    object: text_or_hex(object.as_bytes()),
                    object_id,
                    reason,
                })),
                Err(error) if is_gone(&error) && self.namespace.is_none() => {}
                Err(error) => return Err(error.into()),
            }
        }
        sick.extend(failed_work(&backend, &by_id).await?);
        for failed in failed_repairs(&backend).await? {
            let object_id = failed.object.to_string();
            let listed = sick.iter().any(|sick| sick.object_id == object_id);
            if let Some(namespace) = by_id.get(&failed.namespace).filter(|_| !listed) {
                let namespace = text_or_hex(namespace.as_bytes());
                sick.push(Sick { namespace, object: String::new(), object_id, reason: failed.reason });
            }
        }
        let shown = sick.iter().map(|sick| {
            json!({
                "namespace": sick.namespace,
                "object": sick.object,
                "object_id": sick.object_id,
                "reason": sick.reason,
            })
        });
        let shown: Vec<Value> = shown.collect();
        let rows = sick.into_iter().map(|sick| vec![sick.namespace, sick.object, sick.reason]);
        Answer::new(shown, table(&["NAMESPACE", "OBJECT", "REASON"], rows.collect()))
    }
}

async fn surveyed(
    repairer: &Repairer,
    record: NamespaceRecord,
    registry: &Registry,
) -> Result<Vec<(ObjectName, String, String)>, alba_client::ClientError> {
    let patient = repairer.patient(record);
    let osds = repairer.osds(&patient, registry).await?;
    let (mut queue, none) = (Weakest::new(1), BTreeSet::new());
    let survey = repairer.survey(&patient, &osds, (&none, &none), &mut queue).await?;
    let listed = survey.listed.into_iter().map(|(name, id, why)| (name, id.to_string(), why.to_string()));
    Ok(listed.collect())
}

/// What the work queue could not do so far.
async fn failed_work(
    backend: &Backend<'_>,
    namespaces: &BTreeMap<NamespaceId, NamespaceName>,
) -> Result<Vec<Sick>, CliError> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let max = u32::try_from(WORK_PAGE).unwrap_or(100);
        let AbmAnswer::Work(page) = backend.ask(AbmQuery::Work { after, max }).await? else {
            return Err(mismatch("Work"));
        };
        after = page.items.last().map(|record| record.id).or(after);
        for record in page.items {
            let (Some(reason), Some((namespace, object, name))) = (record.last_failure, about(&record.item))
            else {
                continue;
            };
            let Some(namespace) = namespaces.get(&namespace) else { continue };
            let (namespace, object_id) = (text_or_hex(namespace.as_bytes()), object);
            found.push(Sick { namespace, object: name, object_id, reason });
        }
        if !page.has_more {
            return Ok(found);
        }
    }
}

/// What agents tried to repair in vain, and try again after a while.
async fn failed_repairs(backend: &Backend<'_>) -> Result<Vec<UnrepairedRecord>, CliError> {
    let max = u32::try_from(CARE_PAGE).unwrap_or(u32::MAX);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let AbmAnswer::Unrepaired { page, .. } = backend.ask(AbmQuery::Unrepaired { after, max }).await?
        else {
            return Err(mismatch("Unrepaired"));
        };
        after = page.items.last().map(|record| (record.namespace, record.object)).or(after);
        found.extend(page.items);
        if !page.has_more {
            return Ok(found);
        }
    }
}

/// Namespace, id and name (as far as known) of the object an item is about.
fn about(item: &WorkItem) -> Option<(NamespaceId, String, String)> {
    match item {
        WorkItem::RepairBadFragment { namespace, object, name, .. } => {
            Some((*namespace, object.to_string(), text_or_hex(name.as_bytes())))
        }
        WorkItem::RewriteObject { namespace, object } => {
            Some((*namespace, object.to_string(), String::new()))
        }
        _ => None,
    }
}

/// Read an object and store it anew, as the namespace's preset wants it now
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba rewrite-object demo video-7")]
pub(crate) struct RewriteObject {
    /// The namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The object
    #[arg(value_parser = names::object())]
    object: ObjectName,
}

impl RewriteObject {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let deadline = session.deadline();
        let found = client.manifest(&self.namespace, &self.object, Consistency::Consistent, deadline).await?;
        let unknown = || alba_client::ClientError::ObjectUnknown(self.object.clone());
        let stored = found.ok_or_else(unknown)?;
        let record = backend.namespace(&self.namespace).await?;
        let registry = registry(&client, &backend, session, false).await?;
        let repairer = client.repairer();
        let patient = repairer.patient(record);
        let osds = repairer.osds(&patient, &registry).await?;
        let deadline = session.bulk_deadline(stored.manifest.size.saturating_mul(2));
        let rewritten = repairer.rewrite(&patient, stored.manifest.object_id, &osds, deadline).await;
        // So that no tags stay behind.
        client.settle(session.deadline()).await?;
        match rewritten.map_err(|error| CliError::failure(error.to_string()))? {
            Repaired::Rewritten => Ok(Answer::done(format!("stored {} anew", self.object))),
            Repaired::Nothing | Repaired::Updated => {
                Ok(Answer::done(format!("{} lives in the metadata: there is nothing to do", self.object)))
            }
            Repaired::Absent => Err(CliError::failure(format!("{} was replaced meanwhile", self.object))),
        }
    }
}
