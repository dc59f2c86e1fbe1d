//! The log against a plain map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What a log should be.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Model {
    pub entries: BTreeMap<u64, Entry>,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
}

impl Model {
    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }

    pub(super) fn next(&self) -> u64 {
        self.last().map_or(0, |id| id.index + 1)
    }

    pub(super) fn first(&self) -> u64 {
        self.purged.map_or(0, |id| id.index + 1)
    }

    pub(super) fn truncate(&mut self, since: u64) {
        self.entries.split_off(&since);
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = Some(upto);
    }

    /// What a log holds.
    pub(super) async fn of(store: &LogStore) -> Self {
        let mut store = store.clone();
        let state = store.get_log_state().await.unwrap();
        let entries: BTreeMap<u64, Entry> =
            all(&store).await.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
        let found =
            Self { entries, vote: store.read_vote().await.unwrap(), purged: state.last_purged_log_id };
        assert_eq!(state.last_log_id, found.last());
        found
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<usize>),
    /// So many from the end.
    Truncate(u64),
    /// So many from the beginning, perhaps more than there are.
    Purge(u64),
    Vote,
    Commit,
    Read(u64, u64),
    Idle,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lens = prop_oneof![Just(0_usize), 1..200_usize, 200..9_000_usize];
    let step = prop_oneof![
        6 => prop::collection::vec(lens, 1..6).prop_map(Step::Append),
        1 => (1..6_u64).prop_map(Step::Truncate),
        2 => (1..12_u64).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        1 => Just(Step::Commit),
        2 => (0..20_u64, 0..8_u64).prop_map(|(from, len)| Step::Read(from, len)),
        1 => Just(Step::Idle),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

fn play(steps: Vec<Step>) {
    let disk = SimDiskDevice::new(1, 1 << 30);
    let simulation = Simulation::new(1);
    let node = simulation.node(1);
    let main = async {
        let mut model = Model::default();
        let mut committed = None;
        let mut term = 1;
        let (mut store, _) = open(&node, &disk, small()).await.unwrap();
        for step in steps {
            match step {
                Step::Append(lens) => {
                    let next = model.next();
                    let entries: Vec<Entry> =
                        (next..).zip(lens).map(|(index, len)| entry(term, index, len)).collect();
                    store.blocking_append(entries.clone()).await.unwrap();
                    model.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
                }
                Step::Truncate(back) => {
                    let committed = committed.map_or(0, |id: LogId| id.index + 1);
                    let since = model.next().saturating_sub(back).max(model.first()).max(committed);
                    store.truncate(id(term, since)).await.unwrap();
                    model.truncate(since);
                    term += 1;
                }
                Step::Purge(count) => {
                    let index = model.first() + count - 1;
                    let upto = model.entries.get(&index).map_or(id(term, index), |entry| entry.log_id);
                    store.purge(upto).await.unwrap();
                    model.purge(upto);
                }
                Step::Vote => {
                    term += 1;
                    store.save_vote(&vote(term, 3)).await.unwrap();
                    model.vote = Some(vote(term, 3));
                }
                Step::Commit => {
                    committed = model.last();
                    store.save_committed(committed).await.unwrap();
                }
                Step::Read(from, len) => {
                    let from = model.first() + from;
                    let range = from..from + len;
                    let expected: Vec<Entry> =
                        model.entries.range(range.clone()).map(|(_, entry)| entry.clone()).collect();
                    assert_eq!(store.try_get_log_entries(range).await.unwrap(), expected);
                }
                Step::Idle => {
                    let clock = node.env().clock;
                    clock.sleep_until(clock.now().plus(Duration::from_secs(2))).await;
                }
                Step::Reopen => {
                    assert!(store.close(deadline(&node)).await);
                    drop(store);
                    let recovered;
                    (store, recovered) = open(&node, &disk, small()).await.unwrap();
                    assert_eq!((recovered.cut, recovered.unproven > 1), (None, false), "it was closed");
                    assert_eq!(recovered.last, model.last());
                }
            }
            assert_eq!(store.read_committed().await.unwrap(), committed);
            assert_eq!(Model::of(&store).await, model);
            let cached = store.open.shared.state().entries.cached_bytes();
            assert!(cached <= 8 << 10, "{cached} bytes in memory");
        }
        assert_eq!(store.health(), Health::Ok);
    };
    simulation.run(LIMIT, main).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn it_is_the_map_it_should_be(steps in steps()) {
        play(steps);
    }
}
