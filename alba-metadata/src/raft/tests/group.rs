use std::sync::Arc;
use std::time::Duration;

use alba_core::env::real;
use alba_core::ids::GroupId;
use alba_core::kv::{Kv, KvError};
use alba_core::wire::rpc::{Consistency, RequestId};

use super::cluster::{Cluster, Place, quick};
use super::model::{ListCommand, Lists};
use crate::machine::{Input, Output};
use crate::raft::log::LogLimits;
use crate::raft::{AnyRaft, Home, MembershipError, Peers, Raft, RaftConfig, RaftLimits, States};
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

/// No store can be opened.
struct Broken;

impl States for Broken {
    fn open(&self, _: u64) -> Result<Arc<dyn Kv>, KvError> {
        Err(KvError::Io("no such device".to_owned()))
    }

    fn remove(&self, _: u64) -> Result<(), KvError> {
        Ok(())
    }

    fn list(&self) -> Result<Vec<u64>, KvError> {
        Ok(Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_not_open_sends_clients_to_the_others() {
    let env = real::env();
    let config = RaftConfig {
        group: GroupId::new("lists").unwrap(),
        address: "127.0.0.1:1".to_owned(),
        peers: vec!["127.0.0.1:1".to_owned()],
        limits: quick(),
    };
    let home = Home { states: Arc::new(Broken), ..Place::new(1).home() };
    let raft = Raft::<Lists>::start(&env, config, home, Peers::new(&env));
    let soon = || env.deadline_in(Duration::from_secs(20));
    let push = Input::Internal(ListCommand::Push { key: "a".to_owned(), number: 1 });
    let proposed = raft.propose(push, soon()).await.map(|_| ());
    assert!(matches!(proposed, Err(ReplicationError::NotLeader { leader: None })), "{proposed:?}");
    for consistency in [Consistency::Linearizable, Consistency::Any] {
        let read = raft.query("a".to_owned(), consistency, soon()).await.map(|_| ());
        assert!(matches!(read, Err(ReplicationError::NotLeader { leader: None })), "{read:?}");
    }
    assert!(Replicator::trouble(&raft).is_some());
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
    let read =
        cluster.raft(follower).query("a".to_owned(), Consistency::AtLeast(index), cluster.soon()).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_far_behind_gets_a_snapshot() {
    let limits = RaftLimits { snapshot_entries: 20, keep_entries: 5, ..quick() };
    let mut cluster = Cluster::start(3, limits).await;
    let session = cluster.session().await;
    let late = (cluster.leader().await + 1) % 3;
    cluster.kill(late).await;
    for sequence in 1..=100 {
        cluster.push(session, sequence, "a").await;
        let fill = ListCommand::Fill { key: format!("{sequence}"), bytes: 60_000 };
        cluster.propose(Input::Internal(fill)).await;
    }
    let leader = cluster.leader().await;
    // What the late one has ends far before: the log cannot bring it up to date.
    cluster.until("the log is cut", || cluster.raft(leader).status().unwrap().cut >= 100).await;
    cluster.boot(late).await;
    cluster.until("it runs", || cluster.raft(late).status().is_ok()).await;
    let newest = cluster.newest(leader).await;
    assert_eq!(cluster.list(late, "a", newest).await.unwrap(), numbers(100));
    cluster.until("it tells so", || cluster.raft(late).status().unwrap().snapshot >= 100).await;
    // It is as good as any other.
    cluster.kill(late).await;
    cluster.boot(late).await;
    cluster.kill(leader).await;
    cluster.push(session, 101, "a").await;
    assert_eq!(cluster.read("a").await, numbers(101));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_replica_comes_back_under_another_name_and_takes_its_place() {
    let mut cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    let wiped = (cluster.leader().await + 1) % 3;
    let old = cluster.id(wiped);
    cluster.kill(wiped).await;
    cluster.members[wiped].place = Place::new(99);
    cluster.boot(wiped).await;
    cluster
        .until("it votes again", || {
            let Ok(status) = cluster.raft(wiped).status() else { return false };
            status.members.iter().any(|member| member.replica == status.replica && member.voter)
                && status.members.len() == 3
        })
        .await;
    assert_ne!(cluster.id(wiped), old);
    let leader = cluster.leader().await;
    // What a leader shows of its group may be a moment older than what a follower has got from it.
    cluster
        .until("the old one is forgotten", || {
            let members = cluster.raft(leader).status().unwrap().members;
            members.iter().all(|member| member.replica != old)
        })
        .await;
    // With it the group survives the loss of another.
    cluster.kill(leader).await;
    cluster.push(session, 2, "a").await;
    assert_eq!(cluster.read("a").await, numbers(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_log_alone_is_gone_does_not_vote_under_its_old_name() {
    let mut cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    let damaged = (cluster.leader().await + 1) % 3;
    let old = cluster.id(damaged);
    cluster.kill(damaged).await;
    for name in cluster.members[damaged].place.log.names() {
        assert!(cluster.members[damaged].place.log.lose(&name));
    }
    cluster.boot(damaged).await;
    cluster
        .until("it votes again", || {
            let Ok(status) = cluster.raft(damaged).status() else { return false };
            status.replica != old
                && status.members.iter().any(|member| member.replica == status.replica && member.voter)
        })
        .await;
    cluster.push(session, 2, "a").await;
    assert_eq!(cluster.read("a").await, numbers(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_added_and_removed_by_an_operator() {
    let mut cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    let stranger = cluster.stranger().await;
    cluster.until("it runs", || cluster.raft(stranger).status().is_ok()).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let address = cluster.members[stranger].address.to_string();
    let refused = cluster.raft(follower).add_replica(&address).await;
    assert_eq!(refused, Err(MembershipError::NotLeader));
    assert!(cluster.raft(stranger).status().unwrap().members.is_empty(), "nobody takes it in unasked");
    let id = cluster.raft(leader).add_replica(&address).await.unwrap();
    assert_eq!(id, cluster.id(stranger));
    assert_eq!(cluster.raft(leader).add_replica(&address).await.unwrap(), id, "a repeat is harmless");
    let unknown = cluster.raft(leader).remove_replica(12345).await;
    assert_eq!(unknown, Err(MembershipError::Unknown(12345)));
    let retired = cluster.id(follower);
    cluster.raft(leader).remove_replica(retired).await.unwrap();
    cluster.kill(follower).await;
    cluster.push(session, 2, "a").await;
    let newest = cluster.newest(leader).await;
    assert_eq!(cluster.list(stranger, "a", newest).await.unwrap(), numbers(2));
    let nobody = cluster.raft(leader).add_replica("127.0.0.1:1").await;
    assert!(matches!(nobody, Err(MembershipError::Unreachable { .. })), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_is_opened_again_and_nothing_is_lost() {
    let cluster = Cluster::start(1, quick()).await;
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    let device = cluster.members[0].place.states.0.lock().unwrap()[&1].clone();
    device.fail();
    let command = Input::Internal(ListCommand::Push { key: "a".to_owned(), number: 2 });
    let failed = cluster.raft(0).propose(command, cluster.env.deadline_in(Duration::from_secs(5))).await;
    assert!(failed.is_err());
    cluster.until("it is told", || Replicator::trouble(cluster.raft(0)).is_some()).await;
    // The device is well again; what it had not synced is gone.
    device.crash(0);
    // The second was in the log: a failed command may count.
    assert_eq!(cluster.read("a").await, numbers(2));
    cluster.until("it is well", || Replicator::trouble(cluster.raft(0)).is_none()).await;
    cluster.push(session, 3, "a").await;
    assert_eq!(cluster.read("a").await, numbers(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_refuses_commands_and_takes_them_again_when_there_is_room() {
    let log = LogLimits {
        segment_bytes: 1 << 20,
        spare_segments: 3,
        min_free_bytes: 0,
        retry_after: Duration::from_millis(50),
        ..LogLimits::default()
    };
    let mut cluster = Cluster::prepare(1, RaftLimits { log, keep_entries: 1_000_000, ..quick() }).await;
    cluster.members[0].place.log.set_capacity(8 << 20);
    cluster.boot(0).await;
    let mut refused = None;
    for n in 0..400 {
        let command = Input::Internal(ListCommand::Pad { key: "p".to_owned(), bytes: vec![1; 60_000] });
        cluster.leader().await;
        match cluster.raft(0).propose(command, cluster.soon()).await {
            Ok(_) => {}
            Err(ReplicationError::Store(KvError::NoSpace)) => {
                refused = Some(n);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused.is_some_and(|n| n > 10), "{refused:?}");
    let trouble = Replicator::trouble(cluster.raft(0)).unwrap();
    assert!(trouble.contains("no disk space"), "{trouble}");
    assert!(cluster.list(0, "a", Consistency::Linearizable).await.is_ok(), "reads go on");
    assert!(*cluster.raft(0).leadership().borrow(), "it did not stop");
    cluster.members[0].place.log.set_capacity(1 << 30);
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    cluster.until("it is well", || Replicator::trouble(cluster.raft(0)).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commands_share_entries_and_each_gets_its_own_answer() {
    let cluster = Arc::new(Cluster::start(3, quick()).await);
    let leader = cluster.leader().await;
    let before = cluster.raft(leader).status().unwrap().applied;
    let (answers, mut heard) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..400_u64 {
        let (cluster, answers) = (cluster.clone(), answers.clone());
        let task = async move {
            let command = ListCommand::Push { key: "a".to_owned(), number: number / 2 };
            let output = cluster.raft(leader).propose(Input::Internal(command), cluster.soon()).await;
            answers.send(output.unwrap().0).unwrap();
        };
        let env = real::env();
        drop(env.spawn.spawn("push", Box::pin(task)));
    }
    drop(answers);
    let (mut lengths, mut refused) = (Vec::new(), 0);
    while let Some(output) = heard.recv().await {
        match output {
            Output::Done(Ok(length)) => lengths.push(length),
            Output::Done(Err(_)) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    lengths.sort_unstable();
    assert_eq!((lengths, refused), (numbers(200), 200));
    let entries = cluster.raft(leader).status().unwrap().applied - before;
    assert!(entries < 200, "{entries} entries for 400 commands");
}

/// The library would let it go on as the leader it was, and answer reads without what it had committed and forgot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_at_once_leads_only_after_another_election() {
    let mut cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    for round in 0..3 {
        for n in 1..=5 {
            cluster.push(session, round * 5 + n, "a").await;
        }
        let leader = cluster.leader().await;
        let term = cluster.raft(leader).status().unwrap().term;
        cluster.kill(leader).await;
        cluster.boot(leader).await;
        let mut seen = None;
        cluster
            .until("somebody leads", || {
                seen = (0..3).find_map(|n| {
                    let status = cluster.raft(n).status().ok()?;
                    (status.leader == Some(status.replica)).then_some(status.term)
                });
                seen.is_some()
            })
            .await;
        assert!(seen.unwrap() > term, "the leadership of before the restart is over");
        assert_eq!(cluster.read("a").await, numbers(round * 5 + 5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_to_be_removed_gives_the_lead_away_first() {
    let cluster = Cluster::start(3, quick()).await;
    let session = cluster.session().await;
    cluster.push(session, 1, "a").await;
    let leader = cluster.leader().await;
    let id = cluster.id(leader);
    assert_eq!(cluster.raft(leader).remove_replica(id).await, Err(MembershipError::NotLeader));
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    cluster.raft(next).remove_replica(id).await.unwrap();
    cluster.push(session, 2, "a").await;
    assert_eq!(cluster.read("a").await, numbers(2));
    cluster
        .until("it knows that it is out", || {
            Replicator::trouble(cluster.raft(leader)).is_some_and(|why| why.contains("no member"))
        })
        .await;
}
