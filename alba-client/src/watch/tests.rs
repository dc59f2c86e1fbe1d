use std::collections::VecDeque;
use std::sync::Mutex;

use alba_core::env::Deadline;
use alba_core::env::sim::Simulation;
use alba_core::ids::GroupId;
use alba_core::wire::rpc::abm::{AbmCommand, AbmOutcome};
use async_trait::async_trait;
use proptest::prelude::*;

use super::*;

fn seen(lineage: u64, revisions: &[(Topic, u64)]) -> Seen {
    let mut seen = Seen { lineage: Lineage(lineage), ..Seen::nothing(&Topic::ALL) };
    for (topic, revision) in &mut seen.revisions {
        *revision = revisions.iter().find(|(of, _)| of == topic).map_or(0, |(_, revision)| *revision);
    }
    seen
}

/// Answers as told, in order; then never.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Option<Result<WatchReply, MetaError>>>>,
    asked: Mutex<Vec<WatchRequest>>,
    revisions: Mutex<Revisions>,
    polls: Mutex<usize>,
}

#[async_trait]
impl Directory for Script {
    async fn command(&self, _: AbmCommand, _: Deadline) -> Result<AbmOutcome, MetaError> {
        panic!("a watch changes nothing")
    }

    async fn query(&self, query: AbmQuery, _: Deadline) -> Result<AbmAnswer, MetaError> {
        assert_eq!(query, AbmQuery::Revisions);
        *self.polls.lock().unwrap() += 1;
        Ok(AbmAnswer::Revisions(*self.revisions.lock().unwrap()))
    }

