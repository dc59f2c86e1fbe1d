//! Power cuts at every step of random histories, compared with a map.

use super::*;

/// Crashed histories of the random test; `ALBA_ASD_CRASHES` asks for more.
const CRASHES: u64 = 400;

pub(super) fn wanted() -> u64 {
    std::env::var("ALBA_ASD_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(CRASHES)
}

/// How a batch was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Accepted,
    /// By an assert.
    Refused,
    /// It may have happened.
    Unknown,
}

/// Runs random batches, up to three at once, until the power goes or `count` are done. `model` follows. Given back are
/// the states that are right after a crash, when there are several.
pub(super) async fn work(
    node: &SimNode,
    engine: &Engine,
    disk: &SimDiskDevice,
    rng: &mut StdRng,
    model: &mut Model,
    count: usize,
) -> Vec<Model> {
    let mut done = 0;
    while done < count && !disk.power_is_cut() {
        let group: Vec<OsdBatch> = (0..rng.random_range(1..4)).map(|_| random_batch(rng, model)).collect();
        done += group.len();
        let results = join_all(group.iter().map(|batch| apply(node, engine, batch.clone())).collect()).await;
        let outcome = |(batch, result): (OsdBatch, Result<(), OsdError>)| match result {
            Ok(()) => (batch, Outcome::Accepted),
            Err(OsdError::AssertFailed(_)) => (batch, Outcome::Refused),
            Err(OsdError::Device(_)) => (batch, Outcome::Unknown),
            Err(other) => panic!("{other}"),
        };
        let outcomes: Vec<_> = group.into_iter().zip(results).map(outcome).collect();
        let mut right = Vec::new();
        explain(model, &outcomes, &mut right);
        assert!(!right.is_empty(), "no order of the batches explains the answers");
        if disk.power_is_cut() {
            return right;
        }
        let unknown = outcomes.iter().find(|(_, outcome)| *outcome == Outcome::Unknown);
        assert!(unknown.is_none(), "failed without a reason: {unknown:?}");
        let first = right.remove(0);
        *model = if right.iter().all(|other| *other == first) {
            first
        } else {
            right.push(first);
            if std::env::var_os("ALBA_ASD_TRACE").is_some() {
                for (batch, outcome) in &outcomes {
                    let of = |u: &OsdUpdate| match u {
                        OsdUpdate::Set(k, s) => format!("set {k:?} {}", s.value.len()),
                        other => format!("{other:?}"),
                    };
                    println!(
                        "{outcome:?} {} {:?}",
                        batch.asserts.len(),
                        batch.updates.iter().map(of).collect::<Vec<_>>()
                    );
                }
                println!("right: {:?}", right.iter().map(lens).collect::<Vec<_>>());
            }
            let found = contents(node, engine).await;
            match found {
                Some(found) => {
                    let right = right.into_iter().find(|state| *state == found);
                    right.unwrap_or_else(|| panic!("a state of no order: {:?} {outcomes:?}", lens(&found)))
                }
                // The power went.
                None => return right,
            }
        };
        read_some(node, engine, rng, model).await;
    }
    Vec::new()
}

fn lens(model: &Model) -> Vec<(OsdKey, usize)> {
    model.iter().map(|(key, stored)| (key.clone(), stored.value.len())).collect()
}

/// All an engine holds; none when it cannot be read.
async fn contents(node: &SimNode, engine: &Engine) -> Option<Model> {
    let page = engine.range(RangeQuery::all(), Priority::Low, deadline(node)).await.ok()?;
    assert!(!page.has_more, "the tests use ten keys");
    let values = engine.multi_get(page.items.clone(), Priority::Low, deadline(node)).await.ok()?;
    page.items.into_iter().zip(values).map(|(key, value)| Some((key, value?))).collect()
}

/// The states after batches that were under way together, for every order that explains their answers (one that waited
/// for room comes later than those behind it). What is unknown may have happened, or not.
fn explain(model: &Model, outcomes: &[(OsdBatch, Outcome)], states: &mut Vec<Model>) {
    if outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Unknown) {
        states.push(model.clone());
    }
    for nth in 0..outcomes.len() {
        let mut left = outcomes.to_vec();
        let (batch, outcome) = left.remove(nth);
        let mut state = model.clone();
        let happened = play(&mut state, &batch);
        if happened == (outcome != Outcome::Refused) {
            explain(&state, &left, states);
        }
    }
}

/// Reads a piece of a value as direct readers do: what is kept in memory must be of this life of its segment.
async fn read_some(node: &SimNode, engine: &Engine, rng: &mut StdRng, model: &Model) {
    let Some((key, stored)) = model.iter().nth(rng.random_range(0..10)) else { return };
    let len = u32::try_from(stored.value.len().min(5_000)).unwrap();
    let slice = ValueSlice { offset: 0, len };
    match engine.partial_get(key.clone(), vec![slice], Priority::High, deadline(node)).await {
        Ok(found) => assert_eq!(found.unwrap(), [stored.value.slice(..slice.len as usize)], "other bytes"),
        // Whether the power goes is up to somebody else.
        Err(error) => assert!(matches!(error, OsdError::Device(_)), "{error}"),
    }
}

