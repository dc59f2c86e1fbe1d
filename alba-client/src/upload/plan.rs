//! Which policy and which OSDs an object gets: those active for its namespace that are well as far as is known here.

use std::collections::BTreeSet;
use std::sync::Arc;

use alba_core::ids::OsdId;
use alba_core::placement::{Candidate, choose_policy, place};
use alba_core::policy::Policy;
use alba_core::preset::OsdSet;
use alba_core::wire::rpc::nsm::NamespaceInfo;

use crate::ClientError;
use crate::engine::Engine;
use crate::osd_pool::Member;

/// Where the fragments of every chunk of an object go.
pub(super) struct Plan {
    pub(super) policy: Policy,
    /// Fragment i goes to the i-th. At least c; the fragments beyond are holes.
    pub(super) targets: Vec<Arc<Member>>,
    /// All that may get fragments of the object: targets and spares.
    pub(super) usable: Vec<Arc<Member>>,
}

/// Chooses; OSDs to `avoid` are taken only when no policy can do without.
pub(super) fn plan(
    engine: &Engine,
    info: &NamespaceInfo,
    avoid: &BTreeSet<OsdId>,
) -> Result<Plan, ClientError> {
    let now = engine.env.clock.now();
    let usable: Vec<Arc<Member>> = info
        .active_osds
        .iter()
        .filter(|(id, _)| match &info.preset.osds {
            OsdSet::All => true,
            OsdSet::Explicit(ids) => ids.contains(id),
        })
        .filter_map(|(id, _)| engine.pool.known(*id))
        .filter(|member| member.takes_data(now))
        .collect();
    let preferred: Vec<Candidate> =
        usable.iter().filter(|member| !avoid.contains(&member.id)).map(|member| candidate(member)).collect();
    let all: Vec<Candidate> = usable.iter().map(|member| candidate(member)).collect();
    let unsatisfiable = |reason: String| ClientError::NoSatisfiablePolicy { reason };
    let (choice, candidates) = match choose_policy(&info.preset.policies, &preferred) {
        Ok(choice) => (choice, preferred),
        Err(_) => (
            choose_policy(&info.preset.policies, &all)
                .map_err(|error| unsatisfiable(format!("{error}; {}", others(engine, info))))?,
            all,
        ),
    };
    let mut rng = engine.env.rng.generator();
    let placed = place(choice.fragments, &candidates, &[], choice.policy.max_per_node(), &mut rng)
        .map_err(|error| unsatisfiable(error.to_string()))?;
    let targets = placed
        .into_iter()
        .map(|id| usable.iter().find(|member| member.id == id).cloned())
        .collect::<Option<_>>()
        .ok_or_else(|| ClientError::Internal("placement chose an OSD that was no candidate".to_owned()))?;
    Ok(Plan { policy: choice.policy, targets, usable })
}

/// Says what there is beside the usable ones, for whoever must do something about it.
fn others(engine: &Engine, info: &NamespaceInfo) -> String {
    let members = info.active_osds.iter().filter_map(|(id, _)| engine.pool.known(*id));
    let full = members.filter(|member| member.health().is_full()).count();
    let active = info.active_osds.len();
    if full == 0 {
        format!("{active} OSDs are active for the namespace")
    } else {
        format!(
            "{active} OSDs are active for the namespace, {full} of them are full: add OSDs or delete objects"
        )
    }
}

pub(super) fn candidate(member: &Member) -> Candidate {
    let info = member.info();
    Candidate { osd: member.id, node: info.place.node().clone(), total: info.capacity, used: info.used }
}