    async fn watch(&self, request: WatchRequest, _: Deadline) -> Result<WatchReply, MetaError> {
        self.asked.lock().unwrap().push(request);
        let next = self.answers.lock().unwrap().pop_front().flatten();
        match next {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

fn unreachable() -> MetaError {
    MetaError::Unreachable { group: GroupId::new("abm").unwrap(), reason: "cut off".to_owned() }
}

/// Topics whose generation has grown; none has gone back.
fn grown(before: Changes, after: Changes) -> Vec<Topic> {
    assert!(Topic::ALL.iter().all(|topic| before.of(*topic) <= after.of(*topic)));
    Topic::ALL.into_iter().filter(|topic| before.of(*topic) < after.of(*topic)).collect()
}

#[test]
fn changes_are_heard_of_through_faults_and_never_go_back() {
    let sim = Simulation::new(1);
    let env = sim.node(1).env();
    let first = seen(1, &[(Topic::OSDS, 5)]);
    let second = seen(1, &[(Topic::OSDS, 6)]);
    let elsewhere = seen(2, &[(Topic::OSDS, 6)]);
    let back = seen(3, &[(Topic::OSDS, 2)]);
    let script = Arc::new(Script::default());
    script.answers.lock().unwrap().extend([
        Some(Ok(WatchReply::News(first.clone()))),
        Some(Ok(WatchReply::Quiet)),
        Some(Err(unreachable())),
        Some(Err(unreachable())),
        Some(Ok(WatchReply::News(second.clone()))),
        // Another server: nothing is known of what it has counted.
        Some(Ok(WatchReply::News(elsewhere))),
        // One that never answers.
        None,
        // A group that was restored from a backup.
        Some(Ok(WatchReply::News(back))),
    ]);
    let running = sim.run(Duration::from_secs(600), async {
        let mut watch = AbmWatch::start(&env, script.clone());
        let start = watch.now();
        assert!(!start.told());
        let told = watch.changed().await;
        assert!(told.told());
        assert_eq!(grown(start, told), Topic::ALL);
        let cut_off = watch.changed().await;
        assert_eq!((cut_off.told(), grown(told, cut_off)), (false, vec![]));
        let again = watch.changed().await;
        assert_eq!((again.told(), grown(cut_off, again)), (true, vec![Topic::OSDS]));
        let other = watch.changed().await;
        assert_eq!((other.told(), grown(again, other)), (true, Topic::ALL.to_vec()));
        let began = env.clock.now();
        let silent = watch.changed().await;
        assert_eq!((silent.told(), grown(other, silent)), (false, vec![]));
        let waited = env.clock.now().since(began);
        assert!(waited >= WAIT && waited <= WAIT + SLACK + BETWEEN, "{waited:?}");
        let restored = watch.changed().await;
        assert_eq!((restored.told(), grown(silent, restored)), (true, Topic::ALL.to_vec()));
        let asked = script.asked.lock().unwrap();
        assert_eq!(asked[0].known, Seen::nothing(&Topic::ALL));
        assert_eq!(asked[1].known, first);
        // Kept through the time in which nobody told.
        assert!(asked[2..5].iter().all(|asked| asked.known == first));
        assert_eq!(*script.polls.lock().unwrap(), 0);
    });
    running.unwrap();
}

#[test]
fn while_nobody_tells_it_is_polled_and_tried_again_later() {
    for refusal in [Ok(WatchReply::TooMany), Err(MetaError::Protocol("unknown request".to_owned()))] {
        let sim = Simulation::new(2);
        let env = sim.node(1).env();
        let script = Arc::new(Script::default());
        script.answers.lock().unwrap().extend([Some(refusal), Some(Ok(WatchReply::News(seen(1, &[]))))]);
        let running = sim.run(Duration::from_secs(600), async {
            let mut watch = AbmWatch::start(&env, script.clone());
            let polled = watch.changed().await;
            assert!(!polled.told());
            assert_eq!(grown(Changes::default(), polled), Topic::ALL[..5]);
            script.revisions.lock().unwrap().presets = 7;
            let changed = watch.changed().await;
            assert_eq!(grown(polled, changed), [Topic::PRESETS]);
            // Numbers that go back are those of another group.
            script.revisions.lock().unwrap().presets = 6;
            let restored = watch.changed().await;
            assert_eq!(grown(changed, restored), Topic::ALL[..5]);
            let told = watch.changed().await;
            assert!(told.told());
            assert_eq!(*script.polls.lock().unwrap(), usize::try_from(POLLS).unwrap());
        });
        running.unwrap();
    }
}

#[test]
fn servers_that_answer_at_once_are_not_asked_without_a_pause() {
    let sim = Simulation::new(3);
    let env = sim.node(1).env();
    let script = Arc::new(Script::default());
    for n in 0..1000 {
        script.answers.lock().unwrap().push_back(Some(Ok(WatchReply::News(seen(n + 1, &[])))));
    }
    let running = sim.run(Duration::from_secs(600), async {
        let _watch = AbmWatch::start(&env, script.clone());
        env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(10))).await;
        let asked = script.asked.lock().unwrap().len();
        assert!((20..=41).contains(&asked), "{asked}");
    });
    running.unwrap();
}

/// What happens to a group of several replicas.
#[derive(Debug, Clone)]
enum Event {
    /// Something of a topic changes.
    Change(usize),
    /// The server that is asked starts again, or another one is asked.
    Lineage,
    /// The group is restored from an older state.
    Restore,
    /// Nobody tells.
    Silence,
    /// The client is told.
    Tell,
}

proptest! {
    /// Whatever happens: a state other than the last one that was told of is another generation, and none goes back.
    #[test]
    fn no_change_is_missed(events in prop::collection::vec(prop_oneof![
        4 => (0..Topic::ALL.len()).prop_map(Event::Change),
        1 => Just(Event::Lineage),
        1 => Just(Event::Restore),
        1 => Just(Event::Silence),
        4 => Just(Event::Tell),
    ], 1..60)) {
        let mut count = Count::new();
        let mut now = seen(1, &[]);
        // What there is, each state under a number of its own; and what was there when the client was told last.
        let mut states = [0_u64; Topic::ALL.len()];
        let mut told = [None; Topic::ALL.len()];
        let mut next = 0;
        for event in events {
            match event {
                Event::Change(topic) => {
                    now.revisions[topic].1 += 1;
                    next += 1;
                    states[topic] = next;
                }
                Event::Lineage => now.lineage.0 += 1,
                Event::Restore => {
                    now.lineage.0 += 1;
                    for (state, (_, revision)) in states.iter_mut().zip(&mut now.revisions) {
                        *revision /= 2;
                        next += 1;
                        *state = next;
                    }
                }
                Event::Silence => {
                    count.silence();
                    prop_assert!(!count.changes.told());
                }
                Event::Tell => {
                    let before = count.changes;
                    if now.is_news_to(&count.known) {
                        count.news(&now.asked_by(&count.known));
                    } else {
                        count.quiet();
                    }
                    prop_assert!(count.changes.told());
                    for (index, topic) in Topic::ALL.into_iter().enumerate() {
                        prop_assert!(count.changes.of(topic) >= before.of(topic));
                        if told[index] != Some(states[index]) {
                            prop_assert!(count.changes.of(topic) > before.of(topic), "{topic:?}");
                        }
                        told[index] = Some(states[index]);
                    }
                }
            }
        }
    }
}
