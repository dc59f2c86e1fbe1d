//! The checker against a search that tries everything, against histories made to be right, and against wrong ones.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng as _};

use super::check::{Found, Initial, resolve, search};
use super::object::apply;
use super::*;

/// What kind of history.
#[derive(Debug, Clone, Copy)]
struct Shape {
    clients: u32,
    operations: usize,
    /// Of a hundred operations, those of unknown outcome.
    unknown: u32,
    deletes: bool,
    /// Conditions name values that their client cannot know.
    wild: bool,
}

/// An operation with the moment at which it happens.
struct Planned {
    client: u32,
    invoked: u64,
    happens: u64,
    returned: u64,
}

/// A history that is linearizable because it was made by doing one operation after the other.
fn linearizable(seed: u64, shape: Shape) -> Vec<Operation> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut planned = Vec::new();
    let mut free = vec![0_u64; shape.clients as usize];
    for _ in 0..shape.operations {
        let client = rng.random_range(0..shape.clients);
        let invoked = free[client as usize] + rng.random_range(1..40);
        let returned = invoked + rng.random_range(2..200);
        free[client as usize] = returned;
        planned.push(Planned { client, invoked, happens: rng.random_range(invoked..=returned), returned });
    }
    let mut unknown = Vec::new();
    for plan in &mut planned {
        unknown.push((plan.invoked, plan.client, rng.random_range(0..100) < shape.unknown));
        if unknown.last().is_some_and(|(.., unknown)| *unknown) && rng.random_bool(0.3) {
            plan.happens += rng.random_range(0..5000);
        }
    }
    planned.sort_by_key(|plan| (plan.happens, plan.invoked, plan.client));
    let mut state = None;
    let mut operations = Vec::new();
    let mut seen = vec![Value(1)];
    for plan in planned {
        let value = Value(operations.len() as u64 + 1);
        let earlier = if shape.wild {
            Value(rng.random_range(0..=operations.len() as u64) + 1)
        } else {
            seen[rng.random_range(0..seen.len())]
        };
        let call = match rng.random_range(0..10) {
            0..4 => Call::Read,
            4 if shape.deletes => Call::Delete { must_exist: rng.random_bool(0.5) },
            5 => Call::Put { value, condition: Condition::NoPrevious },
            6 if earlier != value => Call::Put { value, condition: Condition::Previous(earlier) },
            7 if state.is_some() => Call::Put { value, condition: Condition::Previous(state.unwrap()) },
            _ => Call::Put { value, condition: Condition::Unconditionally },
        };
        let unknown = unknown.contains(&(plan.invoked, plan.client, true));
        let (next, answer) = apply(state, call);
        let end = if unknown { End::Unknown } else { End::Answered { at: plan.returned, answer } };
        if !unknown || rng.random_bool(0.5) {
            state = next;
        }
        match (end, call) {
            (End::Answered { answer: Answer::Found(Some(found)), .. }, _) => seen.push(found),
            (End::Answered { answer: Answer::Done, .. }, Call::Put { .. }) => seen.push(value),
            _ => {}
        }
        operations.push(Operation { client: plan.client, call, invoked: plan.invoked, end });
    }
    operations.sort_by_key(|operation| operation.invoked);
    operations
}

fn history(operations: Vec<Operation>) -> History {
    History { names: vec![operations], failed: 0 }
}

fn accepted(operations: &[Operation]) -> bool {
    match check(&history(operations.to_vec())) {
        Verdict::Linearizable => true,
        Verdict::Violation(violation) => {
            assert!(!violation.to_string().is_empty());
            false
        }
        Verdict::Undecided(reason) => panic!("{reason}"),
    }
}

