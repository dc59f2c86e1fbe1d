//! Rebalancers are killed, stopped beyond their leases and run side by side at every step of a move, and the target of a move
//! hangs in the middle of it: nothing is lost, nothing is leaked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use alba_core::failpoint::Step;
use alba_tests::agents::{Once, Scene, trial};
use alba_tests::ward::Ward;
use rustix::process::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_alba-under-test");

/// Half of each on two of the three nodes, and as much parity on the third.
const SIZES: [u64; 14] = [500_000; 14];

async fn start(label: &str) -> Ward {
    let mut options = Ward::options(PROGRAM, 3, 2);
    // So small that some fragments make a difference.
    options.more = vec!["--osd-capacity".to_owned(), (32 << 20).to_string()];
    let mut set = |key: &str, value: &str| options.env.push((key.to_owned(), value.to_owned()));
    set("ALBA_ASD_SERVER__ASD__SEGMENT_BYTES", "4194304");
    set("ALBA_REBALANCER__REBALANCE__MOVES_AT_ONCE", "2");
    // The shortest there is: what hangs is given up soon.
    set("ALBA_REBALANCER__CLIENT__OSD_TIMEOUT_MS", "2000");
    Ward::start(label, options, &SIZES).await
}

/// Of a node's two OSDs one has everything, and the other one nothing.
async fn moves(label: &str, steps: Vec<Step>) {
    let ward = start(label).await;
    let rebalancer = Once::rebalancer(&ward.cluster);
    for (number, step) in steps.into_iter().enumerate() {
        let more = async || {
            ward.empty_the_first_object().await;
        };
        let finish = async || rebalancer.whole(&ward.cluster);
        trial(&ward.cluster, &rebalancer, step, number % 2 == 1, more, finish).await;
        ward.check(step.name()).await;
    }
    ward.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebalancers_may_end_at_every_step() {
    moves("kill-moves", Scene::Moving.steps()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_update_of_a_move_may_end_at_every_step() {
    let mut steps = Scene::Updating.steps();
    // A move computes nothing.
    steps.retain(|step| *step != Step::UpdateRead);
    moves("kill-move", steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_of_a_move_may_hang_in_the_middle() {
    let ward = start("hang-move").await;
    let rebalancer = Once::rebalancer(&ward.cluster);
    for step in [Step::UpdateStoring, Step::UpdateStored, Step::UpdateCommitted] {
        // The only one on its node that takes what the other one has.
        let target = std::cell::Cell::new(0);
        let more = async || target.set(ward.index(ward.empty_the_first_object().await));
        let agent = rebalancer.stops_at(&ward.cluster, step.into(), more).await;
        ward.cluster.signal_osd(target.get(), Signal::STOP);
        agent.resume();
        agent.end();
        ward.cluster.signal_osd(target.get(), Signal::CONT);
        ward.check(step.name()).await;
        rebalancer.whole(&ward.cluster);
        ward.check(step.name()).await;
    }
    ward.end().await;
}
