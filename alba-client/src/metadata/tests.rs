use std::collections::BTreeMap;

use alba_core::env::sim::{SimNode, Simulation};
use alba_core::ids::{AlbaId, GcEpoch, NamespaceId, ObjectName};
use alba_core::net::rpc::{Answer, Handler, ServerLimits, serve};
use alba_core::wire::rpc::SessionId;
use alba_core::wire::rpc::nsm::ObjectAssert;

use super::*;

const LIMIT: Duration = Duration::from_secs(600);

/// A group that executes each command once and remembers, and loses the first answers it is told to lose.
#[derive(Default)]
struct Server {
    state: Mutex<ServerState>,
}

#[derive(Default)]
struct ServerState {
    sessions: u64,
    lose: u32,
    handled: usize,
    forget_sessions: bool,
    executed: Vec<RequestId>,
    replies: BTreeMap<(SessionId, u64), Reply>,
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, request: Request, _: Option<Duration>) -> Answer {
        let (reply, lost) = {
            let mut state = self.state.lock().unwrap();
            state.handled += 1;
            let reply = match request {
                Request::OpenSession { .. } => {
                    state.sessions += 1;
                    state.forget_sessions = false;
                    Reply::Session(SessionId(state.sessions))
                }
                Request::Abm(..) if state.forget_sessions => Reply::Refused(Refusal::SessionUnknown),
                Request::Abm(id, _) => {
                    let key = (id.session, id.sequence);
                    if !state.replies.contains_key(&key) {
                        state.executed.push(id);
                        let alba_id = AlbaId::new(format!("answer {}", state.executed.len())).unwrap();
                        state.replies.insert(key, Reply::Abm(Ok(AbmOutcome::AlbaId(alba_id))));
                    }
                    state.replies[&key].clone()
                }
                Request::Nsm(_, id, _) => {
                    let key = (id.session, id.sequence);
                    if !state.replies.contains_key(&key) {
                        // A commit that may happen once: what it asserts is not true any more afterwards.
                        let again = NsmError::AssertFailed(ObjectName::new("o").unwrap());
                        let first = state.executed.is_empty();
                        state.executed.push(id);
                        let outcome = if first { Ok(NsmOutcome::Stored(Vec::new())) } else { Err(again) };
                        state.replies.insert(key, Reply::Nsm(outcome));
                    }
                    state.replies[&key].clone()
                }
                _ => Reply::Refused(Refusal::UnknownGroup),
            };
            let lost = matches!(reply, Reply::Abm(_) | Reply::Nsm(_)) && state.lose > 0;
            if lost {
                state.lose -= 1;
            }
            (reply, lost)
        };
        if lost {
            std::future::pending::<()>().await;
        }
        reply.into()
    }
}

struct World {
    sim: Simulation,
    server: Arc<Server>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self { sim: Simulation::new(seed), server: Arc::default() }
    }

    async fn start(&self) -> Arc<MetadataClient> {
        let servers = self.serve().await;
        MetadataClient::connect(self.sim.node(2).env(), servers)
    }

    async fn serve(&self) -> Vec<SocketAddr> {
        let node = self.sim.node(1);
        let theirs = node.env();
        let listener = theirs.net.listen(node.address(4000)).await.unwrap();
        let serving = serve(theirs.clone(), listener, self.server.clone(), ServerLimits::default());
        theirs.spawn.spawn(
            "server",
            Box::pin(async move {
                serving.await;
            }),
        );
        let nobody = self.sim.node(3).address(1);
        // The first server of the list is not there.
        vec![nobody, node.address(4000)]
    }

    fn bootstrap() -> AbmCommand {
        AbmCommand::Bootstrap { alba_id: AlbaId::new("wanted").unwrap() }
    }
}

fn answer(n: usize) -> Result<AbmOutcome, MetaError> {
    Ok(AbmOutcome::AlbaId(AlbaId::new(format!("answer {n}")).unwrap()))
}

