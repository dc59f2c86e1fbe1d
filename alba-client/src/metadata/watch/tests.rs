//! Against servers with faults.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::env::sim::{SimNode, Simulation};
use alba_core::env::{Clock, Directory, MetaError};
use alba_core::ids::AlbaId;
use alba_core::net::rpc::{Answer, Handler, ServerLimits, serve};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery};
use alba_core::wire::rpc::watch::{Lineage, Seen, Topic, WatchReply, WatchRequest};
use alba_core::wire::rpc::{Refusal, Reply, Request};
use async_trait::async_trait;

use super::*;

const LIMIT: Duration = Duration::from_secs(600);

/// What a server does with a watch.
#[derive(Debug, Clone)]
enum Does {
    /// Tells this at once when it is news, else waits in vain.
    Tell(Seen),
    /// Does not know the request.
    Old,
    TooMany,
    /// Is cut off from its group.
    Behind,
    /// Never answers.
    Nothing,
}

struct Server {
    does: Mutex<Does>,
    watches: Mutex<usize>,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, request: Request, _: Option<Duration>) -> Answer {
        let Request::Watch(request) = request else {
            return Reply::AbmAnswer(Ok(AbmAnswer::AlbaId(AlbaId::new("backend").unwrap()))).into();
        };
        *self.watches.lock().unwrap() += 1;
        let does = self.does.lock().unwrap().clone();
        match does {
            Does::Tell(seen) if seen.is_news_to(&request.known) => {
                Answer { reply: Reply::Watch(WatchReply::News(seen)), index: 77 }
            }
            Does::Tell(_) => {
                self.clock.sleep_until(self.clock.now().plus(request.wait())).await;
                Reply::Watch(WatchReply::Quiet).into()
            }
            // As a server says that decodes the request and finds a variant that it does not know.
            Does::Old => Reply::Refused(Refusal::BadRequest("the message does not decode".to_owned())).into(),
            Does::TooMany => Reply::Watch(WatchReply::TooMany).into(),
            Does::Behind => Reply::Refused(Refusal::Behind).into(),
            Does::Nothing => std::future::pending().await,
        }
    }
}

async fn start(node: &SimNode, does: Does) -> Arc<Server> {
    let env = node.env();
    let server =
        Arc::new(Server { does: Mutex::new(does), watches: Mutex::default(), clock: env.clock.clone() });
    let listener = env.net.listen(node.address(4000)).await.unwrap();
    let serving = serve(env.clone(), listener, server.clone(), ServerLimits::default());
    env.spawn.spawn(
        "server",
        Box::pin(async move {
            serving.await;
        }),
    );
    server
}

fn seen(lineage: u64) -> Seen {
    Seen { lineage: Lineage(lineage), ..Seen::nothing(&Topic::ALL) }
}

fn request(known: Seen) -> WatchRequest {
    WatchRequest { known, wait_ms: 10_000 }
}

struct World {
    sim: Simulation,
    client: Arc<MetadataClient>,
}

impl World {
    fn new(seed: u64, servers: u32) -> Self {
        let sim = Simulation::new(seed);
        let seeds = (1..=servers).map(|n| sim.node(n).address(4000)).collect();
        let client = MetadataClient::connect(sim.node(100).env(), seeds);
        Self { sim, client }
    }

    async fn watch(&self, known: Seen) -> Result<WatchReply, MetaError> {
        let deadline = self.sim.node(100).env().deadline_in(Duration::from_millis(12_500));
        let directory: &dyn Directory = self.client.as_ref();
        directory.watch(request(known), deadline).await
    }
}

