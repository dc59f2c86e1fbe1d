//! What there is to see of a backend before anything moves: its OSDs, how full they are, its namespaces.
//!
//! What an OSD holds is what the groups count of it: exact, and without the delay with which a disk gives back what was
//! deleted, so that nothing moves twice. Its capacity, and whether it answers at all, it says itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alba_client::repair::{Osds, Registry, Standing};
use alba_client::{Client, ClientError};
use alba_core::env::osd::DiskUsage;
use alba_core::env::{DeadlineExceeded, Env, MetaError, within};
use alba_core::ids::{GroupId, NamespaceId, OsdId};
use alba_core::placement::placeable;
use alba_core::policy::{CodeShape, Policy};
use alba_core::range::RangeQuery;
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmQuery, NamespaceRecord, NamespaceState, OsdFilter, OsdRecord, OsdState,
};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmError, NsmQuery};
use futures_util::{StreamExt, stream};

use crate::observe::{Bounds, FillRate, Observation, OsdFill, Role, observe};
use crate::plan::Limits;

/// Longest a question to the metadata takes.
const META_TIME: Duration = Duration::from_secs(20);

/// Longest an OSD takes to say how full it is; one that takes longer is left out.
const OSD_TIME: Duration = Duration::from_secs(3);

/// OSDs asked at once.
const AT_ONCE: usize = 32;

/// Namespaces whose counters are asked for at once.
const COUNTERS: usize = 200;

/// No OSD is filled beyond this by moves.
pub const FULLEST: FillRate = FillRate(950_000_000);

/// See the module.
#[derive(Debug, Clone)]
pub struct Sight {
    /// All claimed OSDs, and which do not answer.
    pub registry: Registry,
    /// The OSDs that can give and take.
    pub observation: Observation,
    /// All that have objects, also in the trash.
    pub namespaces: Vec<NamespaceRecord>,
}

/// Looks at everything.
pub async fn look(client: &Client, env: &Env) -> Result<Sight, ClientError> {
    let asked = Asked { client, env };
    let records = asked.osds().await?;
    let namespaces: Vec<NamespaceRecord> =
        asked.namespaces().await?.into_iter().filter(|record| is_served(&record.state)).collect();
    let held = asked.held(&namespaces).await?;
    let usage = asked.usage(records.keys().copied().collect()).await;
    let fill = |(id, record): (&OsdId, &OsdRecord)| {
        let usage = usage.get(id)?;
        // The others are emptied by repair: they take nothing, and what they hold is no concern of the fill's.
        (record.state == OsdState::Active).then(|| (*id, fill_of(record, usage, held.get(id).copied())))
    };
    let observation = observe(records.iter().filter_map(fill).collect());
    let silent = records.keys().filter(|id| !usage.contains_key(id)).copied().collect();
    Ok(Sight { registry: Registry { records, silent, away: BTreeSet::new() }, observation, namespaces })
}

fn fill_of(record: &OsdRecord, usage: &DiskUsage, held: Option<u64>) -> OsdFill {
    let full = FillRate::of(usage.used.get(), usage.capacity.get()) >= FULLEST;
    OsdFill {
        node: record.info.place.node().clone(),
        used: ByteCount(held.unwrap_or(0)),
        total: usage.capacity,
        // By what it says itself: what was deleted takes its place until it has gone.
        role: if full { Role::Closed } else { Role::Member },
    }
}

/// Is there somebody to ask about its objects?
pub fn is_served(state: &NamespaceState) -> bool {
    matches!(state, NamespaceState::Active | NamespaceState::Trashed { .. } | NamespaceState::Moving { .. })
}

/// The same fill, with the roles that the OSDs have for one namespace. The bounds stay those of all.
pub fn for_namespace(observation: &Observation, osds: &Osds) -> Observation {
    let mut local = observation.clone();
    local.osds.retain(|id, fill| match osds.standing(*id) {
        Standing::Takes => true,
        Standing::Holds => {
            fill.role = Role::Closed;
            true
        }
        // Of no namespace's, or repair's.
        Standing::Draining | Standing::Leaving | Standing::Dead | Standing::Away | Standing::Gone => false,
    });
    local
}

/// The OSDs from which moves would help, fullest first; none when no OSD takes anything.
pub fn sources(local: &Observation) -> Vec<OsdId> {
    let Bounds { mean, step, even } = local.bounds;
    let takes = |fill: &OsdFill| fill.role == Role::Member && fill.rate() < even;
    if !local.osds.values().any(takes) {
        return Vec::new();
    }
    let low = |fill: &OsdFill| takes(fill) && fill.rate().0.saturating_add(step.0) < mean.0;
    let wanting = local.osds.values().any(low);
    let gives = |fill: &OsdFill| {
        let rate = fill.rate();
        rate > even && (wanting || rate.0 >= mean.0.saturating_add(step.0))
    };
    let mut giving: Vec<_> = local.osds.iter().filter(|(_, fill)| gives(fill)).collect();
    giving.sort_by_key(|(id, fill)| (std::cmp::Reverse(fill.rate()), **id));
    giving.into_iter().map(|(id, _)| *id).collect()
}