#[test]
fn a_lost_answer_is_asked_for_again_under_the_same_id() {
    let world = World::new(1);
    let running = world.sim.run(LIMIT, async {
        let client = world.start().await;
        let directory: &dyn Directory = client.as_ref();
        let deadline = || world.sim.node(2).env().deadline_in(Duration::from_secs(60));
        world.server.state.lock().unwrap().lose = 2;
        assert_eq!(directory.command(World::bootstrap(), deadline()).await, answer(1));
        assert_eq!(directory.command(World::bootstrap(), deadline()).await, answer(2));
        let state = world.server.state.lock().unwrap();
        let ids: Vec<_> = state.executed.iter().map(|id| (id.sequence, id.lowest_unacknowledged)).collect();
        assert_eq!(ids, [(1, 1), (2, 2)]);
    });
    running.unwrap();
}

#[test]
fn a_commit_whose_answer_is_lost_gives_its_first_answer_and_is_not_made_twice() {
    let world = World::new(4);
    let running = world.sim.run(LIMIT, async {
        let client = world.start().await;
        let store: &dyn NamespaceStore = client.as_ref();
        let group = GroupId::new("nsm-0").unwrap();
        let commit = || NsmCommand::Sequence {
            namespace: NamespaceId::from_u32(1),
            asserts: vec![ObjectAssert::DoesNotExist(ObjectName::new("o").unwrap())],
            updates: Vec::new(),
            epoch: GcEpoch::from_u32(1),
        };
        let deadline = || world.sim.node(2).env().deadline_in(Duration::from_secs(60));
        world.server.state.lock().unwrap().lose = 3;
        let first = store.command(&group, commit(), deadline()).await;
        assert_eq!(first, Ok(NsmOutcome::Stored(Vec::new())));
        assert_eq!(world.server.state.lock().unwrap().executed.len(), 1);
        // Another command, though it says the same, is made.
        let second = store.command(&group, commit(), deadline()).await;
        assert!(matches!(second, Err(MetaError::Nsm(NsmError::AssertFailed(_)))), "{second:?}");
    });
    running.unwrap();
}

#[test]
fn an_unanswered_command_ends_at_its_deadline() {
    let world = World::new(2);
    let running = world.sim.run(LIMIT, async {
        let client = world.start().await;
        let env = world.sim.node(2).env();
        let directory: &dyn Directory = client.as_ref();
        world.server.state.lock().unwrap().lose = u32::MAX;
        let began = env.clock.now();
        let result = directory.command(World::bootstrap(), env.deadline_in(Duration::from_secs(20))).await;
        assert!(matches!(result, Err(MetaError::Unreachable { .. })), "{result:?}");
        assert!(env.clock.now().since(began) <= Duration::from_secs(21));
        assert_eq!(world.server.state.lock().unwrap().executed.len(), 1);
        // Given up: the group may forget it.
        world.server.state.lock().unwrap().lose = 0;
        let deadline = env.deadline_in(Duration::from_secs(20));
        assert_eq!(directory.command(World::bootstrap(), deadline).await, answer(2));
        assert_eq!(world.server.state.lock().unwrap().executed[1].lowest_unacknowledged, 2);
    });
    running.unwrap();
}

#[test]
fn a_forgotten_session_is_renewed_only_when_nothing_can_have_happened() {
    let world = World::new(3);
    let running = world.sim.run(LIMIT, async {
        let client = world.start().await;
        let env = world.sim.node(2).env();
        let directory: &dyn Directory = client.as_ref();
        let deadline = || env.deadline_in(Duration::from_secs(60));
        assert_eq!(directory.command(World::bootstrap(), deadline()).await, answer(1));
        // Sent once, refused: a new session, executed there.
        world.server.state.lock().unwrap().forget_sessions = true;
        assert_eq!(directory.command(World::bootstrap(), deadline()).await, answer(2));
        assert_eq!(world.server.state.lock().unwrap().sessions, 2);
        // Its answer was lost before the session was: whether it happened is unknown.
        world.server.state.lock().unwrap().lose = 1;
        let command = directory.command(World::bootstrap(), deadline());
        let forget = async {
            env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(2))).await;
            world.server.state.lock().unwrap().forget_sessions = true;
        };
        let (result, ()) = tokio::join!(command, forget);
        assert_eq!(result, Err(MetaError::SessionUnknown));
    });
    running.unwrap();
}

