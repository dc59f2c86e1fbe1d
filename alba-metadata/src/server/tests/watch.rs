//! Watches of a server with groups of one copy.

use alba_core::env::sim::Simulation;
use alba_core::wire::rpc::abm::MaintenanceUpdate;
use alba_core::wire::rpc::watch::{Seen, Topic, WatchReply, WatchRequest};

use super::*;
use crate::server::watch::Watches;

const WAIT: Duration = Duration::from_secs(10);

fn request(known: &Seen, wait: Duration) -> WatchRequest {
    WatchRequest { known: known.clone(), wait_ms: u32::try_from(wait.as_millis()).unwrap() }
}

impl Client {
    async fn watch(&self, known: &Seen, wait: Duration) -> WatchReply {
        match self.call(Request::Watch(request(known, wait))).await {
            Reply::Watch(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn news(&self, known: &Seen) -> Seen {
        match self.watch(known, WAIT).await {
            WatchReply::News(seen) => seen,
            other => panic!("{other:?}"),
        }
    }

    /// What there is when nothing is under way any more.
    async fn settled(&self) -> Seen {
        self.until(<[_]>::is_empty).await;
        let mut known = self.news(&Seen::nothing(&Topic::ALL)).await;
        while let WatchReply::News(seen) = self.watch(&known, Duration::from_secs(5)).await {
            known = seen;
        }
        known
    }
}

fn changed(before: &Seen, after: &Seen) -> Vec<Topic> {
    assert_eq!(before.lineage, after.lineage);
    let differs = |topic: &Topic| before.of(*topic) != after.of(*topic);
    Topic::ALL.into_iter().filter(differs).collect()
}

#[test]
fn a_change_wakes_who_asked_for_it_and_nobody_else() {
    let world = World::new(21, 2);
    let (ours, theirs) = (world.sim.node(2).env(), world.server.env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        client.add_and_claim(0..1).await;
        let record = client.create("ns").await;
        let waiting = Client::connect(&ours, world.address()).await;
        let mut known = waiting.settled().await;
        let began = ours.clock.now();
        let presets = known.asked_by(&Seen::nothing(&[Topic::PRESETS]));
        // A watch does not hold up other requests of its connection, and is not woken by other topics.
        let (quiet, osd) = tokio::join!(waiting.watch(&presets, WAIT), async {
            let osds = known.asked_by(&Seen::nothing(&[Topic::OSDS]));
            let (seen, ()) = tokio::join!(waiting.news(&osds), async {
                waiting.queues().await;
                client.abm(AbmCommand::AddOsd(info(1))).await.unwrap();
            });
            assert!(ours.clock.now().since(began) < Duration::from_secs(1));
            seen
        });
        assert_eq!(quiet, WatchReply::Quiet);
        assert!(ours.clock.now().since(began) >= WAIT);
        assert_eq!(osd.revisions.len(), 1, "only what was asked for");
        let now = waiting.news(&known).await;
        assert_eq!(changed(&known, &now), [Topic::OSDS]);
        // Told at once to who is behind, as often as it asks.
        assert_eq!(waiting.news(&known).await, now);
        known = now;

        let update = MaintenanceUpdate { enable_rebalance: Some(false), ..MaintenanceUpdate::default() };
        let (now, told) =
            tokio::join!(waiting.news(&known), client.abm(AbmCommand::UpdateMaintenance(update)));
        told.unwrap();
        assert_eq!(changed(&known, &now), [Topic::MAINTENANCE]);

        // What groups are told is heard of when they have it.
        client.claim(1).await.unwrap();
        client.until(<[_]>::is_empty).await;
        let known = waiting.settled().await;
        assert_eq!(client.namespace(&record).await.active_osds.len(), 2);
        assert!(changed(&now, &known).contains(&Topic::DELIVERIES));
        let gone = AbmCommand::DeleteNamespace { name: record.name.clone() };
        let (now, deleted) = tokio::join!(waiting.news(&known), client.abm(gone));
        deleted.unwrap();
        assert!(changed(&known, &now).contains(&Topic::NAMESPACES));
    });
    running.unwrap();
}

#[test]
fn after_a_restart_everything_counts_as_changed() {
    let world = World::new(22, 1);
    let ours = world.sim.node(2).env();
    let theirs = world.server.env();
    let known = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let client = Client::connect(&ours, world.address()).await;
        let known = client.settled().await;
        // Whoever waits when the server goes hears of it at once.
        let waits = Request::Watch(request(&known, WAIT));
        let (lost, ()) = tokio::join!(client.connection.call(&waits, ours.deadline_in(WAIT * 2)), async {
            ours.clock.sleep_until(ours.clock.now().plus(Duration::from_secs(1))).await;
            world.server.crash();
        });
        assert!(matches!(lost, Err(alba_core::net::rpc::RpcError::Lost(_))), "{lost:?}");
        known
    });
    let known = known.unwrap();
    let theirs = world.server.env();
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let client = Client::connect(&ours, world.address()).await;
        let now = client.news(&known).await;
        assert_ne!(now.lineage, known.lineage);
    });
    running.unwrap();
}