/// What binds moves of objects of this code: the limit per node of its policy, and the bounds of a plan. As repair has them,
/// so that neither undoes what the other did.
pub fn limits(
    shape: CodeShape,
    max_per_node: u32,
    policies: &[Policy],
    osds: &Osds,
    moves: usize,
) -> (u32, Limits) {
    let policy = policies.iter().find(|policy| policy.shape() == shape);
    let max_per_node = policy.map_or(max_per_node, Policy::max_per_node);
    let keeping =
        || osds.iter().filter(|(_, view)| view.standing.keeps()).map(|(osd, view)| (osd, &view.node));
    let fit = |limit| placeable(keeping(), limit).min(shape.total());
    let most = fit(max_per_node);
    let spread = (1..max_per_node).find(|limit| fit(*limit) >= most).unwrap_or(max_per_node);
    (max_per_node, Limits { moves, spread, fullest: FULLEST })
}

struct Asked<'a> {
    client: &'a Client,
    env: &'a Env,
}

fn answered<T>(
    answer: Result<Result<T, MetaError>, DeadlineExceeded>,
    waiting_for: &'static str,
) -> Result<T, ClientError> {
    answer.map_err(|_| ClientError::Deadline { waiting_for })?.map_err(ClientError::Meta)
}

fn mismatch(what: &str) -> ClientError {
    ClientError::Meta(MetaError::Protocol(format!("no answer of kind {what}")))
}

impl Asked<'_> {
    async fn abm(&self, query: AbmQuery) -> Result<AbmAnswer, ClientError> {
        let deadline = self.env.deadline_in(META_TIME);
        let asked = self.client.directory().query(query, deadline);
        let answer = within(self.env.clock.as_ref(), deadline, asked).await;
        answered(answer, "the ABM")
    }

    async fn osds(&self) -> Result<BTreeMap<OsdId, OsdRecord>, ClientError> {
        let mut all = BTreeMap::new();
        let mut range = RangeQuery::all();
        loop {
            let query = AbmQuery::Osds { filter: OsdFilter::Claimed, range: range.clone() };
            let AbmAnswer::Osds(page) = self.abm(query).await? else { return Err(mismatch("Osds")) };
            let last = page.items.last().map(|record| record.info.long_id.clone());
            all.extend(page.items.into_iter().filter_map(|record| Some((record.osd_id?, record))));
            match last {
                Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
                _ => return Ok(all),
            }
        }
    }

    async fn namespaces(&self) -> Result<Vec<NamespaceRecord>, ClientError> {
        let mut all = Vec::new();
        let mut range = RangeQuery::all();
        loop {
            let AbmAnswer::Namespaces(page) = self.abm(AbmQuery::Namespaces(range.clone())).await? else {
                return Err(mismatch("Namespaces"));
            };
            let last = page.items.last().map(|record| record.name.clone());
            all.extend(page.items);
            match last {
                Some(last) if page.has_more => range = range.after(last.as_bytes()),
                _ => return Ok(all),
            }
        }
    }

    /// Packed bytes on each OSD, of all namespaces. A group that does not answer is an error: with a part of the fill nothing
    /// can be judged.
    async fn held(&self, namespaces: &[NamespaceRecord]) -> Result<BTreeMap<OsdId, u64>, ClientError> {
        let mut by_group: BTreeMap<&GroupId, Vec<NamespaceId>> = BTreeMap::new();
        for record in namespaces {
            by_group.entry(&record.group).or_default().push(record.id);
        }
        let mut held: BTreeMap<OsdId, u64> = BTreeMap::new();
        for (group, ids) in by_group {
            for ids in ids.chunks(COUNTERS) {
                let deadline = self.env.deadline_in(META_TIME);
                let query = NsmQuery::StatisticsOf(ids.to_vec());
                let asked = self.client.namespace_store().query(group, query, deadline);
                let answer = within(self.env.clock.as_ref(), deadline, asked).await;
                let NsmAnswer::EachStatistics(each) = answered(answer, "a metadata group")? else {
                    return Err(mismatch("EachStatistics"));
                };
                for statistics in each {
                    match statistics {
                        Ok(statistics) => {
                            for (osd, bytes) in statistics.storage_per_osd {
                                let held = held.entry(osd).or_default();
                                *held = held.saturating_add(bytes);
                            }
                        }
                        // Deleted or moved since the list was read.
                        Err(NsmError::NamespaceMoved(_)) => {}
                        Err(error) => return Err(ClientError::Meta(MetaError::Nsm(error))),
                    }
                }
            }
        }
        Ok(held)
    }

    /// What the OSDs say of themselves; those that do not answer are left out.
    async fn usage(&self, osds: BTreeSet<OsdId>) -> BTreeMap<OsdId, DiskUsage> {
        let ask = |id: OsdId| async move {
            let deadline = self.env.deadline_in(OSD_TIME);
            let asked = async { self.client.osd(id, deadline).await.ok()?.disk_usage(deadline).await.ok() };
            let answer = within(self.env.clock.as_ref(), deadline, asked).await;
            Some((id, answer.ok().flatten()?))
        };
        stream::iter(osds)
            .map(ask)
            .buffer_unordered(AT_ONCE)
            .filter_map(|found| async move { found })
            .collect()
            .await
    }
}