/// A replica that refuses everything.
struct Refuses(Refusal);

#[async_trait]
impl Handler for Refuses {
    async fn handle(&self, _: Request, _: Option<Duration>) -> Answer {
        Reply::Refused(self.0.clone()).into()
    }
}

/// A replica that leads nothing and takes another one for the leader.
async fn follower(node: &SimNode, leader: Option<String>) {
    refusing(node, Refusal::NotLeader { leader }).await;
}

async fn refusing(node: &SimNode, refusal: Refusal) {
    let env = node.env();
    let listener = env.net.listen(node.address(4000)).await.unwrap();
    let serving = serve(env.clone(), listener, Arc::new(Refuses(refusal)), ServerLimits::default());
    env.spawn.spawn(
        "follower",
        Box::pin(async move {
            serving.await;
        }),
    );
}

#[test]
fn a_follower_leads_to_the_leader_and_followers_that_point_at_each_other_end_at_the_deadline() {
    let world = World::new(4);
    let running = world.sim.run(LIMIT, async {
        let leader = world.sim.node(1).address(4000);
        drop(world.start().await);
        let (first, second) = (world.sim.node(4), world.sim.node(5));
        follower(&first, Some(leader.to_string())).await;
        let env = world.sim.node(2).env();
        let client = MetadataClient::connect(env.clone(), vec![first.address(4000)]);
        let directory: &dyn Directory = client.as_ref();
        let deadline = || env.deadline_in(Duration::from_secs(20));
        assert_eq!(directory.command(World::bootstrap(), deadline()).await, answer(1));
        // The leader is remembered: it is asked first from now on.
        assert_eq!(client.candidates(&GroupId::new("abm").unwrap())[0], leader);

        let third = world.sim.node(6);
        follower(&second, Some(third.address(4000).to_string())).await;
        follower(&third, Some(second.address(4000).to_string())).await;
        let lost = MetadataClient::connect(env.clone(), vec![second.address(4000)]);
        let directory: &dyn Directory = lost.as_ref();
        let result = directory.command(World::bootstrap(), deadline()).await;
        assert!(matches!(result, Err(MetaError::Unreachable { .. })), "{result:?}");
    });
    running.unwrap();
}

#[test]
fn a_replica_whose_storage_refuses_is_passed_over_and_a_leader_whose_storage_refuses_is_heard_of() {
    let world = World::new(5);
    let running = world.sim.run(LIMIT, async {
        let leader = world.sim.node(1).address(4000);
        drop(world.start().await);
        let (broken, lost) = (world.sim.node(4), world.sim.node(5));
        refusing(&broken, Refusal::Storage("not open".to_owned())).await;
        let env = world.sim.node(2).env();
        let deadline = || env.deadline_in(Duration::from_secs(20));
        let client = MetadataClient::connect(env.clone(), vec![broken.address(4000), leader]);
        let directory: &dyn Directory = client.as_ref();
        assert_eq!(directory.command(World::bootstrap(), deadline()).await, answer(1));
        // It is not taken for the leader.
        assert_eq!(client.candidates(&GroupId::new("abm").unwrap())[0], leader);

        // Somebody points at it: it does lead, and its answer is the group's, long before the deadline.
        follower(&lost, Some(broken.address(4000).to_string())).await;
        let nobody = world.sim.node(3).address(1);
        for servers in [vec![lost.address(4000), nobody], vec![broken.address(4000)]] {
            let client = MetadataClient::connect(env.clone(), servers);
            let directory: &dyn Directory = client.as_ref();
            let began = env.clock.now();
            let result = directory.query(AbmQuery::AlbaId, deadline()).await;
            assert_eq!(result, Err(MetaError::Storage("not open".to_owned())));
            assert!(env.clock.now().since(began) < Duration::from_secs(5));
        }
        // Nobody does, and another may still lead: it is waited for.
        let client = MetadataClient::connect(env.clone(), vec![broken.address(4000), nobody]);
        let directory: &dyn Directory = client.as_ref();
        let result = directory.query(AbmQuery::AlbaId, deadline()).await;
        assert!(matches!(result, Err(MetaError::Unreachable { .. })), "{result:?}");
    });
    running.unwrap();
}