/// Tries every order and every subset of the operations of unknown outcome.
fn tried_out(operations: &[Operation], done: &mut Vec<bool>, state: State) -> bool {
    let known = |operation: &Operation| operation.end != End::Unknown;
    if operations.iter().zip(done.iter()).all(|(operation, done)| *done || !known(operation)) {
        return true;
    }
    for index in 0..operations.len() {
        let operation = operations[index];
        let must_wait = operations.iter().zip(done.iter()).any(|(other, done)| {
            let End::Answered { at, .. } = other.end else { return false };
            !done && at < operation.invoked
        });
        if done[index] || must_wait {
            continue;
        }
        let (next, would) = apply(state, operation.call);
        if matches!(operation.end, End::Answered { answer, .. } if answer != would) {
            continue;
        }
        done[index] = true;
        if tried_out(operations, done, next) {
            return true;
        }
        done[index] = false;
    }
    false
}

/// Two acknowledged puts of which the second began after the first had ended, and a read after both.
fn overwritten(operations: &[Operation]) -> Option<(Value, Value, usize)> {
    let acknowledged = |operation: &&Operation| {
        matches!(operation.end, End::Answered { answer: Answer::Done, .. })
            && matches!(operation.call, Call::Put { .. })
    };
    let span = |operation: &Operation| match operation.end {
        End::Answered { at, .. } => (operation.invoked, at),
        End::Unknown => (operation.invoked, u64::MAX),
    };
    let value = |operation: &Operation| match operation.call {
        Call::Put { value, .. } => value,
        _ => unreachable!("only puts were taken"),
    };
    let middle = operations.len() / 2;
    let first = operations[middle / 2..].iter().find(acknowledged)?;
    let second = operations.iter().filter(acknowledged).find(|second| second.invoked > span(first).1)?;
    let after = |operation: &Operation| operation.invoked > span(second).1;
    let read = operations.iter().position(|operation| {
        after(operation) && matches!(operation.end, End::Answered { answer: Answer::Found(_), .. })
    })?;
    Some((value(first), value(second), read))
}

fn answers(operation: &mut Operation, wrong: Answer) {
    let End::Answered { answer, .. } = &mut operation.end else { panic!("it has no answer") };
    *answer = wrong;
}

