//! Going through a namespace for what is to be repaired: by the group's indexes, page by page, so that neither time nor
//! memory depend on the objects that are well.
//!
//! Objects with a fragment on an OSD that is dead or has to be emptied are found by the indexes of these OSDs, which are
//! joined, so that each object comes once and its losses are counted together. All others are as well as their bucket
//! says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use alba_core::ids::{LongId, NodeId, ObjectId, ObjectName, OsdId};
use alba_core::manifest::Manifest;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, OsdRecord};
use alba_core::wire::rpc::nsm::{NamespaceDetails, NsmAnswer, NsmQuery};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::order::{Waiting, Weakest};
use super::plan::{Plan, Situation, Unrepairable, cost, in_want, plan, remaining};
use super::safety::Safety;
use super::standing::{Osds, Silence, Standing, standing, view};
use super::{Patient, Repairer};
use crate::ClientError;
use crate::namespaces::unexpected;
use crate::watch::Fresh;

/// Objects per page of an index.
const PAGE: u32 = 200;

/// Manifests asked for at once.
const MANIFESTS_AT_ONCE: usize = 16;

/// Unrepairable objects described by name; the others are counted.
const LISTED: usize = 10_000;

/// An object is left alone for so long after its upload, while fragments may still be added to it.
const SETTLING: Duration = Duration::from_secs(60);

/// What the OSDs are like, whatever the namespace.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// All claimed OSDs.
    pub records: BTreeMap<OsdId, OsdRecord>,
    /// Those that have been silent for too long.
    pub silent: BTreeSet<OsdId>,
    /// Those that an operator said are away on purpose, silent or not.
    pub away: BTreeSet<OsdId>,
}

impl Registry {
    /// Is this one silent, and is that explained?
    pub fn silence(&self, osd: OsdId) -> Silence {
        match (self.silent.contains(&osd), self.away.contains(&osd)) {
            (false, _) => Silence::None,
            (true, false) => Silence::Unexplained,
            (true, true) => Silence::OnPurpose,
        }
    }
}

/// What was found of a namespace.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// How safe its objects are.
    pub safety: Safety,
    /// How many of them are below their policy.
    pub below_policy: u64,
    /// How many can be improved now.
    pub repairable: u64,
    /// How many cannot be repaired.
    pub unrepairable: u64,
    /// How many have lost redundancy and are left as they are, because what is missing is away on purpose.
    pub left_alone: u64,
    /// Of those whose repair failed before, these are there still and not well.
    pub sick: BTreeSet<ObjectId>,
    /// Those of them that there is room for, and why.
    pub listed: Vec<(ObjectName, ObjectId, Unrepairable)>,
}

impl Repairer {
    fn call_deadline(&self) -> alba_core::env::Deadline {
        self.engine.deadline_in(self.engine.config.request_timeout())
    }

    /// How all OSDs that manifests of the namespace may name stand.
    pub async fn osds(&self, patient: &Patient, registry: &Registry) -> Result<Osds, ClientError> {
        let deadline = self.call_deadline();
        self.engine.pool.refresh(Fresh::within(Duration::from_secs(5)), deadline).await?;
        let info = self.settings(patient, Duration::from_secs(5), deadline).await?;
        let details = self.details(patient).await?;
        let now = self.engine.env.clock.now();
        let mut osds = Osds::default();
        for (osd, described, used_as) in details.osds {
            let known = registry.records.get(&osd).cloned();
            // The registry was read before: an OSD that is not in it may be a new one, and must not be taken for one that the ABM
            // has forgotten.
            let record = match known {
                Some(record) => Some(record),
                None => self.record(osd, &described.long_id).await?,
            };
            let takes = self.engine.pool.known(osd).is_some_and(|member| member.takes_data(now));
            let silent = registry.silence(osd);
            let state = record.as_ref().map(|record| record.state);
            let stands = standing(state, used_as, &info.preset, osd, silent, takes);
            osds.insert(osd, view(record.as_ref().map_or(&described, |record| &record.info), stands));
        }
        Ok(osds)
    }

    /// What the ABM has of an OSD now; none when it has forgotten it.
    async fn record(&self, osd: OsdId, long_id: &LongId) -> Result<Option<OsdRecord>, ClientError> {
        let query = AbmQuery::Osd(long_id.clone());
        match self.engine.ask_directory(query, self.call_deadline()).await? {
            AbmAnswer::Osd(record) => Ok(record.filter(|record| record.osd_id == Some(osd))),
            _ => Err(unexpected("Osd")),
        }
    }

    async fn details(&self, patient: &Patient) -> Result<NamespaceDetails, ClientError> {
        let query = || NsmQuery::Details(patient.id());
        match self.ask(patient, query).await? {
            NsmAnswer::Details(details) => Ok(*details),
            _ => Err(unexpected("Details")),
        }
    }