#[cfg(test)]
mod tests {
    use alba_client::repair::OsdView;
    use alba_core::ids::NodeId;

    use super::*;
    use crate::observe::FillClass;

    fn node(number: u32) -> NodeId {
        NodeId::new(format!("node-{number}")).unwrap()
    }

    fn seen(percents: &[u64]) -> Observation {
        let fill = |(id, percent): (u32, &u64)| {
            let fill = OsdFill {
                node: node(id / 3),
                used: ByteCount(*percent),
                total: ByteCount(100),
                role: Role::Member,
            };
            (OsdId::from_u32(id), fill)
        };
        observe((0..).zip(percents).map(fill).collect())
    }

    fn osds(standings: &[Standing]) -> Osds {
        let view = |(id, standing): (u32, &Standing)| {
            let view = OsdView {
                node: node(id / 3),
                standing: *standing,
                total: ByteCount(100),
                used: ByteCount(0),
            };
            (OsdId::from_u32(id), view)
        };
        (0..).zip(standings).map(view).collect()
    }

    fn ids(ids: &[u32]) -> Vec<OsdId> {
        ids.iter().map(|id| OsdId::from_u32(*id)).collect()
    }

    #[test]
    fn the_fullest_give_first_and_only_when_somebody_takes() {
        assert_eq!(sources(&seen(&[50, 50, 50])), vec![]);
        assert_eq!(sources(&seen(&[60, 62, 61, 60, 60, 0])), ids(&[1, 2, 0, 3, 4]));
        // One is high, none is low: only that one gives.
        assert_eq!(sources(&seen(&[10, 10, 10, 10, 10, 90])), ids(&[5]));
        let mut closed = seen(&[60, 60, 0]);
        closed.osds.get_mut(&OsdId::from_u32(2)).unwrap().role = Role::Closed;
        assert_eq!(sources(&closed), vec![], "the empty one takes nothing");
    }

    #[test]
    fn a_namespace_sees_the_roles_of_its_own_and_the_bounds_of_all() {
        use Standing::{Draining, Holds, Takes};
        let all = seen(&[60, 60, 60, 0]);
        let local = for_namespace(&all, &osds(&[Takes, Holds, Draining]));
        let roles: Vec<_> = local.osds.iter().map(|(id, fill)| (*id, fill.role)).collect();
        assert_eq!(roles, [(OsdId::from_u32(0), Role::Member), (OsdId::from_u32(1), Role::Closed)]);
        assert_eq!(local.bounds, all.bounds);
        assert_eq!(sources(&local), vec![], "it does not have the empty one");
        assert_eq!(all.class(OsdId::from_u32(3)), Some(FillClass::Low));
    }

    #[test]
    fn limits_are_those_of_the_policy_and_of_the_osds_that_are_there() {
        let policies = [Policy::new(5, 4, 8, 3).unwrap()];
        let shape = policies[0].shape();
        let twelve = osds(&[Standing::Takes; 12]);
        let (x, found) = limits(shape, 9, &policies, &twelve, 7);
        assert_eq!((x, found.spread, found.moves), (3, 3, 7));
        let wide: Osds = (0..12)
            .map(|id| {
                let view = OsdView {
                    node: node(id),
                    standing: Standing::Takes,
                    total: ByteCount(1),
                    used: ByteCount(0),
                };
                (OsdId::from_u32(id), view)
            })
            .collect();
        assert_eq!(limits(shape, 9, &policies, &wide, 7).1.spread, 1);
        assert_eq!(
            limits(CodeShape::new(2, 1).unwrap(), 2, &policies, &wide, 7).0,
            2,
            "of no policy any more"
        );
    }
}
