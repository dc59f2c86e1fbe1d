//! Uploads, repair and garbage collection as a model that is explored completely: every order in which the steps of all of them
//! can happen, for small sizes. Each step is one that the real ones take atomically: a batch on an OSD, a command or a query of
//! the group. Who takes them may die between any two.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: it fails by panicking"
)]

use stateright::{Checker, Model, Property};

/// Attempts to write a fragment.
const WRITERS: usize = 3;

/// Keys of fragments.
const SLOTS: usize = 3;

/// Agents that collect garbage at once.
const AGENTS: usize = 2;

/// Runs of garbage collection, of all agents together.
const ROUNDS: u8 = 3;

/// Where a writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    /// It has asked for nothing.
    Idle,
    /// It knows the newest epoch, and will use it for all it writes.
    Began { epoch: u8 },
    /// Fragment, recovery info and tag are on the OSD.
    Wrote { epoch: u8 },
    /// The group has the manifest.
    Committed { epoch: u8 },
    /// Done, refused or dead.
    Ended,
}

/// A tag: its epoch, and the attempt that wrote it, if tags tell attempts apart.
type Tag = (u8, Option<usize>);

/// Where garbage collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Gc {
    /// Before a run, or dead.
    Resting,
    /// Epochs below this are closed, as far as it knows.
    Scanning { open: u8 },
    /// It found this tag of the slot.
    Found { open: u8, slot: usize, tag: Tag },
    /// The group said whether a manifest names the slot.
    Judged { open: u8, slot: usize, tag: Tag, named: bool },
}

/// What is on the OSD and in the group, and where everybody is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    min_epoch: u8,
    newest_epoch: u8,
    /// Is the fragment there?
    stored: [bool; SLOTS],
    /// Its tag.
    tag: [Option<Tag>; SLOTS],
    /// Does a manifest name it?
    named: [bool; SLOTS],
    /// Has one ever? Then none will again: the object is gone, or at a later version.
    was_named: [bool; SLOTS],
    writers: [Writer; WRITERS],
    gc: [Gc; AGENTS],
    rounds: u8,
    deletes: u8,
    /// Has garbage been deleted?
    collected: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Begin(usize),
    Write(usize),
    Commit(usize),
    RemoveTag(usize),
    Die(usize),
    /// The object is deleted, or its fragment replaced by a repair: the key goes through the delete queue.
    Delete(usize),
    Close(usize),
    Find(usize, usize),
    Ask(usize),
    Act(usize),
    OpenAndRest(usize),
    AgentDies(usize),
}

struct Collection {
    /// The order as it must not be: tags of all epochs are scanned, and epochs are closed afterwards.
    scan_first: bool,
    /// The deletion asserts that the tag is still there.
    asserts_tag: bool,
    /// Two of the attempts are repairs of the same version, which write the same key. Uploads never do: each has an object id of
    /// its own.
    shared_key: bool,
    /// A tag's value tells by which attempt it was written, and its removal asserts that.
    tags_tell_attempts: bool,
    /// A repair that finds the fragment of another one takes it over: its tag becomes its own, in its epoch.
    takes_over: Option<TakesOver>,
}

/// Whose fragments are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TakesOver {
    /// Those of its epoch and of older ones.
    OfItsEpoch,
    /// All, as it must not be.
    OfAny,
}

/// As uploads, repairs and garbage collection are.
const AS_IT_IS: Collection = Collection {
    scan_first: false,
    asserts_tag: true,
    shared_key: false,
    tags_tell_attempts: true,
    takes_over: Some(TakesOver::OfItsEpoch),
};

impl Collection {
    fn slot_of(&self, writer: usize) -> usize {
        if self.shared_key { writer.min(1) } else { writer }
    }

    fn tag(&self, writer: usize, epoch: u8) -> Tag {
        (epoch, self.tags_tell_attempts.then_some(writer))
    }
}