    pub(super) async fn ask(
        &self,
        patient: &Patient,
        query: impl Fn() -> NsmQuery,
    ) -> Result<NsmAnswer, ClientError> {
        self.engine.ask_group(&patient.namespace, query, self.call_deadline()).await
    }

    /// Goes through a namespace. What can be improved is shown to `queue`, unless it is among those that rest. Which of those that
    /// are known to have failed before are not well yet, is told.
    pub async fn survey(
        &self,
        patient: &Patient,
        osds: &Osds,
        (rest, known): (&BTreeSet<ObjectId>, &BTreeSet<ObjectId>),
        queue: &mut Weakest,
    ) -> Result<Survey, ClientError> {
        let info = self.settings(patient, Duration::from_secs(5), self.call_deadline()).await?;
        let NsmAnswer::Statistics(statistics) =
            self.ask(patient, || NsmQuery::Statistics(patient.id())).await?
        else {
            return Err(unexpected("Statistics"));
        };
        let mut survey = Survey { safety: Safety::new(&statistics.buckets), ..Survey::default() };
        let none = BTreeSet::new();
        let situation = Situation { osds, policies: &info.preset.policies, bad: &none };
        let mut rng = self.engine.env.rng.generator();
        let node_of = |osd: OsdId| osds.node(osd);
        let mut look = |manifest: &Manifest, survey: &mut Survey| {
            let planned = plan(manifest, &situation, &mut rng);
            if planned != Plan::Nothing && known.contains(&manifest.object_id) {
                survey.sick.insert(manifest.object_id);
            }
            match planned {
                Plan::Nothing => survey.left_alone += u64::from(is_away(manifest, osds)),
                Plan::Unrepairable(why) => {
                    survey.unrepairable += 1;
                    if survey.listed.len() < LISTED {
                        survey.listed.push((manifest.name.clone(), manifest.object_id, why));
                    }
                }
                planned @ (Plan::Update(_) | Plan::Rewrite(_)) => {
                    survey.repairable += 1;
                    if let Some(remaining) =
                        remaining(manifest, osds, &none).filter(|_| !rest.contains(&manifest.object_id))
                    {
                        queue.show(Waiting {
                            remaining,
                            since: manifest.timestamp,
                            namespace: patient.id(),
                            object: manifest.object_id,
                            bytes: cost(manifest, &planned),
                        });
                    }
                }
            }
        };
        let troubled: Vec<OsdId> =
            osds.iter().filter(|(_, view)| !view.standing.is_well()).map(|(osd, _)| osd).collect();
        let mut indexes = Joined::new(troubled);
        while let Some(ids) = indexes.next(self, patient).await? {
            for manifest in self.manifests(patient, ids).await? {
                if let Some(left) = remaining(&manifest, osds, &none) {
                    survey.safety.lost(manifest.bucket(node_of), left);
                }
                look(&manifest, &mut survey);
            }
        }
        survey.below_policy = survey.safety.below_policy(&info.preset.policies, osds);
        let wanting = statistics
            .buckets
            .iter()
            .filter(|(bucket, count)| *count > 0 && in_want(bucket, &info.preset.policies, osds));
        for (bucket, _) in wanting {
            let mut after = None;
            loop {
                let query = || NsmQuery::ObjectsInBucket {
                    namespace: patient.id(),
                    bucket: *bucket,
                    after,
                    max: PAGE,
                };
                let page = ids(self.ask(patient, query).await?)?;
                after = page.items.last().copied().or(after);
                for manifest in self.manifests(patient, page.items).await? {
                    if is_troubled(&manifest, osds) || self.is_settling(&manifest) {
                        continue;
                    }
                    look(&manifest, &mut survey);
                }
                if !page.has_more {
                    break;
                }
            }
        }
        Ok(survey)
    }

    /// How safe the objects of a namespace are: exactly, by the indexes of those OSDs that count as lost.
    pub async fn safety(&self, patient: &Patient, osds: &Osds) -> Result<Safety, ClientError> {
        let NsmAnswer::Statistics(statistics) =
            self.ask(patient, || NsmQuery::Statistics(patient.id())).await?
        else {
            return Err(unexpected("Statistics"));
        };
        let mut safety = Safety::new(&statistics.buckets);
        let none = BTreeSet::new();
        let lost: Vec<OsdId> =
            osds.iter().filter(|(_, view)| !view.standing.counts()).map(|(osd, _)| osd).collect();
        let mut indexes = Joined::new(lost);
        while let Some(ids) = indexes.next(self, patient).await? {
            for manifest in self.manifests(patient, ids).await? {
                if let Some(left) = remaining(&manifest, osds, &none) {
                    safety.lost(manifest.bucket(|osd| osds.node(osd)), left);
                }
            }
        }
        Ok(safety)
    }

