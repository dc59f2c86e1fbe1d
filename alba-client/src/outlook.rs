//! Whether requests can be expected to succeed: for health checks, not for requests.

use alba_core::env::Deadline;
use alba_core::placement::{Candidate, choose_policy};
use alba_core::preset::{OsdSet, Preset};
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery};
use alba_core::wire::rpc::watch::Topic;

use crate::namespaces::unexpected;
use crate::{Client, ClientError};

/// What is to be expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// OSDs claimed by the backend.
    pub osds: usize,
    /// Of these, the ones that take new fragments as far as this process knows.
    pub usable: usize,
    /// Why uploads with the default preset cannot succeed now; none when they can.
    pub no_uploads: Option<String>,
}

impl Client {
    /// Asks the metadata servers, and sees whether the OSDs that are well are enough for the default preset. An error says
    /// that the metadata does not answer.
    pub async fn outlook(&self, deadline: Deadline) -> Result<Outlook, ClientError> {
        let preset = self.default_preset(deadline).await?;
        let engine = &self.engine;
        // As new as an upload would want it: no question where changes are told.
        engine.pool.refresh(engine.fresh(Topic::OSDS), deadline).await?;
        let now = engine.env.clock.now();
        let members = engine.pool.all();
        let usable: Vec<Candidate> = members
            .iter()
            .filter(|member| member.takes_data(now))
            .map(|member| {
                let info = member.info();
                let node = info.place.node().clone();
                Candidate { osd: member.id, node, total: info.capacity, used: info.used }
            })
            .collect();
        let no_uploads = match preset {
            None => Some("there is no default preset".to_owned()),
            Some(preset) => {
                let of_preset = |candidate: &&Candidate| match &preset.osds {
                    OsdSet::All => true,
                    OsdSet::Explicit(ids) => ids.contains(&candidate.osd),
                };
                let candidates: Vec<Candidate> = usable.iter().filter(of_preset).cloned().collect();
                choose_policy(&preset.policies, &candidates).err().map(|error| error.to_string())
            }
        };
        Ok(Outlook { osds: members.len(), usable: usable.len(), no_uploads })
    }

    async fn default_preset(&self, deadline: Deadline) -> Result<Option<Preset>, ClientError> {
        let mut range = RangeQuery::all();
        loop {
            let AbmAnswer::Presets(page) =
                self.engine.ask_directory(AbmQuery::Presets(range.clone()), deadline).await?
            else {
                return Err(unexpected("Presets"));
            };
            let last = page.items.last().map(|record| record.name.clone());
            if let Some(found) = page.items.into_iter().find(|record| record.is_default) {
                return Ok(Some(found.preset));
            }
            match last {
                Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
                _ => return Ok(None),
            }
        }
    }

    /// Bytes of memory in use, by pool: buffers (`work`, `answers`) and the cache of manifests.
    pub fn memory(&self) -> Vec<(&'static str, u64)> {
        let mut pools = Vec::from(self.engine.buffers.used());
        pools.push(("manifest_cache", self.engine.cache.bytes()));
        pools
    }
}