impl Model for Collection {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            min_epoch: 0,
            newest_epoch: 0,
            stored: [false; SLOTS],
            tag: [None; SLOTS],
            named: [false; SLOTS],
            was_named: [false; SLOTS],
            writers: [Writer::Idle; WRITERS],
            gc: [Gc::Resting; AGENTS],
            rounds: 0,
            deletes: 0,
            collected: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for (n, writer) in state.writers.iter().enumerate() {
            match writer {
                Writer::Idle => steps.push(Step::Begin(n)),
                Writer::Began { .. } => steps.push(Step::Write(n)),
                Writer::Wrote { .. } => steps.push(Step::Commit(n)),
                Writer::Committed { .. } => steps.push(Step::RemoveTag(n)),
                Writer::Ended => continue,
            }
            steps.push(Step::Die(n));
        }
        for slot in 0..SLOTS {
            if state.named[slot] && state.stored[slot] && state.deletes == 0 {
                steps.push(Step::Delete(slot));
            }
        }
        for (n, agent) in state.gc.iter().enumerate() {
            match *agent {
                Gc::Resting if state.rounds < ROUNDS => steps.push(Step::Close(n)),
                Gc::Resting => continue,
                Gc::Scanning { open } => {
                    for slot in 0..SLOTS {
                        if state.tag[slot].is_some_and(|(epoch, _)| epoch < open) {
                            steps.push(Step::Find(n, slot));
                        }
                    }
                    steps.push(Step::OpenAndRest(n));
                }
                Gc::Found { .. } => steps.push(Step::Ask(n)),
                Gc::Judged { .. } => steps.push(Step::Act(n)),
            }
            steps.push(Step::AgentDies(n));
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Begin(n) => state.writers[n] = Writer::Began { epoch: state.newest_epoch },
            Step::Write(n) => {
                let (Writer::Began { epoch }, slot) = (state.writers[n], self.slot_of(n)) else {
                    return None;
                };
                // The batch asserts that the key is absent (invariant 2).
                if state.stored[slot] {
                    let takes = |(tagged, _): Tag| match self.takes_over {
                        None => false,
                        Some(TakesOver::OfItsEpoch) => tagged <= epoch,
                        Some(TakesOver::OfAny) => true,
                    };
                    if self.shared_key && state.tag[slot].is_some_and(takes) {
                        state.tag[slot] = Some(self.tag(n, epoch));
                        state.writers[n] = Writer::Wrote { epoch };
                    } else {
                        state.writers[n] = Writer::Ended;
                    }
                } else {
                    state.stored[slot] = true;
                    state.tag[slot] = Some(self.tag(n, epoch));
                    state.writers[n] = Writer::Wrote { epoch };
                }
            }
            Step::Commit(n) => {
                let Writer::Wrote { epoch } = state.writers[n] else { return None };
                if epoch >= state.min_epoch && !state.was_named[self.slot_of(n)] {
                    state.named[self.slot_of(n)] = true;
                    state.was_named[self.slot_of(n)] = true;
                    state.writers[n] = Writer::Committed { epoch };
                } else {
                    state.writers[n] = Writer::Ended;
                }
            }
            Step::RemoveTag(n) => {
                let Writer::Committed { epoch } = state.writers[n] else { return None };
                if state.tag[self.slot_of(n)] == Some(self.tag(n, epoch)) {
                    state.tag[self.slot_of(n)] = None;
                }
                state.writers[n] = Writer::Ended;
            }
            Step::Die(n) => state.writers[n] = Writer::Ended,
            Step::Delete(slot) => {
                // The group forgets it and queues the key; the queue's deletion is one step with it here.
                state.named[slot] = false;
                state.stored[slot] = false;
                state.deletes += 1;
            }
            Step::Close(n) => {
                state.rounds += 1;
                let open = if self.scan_first { state.newest_epoch + 1 } else { state.newest_epoch };
                if !self.scan_first {
                    state.min_epoch = state.newest_epoch;
                }
                state.gc[n] = Gc::Scanning { open };
            }
            Step::Find(n, slot) => {
                let (Gc::Scanning { open }, Some(tag)) = (state.gc[n], state.tag[slot]) else {
                    return None;
                };
                state.gc[n] = Gc::Found { open, slot, tag };
            }
            Step::Ask(n) => {
                let Gc::Found { open, slot, tag } = state.gc[n] else { return None };
                state.gc[n] = Gc::Judged { open, slot, tag, named: state.named[slot] };
            }
            Step::Act(n) => {
                let Gc::Judged { open, slot, tag, named } = state.gc[n] else { return None };
                let tagged = state.tag[slot] == Some(tag);
                if tagged {
                    state.tag[slot] = None;
                }
                if !named && (tagged || !self.asserts_tag) {
                    state.collected |= state.stored[slot];
                    state.stored[slot] = false;
                }
                state.gc[n] = Gc::Scanning { open };
            }
            Step::OpenAndRest(n) => {
                if self.scan_first {
                    state.min_epoch = state.newest_epoch + 1;
                }
                state.newest_epoch += 1;
                state.gc[n] = Gc::Resting;
            }
            Step::AgentDies(n) => state.gc[n] = Gc::Resting,
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a fragment that a manifest names is there", |_, state: &State| {
                (0..SLOTS).all(|slot| !state.named[slot] || state.stored[slot])
            }),
            Property::always("what nothing names has a tag by which it is found", |_, state: &State| {
                (0..SLOTS).all(|slot| !state.stored[slot] || state.named[slot] || state.tag[slot].is_some())
            }),
            Property::sometimes("garbage is collected, and its key written again", |_, state: &State| {
                state.collected && state.named[0] && state.named[1]
            }),
            Property::sometimes(
                "a tag that was left on an object goes, and the object stays",
                |_, state: &State| {
                    state.rounds > 1
                        && state.writers[0] == Writer::Ended
                        && state.named[0]
                        && state.tag[0].is_none()
                },
            ),
        ]
    }
}

