//! Draining: OSDs are emptied while what they hold still counts as redundancy, so that to decommission them is quick.
//!
//! The maintenance agents copy the fragments away (repair, which goes by redundancy). This command checks first that the
//! others can take them, and says how far it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alba_client::Client;
use alba_core::env::within;
use alba_core::ids::{LongId, NodeId, OsdId, PresetName};
use alba_core::placement::Candidate;
use alba_core::policy::Policy;
use alba_core::preset::OsdSet;
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{AbmCommand, AbmError, OsdFilter, OsdRecord, OsdState};
use alba_rebalancer::drain::{DrainRefused, check};
use alba_rebalancer::sight::is_served;
use clap::Args;
use futures_util::{StreamExt, stream};
use serde_json::json;

use super::backend::Backend;
use crate::answer::Answer;
use crate::error::CliError;
use crate::ranges::Pager;
use crate::session::Session;
use crate::{json, progress};

/// How long an OSD may take to say how full it is.
const ANSWER: Duration = Duration::from_secs(3);

/// OSDs asked at once.
const AT_ONCE: usize = 32;

/// How long it is waited for when no --timeout is given. The drain goes on without this command.
const WAIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// How to drain.
#[derive(Debug, Args)]
struct How {
    /// Take new data again; what was moved stays where it is
    #[arg(long, conflicts_with = "wait")]
    cancel: bool,
    /// Wait until nothing is left
    #[arg(long)]
    wait: bool,
}

/// Empty an OSD while what it holds still counts as redundancy; given again it says how far that is
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba drain-osd 3f1c... --wait\n  alba decommission-osd --long-id 3f1c...\n\n\
                        Refused when the OSDs that stay could not hold all fragments, or have too little room."
)]
pub(crate) struct DrainOsd {
    /// Its long id
    long_id: LongId,
    #[command(flatten)]
    how: How,
}

/// Empty all OSDs of a node while what they hold still counts as redundancy; given again it says how far that is
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba drain-node node-3 --wait\n  alba drain-node node-3 --cancel")]
pub(crate) struct DrainNode {
    /// Its name, as list-osds shows it
    node: NodeId,
    #[command(flatten)]
    how: How,
}

impl DrainOsd {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let claimed = claimed(&client, session).await?;
        if !claimed.values().any(|record| record.info.long_id == self.long_id) {
            return Err(AbmError::OsdUnknown(self.long_id).into());
        }
        let wanted = |record: &OsdRecord| record.info.long_id == self.long_id;
        drain(session, &client, &claimed, wanted, &self.how).await
    }
}

impl DrainNode {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let claimed = claimed(&client, session).await?;
        let wanted = |record: &OsdRecord| *record.info.place.node() == self.node;
        if !claimed.values().any(wanted) {
            return Err(CliError::failure(format!("no OSD of this backend is on node {}", self.node)));
        }
        drain(session, &client, &claimed, wanted, &self.how).await
    }
}

type Records = BTreeMap<OsdId, OsdRecord>;

async fn claimed(client: &Client, session: &Session) -> Result<Records, CliError> {
    let found = Backend::new(client, session.deadline()).osds(OsdFilter::Claimed, Pager::all()).await?;
    Ok(found.into_iter().filter_map(|record| Some((record.osd_id?, record))).collect())
}

async fn drain(
    session: &Session,
    client: &Client,
    claimed: &Records,
    wanted: impl Fn(&OsdRecord) -> bool,
    how: &How,
) -> Result<Answer, CliError> {
    let chosen: Records = claimed
        .iter()
        .filter(|(_, record)| wanted(record) && matches!(record.state, OsdState::Active | OsdState::Draining))
        .map(|(id, record)| (*id, record.clone()))
        .collect();
    if chosen.is_empty() {
        return Err(CliError::failure("nothing to drain: it is being decommissioned or purged already"));
    }
    let tell = |from: OsdState| chosen.values().filter(move |record| record.state == from);
    let backend = Backend::new(client, session.deadline());
    if how.cancel {
        for record in tell(OsdState::Draining) {
            backend.command(AbmCommand::UndrainOsd { long_id: record.info.long_id.clone() }).await?;
        }
        return answer(session, client, &chosen, "active", "takes new data again").await;
    }
    if tell(OsdState::Active).next().is_some() {
        let osds: BTreeSet<OsdId> = chosen.keys().copied().collect();
        check_safety(session, client, claimed, &osds).await?;
        for record in tell(OsdState::Active) {
            backend.command(AbmCommand::DrainOsd { long_id: record.info.long_id.clone() }).await?;
        }
    }
    if how.wait {
        wait(session, client, &chosen).await?;
    }
    answer(session, client, &chosen, "draining", "takes no new data").await
}

