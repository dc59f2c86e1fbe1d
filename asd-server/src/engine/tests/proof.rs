//! Power cuts on a disk so small that segments are compacted and reused all the time: how many fell into which phase,
//! that built-in faults are noticed, and that nothing deleted comes back after many lives of every segment.
//!
//! `ALBA_ASD_CRASHES=10000` asks for more crashes; `ALBA_ASD_SEED` repeats from a seed.

use super::crash::{crash_and_compare, wanted, work};
use super::phase::testing;
use super::phase::{Phase, Sabotage};
use super::*;

/// A disk of some segments, half of it garbage soon.
fn small_disk(seed: u64) -> Hardware {
    let mut hardware = Hardware::new(seed);
    hardware.powered = true;
    hardware.disk.set_capacity(14 * (64 << 10));
    hardware
}

/// Twenty lives of one store, each cut off somewhere. Gives the phases that were cut.
fn lives(seed: u64) -> Vec<Phase> {
    let hardware = small_disk(seed);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::new();
    let mut cut = Vec::new();
    for round in 0..20 {
        let nth = rng.random_range(0..400);
        let at = hardware.disk.changes() + nth;
        hardware.disk.cut_power_after(nth);
        let probe = hardware.disk.clone();
        testing::trace(move || probe.changes());
        let simulation = Simulation::new(seed + round);
        let node = simulation.node(1);
        let main = async {
            match hardware.open(&node).await {
                Ok((engine, _)) => {
                    let right = work(&node, &engine, &hardware.disk, &mut rng, &mut model, 150).await;
                    if rng.random_bool(0.3) {
                        engine.close(deadline(&node)).await;
                    }
                    right
                }
                Err(_) => Vec::new(),
            }
        };
        let right = simulation.run(LIMIT, main).unwrap();
        drop(simulation);
        if hardware.disk.power_is_cut() {
            cut.extend(testing::in_step(at));
        }
        let tag = format!("seed {seed} round {round}");
        model = crash_and_compare(&hardware, &mut rng, &model, &right, &tag);
    }
    cut
}

fn first_seed() -> u64 {
    std::env::var("ALBA_ASD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(50_000)
}

#[test]
fn power_cuts_in_every_phase_lose_nothing() {
    let mut counts: BTreeMap<Phase, u64> = BTreeMap::new();
    let mut crashes = 0;
    let mut seed = first_seed();
    while crashes < wanted() {
        for phase in lives(seed) {
            *counts.entry(phase).or_default() += 1;
        }
        seed += 1;
        crashes += 20;
    }
    println!("{crashes} crashes, seeds {} to {}: {counts:?}", first_seed(), seed - 1);
    // A hundred of ten thousand in each, and some of some hundreds.
    for phase in [Phase::DataSync, Phase::IndexCommit, Phase::Checkpoint, Phase::Compaction, Phase::Reuse] {
        let count = counts.get(&phase).copied().unwrap_or(0);
        assert!(count >= crashes / 100, "{count} crashes in {phase:?}: {counts:?}");
    }
}

#[test]
fn built_in_faults_are_noticed() {
    let faults =
        [Sabotage::IndexBeforeSync, Sabotage::SameGeneration, Sabotage::DropTombstones, Sabotage::NoSync];
    for fault in faults {
        testing::sabotage(Some(fault));
        let noticed = (0..60).find(|seed| std::panic::catch_unwind(|| lives(70_000 + seed)).is_err());
        testing::sabotage(None);
        assert!(noticed.is_some(), "{fault:?} was not noticed");
        println!("{fault:?} is noticed by seed {}", 70_000 + noticed.unwrap());
    }
}

#[test]
fn after_many_lives_of_every_segment_a_rebuild_finds_what_is_there_and_nothing_else() {
    for seed in 0..3 {
        let hardware = small_disk(seed);
        let mut model = Model::new();
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut first, mut round) = (BTreeMap::<u64, BTreeSet<u64>>::new(), 0);
        while first.values().any(|lives| lives.len() < 4) || first.len() < 5 {
            round += 1;
            assert!(round < 60, "segments are not reused: {first:?}");
            hardware.run(async |node, engine, opening| {
                assert_eq!(opening.damage, Vec::<String>::new());
                for _ in 0..100 {
                    let batch = random_batch(&mut rng, &model);
                    let expected = play(&mut model, &batch);
                    assert_eq!(apply(node, &engine, batch).await.is_ok(), expected);
                    for segment in engine.segments() {
                        first.entry(segment.number).or_default().insert(segment.generation);
                    }
                }
                engine.close(deadline(node)).await;
            });
            hardware.index.wipe();
            let found = hardware.run(async |node, engine, opening| {
                assert_eq!(opening.damage, Vec::<String>::new());
                content(node, &engine).await
            });
            assert_eq!(found, model, "seed {seed} round {round}");
        }
    }
}
