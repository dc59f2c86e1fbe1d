//! The model against a simulated disk, and the gate on virtual time.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use alba_core::env::Env;
use alba_core::env::sim::Simulation;
use proptest::prelude::*;

use super::model::Refused;
use super::*;

const QUIET: Duration = Duration::from_millis(50);

fn limits() -> ScheduleLimits {
    ScheduleLimits {
        in_flight: 1000,
        low_in_flight: 50,
        high_waiting: 1 << 30,
        low_waiting: 1 << 30,
        quiet: QUIET,
    }
}

fn at(millis: u64) -> Moment {
    Moment(Duration::from_millis(millis))
}

/// What was granted, in order.
fn drain(model: &mut Model, now: Moment) -> Vec<Ticket> {
    std::iter::from_fn(|| model.grant(now)).collect()
}

fn running(model: &Model) -> u64 {
    model.load(Priority::High).running_bytes + model.load(Priority::Low).running_bytes
}

#[derive(Debug, Clone)]
enum Step {
    Arrive(Priority, u64),
    /// The nth of those that have not left, whether it waits or runs.
    Leave(usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let priority = prop_oneof![Just(Priority::High), Just(Priority::Low)];
    let step = prop_oneof![
        4 => (priority, 0_u64..1500).prop_map(|(priority, cost)| Step::Arrive(priority, cost)),
        4 => any::<usize>().prop_map(Step::Leave),
        1 => (0_u64..100).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..200)
}

/// (high, low) bytes done when both classes always have more to do, of these sizes in turn, on a disk that works first in,
/// first out.
fn both_want_all(high: &[u64], low: &[u64]) -> (u64, u64) {
    let mut model = Model::new(limits());
    let now = Moment::default();
    let mut costs = BTreeMap::new();
    let mut next = [high.iter().cycle(), low.iter().cycle()];
    let mut arrive = |model: &mut Model, priority, costs: &mut BTreeMap<_, _>| {
        let cost = *next[usize::from(priority == Priority::Low)].next().unwrap();
        let ticket = model.arrive(priority, cost, now).unwrap();
        costs.insert(ticket, (priority, cost.min(1000)));
    };
    for _ in 0..3000 {
        arrive(&mut model, Priority::High, &mut costs);
        arrive(&mut model, Priority::Low, &mut costs);
    }
    let mut disk = VecDeque::from(drain(&mut model, now));
    let (mut done_high, mut done_low) = (0, 0);
    for _ in 0..2500 {
        let ticket = disk.pop_front().unwrap();
        let (priority, cost) = costs[&ticket];
        match priority {
            Priority::High => done_high += cost,
            Priority::Low => done_low += cost,
        }
        model.leave(priority, ticket, now);
        disk.extend(drain(&mut model, now));
        arrive(&mut model, priority, &mut costs);
    }
    (done_high, done_low)
}

proptest! {
    #[test]
    fn bounds_hold_nothing_waits_without_reason_and_classes_are_first_in_first_out(steps in steps()) {
        let mut model = Model::new(limits());
        let mut now = Moment::default();
        // By arrival; waiting ones only, then those that run.
        let mut waiting: [Vec<Ticket>; 2] = Default::default();
        let mut present: Vec<(Priority, Ticket)> = Vec::new();
        let index = |priority| usize::from(priority == Priority::Low);
        for step in steps {
            match step {
                Step::Arrive(priority, cost) => {
                    let ticket = model.arrive(priority, cost, now).unwrap();
                    waiting[index(priority)].push(ticket);
                    present.push((priority, ticket));
                }
                Step::Leave(nth) if !present.is_empty() => {
                    let (priority, ticket) = present.remove(nth % present.len());
                    model.leave(priority, ticket, now);
                    waiting[index(priority)].retain(|waits| *waits != ticket);
                }
                Step::Leave(_) => {}
                Step::Wait(millis) => now = now.plus(Duration::from_millis(millis)),
            }
            for granted in drain(&mut model, now) {
                let class = waiting.iter_mut().find(|class| class.first() == Some(&granted));
                prop_assert!(class.is_some(), "granted out of order");
                class.unwrap().remove(0);
            }
            prop_assert!(running(&model) <= 1000);
            for (class, priority) in waiting.iter().zip([Priority::High, Priority::Low]) {
                prop_assert_eq!(model.load(priority).waiting, class.len());
                let count = present.iter().filter(|(of, _)| *of == priority).count();
                prop_assert_eq!(model.load(priority).running, count - class.len());
            }
            // Work-conserving: with nothing in flight, nothing waits.
            prop_assert!(running(&model) > 0 || waiting.iter().all(Vec::is_empty));
        }
        // And whatever waits is served once others leave.
        while let Some((priority, ticket)) = present.iter().position(|(priority, ticket)| {
            !waiting[index(*priority)].contains(ticket)
        }).map(|at| present.remove(at)) {
            model.leave(priority, ticket, now);
            for granted in drain(&mut model, now) {
                waiting.iter_mut().for_each(|class| class.retain(|waits| *waits != granted));
            }
        }
        prop_assert!(present.is_empty(), "starved: {:?}", present);
    }

    /// Both classes always have more to do, of any sizes.
    #[test]
    fn a_tenth_is_low_and_most_is_high_when_both_want_all(
        high in prop::collection::vec(1_u64..1200, 1..8),
        low in prop::collection::vec(1_u64..1200, 1..8),
    ) {
        let (done_high, done_low) = both_want_all(&high, &low);
        let all = done_high + done_low;
        prop_assert!(done_low * 10 >= all, "low {done_low} of {all}");
        prop_assert!(done_low * 4 <= all, "low {done_low} of {all}");
    }
}

/// Between two operations that fill the disk nearly alone, the low class keeps its part. (Found by the property above.)
#[test]
fn large_operations_of_clients_leave_a_tenth_to_small_ones_of_maintenance() {
    for size in [897, 990, 1000] {
        let (high, low) = both_want_all(&[size], &[4]);
        assert!(low * 10 >= high + low, "low {low} of {}", high + low);
    }
}

#[test]
fn the_low_class_is_kept_small_while_clients_are_around_and_has_all_without_them() {
    let mut model = Model::new(limits());
    for _ in 0..100 {
        model.arrive(Priority::Low, 20, at(0)).unwrap();
    }
    drain(&mut model, at(0));
    assert_eq!(model.load(Priority::Low).running_bytes, 760, "all but the room for a client");
    // A client comes: it starts at once.
    let client = model.arrive(Priority::High, 100, at(0)).unwrap();
    assert_eq!(drain(&mut model, at(0)), [client]);
    model.leave(Priority::High, client, at(10));
    // While it was here just now, little of the low class is in flight.
    for low in 0..38 {
        model.leave(Priority::Low, Ticket(low), at(20));
        drain(&mut model, at(20));
    }
    assert_eq!(model.load(Priority::Low).running_bytes, 60, "one more from below 50");
    // And all of it later.
    model.leave(Priority::Low, Ticket(38), at(60));
    drain(&mut model, at(60));
    assert_eq!(model.load(Priority::Low).running_bytes, 760);
}

#[test]
fn bounds_change_while_it_runs() {
    run(async |env, gate| {
        let patience = Duration::from_secs(60);
        let held = gate.admit(Priority::High, 1000, env.deadline_in(QUIET)).await.unwrap();
        let mut large = call(&env, &gate, Priority::High, 900, patience);
        pause(&env, 1).await;
        gate.set_limits(ScheduleLimits { in_flight: 500, ..limits() });
        pause(&env, 1).await;
        assert!(large.try_recv().is_err());
        drop(held);
        pause(&env, 1).await;
        let _large = large.try_recv().unwrap().unwrap();
        let mut small = call(&env, &gate, Priority::High, 1, patience);
        pause(&env, 1).await;
        assert!(small.try_recv().is_err());
        gate.set_limits(limits());
        pause(&env, 1).await;
        small.try_recv().unwrap().unwrap();
    });
}

#[test]
fn a_queue_that_is_too_long_refuses() {
    let mut model = Model::new(ScheduleLimits { low_waiting: 30, ..limits() });
    // The first of a queue is taken whatever its size.
    model.arrive(Priority::High, 1000, at(0)).unwrap();
    drain(&mut model, at(0));
    model.arrive(Priority::Low, 500, at(0)).unwrap();
    assert_eq!(model.arrive(Priority::Low, 1, at(0)), Err(Refused { waiting: 500 }));
    model.arrive(Priority::High, 1, at(0)).unwrap();
}

fn run(scenario: impl AsyncFnOnce(Env, Arc<Gate>)) {
    let simulation = Simulation::new(3);
    let env = simulation.node(1).env();
    let gate = Gate::new(env.clock.clone(), limits());
    simulation.run(Duration::from_secs(3600), scenario(env, gate)).unwrap();
}

/// Starts a caller; says when it was admitted, or that it was refused.
fn call(
    env: &Env,
    gate: &Arc<Gate>,
    priority: Priority,
    bytes: u64,
    patience: Duration,
) -> oneshot::Receiver<Result<Permit, OsdError>> {
    let (answer, result) = oneshot::channel();
    let (gate, deadline) = (gate.clone(), env.deadline_in(patience));
    let task = async move { drop(answer.send(gate.admit(priority, bytes, deadline).await)) };
    env.spawn.spawn("caller", Box::pin(task));
    result
}

async fn pause(env: &Env, millis: u64) {
    env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(millis))).await;
}