#[test]
fn a_group_that_is_silent_is_asked_by_one_and_ever_more_rarely_until_it_answers_all() {
    const CALLERS: usize = 20;
    let world = World::new(7);
    let running = world.sim.run(LIMIT, async {
        let servers = world.serve().await;
        let env = world.sim.node(2).env();
        let outages = Outages::new(env.clone());
        let client = MetadataClient::connect_patiently(env.clone(), servers, outages.clone());
        let soon = || env.deadline_in(Duration::from_secs(20));
        let rest = |seconds| env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(seconds)));
        Directory::command(client.as_ref(), World::bootstrap(), soon()).await.unwrap();
        assert_eq!(outages.all(), []);
        let handled = || world.server.state.lock().unwrap().handled;

        // A short silence is nobody's business.
        world.server.state.lock().unwrap().lose = 1;
        Directory::command(client.as_ref(), World::bootstrap(), soon()).await.unwrap();
        assert_eq!(outages.all(), []);

        world.server.state.lock().unwrap().lose = u32::MAX;
        // Each asks again and again, like the tasks of an agent.
        let caller = async || {
            while Directory::command(client.as_ref(), World::bootstrap(), soon()).await.is_err() {
                rest(1).await;
            }
        };
        let callers = futures_util::future::join_all((0..CALLERS).map(|_| caller()));
        let watcher = async {
            rest(60).await;
            let [lost] = &outages.all()[..] else { panic!("{:?}", outages.all()) };
            assert_eq!(lost.group, client.abm);
            let (asked, attempts) = (handled(), lost.attempts);
            assert!((4..=20).contains(&attempts), "{attempts}");
            rest(60).await;
            let [lost] = &outages.all()[..] else { panic!("{:?}", outages.all()) };
            // A pause of 5 to 10 seconds, and 2.5 for the answer that does not come.
            let more = lost.attempts - attempts;
            assert!((4..=8).contains(&more), "{more}");
            assert!(handled() - asked <= 9, "{} of {CALLERS} callers", handled() - asked);
            assert!(lost.next <= env.clock.now().plus(Duration::from_secs(10)));
            world.server.state.lock().unwrap().lose = 0;
            let back = env.clock.now();
            while !outages.all().is_empty() {
                rest(1).await;
            }
            assert!(env.clock.now().since(back) <= Duration::from_secs(15));
        };
        let began = env.clock.now();
        tokio::join!(callers, watcher);
        assert!(env.clock.now().since(began) <= Duration::from_secs(140), "all are answered soon after");
    });
    running.unwrap();
}

/// Work on other groups must not wait for it.
#[test]
fn nobody_waits_for_ever_for_a_group_that_is_lost() {
    let world = World::new(8);
    let running = world.sim.run(LIMIT, async {
        let servers = world.serve().await;
        let env = world.sim.node(2).env();
        let client = MetadataClient::connect_patiently(env.clone(), servers, Outages::new(env.clone()));
        let hour = || env.deadline_in(Duration::from_secs(3600));
        let ask = async || Directory::command(client.as_ref(), World::bootstrap(), hour()).await;
        ask().await.unwrap();
        world.server.state.lock().unwrap().lose = u32::MAX;
        let began = env.clock.now();
        let (first, second) = tokio::join!(ask(), ask());
        for result in [first, second] {
            assert!(matches!(result, Err(MetaError::Unreachable { .. })), "{result:?}");
        }
        let waited = env.clock.now().since(began).as_secs();
        assert!((25..=45).contains(&waited), "{waited}");
        let began = env.clock.now();
        let mut at_once = 0;
        for _ in 0..10 {
            let before = env.clock.now();
            assert!(ask().await.is_err());
            at_once += u32::from(env.clock.now() == before);
        }
        // All but those whose turn it was to ask.
        assert!(at_once >= 8, "{at_once}");
        assert!(env.clock.now().since(began) <= Duration::from_secs(15));
    });
    running.unwrap();
}
