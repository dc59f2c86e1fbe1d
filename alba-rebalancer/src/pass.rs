//! A pass: look, then page by page plan and move, until the fill is even or all that could move was looked at.
//!
//! Memory does not depend on how many objects there are: at most [`SOURCES`] pages of [`PAGE`] objects at a time, and the
//! ids of the objects that would not move, up to a bound. Nothing is kept between passes but that the last one was in vain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use alba_client::repair::{Osds, Patient, Registry, Relocated, Relocation, Repairer, Standing, is_gone};
use alba_client::{Client, ClientError};
use alba_core::env::Env;
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{ObjectId, OsdId};
use alba_core::policy::{CodeShape, Policy};
use alba_core::preset::{OsdSet, Preset};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::NamespaceRecord;
use async_trait::async_trait;

use crate::execute::{Hands, execute};
use crate::lanes::{Lanes, OsdLimits};
use crate::layout::Layout;
use crate::observe::{Observation, OsdFill, Role, observe};
use crate::plan::{MoveSpec, plan};
use crate::rest::{Outlook, Search};
use crate::sight::{for_namespace, limits, look, sources};

/// OSDs whose objects are looked at together, the fullest ones.
const SOURCES: usize = 16;

/// Objects of each of them at a time.
const PAGE: u32 = 100;

/// Moves of one plan: after so many it is time to look at other objects.
const MOVES: usize = 512;

/// Objects remembered that did not move; with more the oldest ids are looked at again.
const TRIED: usize = 100_000;

/// Longest a move takes, and the slowest that is waited for with large ones.
const MOVE_TIME: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 1 << 20;

/// How old the preset of a namespace may be: the group refuses what does not fit.
const SETTINGS_AGE: Duration = Duration::from_secs(30);

/// How moves are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Moves side by side in all.
    pub moves_at_once: usize,
    /// What each OSD has to bear.
    pub osd: OsdLimits,
    /// Plan only, as if every move were made.
    pub dry: bool,
}

/// Who looks on while a pass runs.
#[async_trait]
pub trait Onlooker: Send + Sync {
    /// Waits until so many bytes may be moved.
    async fn pace(&self, bytes: u64);

    /// Moves are looked for, with the fill like this.
    fn begins(&self, before: &Observation);

    /// So many have moved.
    fn moved(&self, bytes: u64);
}

/// What a pass came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How things stood.
    pub outlook: Outlook,
    /// Before, as it was seen.
    pub before: Observation,
    /// After, as the moves leave it.
    pub after: Observation,
    /// Moves made.
    pub moves: u64,
    /// Packed bytes that they moved.
    pub bytes: u64,
    /// Of a dry run: moves and bytes by source and target.
    pub flows: BTreeMap<(OsdId, OsdId), (u64, u64)>,
    /// Moves dropped, since the object had changed.
    pub stale: u64,
    /// Moves that an OSD or a group refused.
    pub refused: u64,
    /// Why, of the last one.
    pub why: Option<String>,
}

/// Makes passes.
pub struct Rebalancer {
    client: Client,
    env: Env,
    repairer: Repairer,
    search: Mutex<Search>,
}

impl Rebalancer {
    /// On top of a client.
    pub fn new(client: Client, env: Env) -> Self {
        Self { repairer: client.repairer(), client, env, search: Mutex::default() }
    }

    /// One pass. An error when the fill cannot be seen; a namespace that cannot be looked at is passed over.
    pub async fn pass(&self, settings: Settings, onlooker: &dyn Onlooker) -> Result<Report, ClientError> {
        let sight = look(&self.client, &self.env).await?;
        let now = self.env.clock.now();
        let search = || self.search.lock().unwrap_or_else(PoisonError::into_inner);
        let outlook = search().outlook(&sight.observation, now);
        let mut pass = Pass {
            rebalancer: self,
            settings,
            onlooker,
            registry: &sight.registry,
            lanes: Lanes::new(settings.osd),
            tried: BTreeSet::new(),
            hindered: false,
            report: Report {
                outlook,
                before: sight.observation.clone(),
                after: sight.observation.clone(),
                moves: 0,
                bytes: 0,
                flows: BTreeMap::new(),
                stale: 0,
                refused: 0,
                why: None,
            },
        };
        if outlook == Outlook::Uneven || settings.dry && outlook != Outlook::Even {
            onlooker.begins(&sight.observation);
            for record in &sight.namespaces {
                match pass.namespace(record).await {
                    Ok(()) => {}
                    Err(error) if is_gone(&error) => {}
                    Err(error) => {
                        tracing::warn!(namespace = %record.name, %error, "passed over");
                        pass.report.refused += 1;
                        pass.report.why = Some(format!("namespace {}: {error}", record.name));
                    }
                }
            }
            let report = &mut pass.report;
            if !settings.dry {
                // What was refused or has changed may go the next time, and an OSD that is new may take something: only a pass
                // without any of these was in vain.
                let tried = report.moves + report.stale + report.refused + u64::from(pass.hindered);
                let mut search = search();
                search.passed(&sight.observation, tried, self.env.clock.now());
                report.outlook = search.outlook(&report.after, self.env.clock.now());
            }
        }
        Ok(pass.report)
    }
}