/// May they be emptied? Those that drain already leave, too.
async fn check_safety(
    session: &Session,
    client: &Client,
    claimed: &Records,
    chosen: &BTreeSet<OsdId>,
) -> Result<(), CliError> {
    let is_draining = |record: &OsdRecord| record.state == OsdState::Draining;
    let leaving: BTreeSet<OsdId> = claimed
        .iter()
        .filter(|(id, record)| chosen.contains(id) || is_draining(record))
        .map(|(id, _)| *id)
        .collect();
    let asked = claimed.iter().filter(|(_, record)| record.state == OsdState::Active || is_draining(record));
    let asked: Vec<(OsdId, OsdRecord)> = asked.map(|(id, record)| (*id, record.clone())).collect();
    let ask = |(id, record): (OsdId, OsdRecord)| async move {
        let deadline = session.env.deadline_in(ANSWER);
        let usage = async { client.osd(id, deadline).await.ok()?.disk_usage(deadline).await.ok() };
        let usage = within(session.env.clock.as_ref(), deadline, usage).await.ok().flatten();
        (id, record, usage)
    };
    let mut answers = stream::iter(asked).map(ask).buffer_unordered(AT_ONCE);
    let mut candidates = Vec::new();
    while let Some((osd, record, usage)) = answers.next().await {
        let (used, total) = match usage {
            Some(usage) => (usage.used, usage.capacity),
            // What does not answer takes nothing. What leaves is made anew from others, if need be.
            None if !leaving.contains(&osd) => continue,
            None => (record.info.used, record.info.capacity),
        };
        candidates.push(Candidate { osd, node: record.info.place.node().clone(), total, used });
    }
    let backend = Backend::new(client, session.deadline());
    let in_use: BTreeSet<PresetName> =
        backend.namespaces(Pager::all()).await?.into_iter().map(|record| record.preset).collect();
    for record in backend.presets(Pager::all()).await? {
        if !in_use.contains(&record.name) {
            continue;
        }
        let own: Vec<Candidate> = match &record.preset.osds {
            OsdSet::All => candidates.clone(),
            OsdSet::Explicit(osds) => candidates.iter().filter(|c| osds.contains(&c.osd)).cloned().collect(),
        };
        let preset: Vec<(PresetName, Vec<Policy>)> = vec![(record.name, record.preset.policies)];
        match check(&own, &leaving, &preset) {
            Err(refused @ DrainRefused::Redundancy { .. }) => {
                return Err(CliError::failure(refused.to_string()));
            }
            // Room is a matter of all presets together.
            Ok(()) | Err(DrainRefused::Space { .. }) => {}
        }
    }
    check(&candidates, &leaving, &[]).map_err(|refused| CliError::failure(refused.to_string()))
}

/// Packed bytes that are still on each of these.
async fn held(
    session: &Session,
    client: &Client,
    chosen: &Records,
) -> Result<BTreeMap<OsdId, u64>, CliError> {
    let backend = Backend::new(client, session.deadline());
    let mut held: BTreeMap<OsdId, u64> = chosen.keys().map(|id| (*id, 0)).collect();
    for record in backend.namespaces(Pager::all()).await?.iter().filter(|record| is_served(&record.state)) {
        for (osd, bytes) in backend.statistics(record).await?.storage_per_osd {
            if let Some(held) = held.get_mut(&osd) {
                *held = held.saturating_add(bytes);
            }
        }
    }
    Ok(held)
}

async fn wait(session: &Session, client: &Client, chosen: &Records) -> Result<(), CliError> {
    let deadline = session.deadline_or(WAIT);
    let clock = session.env.clock.as_ref();
    let began = clock.now();
    let spinner = progress::spinner();
    let mut first = None;
    loop {
        let left: u64 = held(session, client, chosen).await?.values().sum();
        let first = *first.get_or_insert(left);
        if left == 0 {
            spinner.finish_and_clear();
            return Ok(());
        }
        let seconds = clock.now().since(began).as_secs();
        let eta = eta(first, left, seconds).map_or_else(String::new, |eta| format!(", about {eta} s to go"));
        spinner.set_message(format!("draining: {} of {} left{eta}", ByteCount(left), ByteCount(first)));
        if deadline.left(clock) <= PAUSE {
            spinner.finish_and_clear();
            let left = ByteCount(left);
            return Err(CliError::failure(format!(
                "{left} are left; the drain goes on without this command"
            )));
        }
        clock.sleep_until(clock.now().plus(PAUSE)).await;
    }
}

/// Seconds until nothing is left, at the pace so far; none while nothing can be said.
pub(crate) fn eta(first: u64, left: u64, seconds: u64) -> Option<u64> {
    let done = first.checked_sub(left).filter(|done| *done > 0)?;
    u64::try_from(u128::from(left) * u128::from(seconds) / u128::from(done)).ok()
}

async fn answer(
    session: &Session,
    client: &Client,
    chosen: &Records,
    state: &str,
    says: &str,
) -> Result<Answer, CliError> {
    let held = held(session, client, chosen).await?;
    let left: u64 = held.values().sum();
    let osds = chosen.iter().map(
        |(id, record)| json!({ "id": id, "long_id": record.info.long_id.as_str(), "left": held.get(id) }),
    );
    let result = json!({ "state": state, "left": left, "osds": osds.collect::<Vec<_>>() });
    let mut lines: Vec<String> = chosen
        .iter()
        .map(|(id, record)| {
            let left = ByteCount(held.get(id).copied().unwrap_or(0));
            format!("OSD {id} ({}) {says}; it holds {left}", record.info.long_id)
        })
        .collect();
    if state == json::osd_state(OsdState::Draining) && left == 0 {
        lines.push("nothing is left: decommission-osd is quick now".to_owned());
    }
    Answer::new(result, lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_go_follows_from_the_pace_so_far() {
        assert_eq!(eta(100, 75, 10), Some(30));
        assert_eq!(eta(100, 100, 10), None);
        assert_eq!(eta(100, 120, 10), None, "more than at first: nothing can be said");
        assert_eq!(eta(u64::MAX, u64::MAX - 1, u64::MAX), None);
    }
}
