//! Looking from outside: the OSDs with all that is known of them, and the keys of namespaces. For those who serve this
//! knowledge on (the proxy) and for tools; reading and writing objects needs none of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alba_core::encryption::FragmentKey;
use alba_core::env::Deadline;
use alba_core::ids::{LongId, NamespaceId, OsdId};
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, NamespaceRecord, OsdFilter, OsdHealth, OsdRecord};

use crate::namespaces::{Namespace, unexpected};
use crate::watch::Fresh;
use crate::{Client, ClientError};

/// What this process thinks of an OSD.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OsdOpinion {
    /// It gets no new fragments and is asked last, until a probe succeeds.
    pub disqualified: bool,
    /// Damaged fragments found on it.
    pub checksum_errors: u64,
}

/// An OSD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsdReading {
    /// As the ABM has it.
    pub record: OsdRecord,
    /// What all processes together reported to the ABM.
    pub health: OsdHealth,
    /// What this process thinks, if it has anything to do with it.
    pub opinion: Option<OsdOpinion>,
}

/// What the fragments of a namespace are encrypted with.
#[derive(Debug, Clone)]
pub enum NamespaceKey {
    /// There is no usable namespace of that number.
    UnknownNamespace,
    /// With nothing.
    NotEncrypted,
    /// With this. Whoever gets it can read everything in the namespaces of its preset.
    Key(FragmentKey),
}

/// How old what is known of a namespace's preset may be: a preset's key is for life.
const KEY_FRESH: Duration = Duration::from_secs(600);

impl Client {
    /// All OSDs that the ABM knows, ordered by long id; asked afresh. Those that a manifest may name have an `osd_id`.
    pub async fn osd_readings(&self, deadline: Deadline) -> Result<Vec<OsdReading>, ClientError> {
        let work = async {
            let mut health = self.osd_health(deadline).await?;
            let mut readings = Vec::new();
            let mut range = RangeQuery::all();
            loop {
                let query = AbmQuery::Osds { filter: OsdFilter::All, range: range.clone() };
                let AbmAnswer::Osds(page) = self.engine.ask_directory(query, deadline).await? else {
                    return Err(unexpected("Osds"));
                };
                let last = page.items.last().map(|record| record.info.long_id.clone());
                readings.extend(page.items.into_iter().map(|record| {
                    let health = health.remove(&record.info.long_id).unwrap_or_default();
                    let opinion = record.osd_id.and_then(|id| self.opinion(id));
                    OsdReading { record, health, opinion }
                }));
                match last {
                    Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
                    _ => return Ok(readings),
                }
            }
        };
        self.limited(deadline, "the list of OSDs", work).await
    }

    async fn osd_health(&self, deadline: Deadline) -> Result<BTreeMap<LongId, OsdHealth>, ClientError> {
        let mut found = BTreeMap::new();
        let mut range = RangeQuery::all();
        loop {
            let query = AbmQuery::OsdHealth(range.clone());
            let AbmAnswer::OsdHealth(page) = self.engine.ask_directory(query, deadline).await? else {
                return Err(unexpected("OsdHealth"));
            };
            let last = page.items.last().map(|(long_id, _)| long_id.clone());
            found.extend(page.items);
            match last {
                Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
                _ => return Ok(found),
            }
        }
    }

    fn opinion(&self, id: OsdId) -> Option<OsdOpinion> {
        let member = self.engine.pool.known(id)?;
        let health = member.health();
        Some(OsdOpinion { disqualified: !health.answers(), checksum_errors: health.checksum_errors })
    }

    /// The key of a namespace that direct readers know by its number only.
    pub async fn namespace_key(
        &self,
        namespace: NamespaceId,
        deadline: Deadline,
    ) -> Result<NamespaceKey, ClientError> {
        let work = async {
            let Some(namespace) = self.namespace_of(namespace, deadline).await? else {
                return Ok(NamespaceKey::UnknownNamespace);
            };
            let info = self.engine.namespaces.info(&namespace, Fresh::within(KEY_FRESH), deadline).await?;
            Ok(match self.engine.keys.of_preset(&info.preset.fragment_encryption)? {
                Some(key) => NamespaceKey::Key(key),
                None => NamespaceKey::NotEncrypted,
            })
        };
        self.limited(deadline, "the namespace's preset", work).await
    }

    /// The ABM knows namespaces by name; those in use are known here already.
    async fn namespace_of(
        &self,
        id: NamespaceId,
        deadline: Deadline,
    ) -> Result<Option<Arc<Namespace>>, ClientError> {
        let namespaces = &self.engine.namespaces;
        if let Some(kept) = namespaces.all_kept().into_iter().find(|kept| kept.id == id) {
            return Ok(Some(kept));
        }
        let mut range = RangeQuery::all();
        loop {
            let page = self.list_namespaces(range.clone(), deadline).await?;
            let last = page.items.last().map(|record| record.name.clone());
            let wanted = |record: &NamespaceRecord| record.id == id && record.state.is_usable();
            if let Some(record) = page.items.into_iter().find(wanted) {
                return Ok(Some(namespaces.remember(record)));
            }
            match last {
                Some(last) if page.has_more => range = range.after(last.as_bytes()),
                _ => return Ok(None),
            }
        }
    }
}