/// The pages of one namespace that are still to be looked at.
#[derive(Default)]
struct Pages {
    after: BTreeMap<OsdId, ObjectId>,
    exhausted: BTreeSet<OsdId>,
}

struct Pass<'a> {
    rebalancer: &'a Rebalancer,
    settings: Settings,
    onlooker: &'a dyn Onlooker,
    registry: &'a Registry,
    lanes: Lanes,
    /// Objects that are not tried again in this pass.
    tried: BTreeSet<ObjectId>,
    /// An OSD took nothing that will take something soon.
    hindered: bool,
    report: Report,
}

impl Pass<'_> {
    async fn namespace(&mut self, record: &NamespaceRecord) -> Result<(), ClientError> {
        let rebalancer = self.rebalancer;
        let patient = rebalancer.repairer.patient(record.clone());
        let mut pages = Pages::default();
        loop {
            if sources(&self.report.after).is_empty() {
                return Ok(());
            }
            // Roles change while this goes on.
            let osds = rebalancer.repairer.osds(&patient, self.registry).await?;
            let deadline = rebalancer.env.deadline_in(MOVE_TIME);
            let info = rebalancer.repairer.settings(&patient, SETTINGS_AGE, deadline).await?;
            self.hindered |= self.report.after.osds.iter().any(|(id, fill)| {
                fill.role == Role::Member
                    && is_wanted(&info.preset, *id)
                    && osds.standing(*id) != Standing::Takes
            });
            let local = for_namespace(&self.report.after, &osds);
            let mut giving = sources(&local);
            giving.retain(|osd| !pages.exhausted.contains(osd));
            giving.truncate(SOURCES);
            if giving.is_empty() {
                return Ok(());
            }
            let ids = self.next_page(&patient, giving, &mut pages).await?;
            let objects = self.objects(&patient, ids).await?;
            for ((shape, max_per_node), layouts) in objects {
                self.improve(&patient, &osds, &info.preset.policies, shape, max_per_node, layouts).await;
            }
        }
    }

    /// The next objects on these OSDs, each once.
    async fn next_page(
        &self,
        patient: &Patient,
        giving: Vec<OsdId>,
        pages: &mut Pages,
    ) -> Result<Vec<ObjectId>, ClientError> {
        let mut ids = BTreeSet::new();
        for osd in giving {
            let after = pages.after.get(&osd).copied();
            let page = self.rebalancer.repairer.objects_on(patient, osd, after, PAGE).await?;
            match page.items.last() {
                Some(last) if page.has_more => drop(pages.after.insert(osd, *last)),
                _ => drop(pages.exhausted.insert(osd)),
            }
            ids.extend(page.items);
        }
        ids.retain(|id| !self.tried.contains(id));
        Ok(ids.into_iter().collect())
    }

    /// What a plan needs of these objects, by their code and the limit per node that they were stored with.
    async fn objects(
        &self,
        patient: &Patient,
        ids: Vec<ObjectId>,
    ) -> Result<BTreeMap<(CodeShape, u32), Vec<Layout>>, ClientError> {
        let mut layouts: BTreeMap<_, Vec<Layout>> = BTreeMap::new();
        for manifest in self.rebalancer.repairer.manifests(patient, ids).await? {
            let kind = (manifest.scheme.shape, manifest.max_disks_per_node);
            layouts.entry(kind).or_default().push(Layout::of(patient.id(), &manifest));
        }
        Ok(layouts)
    }

    async fn improve(
        &mut self,
        patient: &Patient,
        osds: &Osds,
        policies: &[Policy],
        shape: CodeShape,
        max_per_node: u32,
        mut layouts: Vec<Layout>,
    ) {
        let (max_per_node, limits) = limits(shape, max_per_node, policies, osds, MOVES);
        layouts.iter_mut().for_each(|layout| layout.max_per_node = max_per_node);
        let moves = plan(&for_namespace(&self.report.after, osds), &layouts, limits);
        let hands = Movers {
            rebalancer: self.rebalancer,
            onlooker: self.onlooker,
            dry: self.settings.dry,
            patient,
            osds,
        };
        let clock = self.rebalancer.env.clock.as_ref();
        if !moves.is_empty() {
            reach(Step::RebalancePlanned);
        }
        let ended = execute(moves, &hands, clock, &mut self.lanes, self.settings.moves_at_once).await;
        let mut fill = std::mem::take(&mut self.report.after.osds);
        for (chosen, outcome) in ended {
            let report = &mut self.report;
            let settled = match outcome {
                Relocated::Moved { bytes } => {
                    report.moves += 1;
                    report.bytes += bytes;
                    if self.settings.dry {
                        let flow = report.flows.entry((chosen.source, chosen.target)).or_default();
                        *flow = (flow.0 + 1, flow.1 + bytes);
                    }
                    change(&mut fill, chosen.source, |used| used.saturating_sub(bytes));
                    change(&mut fill, chosen.target, |used| used.saturating_add(bytes));
                    // What is moved on paper only is where it was: it must not be planned again.
                    self.settings.dry
                }
                Relocated::Stale => {
                    report.stale += 1;
                    true
                }
                Relocated::Refused(why) => {
                    tracing::debug!(object = %chosen.object, why, "not moved");
                    report.refused += 1;
                    report.why = Some(why);
                    true
                }
            };
            if settled && self.tried.len() < TRIED {
                self.tried.insert(chosen.object);
            }
        }
        self.report.after = observe(fill);
    }
}