    /// A page of the objects of a namespace by id, from `first` on (included) to `end` (excluded).
    pub async fn page(
        &self,
        patient: &Patient,
        first: ObjectId,
        end: Option<ObjectId>,
        max: u32,
    ) -> Result<Page<Manifest>, ClientError> {
        let range = RangeQuery {
            first: first.as_bytes().to_vec(),
            first_included: true,
            last: end.map(|end| (end.as_bytes().to_vec(), false)),
            max: i32::try_from(max).unwrap_or(i32::MAX),
            reverse: false,
        };
        let query = || NsmQuery::ManifestsById { namespace: patient.id(), range: range.clone() };
        match self.ask(patient, query).await? {
            NsmAnswer::ManifestPage(page) => Ok(page),
            _ => Err(unexpected("ManifestPage")),
        }
    }

    /// The manifests of these objects, those that are gone left out.
    pub async fn manifests(
        &self,
        patient: &Patient,
        ids: Vec<ObjectId>,
    ) -> Result<Vec<Manifest>, ClientError> {
        let asked = ids.into_iter().map(|id| self.manifest(patient, id, self.call_deadline()));
        let found: Vec<Option<Manifest>> =
            stream::iter(asked).buffered(MANIFESTS_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// May fragments of its upload still be on their way? A wrong clock makes repair come too early or too late, not wrong.
    fn is_settling(&self, manifest: &Manifest) -> bool {
        let micros = self.engine.env.clock.wall_micros().abs_diff(manifest.timestamp.0);
        manifest.version.0 == 0 && Duration::from_micros(micros) < SETTLING
    }
}

fn is_troubled(manifest: &Manifest, osds: &Osds) -> bool {
    // Those on OSDs that the group does not know were not found by any index.
    let in_trouble = |osd: OsdId| osds.knows(osd) && !osds.standing(osd).is_well();
    manifest.fragments().any(|(_, _, entry)| entry.location.is_some_and(in_trouble))
}

fn is_away(manifest: &Manifest, osds: &Osds) -> bool {
    manifest
        .fragments()
        .any(|(_, _, entry)| entry.location.is_some_and(|osd| osds.standing(osd) == Standing::Away))
}

pub(super) fn ids(answer: NsmAnswer) -> Result<Page<ObjectId>, ClientError> {
    match answer {
        NsmAnswer::ObjectIds(page) => Ok(page),
        _ => Err(unexpected("ObjectIds")),
    }
}

/// The indexes of some OSDs, joined: each object once, in the order of the ids.
struct Joined {
    indexes: Vec<Index>,
}

struct Index {
    osd: OsdId,
    page: VecDeque<ObjectId>,
    after: Option<ObjectId>,
    more: bool,
}

impl Joined {
    fn new(osds: Vec<OsdId>) -> Self {
        let index = |osd| Index { osd, page: VecDeque::new(), after: None, more: true };
        Self { indexes: osds.into_iter().map(index).collect() }
    }

    /// The next ones, at most a page; none at the end.
    async fn next(
        &mut self,
        repairer: &Repairer,
        patient: &Patient,
    ) -> Result<Option<Vec<ObjectId>>, ClientError> {
        let mut found = Vec::new();
        let most = usize::try_from(PAGE).unwrap_or(usize::MAX);
        while found.len() < most {
            for index in &mut self.indexes {
                index.fill(repairer, patient).await?;
            }
            let Some(next) = self.indexes.iter().filter_map(|index| index.page.front()).min().copied() else {
                break;
            };
            for index in &mut self.indexes {
                if index.page.front() == Some(&next) {
                    index.page.pop_front();
                }
            }
            found.push(next);
        }
        Ok((!found.is_empty()).then_some(found))
    }
}

impl Index {
    async fn fill(&mut self, repairer: &Repairer, patient: &Patient) -> Result<(), ClientError> {
        while self.page.is_empty() && self.more {
            let (osd, after) = (self.osd, self.after);
            let query = || NsmQuery::ObjectsOnOsd { namespace: patient.id(), osd, after, max: PAGE };
            let page = ids(repairer.ask(patient, query).await?)?;
            self.after = page.items.last().copied().or(after);
            self.more = page.has_more;
            self.page = page.items.into();
        }
        Ok(())
    }
}

/// With these OSDs and nodes supposed dead.
pub fn suppose_dead(osds: &mut Osds, dead: &BTreeSet<OsdId>, nodes: &BTreeSet<NodeId>) {
    let of = |(osd, view): (OsdId, &super::OsdView)| {
        (dead.contains(&osd) || nodes.contains(&view.node)).then_some(osd)
    };
    let gone: Vec<OsdId> = osds.iter().filter_map(of).collect();
    for osd in gone {
        osds.set(osd, Standing::Dead);
    }
}
