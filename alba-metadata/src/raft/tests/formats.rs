//! Members of different versions in one group: what is written, what waits, and who halts.

use std::time::Duration;

use alba_core::env::real;
use alba_core::wire::rpc::Consistency;
use openraft::{EntryPayload, RaftLogReader};

use super::cluster::{Cluster, Place, quick};
use super::model::ListCommand;
use crate::machine::{Input, Output};
use crate::raft::log::LogStore;
use crate::raft::{AnyRaft, MembershipError, PAYLOAD_FORMAT, RaftLimits};
use crate::replicator::{ReplicationError, Replicator as _};

const OLD: u8 = PAYLOAD_FORMAT - 1;

fn pop() -> Input<ListCommand> {
    Input::Internal(ListCommand::Pop { key: "a".to_owned() })
}

/// The formats of the entries in a log whose replica does not run, in their order.
async fn written(place: &Place) -> Vec<u8> {
    let (mut log, _) = LogStore::open(real::env(), place.home().log, quick().log).await.unwrap();
    let entries = log.try_get_log_entries(0..u64::MAX).await.unwrap();
    let formats = entries.iter().filter_map(|entry| match &entry.payload {
        EntryPayload::Normal(payload) => Some(payload.0[0]),
        _ => None,
    });
    let formats = formats.collect();
    assert!(log.close(real::env().deadline_in(Duration::from_secs(20))).await);
    formats
}

/// Stops a replica as an update does, and looks into its log.
async fn stop(cluster: &mut Cluster, n: usize) -> Vec<u8> {
    cluster.kill(n).await;
    written(&cluster.members[n].place).await
}

/// A kind that only the newer format has is refused, whichever replica is asked for it.
async fn is_refused(cluster: &Cluster) {
    let until = cluster.env.deadline_in(Duration::from_secs(60));
    let mut told = 0;
    for n in (0..cluster.members.len()).cycle() {
        if cluster.members[n].raft.is_none() {
            continue;
        }
        match cluster.raft(n).propose(pop(), cluster.soon()).await {
            Err(error @ ReplicationError::NotAgreed { needed: PAYLOAD_FORMAT, agreed: OLD }) => {
                assert!(error.to_string().contains("updated"), "{error}");
                told += 1;
            }
            Err(error) => assert!(!until.left(cluster.env.clock.as_ref()).is_zero(), "{error}"),
            Ok(output) => panic!("{output:?}"),
        }
        if told == cluster.members.len() {
            return;
        }
    }
}