#[test]
fn callers_wait_to_their_deadline_and_are_told_why() {
    run(async |env, gate| {
        let held = gate.admit(Priority::High, 1000, env.deadline_in(QUIET)).await.unwrap();
        let before = env.clock.now();
        let refused = gate.admit(Priority::High, 1, env.deadline_in(Duration::from_secs(2))).await;
        let Err(OsdError::Overloaded(text)) = refused else { panic!("admitted beyond the bound") };
        assert!(
            text.contains("no turn by the deadline") && text.contains("1000 bytes are in flight"),
            "{text}"
        );
        assert_eq!(env.clock.now().since(before), Duration::from_secs(2));
        assert_eq!(gate.load(Priority::High).waiting, 0, "it left no hole");
        drop(held);
        // What is free is given even when the deadline has passed.
        gate.admit(Priority::High, 1000, Deadline(Moment::default())).await.unwrap();
        assert_eq!(gate.load(Priority::High), ClassLoad::default());
    });
}

#[test]
fn a_caller_that_goes_away_leaves_no_hole() {
    run(async |env, gate| {
        let held = gate.admit(Priority::High, 600, env.deadline_in(QUIET)).await.unwrap();
        // A large one at the head waits for room; a small one waits behind it, though there is room for it.
        let large = Box::pin(gate.admit(Priority::High, 700, env.deadline_in(Duration::from_secs(60))));
        let mut large = Some(large);
        let polled = within(env.clock.as_ref(), env.deadline_in(QUIET), large.as_mut().unwrap()).await;
        assert!(polled.is_err());
        let mut small = call(&env, &gate, Priority::High, 100, Duration::from_secs(60));
        pause(&env, 10).await;
        assert!(small.try_recv().is_err());
        // The large one is dropped while it waits: the small one is next at once.
        drop(large.take());
        pause(&env, 10).await;
        let small = small.try_recv().unwrap().unwrap();
        // One that was granted and then dropped before it looked gives its bytes back, too.
        let mut late = Box::pin(gate.admit(Priority::High, 900, env.deadline_in(Duration::from_secs(60))));
        assert!(within(env.clock.as_ref(), env.deadline_in(QUIET), &mut late).await.is_err());
        drop((held, small));
        assert_eq!(gate.load(Priority::High).running_bytes, 900);
        drop(late);
        assert_eq!(gate.load(Priority::High), ClassLoad::default());
    });
}