/// Is the OSD one of the preset's?
fn is_wanted(preset: &Preset, osd: OsdId) -> bool {
    match &preset.osds {
        OsdSet::All => true,
        OsdSet::Explicit(osds) => osds.contains(&osd),
    }
}

fn change(fill: &mut BTreeMap<OsdId, OsdFill>, osd: OsdId, used: impl FnOnce(u64) -> u64) {
    if let Some(fill) = fill.get_mut(&osd) {
        fill.used = ByteCount(used(fill.used.get()));
    }
}

/// Moves objects of one namespace.
struct Movers<'a> {
    rebalancer: &'a Rebalancer,
    onlooker: &'a dyn Onlooker,
    dry: bool,
    patient: &'a Patient,
    osds: &'a Osds,
}

#[async_trait]
impl Hands for Movers<'_> {
    async fn pace(&self, bytes: u64) {
        if !self.dry {
            self.onlooker.pace(bytes).await;
        }
    }

    async fn relocate(&self, chosen: &MoveSpec) -> Relocated {
        if self.dry {
            return Relocated::Moved { bytes: chosen.merit.bytes };
        }
        reach(Step::RebalanceMoving);
        let time = MOVE_TIME.saturating_add(Duration::from_secs(chosen.merit.bytes / SLOWEST));
        let deadline = self.rebalancer.env.deadline_in(time);
        let MoveSpec { object, version, source, target, .. } = *chosen;
        let relocation = Relocation { object, version, source, target };
        let moved = self.rebalancer.repairer.relocate(self.patient, relocation, self.osds, deadline).await;
        let outcome = moved.unwrap_or_else(|error| Relocated::Refused(error.to_string()));
        match &outcome {
            Relocated::Moved { bytes } => {
                reach(Step::RebalanceMoved);
                metrics::counter!("alba_rebalance_moves_total").increment(1);
                metrics::counter!("alba_rebalance_moved_bytes_total").increment(*bytes);
                self.onlooker.moved(*bytes);
            }
            Relocated::Stale => {
                metrics::counter!("alba_rebalance_dropped_total", "why" => "stale").increment(1)
            }
            Relocated::Refused(_) => {
                metrics::counter!("alba_rebalance_dropped_total", "why" => "refused").increment(1);
            }
        }
        outcome
    }
}
