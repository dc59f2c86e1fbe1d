use std::time::Duration;

use alba_core::wire::rpc::{Consistency, RequestId};

use super::cluster::{Cluster, quick};
use super::model::ListCommand;
use crate::machine::{Input, Output};
use crate::replicator::{ReplicationError, Replicator};

fn numbers(count: u64) -> Vec<u64> {
    (1..=count).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_keeps_what_it_acknowledged_over_crashes() {
    let mut cluster = Cluster::start(1, quick()).await;
    let session = cluster.session().await;
    let mut count = 0;
    for _ in 0..3 {
        for _ in 0..10 {
            count += 1;
            cluster.push(session, count, "a").await;
        }
        cluster.kill(0).await;
        cluster.boot(0).await;
        assert_eq!(cluster.read("a").await, numbers(count));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_go_on_without_their_leader() {
    let mut cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    let mut count = 0;
    for _ in 0..3 {
        for _ in 0..10 {
            count += 1;
            cluster.push(session, count, "a").await;
        }
        let leader = cluster.leader().await;
        cluster.kill(leader).await;
        count += 1;
        cluster.push(session, count, "a").await;
        assert_eq!(cluster.read("a").await, numbers(count));
        cluster.boot(leader).await;
    }
    // All at once.
    for n in 0..3 {
        cluster.kill(n).await;
    }
    for n in 0..3 {
        cluster.boot(n).await;
    }
    assert_eq!(cluster.read("a").await, numbers(count));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_gets_the_first_answer_from_the_next_leader() {
    let mut cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    let id = RequestId { session, sequence: 1, lowest_unacknowledged: 1 };
    let command = Input::Command(id, ListCommand::Push { key: "a".to_owned(), number: 1 });
    let first = cluster.propose(command.clone()).await;
    assert_eq!(first, Output::Done(Ok(1)));
    cluster.kill(cluster.leader().await).await;
    assert_eq!(cluster.propose(command).await, first);
    assert_eq!(cluster.read("a").await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_serves_no_consistent_read_and_comes_back_without_harm() {
    let cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    let old = cluster.leader().await;
    cluster.cut_off(old);
    cluster.push(session, 2, "a").await;
    let stale = cluster.list(old, "a", Consistency::Linearizable).await;
    assert!(matches!(stale, Err(ReplicationError::NotLeader { .. })), "{stale:?}");
    assert_eq!(cluster.list(old, "a", Consistency::Any).await.unwrap(), [1], "it cannot know better");
    cluster.heal();
    cluster.until("the old leader follows", || !*cluster.raft(old).leadership().borrow()).await;
    cluster.push(session, 3, "a").await;
    assert_eq!(cluster.read("a").await, numbers(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_cut_off_keeps_its_term_and_deposes_nobody() {
    let cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let term = cluster.raft(leader).status().unwrap().term;
    for sequence in 1..=3 {
        cluster.cut_off(follower);
        let until = cluster.env.clock.now().plus(Duration::from_secs(2));
        cluster.env.clock.sleep_until(until).await;
        assert_eq!(cluster.raft(follower).status().unwrap().term, term, "it stood for no election");
        cluster.heal();
        cluster.push(session, sequence, "a").await;
    }
    assert_eq!(cluster.raft(leader).status().unwrap().term, term);
    assert!(*cluster.raft(leader).leadership().borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_from_followers_are_as_new_as_asked() {
    let cluster = Cluster::start(3, quick()).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let push = |number| Input::Internal(ListCommand::Push { key: "a".to_owned(), number });
    let (_, index) = cluster.raft(leader).propose(push(1), cluster.soon()).await.unwrap();
    let read = cluster.raft(follower).query("a".to_owned(), Consistency::AtLeast(index), cluster.soon()).await;
    let (answer, at) = read.unwrap();
    assert_eq!(answer.unwrap(), [1]);
    assert!(at >= index);
    let ahead = Consistency::AtLeast(index + 1000);
    let soon = cluster.env.deadline_in(Duration::from_millis(100));
    let late = cluster.raft(follower).query("a".to_owned(), ahead, soon).await;
    assert!(matches!(late, Err(ReplicationError::Behind)));
    let refused = cluster.list(follower, "a", Consistency::Linearizable).await;
    let Err(ReplicationError::NotLeader { leader: Some(address) }) = refused else { panic!("{refused:?}") };
    assert_eq!(address, cluster.members[leader].address.to_string());
    // The server's own inputs find the leader by themselves.
    let (output, index) = cluster.raft(follower).propose(push(2), cluster.soon()).await.unwrap();
    assert_eq!(output, Output::Done(Ok(2)));
    assert!(index > at);
    let session = cluster.raft(follower).propose(Input::OpenSession([1; 16]), cluster.soon()).await;
    assert!(matches!(session, Err(ReplicationError::NotLeader { leader: Some(_) })));
}
