use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::queue::MOST_REMEMBERED;
use super::*;
use crate::env::sim::Simulation;
use crate::ids::NamespaceName;

fn flow(namespace: &str, client: u64) -> Flow {
    Flow { namespace: Some(NamespaceName::new(namespace).unwrap()), client: Some(client) }
}

fn numbered(namespace: u64, client: u64) -> Flow {
    flow(&format!("n{namespace}"), client)
}

/// Serves the next item, whoever it is of.
fn serve<T>(queue: &mut Queue<T>) -> Option<(Flow, u64, T)> {
    let (next, _) = queue.next(|_, _| true)?;
    let value = queue.serve(next.ticket).unwrap();
    Some((next.flow, next.cost, value))
}

#[test]
fn namespaces_share_and_in_each_its_clients() {
    let mut queue = Queue::default();
    for _ in 0..100 {
        for client in 0..8 {
            queue.push(flow("many", client), 10, ());
        }
        queue.push(flow("few", 8), 10, ());
        queue.push(flow("few", 9), 10, ());
    }
    let mut served: BTreeMap<Flow, u64> = BTreeMap::new();
    for _ in 0..160 {
        let (flow, cost, ()) = serve(&mut queue).unwrap();
        *served.entry(flow).or_default() += cost;
    }
    for (flow, bytes) in served {
        let expected = if flow.client >= Some(8) { 400 } else { 100 };
        assert!((expected - 10..=expected + 10).contains(&bytes), "{flow:?} got {bytes}");
    }
}

#[test]
fn a_small_item_of_a_newcomer_overtakes_all_that_wait_behind_the_next() {
    let mut queue = Queue::default();
    for number in 0..1000 {
        queue.push(flow("bulk", number % 64), 64 << 20, "bulk");
    }
    assert_eq!(serve(&mut queue).unwrap().2, "bulk");
    queue.push(flow("slices", 99), 4096, "slice");
    // At most the one whose turn it is by its older claim.
    let first = serve(&mut queue).unwrap().2;
    let second = serve(&mut queue).unwrap().2;
    assert!([first, second].contains(&"slice"));
}

/// Who asks for each piece anew, and so never has two waiting, gets no more than the others.
#[test]
fn asking_piece_by_piece_gives_no_advantage() {
    let mut queue = Queue::default();
    for _ in 0..200 {
        queue.push(flow("steady", 1), 10, 1);
    }
    queue.push(flow("nimble", 2), 10, 2);
    let mut served = [0_u64; 3];
    for _ in 0..100 {
        let (_, _, who) = serve(&mut queue).unwrap();
        served[who] += 1;
        if who == 2 {
            queue.push(flow("nimble", 2), 10, 2);
        }
    }
    assert!(served[1].abs_diff(served[2]) <= 2, "{served:?}");
}

#[test]
fn one_that_was_away_saves_nothing_up() {
    let mut queue = Queue::default();
    for _ in 0..1000 {
        queue.push(flow("a", 1), 10, 'a');
    }
    for _ in 0..500 {
        serve(&mut queue);
    }
    for _ in 0..100 {
        queue.push(flow("b", 2), 10, 'b');
    }
    let b = (0..40).filter(|_| serve(&mut queue).unwrap().2 == 'b').count();
    assert!((19..=21).contains(&b), "{b}");
}

#[test]
fn clients_that_may_not_are_passed_over_and_keep_their_place() {
    let mut queue = Queue::default();
    queue.push(flow("a", 1), 10, "one");
    queue.push(flow("a", 2), 10, "two");
    let (next, item) = queue.next(|client, _| client != Some(1)).unwrap();
    assert_eq!(*item, "two");
    assert_eq!(next.flow.client, Some(2));
    assert_eq!(queue.serve(next.ticket), Some("two"));
    assert_eq!(serve(&mut queue).unwrap().2, "one");
    assert_eq!(queue.next(|_, _| true), None);
}