#[test]
fn high_goes_first_and_each_end_wakes_only_whose_turn_it_is() {
    run(async |env, gate| {
        let patience = Duration::from_secs(60);
        let held = gate.admit(Priority::High, 1000, env.deadline_in(QUIET)).await.unwrap();
        let mut low: Vec<_> = (0..3).map(|_| call(&env, &gate, Priority::Low, 400, patience)).collect();
        pause(&env, 1).await;
        let mut high: Vec<_> = (0..3).map(|_| call(&env, &gate, Priority::High, 400, patience)).collect();
        pause(&env, 1).await;
        drop(held);
        pause(&env, 1).await;
        let admitted = |callers: &mut Vec<oneshot::Receiver<Result<Permit, OsdError>>>| {
            let mut permits = Vec::new();
            callers.retain_mut(|caller| match caller.try_recv() {
                Ok(permit) => {
                    permits.push(permit.unwrap());
                    false
                }
                Err(_) => true,
            });
            permits
        };
        // The first low one had waited before any of the high ones: its share. Then high.
        let (first_high, first_low) = (admitted(&mut high), admitted(&mut low));
        assert_eq!((first_high.len(), first_low.len()), (1, 1));
        drop((first_high, first_low));
        pause(&env, 1).await;
        let (second_high, second_low) = (admitted(&mut high), admitted(&mut low));
        assert_eq!((second_high.len(), second_low.len()), (2, 0));
        drop((second_high, second_low));
        pause(&env, 1).await;
        assert_eq!(admitted(&mut low).len(), 1, "clients were around just now");
        pause(&env, 60).await;
        assert_eq!(admitted(&mut low).len(), 1);
    });
}