struct Alone {
    sim: Simulation,
    device: SimKvDevice,
    abm: Arc<Local<Abm>>,
}

/// An ABM without a server around it.
fn alone(seed: u64) -> Alone {
    let sim = Simulation::new(seed);
    let device = SimKvDevice::new();
    let opened = device.clone();
    let open: StoreOpener = Arc::new(move || Ok(Arc::new(opened.open())));
    let env = sim.node(1).env();
    let group = GroupId::new(ABM).unwrap();
    let abm = sim.run(LIMIT, async { Local::start(env, &group, open, LocalLimits::default()).await });
    Alone { abm: Arc::new(abm.unwrap().unwrap()), device, sim }
}

/// What is told now, as soon as the first look at the state is over.
async fn told(env: &Env, watches: &Watches) -> Seen {
    loop {
        match watches.wait(request(&Seen::nothing(&Topic::ALL), WAIT), None).await.reply {
            Reply::Watch(WatchReply::News(seen)) => return seen,
            Reply::Refused(Refusal::Behind) => {
                env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(10))).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_store_that_fails_sends_its_waiters_away_and_tells_again_when_it_is_back() {
    let Alone { sim, abm, device } = alone(24);
    let env = sim.node(1).env();
    let running = sim.run(LIMIT, async {
        let watches = Watches::start(&env, abm.clone(), 2);
        let known = told(&env, &watches).await;
        let update = |seconds| MaintenanceUpdate {
            auto_repair_timeout_seconds: Some(seconds),
            ..MaintenanceUpdate::default()
        };
        let change = |seconds| {
            let command = Input::Internal(AbmCommand::UpdateMaintenance(update(seconds)));
            abm.propose(command, env.deadline_in(WAIT))
        };
        let began = env.clock.now();
        let (away, failed) = tokio::join!(watches.wait(request(&known, WAIT), None), async {
            device.fail();
            change(2).await
        });
        assert!(failed.is_err());
        assert_eq!(away.reply, Reply::Refused(Refusal::Behind));
        assert!(env.clock.now().since(began) < Duration::from_secs(1));
        // Who comes now is sent away at once.
        let began = env.clock.now();
        assert_eq!(watches.wait(request(&known, WAIT), None).await.reply, Reply::Refused(Refusal::Behind));
        assert_eq!(env.clock.now(), began);
        // The device is well again.
        device.crash(0);
        env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(1))).await;
        change(3).await.unwrap();
        let now = told(&env, &watches).await;
        assert_eq!(changed(&known, &now), [Topic::MAINTENANCE]);
    });
    running.unwrap();
}

#[test]
fn only_so_many_may_wait() {
    let Alone { sim, abm, .. } = alone(23);
    let env = sim.node(1).env();
    let running = sim.run(LIMIT, async {
        let watches = Arc::new(Watches::start(&env, abm, 2));
        let known = told(&env, &watches).await;
        let wait = |seconds| {
            let (watches, request) = (watches.clone(), request(&known, Duration::from_secs(seconds)));
            async move { watches.wait(request, None).await.reply }
        };
        let (a, b, c) = tokio::join!(wait(5), wait(9), wait(1));
        assert_eq!(a, Reply::Watch(WatchReply::Quiet));
        assert_eq!(b, Reply::Watch(WatchReply::Quiet));
        assert_eq!(c, Reply::Watch(WatchReply::TooMany));
        // There is room again, also after one that was given up.
        tokio::select! {
            biased;
            _ = wait(9) => panic!("nothing has changed"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(tokio::join!(wait(1), wait(1)).0, Reply::Watch(WatchReply::Quiet));
        // Nobody waits longer than its sender does, or for nothing that could be told.
        let began = env.clock.now();
        let patience = Some(Duration::from_millis(50));
        let short = watches.wait(request(&known, WAIT), patience).await;
        assert_eq!(short.reply, Reply::Watch(WatchReply::Quiet));
        assert!(env.clock.now().since(began) < Duration::from_secs(1));
        let many = Seen { revisions: vec![(Topic(200), 0); 17], ..Seen::default() };
        let many = watches.wait(request(&many, WAIT), None).await.reply;
        assert!(matches!(many, Reply::Refused(Refusal::BadRequest(_))), "{many:?}");
    });
    running.unwrap();
}