#[derive(Debug, Clone)]
enum Step {
    Push {
        namespace: u64,
        client: u64,
        cost: u64,
    },
    Charge {
        namespace: u64,
        client: u64,
        cost: u64,
    },
    Serve,
    /// The n-th of those that wait.
    Cancel(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let who = || (0_u64..4, 0_u64..6, 1_u64..1000);
    prop_oneof![
        4 => who().prop_map(|(namespace, client, cost)| Step::Push { namespace, client, cost }),
        1 => who().prop_map(|(namespace, client, cost)| Step::Charge { namespace, client, cost }),
        4 => Just(Step::Serve),
        1 => (0_usize..50).prop_map(Step::Cancel),
    ]
}

proptest! {
    /// Nothing is lost, invented or served twice; a client's own items keep their order; what is kept is bounded.
    #[test]
    fn it_is_a_queue(steps in proptest::collection::vec(step(), 0..300)) {
        let mut queue = Queue::default();
        let mut model: Vec<(Ticket, Flow, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Push { namespace, client, cost } => {
                    let flow = numbered(namespace, client);
                    let ticket = queue.push(flow.clone(), cost, cost);
                    model.push((ticket, flow, cost));
                }
                Step::Charge { namespace, client, cost } => queue.charge(&numbered(namespace, client), cost),
                Step::Serve => match queue.next(|_, _| true) {
                    None => prop_assert!(model.is_empty()),
                    Some((next, _)) => {
                        let at = model.iter().position(|(_, flow, _)| *flow == next.flow).unwrap();
                        let (ticket, _, cost) = model.remove(at);
                        prop_assert_eq!((ticket, cost), (next.ticket, next.cost));
                        prop_assert_eq!(queue.serve(next.ticket), Some(cost));
                        prop_assert_eq!(queue.serve(next.ticket), None);
                    }
                },
                Step::Cancel(at) if at < model.len() => {
                    let (ticket, _, cost) = model.remove(at);
                    prop_assert_eq!(queue.cancel(ticket), Some(cost));
                    prop_assert_eq!(queue.cancel(ticket), None);
                }
                Step::Cancel(_) => {}
            }
            prop_assert_eq!(queue.len(), model.len());
            prop_assert!(queue.remembered() <= 4 * (1 + 6));
        }
    }

    /// While two namespaces (or two clients of one) wait all the time, neither is served more than the other by more
    /// than the largest item of each.
    #[test]
    fn shares_differ_by_two_items_at_most(
        costs in proptest::collection::vec(proptest::collection::vec(1_u64..1000, 60), 6),
        before in proptest::collection::vec((0_u64..6, 1_u64..1000), 0..40),
    ) {
        // Clients 0 to 2 in one namespace, 3 and 4 in another, 5 in a third.
        let namespace = |client: u64| match client { 0..=2 => 0, 3..=4 => 1, _ => 2 };
        let mut queue = Queue::default();
        for (client, cost) in before {
            queue.push(numbered(namespace(client), client), cost, client);
            serve(&mut queue);
        }
        for (client, costs) in (0..).zip(&costs) {
            for cost in costs {
                queue.push(numbered(namespace(client), client), *cost, client);
            }
        }
        let (mut clients, mut spaces, mut left) = ([0_u64; 6], [0_u64; 3], [60; 6]);
        // What each begins with depends on what was before; from the first item on the difference is bounded.
        let mut base: Option<([u64; 6], [u64; 3])> = None;
        while left.iter().all(|left| *left > 0) {
            let (_, cost, client) = serve(&mut queue).unwrap();
            let at = usize::try_from(client).unwrap();
            clients[at] += cost;
            spaces[usize::try_from(namespace(client)).unwrap()] += cost;
            left[at] -= 1;
            if base.is_none() && left.iter().all(|left| *left < 60) {
                base = Some((clients, spaces));
            }
            let Some((base_clients, base_spaces)) = base else { continue };
            let since = |now: &[u64], base: &[u64], a: usize, b: usize| (now[a] - base[a]).abs_diff(now[b] - base[b]);
            for (a, b) in [(0, 1), (0, 2), (1, 2)] {
                prop_assert!(since(&spaces, &base_spaces, a, b) <= 2 * 2000, "{spaces:?}");
                prop_assert!(since(&clients, &base_clients, a, b) <= 2 * 2000, "{clients:?}");
            }
            prop_assert!(since(&clients, &base_clients, 3, 4) <= 2 * 2000, "{clients:?}");
        }
    }

    /// However many come and whatever they cost: one item waits for no more than two of each other namespace and two of
    /// each other client of its own.
    #[test]
    fn nobody_starves(others in proptest::collection::vec((0_u64..5, 0_u64..5, 1_u64..1000), 1..200), cost in 1_u64..1000) {
        let mut queue = Queue::default();
        let push = |queue: &mut Queue<bool>, at: usize| {
            let (namespace, client, cost) = others[at % others.len()];
            queue.push(numbered(namespace, client), cost, false);
        };
        for at in 0..others.len() {
            push(&mut queue, at);
        }
        for at in 0..others.len() / 2 {
            serve(&mut queue);
            push(&mut queue, at);
        }
        queue.push(flow("n0", 77), cost, true);
        let mut before = 0;
        for at in 0.. {
            let (_, cost, mine) = serve(&mut queue).unwrap();
            if mine {
                break;
            }
            before += cost;
            push(&mut queue, at);
            prop_assert!(before <= (2 * 5 + 2 * 5 * 5) * 1000, "still waiting after {before}");
        }
    }
}

