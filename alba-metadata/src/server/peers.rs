//! Tells each OSD from which others it may copy. The ABM counts the changes of that list and keeps who has which; whoever
//! has an old one is told the newest, once it answers. It never says what the list was in between.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Env, OsdError, within};
use alba_core::ids::OsdId;
use alba_core::wire::rpc::abm::{AbmCommand, OsdInfo};
use futures_util::future::join_all;

use super::Devices;
use crate::abm::{Abm, Peers, peers};
use crate::machine::Input;
use crate::replicator::{Replicator, read_with};

/// Longest pause between looks when nothing changes, and when a device does not answer.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Shortest pause between looks: a burst of claims is told once.
const REST: Duration = Duration::from_millis(500);

/// For one device.
const TIME: Duration = Duration::from_secs(3);

/// Devices told at once.
const AT_ONCE: usize = 16;

/// Runs for ever.
pub(super) async fn run(env: Env, abm: Arc<dyn Replicator<Abm>>, devices: Arc<dyn Devices>) {
    let mut commits = abm.commits();
    let mut told = None;
    loop {
        commits.mark_unchanged();
        let known = told;
        let read = read_with(abm.as_ref(), env.deadline_in(TIME), move |store| match known {
            Some(revision) if revision == crate::abm::peers_revision(store)? => Ok(None),
            _ => peers(store).map(Some),
        });
        match read.await {
            Ok(None) => {}
            Ok(Some(found)) => {
                let all = tell(&env, abm.as_ref(), devices.as_ref(), &found).await;
                told = all.then_some(found.revision);
            }
            Err(error) => tracing::debug!(%error, "cannot read the peers"),
        }
        env.clock.sleep_until(env.clock.now().plus(REST)).await;
        let again = env.deadline_in(LOOK_EVERY);
        if let Ok(Err(_)) = within(env.clock.as_ref(), again, commits.changed()).await {
            // The group is gone, and with it soon this task.
            return;
        }
    }
}

/// Tells all that have an old list; true when all have the new one now.
async fn tell(env: &Env, abm: &dyn Replicator<Abm>, devices: &dyn Devices, peers: &Peers) -> bool {
    let mut all = true;
    for some in peers.untold.chunks(AT_ONCE) {
        let told = some.iter().map(|(id, info)| tell_one(env, abm, devices, peers, *id, info));
        all &= join_all(told).await.into_iter().all(|told| told);
    }
    all
}

async fn tell_one(
    env: &Env,
    abm: &dyn Replicator<Abm>,
    devices: &dyn Devices,
    peers: &Peers,
    osd: OsdId,
    info: &OsdInfo,
) -> bool {
    let deadline = env.deadline_in(TIME);
    let told = within(env.clock.as_ref(), deadline, devices.set_peers(info, &peers.list, deadline)).await;
    match told {
        // One that does not know the operation copies from nobody.
        Ok(Ok(()) | Err(OsdError::UnknownOperation)) => {}
        Ok(Err(error)) => {
            tracing::debug!(%osd, %error, "cannot tell an OSD its peers");
            return false;
        }
        Err(_) => return false,
    }
    let mark = AbmCommand::MarkPeersTold { osd, revision: peers.revision };
    abm.propose(Input::Internal(mark), env.deadline_in(TIME)).await.is_ok()
}
