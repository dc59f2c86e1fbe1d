//! Metadata without a leader, and how it gets one: killed leaders, killed majorities, a leader that was cut off.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alba_client::metadata::MetadataClient;
use alba_core::env::{Env, NamespaceStore};
use alba_core::ids::ObjectName;
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmQuery, ObjectUpdate, Overwrite};
use alba_core::wire::rpc::{Consistency, Reply, Request, RequestId};
use alba_tests::hot_names::{NS, change, create_namespace, manifest};
use alba_tests::linearizable::Value;
use alba_tests::metadata_nodes::{MetadataNodes, Options, eventually, nsm_group};
use tokio::task::JoinHandle;

const WRITERS: u64 = 6;

/// How often the leader is killed: the median of so many is printed.
const KILLS: usize = 10;

/// A fail-over that takes longer than this is one that does not happen. What it should take is printed, not asserted: machines
/// that run other tests are slow.
const DEADLINE: Duration = Duration::from_secs(60);

/// One set of nodes at a time: they share the machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn start(label: &str) -> MetadataNodes {
    let nodes = MetadataNodes::start(label, Options::new(env!("CARGO_BIN_EXE_alba-under-test"))).await;
    create_namespace(&client(&nodes), nodes.env()).await;
    nodes
}

fn client(nodes: &MetadataNodes) -> Arc<MetadataClient> {
    MetadataClient::connect(nodes.env().clone(), nodes.fronts())
}

fn name(number: u64) -> ObjectName {
    ObjectName::new(format!("object {number:08}")).unwrap()
}

/// Every number names one object that is stored once.
fn put(number: u64) -> NsmCommand {
    let manifest = Box::new(manifest(name(number), Value(number)));
    change(ObjectUpdate::Put { manifest, overwrite: Overwrite::NoPrevious })
}

/// What was acknowledged.
#[derive(Clone, Default)]
struct Acknowledged {
    next: Arc<AtomicU64>,
    numbers: Arc<Mutex<Vec<u64>>>,
}

impl Acknowledged {
    fn count(&self) -> usize {
        self.numbers.lock().unwrap().len()
    }

    /// Stores the next object, however long it takes within the deadline.
    async fn store(&self, client: &MetadataClient, env: &Env) -> Result<(), String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let store: &dyn NamespaceStore = client;
        match store.command(&nsm_group(), put(number), env.deadline_in(DEADLINE)).await {
            Ok(_) => {
                self.numbers.lock().unwrap().push(number);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Reads all that was acknowledged.
    async fn is_all_there(&self, client: &MetadataClient, env: &Env) {
        let numbers = self.numbers.lock().unwrap().clone();
        let store: &dyn NamespaceStore = client;
        for some in numbers.chunks(100) {
            let names: Vec<ObjectName> = some.iter().map(|number| name(*number)).collect();
            let query = NsmQuery::Manifests { namespace: NS, names };
            let answer = store.query(&nsm_group(), query, env.deadline_in(DEADLINE)).await.unwrap();
            let NsmAnswer::Manifests(found) = answer else { panic!("{answer:?}") };
            assert_eq!(found.len(), some.len());
            for (number, found) in some.iter().zip(found) {
                let found = found.unwrap_or_else(|| panic!("object {number} was acknowledged and is lost"));
                assert_eq!(found.object_id, manifest(name(*number), Value(*number)).object_id);
            }
        }
    }
}

/// Clients that store objects as fast as they are acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(nodes: &MetadataNodes, acknowledged: &Acknowledged) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let writers = (0..WRITERS)
            .map(|_| {
                let (client, env) = (client(nodes), nodes.env().clone());
                let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        acknowledged.store(&client, &env).await.unwrap();
                    }
                })
            })
            .collect();
        Self { stop, writers }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
    }
}

