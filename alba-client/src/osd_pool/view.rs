//! The OSDs that the backend has, as the ABM lists them, each with a handle and its health.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::env::{Clock, Deadline, Directory, Moment, Osd, within};
use alba_core::ids::OsdId;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, OsdFilter, OsdInfo, OsdState};
use tokio::sync::Mutex as AsyncMutex;

use super::OsdConnector;
use super::health::Health;
use crate::ClientError;
use crate::namespaces::{ask_directory, unexpected};
use crate::watch::{Fresh, Generation};

/// An OSD of this backend.
pub(crate) struct Member {
    pub(crate) id: OsdId,
    pub(crate) osd: Arc<dyn Osd>,
    described: Mutex<(Arc<OsdInfo>, OsdState)>,
    health: Mutex<Health>,
}

impl Member {
    /// Its place and address; fill and size as last heard of.
    pub(crate) fn info(&self) -> Arc<OsdInfo> {
        Arc::clone(&self.described.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(crate) fn health(&self) -> MutexGuard<'_, Health> {
        // Its methods don't panic; and no health is worth a crash.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May new fragments go there, as far as is known here?
    pub(crate) fn takes_data(&self, now: Moment) -> bool {
        let state = self.described.lock().unwrap_or_else(PoisonError::into_inner).1;
        state == OsdState::Active && self.health().takes_data(now)
    }
}

/// All members.
pub(super) struct View {
    clock: Arc<dyn Clock>,
    directory: Arc<dyn Directory>,
    connector: Arc<dyn OsdConnector>,
    members: Mutex<BTreeMap<OsdId, Arc<Member>>>,
    /// When the ABM was last asked, and at which generation of the OSDs. Held while asking, so that all who want to know share
    /// one question.
    asked: AsyncMutex<Option<(Moment, Generation)>>,
}

impl View {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        directory: Arc<dyn Directory>,
        connector: Arc<dyn OsdConnector>,
    ) -> Self {
        Self { clock, directory, connector, members: Mutex::default(), asked: AsyncMutex::new(None) }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<OsdId, Arc<Member>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that are known.
    pub(super) fn all(&self) -> Vec<Arc<Member>> {
        self.members().values().cloned().collect()
    }

    pub(super) fn get(&self, id: OsdId) -> Option<Arc<Member>> {
        self.members().get(&id).cloned()
    }

    /// Asks the ABM, unless what is known is as new as wanted.
    pub(super) async fn refresh(&self, wanted: Fresh, deadline: Deadline) -> Result<(), ClientError> {
        let mut asked = within(&*self.clock, deadline, self.asked.lock())
            .await
            .map_err(ClientError::deadline("the list of OSDs"))?;
        let now = self.clock.now();
        if asked.is_some_and(|at| wanted.is_met_by(at, now)) {
            return Ok(());
        }
        let mut found = BTreeMap::new();
        let mut range = RangeQuery::all();
        loop {
            let query = AbmQuery::Osds { filter: OsdFilter::Claimed, range: range.clone() };
            let AbmAnswer::Osds(page) =
                ask_directory(&*self.clock, &*self.directory, query, deadline).await?
            else {
                return Err(unexpected("Osds"));
            };
            let last = page.items.last().map(|record| record.info.long_id.clone());
            for record in page.items {
                if let Some(id) = record.osd_id {
                    found.insert(id, (record.info, record.state));
                }
            }
            match last {
                Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
                _ => break,
            }
        }
        self.replace(found);
        // Of the generation that the caller knew before this asked: a later change is not taken for one that is known.
        *asked = Some((now, wanted.generation.max(asked.map_or_else(Generation::default, |at| at.1))));
        Ok(())
    }

    fn replace(&self, found: BTreeMap<OsdId, (OsdInfo, OsdState)>) {
        let mut members = self.members();
        let mut fresh = BTreeMap::new();
        for (id, (info, state)) in found {
            let known = members.get(&id).filter(|known| {
                let old = known.info();
                old.long_id == info.long_id && old.endpoint == info.endpoint
            });
            let member = match known {
                Some(known) => {
                    *known.described.lock().unwrap_or_else(PoisonError::into_inner) = (Arc::new(info), state);
                    Arc::clone(known)
                }
                // New, or at another address: what was thought of the old address does not count.
                None => Arc::new(Member {
                    id,
                    osd: self.connector.osd(&info),
                    described: Mutex::new((Arc::new(info), state)),
                    health: Mutex::new(Health::new()),
                }),
            };
            fresh.insert(id, member);
        }
        *members = fresh;
    }
}