/// Cuts the power, restarts with what the disk kept, restarts again without the index; the state must be a right one,
/// and the same both times.
pub(super) fn crash_and_compare(
    hardware: &Hardware,
    rng: &mut StdRng,
    model: &Model,
    right: &[Model],
    tag: &str,
) -> Model {
    hardware.disk.crash();
    hardware.index.crash(rng.random_range(0..6));
    let right = if right.is_empty() { std::slice::from_ref(model) } else { right };
    let found = hardware.run(async |node, engine, opening| {
        assert_eq!(opening.damage, Vec::<String>::new(), "{tag}: a crash is no damage");
        content(node, &engine).await
    });
    let differs = |state: &Model| {
        let keys = state.keys().chain(found.keys());
        let mut keys: Vec<&OsdKey> = keys.filter(|key| state.get(*key) != found.get(*key)).collect();
        keys.dedup();
        format!("{keys:?}")
    };
    let differences: Vec<String> = right.iter().map(differs).collect();
    assert!(
        right.contains(&found),
        "{tag}: {:?}; it differs from the right states in {differences:?}",
        found.keys()
    );
    hardware.index.wipe();
    let rebuilt = hardware.run(async |node, engine, opening| {
        assert_eq!(opening.damage, Vec::<String>::new(), "{tag}: a rebuild is no damage");
        content(node, &engine).await
    });
    assert_eq!(rebuilt, found, "{tag}: rebuilt from the segments alone");
    found
}

#[test]
fn crashes_at_every_step_of_short_histories_lose_nothing() {
    let mut crashes = 0;
    for seed in 0..4 {
        let history = |cut: Option<u64>| {
            let hardware = Hardware::new(seed ^ cut.unwrap_or(0) << 8);
            let mut rng = StdRng::seed_from_u64(seed);
            let mut model = Model::new();
            let right = if let Some(cut) = cut {
                hardware.disk.cut_power_after(cut);
                let simulation = Simulation::new(1);
                let node = simulation.node(1);
                let main = async {
                    match hardware.open(&node).await {
                        Ok((engine, _)) => {
                            work(&node, &engine, &hardware.disk, &mut rng, &mut model, 14).await
                        }
                        Err(_) => Vec::new(),
                    }
                };
                simulation.run(LIMIT, main).unwrap()
            } else {
                hardware.run(async |node, engine, _| {
                    work(node, &engine, &hardware.disk, &mut rng, &mut model, 14).await
                })
            };
            let steps = hardware.disk.changes();
            crash_and_compare(&hardware, &mut rng, &model, &right, &format!("seed {seed} cut {cut:?}"));
            steps
        };
        let steps = history(None);
        assert!(steps > 20, "a history of {steps} steps");
        for cut in 0..steps {
            history(Some(cut));
            crashes += 1;
        }
    }
    assert!(crashes > 80, "{crashes} crashes");
}

#[test]
fn long_histories_with_many_crashes_lose_nothing() {
    let mut crashes = 0;
    let mut seed = 1000;
    while crashes < wanted() {
        seed += 1;
        let hardware = Hardware::new(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model = Model::new();
        for round in 0..20 {
            // Also while it is being opened, and also without a crash in between.
            let cut = rng.random_range(0..60);
            hardware.disk.cut_power_after(cut);
            let simulation = Simulation::new(seed + round);
            let node = simulation.node(1);
            let main = async {
                match hardware.open(&node).await {
                    Ok((engine, _)) => {
                        let right = work(&node, &engine, &hardware.disk, &mut rng, &mut model, 40).await;
                        if rng.random_bool(0.5) {
                            engine.close(deadline(&node)).await;
                        }
                        right
                    }
                    Err(_) => Vec::new(),
                }
            };
            let right = simulation.run(LIMIT, main).unwrap();
            drop(simulation);
            model =
                crash_and_compare(&hardware, &mut rng, &model, &right, &format!("seed {seed} round {round}"));
            crashes += 1;
        }
    }
}

/// The reason for [`recovery::RESTART_GAP`]: a dropped batch that is whole must not come back when the torn one before
/// it is overwritten by one of the same length.
#[test]
fn a_dropped_batch_never_returns() {
    let mut dropped = 0;
    for seed in 0..200 {
        let hardware = Hardware::new(seed);
        let put = |name: &str, salt| batch(vec![set(name, pattern(5_000, salt))]);
        hardware.run(async |node, engine, _| {
            apply(node, &engine, put("first", 0)).await.unwrap();
            // One group of two whose write succeeds and whose sync does not happen.
            hardware.disk.cut_power_after(1);
            let both = vec![apply(node, &engine, put("a", 1)), apply(node, &engine, put("b", 2))];
            join_all(both).await;
        });
        hardware.disk.crash();
        hardware.index.crash(0);
        let lost = hardware.run(async |node, engine, _| {
            let found = content(node, &engine).await;
            let lost = !found.contains_key(&key("a"));
            assert!(!lost || !found.contains_key(&key("b")), "b depends on what came before it");
            if lost {
                // Exactly as long as the dropped one, in its place.
                apply(node, &engine, put("c", 3)).await.unwrap();
            }
            lost
        });
        hardware.index.wipe();
        if lost {
            dropped += 1;
            hardware.run(async |node, engine, _| {
                let names: Vec<OsdKey> = content(node, &engine).await.into_keys().collect();
                assert_eq!(names, [key("c"), key("first")], "seed {seed}");
            });
        }
    }
    assert!(dropped > 20, "dropped {dropped} times");
}