/// A client that reads one after the other beside a maintenance load that never ends.
#[test]
fn a_saturating_low_load_costs_a_client_less_than_twice_its_time() {
    /// Operations by one disk of 1 byte per microsecond, first in, first out.
    struct Disk {
        env: Env,
        busy_until: Mutex<Moment>,
    }
    impl Disk {
        async fn transfer(&self, bytes: u64) {
            let done = {
                let mut busy = self.busy_until.lock().unwrap();
                *busy = (*busy).max(self.env.clock.now()).plus(Duration::from_micros(bytes));
                *busy
            };
            self.env.clock.sleep_until(done).await;
        }
    }
    run(async |env, gate| {
        let disk = Arc::new(Disk { env: env.clone(), busy_until: Mutex::default() });
        let moved = Arc::new(std::sync::atomic::AtomicU64::new(0));
        for _ in 0..64 {
            let (gate, disk, moved) = (gate.clone(), disk.clone(), moved.clone());
            let inner = env.clone();
            let task = async move {
                loop {
                    let permit =
                        gate.admit(Priority::Low, 25, inner.deadline_in(Duration::from_secs(600))).await;
                    disk.transfer(25).await;
                    drop(permit);
                    moved.fetch_add(25, std::sync::atomic::Ordering::Relaxed);
                }
            };
            env.spawn.spawn("maintenance", Box::pin(task));
        }
        pause(&env, 100).await;
        let before = (env.clock.now(), moved.load(std::sync::atomic::Ordering::Relaxed));
        assert!(before.1 >= 99_000, "alone it has the whole disk: {}", before.1);
        let mut times = BTreeSet::new();
        let rounds = 1000;
        for round in 0..rounds {
            let begun = env.clock.now();
            let permit = gate.admit(Priority::High, 100, env.deadline_in(QUIET)).await.unwrap();
            disk.transfer(100).await;
            drop(permit);
            times.insert((env.clock.now().since(begun), round));
        }
        let p99 = times.iter().nth(rounds * 99 / 100).unwrap().0;
        assert!(p99 <= Duration::from_micros(200), "{p99:?} instead of 100 µs");
        let taken = env.clock.now().since(before.0).as_micros();
        let low = u128::from(moved.load(std::sync::atomic::Ordering::Relaxed) - before.1);
        assert!(low * 10 >= taken, "low moved {low} bytes in {taken} µs");
    });
}