#[test]
fn any_number_of_clients_and_namespaces_is_remembered_in_bounded_memory() {
    let mut queue = Queue::default();
    for number in 0..20_000 {
        queue.charge(&numbered(number % 700, number), 1_000_000);
        queue.charge(&flow("one", number), 1_000_000);
        let ticket = queue.push(numbered(number, 1), 5, ());
        if number % 2 == 0 {
            queue.serve(ticket)
        } else {
            queue.cancel(ticket)
        };
    }
    assert!(queue.is_empty());
    assert!(queue.remembered() <= (MOST_REMEMBERED + 1) * (MOST_REMEMBERED + 2), "{}", queue.remembered());
}

mod pool {
    use futures_util::FutureExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits() -> Limits {
        Limits { total: 64 * MIB, reserve: 8 * MIB, small: 64 << 10, per_client: 32 * MIB }
    }

    fn run<T>(work: impl AsyncFnOnce(crate::env::Env) -> T) -> T {
        let simulation = Simulation::new(1);
        let env = simulation.node(1).env();
        simulation.run(Duration::from_secs(600), work(env)).unwrap()
    }

    #[test]
    fn small_ones_have_room_of_their_own() {
        run(async |env| {
            let pool = Pool::new(limits());
            let clock = env.clock.as_ref();
            let soon = || env.deadline_in(Duration::from_secs(1));
            let one = pool.take(clock, &flow("a", 1), 32 * MIB, soon()).await.unwrap();
            let two = pool.take(clock, &flow("a", 2), 24 * MIB, soon()).await.unwrap();
            let refused = pool.take(clock, &flow("a", 3), MIB, soon()).await.unwrap_err();
            assert_eq!(refused, Exhausted::Total(56 * MIB));
            let small = pool.take(clock, &flow("a", 3), 4096, env.deadline_in(Duration::ZERO)).await.unwrap();
            assert_eq!(pool.usage(), Usage { used: 56 * MIB + 4096, waiting: 0 });
            drop((one, two, small));
            assert_eq!(pool.usage(), Usage::default());
        });
    }

    #[test]
    fn a_client_gets_no_more_than_its_share_and_holds_nobody_up() {
        run(async |env| {
            let pool = Pool::new(limits());
            let clock = env.clock.as_ref();
            let soon = || env.deadline_in(Duration::from_secs(1));
            let hog = flow("a", 1);
            let first = pool.take(clock, &hog, 20 * MIB, soon()).await.unwrap();
            let other = flow("a", 2);
            let (second, other) = tokio::join!(
                pool.take(clock, &hog, 20 * MIB, soon()),
                pool.take(clock, &other, 30 * MIB, env.deadline_in(Duration::ZERO)),
            );
            assert_eq!(second.unwrap_err(), Exhausted::Client(32 * MIB));
            drop((first, other.unwrap()));
            // More than its share, when it has nothing; and more than there is, when nobody has anything.
            let large = pool.take(clock, &hog, 500 * MIB, soon()).await.unwrap();
            assert!(pool.take(clock, &flow("b", 2), MIB, soon()).await.is_err());
            drop(large);
            assert_eq!(pool.usage(), Usage::default());
        });
    }

    #[test]
    fn who_waits_is_served_in_turn_and_who_leaves_leaves_nothing() {
        run(async |env| {
            let pool = Pool::new(Limits::all_alike(10));
            let clock = env.clock.as_ref();
            let late = env.deadline_in(Duration::from_secs(60));
            let all = pool.take(clock, &flow("a", 1), 10, late).await.unwrap();
            let (a, b) = (flow("a", 1), flow("b", 2));
            let mut first = Box::pin(pool.take(clock, &a, 10, late));
            let mut second = Box::pin(pool.take(clock, &b, 10, late));
            assert!((&mut first).now_or_never().is_none());
            assert!((&mut second).now_or_never().is_none());
            assert_eq!(pool.usage().waiting, 2);
            drop(all);
            // The one that had something already comes second, though it asked first.
            assert!((&mut first).now_or_never().is_none());
            // Granted, but never taken: given back, to the other.
            drop(second);
            let first = first.await.unwrap();
            let third = pool.take(clock, &b, 1, late);
            {
                let mut third = Box::pin(third);
                assert!((&mut third).now_or_never().is_none());
            }
            assert_eq!(pool.usage(), Usage { used: 10, waiting: 0 });
            drop(first);
            assert_eq!(pool.usage(), Usage::default());
        });
    }

    #[test]
    fn more_room_serves_those_who_wait() {
        run(async |env| {
            let pool = Pool::new(Limits::all_alike(10));
            let clock = env.clock.as_ref();
            let late = env.deadline_in(Duration::from_secs(60));
            let held = pool.take(clock, &flow("a", 1), 10, late).await.unwrap();
            let b = flow("b", 2);
            let mut waits = Box::pin(pool.take(clock, &b, 10, late));
            assert!((&mut waits).now_or_never().is_none());
            pool.resize(Limits::all_alike(20));
            let granted = waits.await.unwrap();
            drop((held, granted));
        });
    }
}