/// Every running replica has everything, and the same.
async fn same_everywhere(cluster: &Cluster, expected: &[u64]) {
    let newest = cluster.newest(cluster.leader().await).await;
    for n in 0..cluster.members.len() {
        cluster.until("it is open", || cluster.raft(n).status().is_ok()).await;
        assert_eq!(cluster.list(n, "a", newest).await.unwrap(), expected, "replica {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_member_of_the_version_before_the_group_writes_the_older_format_until_it_is_updated() {
    let mut cluster = Cluster::prepare(3, quick()).await;
    // Not the one that is first elected, as a rule; whoever leads may be the old one below.
    let old = 2;
    cluster.members[old].newest_format = OLD;
    for n in 0..3 {
        cluster.boot(n).await;
    }
    let session = cluster.session().await;
    // Under every leader, the old one too.
    for round in 0..4 {
        for n in 1..=5 {
            cluster.push(session, round * 5 + n, "a").await;
        }
        is_refused(&cluster).await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.raft(leader).status().unwrap().format, OLD);
        let formats = stop(&mut cluster, leader).await;
        assert!(!formats.is_empty() && formats.iter().all(|format| *format == OLD), "{formats:?}");
        cluster.boot(leader).await;
    }
    let pushed: Vec<u64> = (1..=20).collect();
    same_everywhere(&cluster, &pushed).await;
    let formats = stop(&mut cluster, old).await;
    assert!(!formats.is_empty() && formats.iter().all(|format| *format == OLD), "{formats:?}");
    // Its update. Nobody tells the group.
    cluster.members[old].newest_format = PAYLOAD_FORMAT;
    cluster.boot(old).await;
    cluster
        .until("the group agrees on the new format, and every member knows", || {
            (0..3).all(|n| cluster.raft(n).status().is_ok_and(|status| status.format == PAYLOAD_FORMAT))
        })
        .await;
    assert_eq!(cluster.propose(pop()).await, Output::Done(Ok(19)));
    same_everywhere(&cluster, &pushed[..19]).await;
    // The next leaders know at once, also when a member cannot be asked.
    for _ in 0..2 {
        let leader = cluster.leader().await;
        cluster.kill(leader).await;
        let next = cluster.leader().await;
        assert_eq!(cluster.raft(next).status().unwrap().format, PAYLOAD_FORMAT);
        cluster.boot(leader).await;
    }
    for n in 0..3 {
        let formats = stop(&mut cluster, n).await;
        let first_new = formats.iter().position(|format| *format == PAYLOAD_FORMAT).unwrap();
        assert!(formats[..first_new].iter().all(|format| *format == OLD), "{formats:?}");
        assert!(formats[first_new..].iter().all(|format| *format == PAYLOAD_FORMAT), "{formats:?}");
        assert!(first_new >= 4, "{formats:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_be_asked_keeps_the_group_in_the_older_format() {
    let mut cluster = Cluster::prepare(3, quick()).await;
    for n in 0..3 {
        cluster.members[n].newest_format = OLD;
        cluster.boot(n).await;
    }
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    // Two are updated; the third is down the while.
    for n in 0..3 {
        cluster.kill(n).await;
    }
    for n in 0..2 {
        cluster.members[n].newest_format = PAYLOAD_FORMAT;
        cluster.boot(n).await;
    }
    for sequence in 2..=40 {
        cluster.push(session, sequence, "a").await;
        let pause = cluster.env.clock.now().plus(Duration::from_millis(50));
        cluster.env.clock.sleep_until(pause).await;
    }
    is_refused(&cluster).await;
    // It comes back as it was, and applies all of it.
    cluster.boot(2).await;
    same_everywhere(&cluster, &(1..=40).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_reads_a_format_it_does_not_know_halts_and_loses_nothing() {
    let limits = RaftLimits { snapshot_entries: 20, keep_entries: 5, ..quick() };
    let mut cluster = Cluster::start(3, limits).await;
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    cluster
        .until("the group agrees", || {
            (0..3).all(|n| cluster.raft(n).status().is_ok_and(|status| status.format == PAYLOAD_FORMAT))
        })
        .await;
    let victim = (cluster.leader().await + 1) % 3;
    let id = cluster.id(victim);
    // Through the entries of its own log; through its state; through a snapshot that is sent to it.
    for (round, more) in [(0, 3), (1, 3), (2, 60)] {
        cluster.kill(victim).await;
        for n in 0..more {
            cluster.push(session, 100 * round + n + 2, "a").await;
        }
        if more > 20 {
            let leader = cluster.leader().await;
            cluster
                .until("the log is cut behind the victim", || {
                    cluster.raft(leader).status().is_ok_and(|status| status.cut > 40)
                })
                .await;
        }
        cluster.members[victim].newest_format = OLD;
        cluster.boot(victim).await;
        cluster
            .until("it halts and says why", || {
                cluster.raft(victim).trouble().is_some_and(|why| why.contains("must be updated"))
            })
            .await;
        assert!(cluster.raft(victim).status().is_err(), "it serves nothing");
        // The others go on meanwhile.
        cluster.push(session, 100 * round + 99, "a").await;
        let list = cluster.read("a").await;
        cluster.kill(victim).await;
        cluster.members[victim].newest_format = PAYLOAD_FORMAT;
        cluster.boot(victim).await;
        cluster.until("it runs again", || cluster.raft(victim).status().is_ok()).await;
        assert_eq!(cluster.id(victim), id, "under its old name");
        same_everywhere(&cluster, &list).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_an_older_version_is_not_taken_in_once_the_group_writes_a_newer_format() {
    let mut cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    let agreed = |cluster: &Cluster| {
        (0..3).all(|n| cluster.raft(n).status().is_ok_and(|status| status.format == PAYLOAD_FORMAT))
    };
    cluster.until("the group agrees", || agreed(&cluster)).await;
    let stranger = cluster.stranger_of(OLD).await;
    let address = cluster.members[stranger].address.to_string();
    cluster.until("it can be asked", || cluster.raft(stranger).status().is_ok()).await;
    let leader = cluster.leader().await;
    let refused = cluster.raft(leader).add_replica(&address).await;
    let outdated =
        MembershipError::Outdated { address: address.clone(), newest: OLD, agreed: PAYLOAD_FORMAT };
    assert_eq!(refused, Err(outdated));
    cluster.kill(stranger).await;
    cluster.members[stranger].newest_format = PAYLOAD_FORMAT;
    cluster.boot(stranger).await;
    cluster.until("it can be asked", || cluster.raft(stranger).status().is_ok()).await;
    cluster.raft(cluster.leader().await).add_replica(&address).await.unwrap();
    same_everywhere(&cluster, &[1]).await;
    assert_eq!(cluster.list(stranger, "a", Consistency::Any).await.unwrap(), [1]);
}