/// Waits until the load gets on.
async fn until_stored(acknowledged: &Acknowledged, more: usize) {
    let before = acknowledged.count();
    eventually("objects are stored", || async {
        let now = acknowledged.count();
        if now >= before + more { Ok(()) } else { Err(format!("{now} of {}", before + more)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_resume_after_the_leader_is_killed() {
    let _turn = TURN.lock().await;
    let mut nodes = start("fail-over").await;
    let acknowledged = Acknowledged::default();
    let load = Load::start(&nodes, &acknowledged);
    let probe = client(&nodes);
    let mut took = Vec::new();
    for _ in 0..KILLS {
        until_stored(&acknowledged, 50).await;
        acknowledged.store(&probe, nodes.env()).await.unwrap();
        let leader = nodes.leader(&nsm_group()).await;
        nodes.kill(leader);
        let killed = Instant::now();
        // Sent when the leader is certainly dead: only its successor can acknowledge it.
        acknowledged.store(&probe, nodes.env()).await.unwrap();
        took.push(killed.elapsed());
        nodes.leader_other_than(&nsm_group(), Some(leader)).await;
        nodes.start_node(leader);
    }
    load.end().await;
    acknowledged.is_all_there(&client(&nodes), nodes.env()).await;
    took.sort();
    let median = (took[KILLS / 2 - 1] + took[KILLS / 2]) / 2;
    println!(
        "leader killed {KILLS} times under load: writes resumed after {median:.2?} (median), {took:.2?}"
    );
    println!("{} acknowledged objects are all there", acknowledged.count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_killed_and_restarted_resume_unattended() {
    let _turn = TURN.lock().await;
    let mut nodes = start("all-killed").await;
    let acknowledged = Acknowledged::default();
    let load = Load::start(&nodes, &acknowledged);
    for _ in 0..3 {
        until_stored(&acknowledged, 100).await;
        (0..nodes.len()).for_each(|node| nodes.kill(node));
        let dead = acknowledged.count();
        let began = Instant::now();
        (0..nodes.len()).for_each(|node| nodes.start_node(node));
        until_stored(&acknowledged, 50).await;
        println!("all nodes killed with {dead} objects; 50 more were stored after {:.2?}", began.elapsed());
    }
    load.end().await;
    acknowledged.is_all_there(&client(&nodes), nodes.env()).await;
    println!("{} acknowledged objects are all there", acknowledged.count());
}

/// One question to one node, and no other. Longer than a server takes for any: there is an answer.
async fn ask(nodes: &MetadataNodes, node: usize, request: Request) -> Result<Reply, String> {
    let connection = nodes.direct(node).await?;
    let deadline = nodes.env().deadline_in(Duration::from_secs(15));
    connection.call(&request, deadline).await.map(|answer| answer.reply).map_err(|error| error.to_string())
}

fn read(consistency: Consistency, number: u64) -> Request {
    let query = NsmQuery::Manifests { namespace: NS, names: vec![name(number)] };
    Request::NsmQuery(nsm_group(), consistency, query)
}

/// Did it answer, and if so, is the object there?
fn found(reply: &Result<Reply, String>) -> Option<bool> {
    match reply {
        Ok(Reply::NsmAnswer(Ok(NsmAnswer::Manifests(found)))) => Some(found[0].is_some()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_majority_refuses_consistent_reads_and_commands() {
    let _turn = TURN.lock().await;
    let mut nodes = start("minority").await;
    let acknowledged = Acknowledged::default();
    let client = client(&nodes);
    acknowledged.store(&client, nodes.env()).await.unwrap();
    let old = nodes.leader(&nsm_group()).await;
    let open = Request::OpenSession { group: nsm_group(), nonce: [7; 16] };
    let Ok(Reply::Session(session)) = ask(&nodes, old, open).await else { panic!("no session") };
    assert_eq!(found(&ask(&nodes, old, read(Consistency::Linearizable, 1)).await), Some(true));

    nodes.links.isolate(old);
    // Sent at once, while it still believes that it leads.
    let id = RequestId { session, sequence: 1, lowest_unacknowledged: 1 };
    let reply = ask(&nodes, old, Request::Nsm(nsm_group(), id, put(1_000_000))).await;
    assert!(matches!(reply, Ok(Reply::Refused(_))), "a command without a majority: {reply:?}");
    // The others go on without it.
    acknowledged.store(&client, nodes.env()).await.unwrap();
    let new = nodes.leader_other_than(&nsm_group(), Some(old)).await;
    for _ in 0..3 {
        let reply = ask(&nodes, old, read(Consistency::Linearizable, 2)).await;
        assert!(matches!(reply, Ok(Reply::Refused(_))), "a consistent read without a majority: {reply:?}");
    }
    // It says what it has to whoever wants no more than that.
    let reply = ask(&nodes, old, read(Consistency::Any, 2)).await;
    assert_eq!(found(&reply), Some(false), "{reply:?}");

    nodes.links.heal();
    let all = &nodes;
    eventually("the old leader has what it missed", || async move {
        let reply = ask(all, old, read(Consistency::Any, 2)).await;
        if found(&reply) == Some(true) { Ok(()) } else { Err(format!("{reply:?}")) }
    })
    .await;
    println!("node {old} was cut off, node {new} led on");
    acknowledged.is_all_there(&client, nodes.env()).await;
}