fn shape(unknown: u32, deletes: bool) -> Shape {
    Shape { clients: 5, operations: 400, unknown, deletes, wild: false }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_happened_one_by_one_is_accepted(seed: u64, unknown in 0..40_u32, deletes: bool) {
        prop_assert!(accepted(&linearizable(seed, shape(unknown, deletes))));
    }

    #[test]
    fn an_overwritten_value_that_is_read_is_refused(seed: u64, unknown in 0..30_u32, deletes: bool) {
        let mut operations = linearizable(seed, shape(unknown, deletes));
        let found = overwritten(&operations);
        prop_assume!(found.is_some());
        let (first, _, read) = found.unwrap();
        answers(&mut operations[read], Answer::Found(Some(first)));
        prop_assert!(!accepted(&operations));
    }

    #[test]
    fn a_lost_put_is_refused(seed: u64, unknown in 0..30_u32) {
        // Nobody deletes: once there is something, there is something.
        let mut operations = linearizable(seed, shape(unknown, false));
        let found = overwritten(&operations);
        prop_assume!(found.is_some());
        let (_, _, read) = found.unwrap();
        answers(&mut operations[read], Answer::Found(None));
        prop_assert!(!accepted(&operations));
    }

    #[test]
    fn values_in_the_wrong_order_are_refused(seed: u64, unknown in 0..30_u32) {
        let mut operations = linearizable(seed, shape(unknown, true));
        let found = overwritten(&operations);
        prop_assume!(found.is_some());
        let (first, second, _) = found.unwrap();
        let end = operations.iter().map(|operation| operation.invoked).max().unwrap() + 10_000;
        for (step, value) in [(0, second), (10, first)] {
            let answer = Answer::Found(Some(value));
            let end_of = End::Answered { at: end + step + 5, answer };
            operations.push(Operation { client: 0, call: Call::Read, invoked: end + step, end: end_of });
        }
        prop_assert!(!accepted(&operations));
    }

    #[test]
    fn a_put_that_happened_twice_is_refused(seed: u64, unknown in 0..30_u32) {
        // Read again after it was overwritten and something else was read.
        let mut operations = linearizable(seed, Shape { operations: 100, ..shape(unknown, true) });
        let end = operations.iter().map(|operation| operation.invoked).max().unwrap() + 10_000;
        let (one, other) = (Value(100_001), Value(100_002));
        let put = |value| Call::Put { value, condition: Condition::Unconditionally };
        let read = |value| (Call::Read, Answer::Found(Some(value)));
        let steps =
            [(put(one), Answer::Done), read(one), (put(other), Answer::Done), read(other), read(one)];
        for (step, (call, answer)) in (0..).zip(steps) {
            prop_assert!(accepted(&operations));
            let invoked = end + step * 10;
            operations.push(Operation {
                client: 9, call, invoked, end: End::Answered { at: invoked + 5, answer },
            });
        }
        prop_assert!(!accepted(&operations));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn small_histories_get_the_verdict_of_trying_everything(
        seed: u64, operations in 2..8_usize, clients in 1..5_u32, unknown in 0..60_u32,
        deletes: bool, wrong in any::<Option<(usize, u64)>>(),
    ) {
        let mut operations = linearizable(seed, Shape { clients, operations, unknown, deletes, wild: true });
        if let Some((index, answer)) = wrong {
            let index = index % operations.len();
            let found = answer % 6;
            let answer = match operations[index].call {
                Call::Read => Answer::Found((found > 0).then_some(Value(found))),
                _ if answer % 2 == 0 => Answer::Done,
                _ => Answer::Refused,
            };
            if operations[index].end != End::Unknown {
                answers(&mut operations[index], answer);
            }
        }
        let expected = tried_out(&operations, &mut vec![false; operations.len()], None);
        prop_assert_eq!(accepted(&operations), expected);
        // Outcomes that are left unknown although they show give the same verdict, only slower.
        prop_assert_eq!(search(&operations, Initial::Nothing) == Found::Explained, expected);
        prop_assert!(resolve(&operations).len() == operations.len());
    }
}

#[test]
fn thousands_of_unknown_outcomes_are_decided() {
    let shape = Shape { clients: 12, operations: 5_000, unknown: 35, deletes: true, wild: false };
    let mut operations = linearizable(7, shape);
    assert!(accepted(&operations));
    let (first, _, read) = overwritten(&operations).unwrap();
    answers(&mut operations[read], Answer::Found(Some(first)));
    let Verdict::Violation(violation) = check(&history(operations)) else { panic!("it is wrong") };
    let text = violation.to_string();
    // What stands for the stale read is small, and printed in full.
    assert!(violation.window.len() <= 6, "{text}");
    assert!(text.contains(&format!(": #{}", first.0)), "{text}");
}

#[test]
fn a_counterexample_names_what_contradicts() {
    let done = |at| End::Answered { at, answer: Answer::Done };
    let put = |value, invoked, end| Operation {
        client: 1,
        call: Call::Put { value: Value(value), condition: Condition::Unconditionally },
        invoked,
        end,
    };
    let read = |found, invoked, at| Operation {
        client: 2,
        call: Call::Read,
        invoked,
        end: End::Answered { at, answer: Answer::Found(found) },
    };
    let operations = vec![
        put(1, 0, done(10)),
        read(Some(Value(1)), 20, 30),
        put(2, 40, done(50)),
        put(3, 45, End::Unknown),
        read(Some(Value(2)), 60, 70),
        read(Some(Value(1)), 80, 90),
        read(Some(Value(2)), 100, 110),
    ];
    let Verdict::Violation(violation) = check(&history(operations.clone())) else { panic!("it is wrong") };
    assert_eq!(violation.operation, operations[5]);
    assert_eq!(violation.window, [operations[4], operations[5]]);
    assert_eq!(violation.before, 4);
}

#[test]
fn too_many_at_once_are_undecided_not_accepted() {
    let operations: Vec<Operation> = (0..100)
        .map(|client| Operation {
            client,
            call: Call::Read,
            invoked: 1,
            end: End::Answered { at: 10, answer: Answer::Found(None) },
        })
        .collect();
    assert!(matches!(check(&history(operations)), Verdict::Undecided(_)));
}
