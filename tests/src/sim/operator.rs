//! The operator of a run: OSDs that stay away for long, are drained, decommissioned, purged, lost for good, and new ones that join.
//!
//! Inside the budget that the checker counts on: one machine at most is ever lost, while no other is away, and six take part.

use std::collections::BTreeSet;
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::wire::rpc::abm::AbmCommand;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::world::{Stage, World};
use super::{Faults, MAX_DOWN, pause};

/// One step in so many does something.
const RARELY: u32 = 12;

/// Machines that take new fragments whatever happens: one more than a chunk has fragments.
const LEAST: usize = 6;

/// What one knows of what was done.
#[derive(Default)]
pub(super) struct Operator {
    /// Drained and not any more.
    draining: BTreeSet<usize>,
    /// Decommissioned; then purged.
    leaving: BTreeSet<usize>,
    lost: Option<usize>,
    purged: BTreeSet<usize>,
    away: Option<(usize, Moment)>,
}

impl Operator {
    /// Perhaps does something. The metadata is up.
    pub(super) async fn step(&mut self, world: &World<'_>, rng: &mut StdRng, faults: &mut Faults) {
        if let Some((index, _)) = self.away.filter(|(_, until)| *until <= world.now()) {
            world.release_osd(index);
            self.away = None;
        }
        let members = self.members(world);
        let any = members[rng.random_range(0..members.len())];
        // Not those that are to go anyway.
        let taking = members.iter().filter(|index| !self.draining.contains(index)).count();
        let spared = taking <= LEAST || self.draining.contains(&any);
        match rng.random_range(0..RARELY) {
            0 if !spared => {
                let long_id = world.osds[any].long_id.clone();
                world.tell(AbmCommand::DecommissionOsd { long_id }).await;
                self.leaving.insert(any);
                faults.decommissions += 1;
            }
            1 if !spared && self.lost.is_none() && self.away.is_none() && world.osds_down() == 0 => {
                world.lose_osd(any, rng);
                self.lost = Some(any);
                faults.losses += 1;
            }
            2 if world.add_spare().await => faults.joins += 1,
            // Counted like a crash; and while one is lost for good no other stays away.
            3 if self.away.is_none() && self.lost.is_none() && world.osds_down() < MAX_DOWN => {
                world.hold_osd(any, rng);
                self.away = Some((any, world.now().plus(pause(rng, 6000..20_000))));
                faults.outages += 1;
            }
            4 => {
                let long_id = world.osds[any].long_id.clone();
                if self.draining.remove(&any) {
                    world.tell(AbmCommand::UndrainOsd { long_id }).await;
                } else if !spared {
                    world.tell(AbmCommand::DrainOsd { long_id }).await;
                    self.draining.insert(any);
                    faults.drains += 1;
                }
            }
            5 => self.purge(world).await,
            _ => {}
        }
    }

    /// Those that take new fragments, or will again.
    fn members(&self, world: &World<'_>) -> Vec<usize> {
        let of = |index: &usize| world.osds[*index].stage() == Stage::Member && !self.leaving.contains(index);
        (0..world.osds.len()).filter(of).collect()
    }

    /// What is lost will not be read again.
    async fn purge(&mut self, world: &World<'_>) {
        if let Some(index) = self.lost.filter(|index| !self.purged.contains(index)) {
            let long_id = world.osds[index].long_id.clone();
            world.tell(AbmCommand::PurgeOsd { long_id }).await;
            self.purged.insert(index);
        }
    }

    /// Leaves nothing half done.
    pub(super) async fn finish(&mut self, world: &World<'_>) {
        self.purge(world).await;
        if let Some((index, _)) = self.away.take() {
            world.release_osd(index);
        }
        world.sleep(Duration::from_millis(1)).await;
    }
}
