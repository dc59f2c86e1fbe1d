//! The objects of a backup, in the order of their ids.

use std::collections::VecDeque;
use std::sync::Arc;

use alba_core::env::{Env, blocking};
use alba_core::ids::{GcEpoch, NamespaceId, ObjectId, OsdId};
use alba_core::manifest::Manifest;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use alba_metadata::backup::OldGroup;

use super::judge::Before;
use super::scan::local;
use crate::commands::backend::mismatch;
use crate::error::CliError;

/// Manifests per page.
const PAGE: i32 = 100;

/// What a backup knows of one namespace; nothing when there is no backup or it does not know the namespace.
pub(super) struct Old {
    group: Option<Arc<OldGroup>>,
    namespace: NamespaceId,
    /// OSDs whose queues of deletions are looked at.
    osds: Vec<OsdId>,
    newest_epoch: Option<GcEpoch>,
    page: VecDeque<Manifest>,
    next: Option<RangeQuery>,
    missing: Option<String>,
}

impl Old {
    /// The objects behind `after`.
    pub(super) async fn of(
        env: &Env,
        group: Option<Arc<OldGroup>>,
        namespace: NamespaceId,
        after: Option<ObjectId>,
    ) -> Result<Self, CliError> {
        let mut old = Self {
            group: None,
            namespace,
            osds: Vec::new(),
            newest_epoch: None,
            page: VecDeque::new(),
            next: None,
            missing: None,
        };
        let Some(group) = group else { return Ok(old) };
        let asked = group.clone();
        let ask = move || {
            let info = asked.nsm(&NsmQuery::Namespace(namespace))?;
            let details = asked.nsm(&NsmQuery::Details(namespace))?;
            // Of one that was recovering or on its way elsewhere the backup has no whole list.
            let probe = RangeQuery { max: 1, ..RangeQuery::all() };
            let listed = asked.nsm(&NsmQuery::ManifestsById { namespace, range: probe })?;
            Ok::<_, alba_core::kv::KvError>((info, details, listed))
        };
        match blocking(env.spawn.as_ref(), ask).await?.map_err(local)? {
            (Ok(NsmAnswer::Namespace(info)), Ok(NsmAnswer::Details(details)), Ok(_)) => {
                old.group = Some(group);
                old.newest_epoch = Some(info.newest_epoch);
                old.osds = details.osds.into_iter().map(|(id, _, _)| id).collect();
                let range = RangeQuery { max: PAGE, ..RangeQuery::all() };
                old.next = Some(match after {
                    Some(after) => range.after(after.as_bytes()),
                    None => range,
                });
            }
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
                old.missing = Some(format!("the backup does not have it ({error}); it is recovered without"));
            }
            _ => return Err(mismatch("Namespace")),
        }
        Ok(old)
    }

    /// Why the backup is of no use here.
    pub(super) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// Of the backup.
    pub(super) fn newest_epoch(&self) -> Option<GcEpoch> {
        self.newest_epoch
    }

    async fn fill(&mut self, env: &Env) -> Result<(), CliError> {
        while self.page.is_empty() {
            let (Some(group), Some(range)) = (&self.group, self.next.take()) else { return Ok(()) };
            let (group, namespace, asked) = (group.clone(), self.namespace, range.clone());
            let ask = move || group.nsm(&NsmQuery::ManifestsById { namespace, range: asked });
            match blocking(env.spawn.as_ref(), ask).await?.map_err(local)?? {
                NsmAnswer::ManifestPage(page) => {
                    if page.has_more {
                        self.next = page.items.last().map(|last| range.after(last.object_id.as_bytes()));
                    }
                    self.page = page.items.into();
                }
                _ => return Err(mismatch("ManifestsById")),
            }
        }
        Ok(())
    }

    /// The next object that it has.
    pub(super) async fn head(&mut self, env: &Env) -> Result<Option<ObjectId>, CliError> {
        self.fill(env).await?;
        Ok(self.page.front().map(|manifest| manifest.object_id))
    }

    /// What it knows of an object. Objects are to be asked for in the order of their ids, and none of its own left out.
    pub(super) async fn before(&mut self, env: &Env, id: &ObjectId) -> Result<Before, CliError> {
        if self.head(env).await? == Some(*id)
            && let Some(manifest) = self.page.pop_front()
        {
            return Ok(Before::Live(Box::new(manifest)));
        }
        let Some(group) = &self.group else { return Ok(Before::Unknown) };
        let (group, namespace, id, osds) = (group.clone(), self.namespace, *id, self.osds.clone());
        let look = move || group.waits_for_deletion(namespace, &id, &osds);
        let deleted = blocking(env.spawn.as_ref(), look).await?.map_err(local)?;
        Ok(if deleted { Before::Deleted } else { Before::Unknown })
    }
}