const LOST: &str = "a fragment that a manifest names is there";
const LEAKED: &str = "what nothing names has a tag by which it is found";

fn explore(collection: Collection) -> impl Checker<Collection> {
    collection.checker().threads(2).spawn_bfs().join()
}

#[test]
fn no_order_of_steps_loses_or_leaks_a_fragment() {
    let checker = explore(AS_IT_IS);
    checker.assert_properties();
    println!("{} states", checker.unique_state_count());
    assert!(checker.unique_state_count() > 10_000, "{}", checker.unique_state_count());
}

#[test]
fn to_scan_before_closing_loses_a_fragment() {
    let checker = explore(Collection { scan_first: true, ..AS_IT_IS });
    println!("{:?}", checker.discovery(LOST).expect("a counterexample"));
}

/// Another agent may have deleted what was judged, and a repair written the same key again.
#[test]
fn to_delete_without_asserting_the_tag_loses_a_fragment() {
    let checker = explore(Collection { asserts_tag: false, shared_key: true, ..AS_IT_IS });
    println!("{:?}", checker.discovery(LOST).expect("a counterexample"));
}

/// Of two repairs of one version the one that has won may be late to remove its tag: after the object was deleted, its fragment
/// cleaned up, and the key written again by the one that has lost. That fragment then has no tag. No data is lost by it.
#[test]
fn repairs_of_one_version_need_tags_that_tell_them_apart() {
    let alike = Collection { shared_key: true, tags_tell_attempts: false, takes_over: None, ..AS_IT_IS };
    let checker = explore(alike);
    assert!(checker.discovery(LOST).is_none());
    println!("{:?}", checker.discovery(LEAKED).expect("a counterexample"));
    let checker = explore(Collection { shared_key: true, ..AS_IT_IS });
    checker.assert_properties();
    println!("{} states", checker.unique_state_count());
}

/// Its tag would be of an epoch that is closed, while the repair that wrote it can still commit.
#[test]
fn to_take_over_what_was_written_in_a_later_epoch_loses_a_fragment() {
    let wrong = Collection { shared_key: true, takes_over: Some(TakesOver::OfAny), ..AS_IT_IS };
    println!("{:?}", explore(wrong).discovery(LOST).expect("a counterexample"));
}