#[test]
fn whoever_tells_is_found_and_kept_and_another_takes_over_when_it_goes() {
    let world = World::new(1, 6);
    let running = world.sim.run(LIMIT, async {
        let node = |n| world.sim.node(n);
        let old = start(&node(1), Does::Old).await;
        start(&node(2), Does::TooMany).await;
        start(&node(3), Does::Behind).await;
        // Nobody listens at node 4.
        let first = start(&node(5), Does::Tell(seen(5))).await;
        start(&node(6), Does::Behind).await;
        assert_eq!(world.watch(seen(0)).await, Ok(WatchReply::News(seen(5))));
        assert_eq!(world.client.seen(&world.client.abm), 77, "to be read at least as new");
        let asked = *old.watches.lock().unwrap();
        assert_eq!(world.watch(seen(5)).await, Ok(WatchReply::Quiet));
        assert_eq!((*first.watches.lock().unwrap(), *old.watches.lock().unwrap()), (2, asked));
        // Cut off while it is waited for: known at once, and another one tells.
        let second = start(&node(4), Does::Tell(seen(4))).await;
        let env = node(100).env();
        let began = env.clock.now();
        let (told, ()) = tokio::join!(world.watch(seen(5)), async {
            env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(1))).await;
            node(5).crash();
        });
        assert_eq!(told, Ok(WatchReply::News(seen(4))));
        assert!(env.clock.now().since(began) < Duration::from_secs(8));
        assert_eq!(*second.watches.lock().unwrap(), 1);
    });
    running.unwrap();
}

#[test]
fn who_is_not_told_learns_why() {
    let world = World::new(2, 3);
    let running = world.sim.run(LIMIT, async {
        let (one, two) = (world.sim.node(1), world.sim.node(2));
        let unreachable = world.watch(seen(0)).await;
        assert!(matches!(unreachable, Err(MetaError::Unreachable { .. })), "{unreachable:?}");
        let first = start(&one, Does::Behind).await;
        let unreachable = world.watch(seen(0)).await;
        assert!(matches!(unreachable, Err(MetaError::Unreachable { .. })), "{unreachable:?}");
        start(&two, Does::Old).await;
        let old = world.watch(seen(0)).await;
        assert!(matches!(old, Err(MetaError::Protocol(_))), "{old:?}");
        *first.does.lock().unwrap() = Does::TooMany;
        assert_eq!(world.watch(seen(0)).await, Ok(WatchReply::TooMany));
    });
    running.unwrap();
}

#[test]
fn a_server_that_never_answers_costs_one_wait() {
    let world = World::new(3, 2);
    let running = world.sim.run(LIMIT, async {
        let silent = start(&world.sim.node(1), Does::Nothing).await;
        while *silent.watches.lock().unwrap() == 0 {
            let result = world.watch(seen(0)).await;
            assert!(matches!(result, Err(MetaError::Unreachable { .. })), "{result:?}");
        }
        start(&world.sim.node(2), Does::Tell(seen(2))).await;
        assert_eq!(world.watch(seen(0)).await, Ok(WatchReply::News(seen(2))));
        assert_eq!(*silent.watches.lock().unwrap(), 1, "asked last from then on");
    });
    running.unwrap();
}

#[test]
fn a_watch_shares_its_connection_with_requests_and_is_no_stuck_one() {
    let world = World::new(4, 1);
    let running = world.sim.run(LIMIT, async {
        let server = start(&world.sim.node(1), Does::Tell(seen(1))).await;
        let env = world.sim.node(100).env();
        let address = world.sim.node(1).address(4000);
        let deadline = || env.deadline_in(Duration::from_secs(60));
        let connection = world.client.connection(address, deadline()).await.unwrap();
        assert_eq!(world.watch(seen(0)).await, Ok(WatchReply::News(seen(1))));
        // Longer than any other request may take, with nothing else on the connection.
        assert_eq!(world.watch(seen(1)).await, Ok(WatchReply::Quiet));
        let directory: &dyn Directory = world.client.as_ref();
        let (quiet, ()) = tokio::join!(world.watch(seen(1)), async {
            for _ in 0..8 {
                let began = env.clock.now();
                directory.query(AbmQuery::AlbaId, deadline()).await.unwrap();
                assert!(env.clock.now().since(began) < Duration::from_secs(1));
                env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(1))).await;
            }
        });
        assert_eq!(quiet, Ok(WatchReply::Quiet));
        let now = world.client.connection(address, deadline()).await.unwrap();
        assert!(Arc::ptr_eq(&connection, &now), "one connection all the time");
        assert!(!connection.is_broken());
        assert_eq!(*server.watches.lock().unwrap(), 3);
    });
    running.unwrap();
}
