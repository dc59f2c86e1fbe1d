use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::env::sim::Simulation;
use alba_core::ids::{NamespaceId, ObjectId, ObjectVersion, OsdId};

use super::*;
use crate::lanes::OsdLimits;
use crate::objective::Merit;

fn chosen(number: u8, source: u32, target: u32, bytes: u64) -> MoveSpec {
    MoveSpec {
        namespace: NamespaceId::from_u32(1),
        object: ObjectId::new([number; 32]),
        version: ObjectVersion(0),
        source: OsdId::from_u32(source),
        target: OsdId::from_u32(target),
        merit: Merit { drains: false, spread: 0, evenness: 1, same_node: false, bytes },
    }
}

/// Moves that take a second each.
struct Slow {
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    running: BTreeMap<OsdId, usize>,
    most_of_an_osd: usize,
    most: usize,
    begun: Vec<(u8, Duration)>,
}

#[async_trait]
impl Hands for Slow {
    async fn pace(&self, _: u64) {}

    async fn relocate(&self, chosen: &MoveSpec) -> Relocated {
        {
            let mut seen = self.seen.lock().unwrap();
            seen.begun.push((chosen.object.as_bytes()[0], self.clock.now().0));
            for osd in [chosen.source, chosen.target] {
                *seen.running.entry(osd).or_default() += 1;
            }
            let busiest = seen.running.values().copied().max().unwrap();
            seen.most_of_an_osd = seen.most_of_an_osd.max(busiest);
            seen.most = seen.most.max(seen.running.values().sum::<usize>() / 2);
        }
        self.clock.sleep_until(self.clock.now().plus(Duration::from_secs(1))).await;
        let mut seen = self.seen.lock().unwrap();
        for osd in [chosen.source, chosen.target] {
            *seen.running.get_mut(&osd).unwrap() -= 1;
        }
        match chosen.object.as_bytes()[0] % 3 {
            0 => Relocated::Stale,
            1 => Relocated::Refused("full".to_owned()),
            _ => Relocated::Moved { bytes: chosen.merit.bytes },
        }
    }
}

fn run(
    moves: Vec<MoveSpec>,
    limits: OsdLimits,
    at_once: usize,
) -> (Seen, Vec<(MoveSpec, Relocated)>, Duration) {
    let simulation = Simulation::new(1);
    let clock = simulation.node(1).env().clock;
    let hands = Slow { clock: clock.clone(), seen: Mutex::default() };
    let began = clock.now();
    let ended = simulation
        .run(Duration::from_secs(3600), async {
            execute(moves, &hands, clock.as_ref(), &mut Lanes::new(limits), at_once).await
        })
        .unwrap();
    (hands.seen.into_inner().unwrap(), ended, clock.now().since(began))
}

#[test]
fn every_move_is_tried_once_and_no_osd_has_more_than_its_share() {
    let moves: Vec<MoveSpec> =
        (0..40).map(|n| chosen(n, u32::from(n) % 4, 4 + u32::from(n) % 3, 10)).collect();
    let limits = OsdLimits { bytes_per_second: u64::MAX, moves_at_once: 2 };
    let (seen, ended, _) = run(moves, limits, 5);
    assert_eq!((seen.most_of_an_osd, seen.most), (2, 5));
    let mut numbers: Vec<u8> = ended.iter().map(|(chosen, _)| chosen.object.as_bytes()[0]).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..40).collect::<Vec<u8>>());
    let moved = ended.iter().filter(|(_, outcome)| matches!(outcome, Relocated::Moved { .. })).count();
    assert_eq!(moved, 13, "what is stale or refused is dropped, and holds up nothing");
}

#[test]
fn a_busy_osd_holds_up_only_its_own_moves() {
    // The first three all go to one OSD, the fourth to another.
    let moves = vec![chosen(0, 0, 9, 1), chosen(1, 1, 9, 1), chosen(2, 2, 9, 1), chosen(3, 3, 8, 1)];
    let limits = OsdLimits { bytes_per_second: u64::MAX, moves_at_once: 1 };
    let (seen, ended, took) = run(moves, limits, 8);
    assert_eq!((ended.len(), seen.most), (4, 2));
    assert_eq!(seen.begun.iter().map(|(number, _)| *number).collect::<Vec<u8>>(), [0, 3, 1, 2]);
    assert_eq!(took, Duration::from_secs(3));
}

#[test]
fn the_rate_of_an_osd_is_kept_while_nothing_else_is_to_do() {
    let moves = (0..6).map(|n| chosen(n, 0, 1 + u32::from(n), 5000)).collect();
    let limits = OsdLimits { bytes_per_second: 1000, moves_at_once: 4 };
    let (seen, ended, took) = run(moves, limits, 8);
    assert_eq!(ended.len(), 6);
    let begun: Vec<Duration> = seen.begun.iter().map(|(_, at)| *at).collect();
    assert!(begun.windows(2).all(|two| two[1] - two[0] >= Duration::from_secs(5)), "{begun:?}");
    assert!(took >= Duration::from_secs(26), "{took:?}");
    assert_eq!(run(Vec::new(), limits, 8).1, vec![]);
}
