//! Groups of different ages; notes of deletions.

use alba_core::env::NamespaceStore as _;
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, ObjectName, ObjectVersion};
use alba_core::wire::rpc::nsm::{FragmentKey, ObjectUpdate, Overwrite};

use super::meta::Meta;
use super::*;
use crate::nsm::fixtures;

/// A server with every group of `world`, and what its health says.
async fn serve_all(world: &World, env: &Env) -> Arc<Node> {
    let groups = world.stores.iter().map(|(id, device)| {
        let device = device.clone();
        let opener: StoreOpener = Arc::new(move || Ok(Arc::new(device.open()) as Arc<dyn Kv>));
        (id.clone(), opener)
    });
    let advertise = world.address().to_string();
    let config = NodeConfig { groups: groups.collect(), advertise, limits: LocalLimits::default() };
    let node = Node::start(env.clone(), config, world.devices.clone()).await.unwrap();
    let listener = env.net.listen(world.address()).await.unwrap();
    let serving = serve(env.clone(), listener, node.clone(), ServerLimits::default());
    env.spawn.spawn(
        "server",
        Box::pin(async move {
            serving.await;
        }),
    );
    node
}

/// Loses one group of a world in which three OSDs and a namespace are, and gives what health says then.
fn without(group: &str, more: bool) -> (World, String) {
    let mut world = World::new(17, 3);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    world
        .sim
        .run(LIMIT, async {
            world.start(&theirs).await;
            let mut client = Client::connect(&ours, world.address()).await;
            client.add_and_claim(0..3).await;
            client.create("ns").await;
            client.until(<[_]>::is_empty).await;
        })
        .unwrap();
    world.server.crash();
    for store in world.stores.values() {
        store.crash(0);
    }
    world.stores.insert(GroupId::new(group).unwrap(), SimKvDevice::new());
    let theirs = world.server.env();
    let trouble = world.sim.run(LIMIT, async {
        let node = serve_all(&world, &theirs).await;
        if more {
            let mut client = Client::connect(&ours, world.address()).await;
            let record = client.create("other").await;
            assert_eq!(
                record.state,
                NamespaceState::Creating,
                "nothing is sent to a group that is of another age"
            );
        }
        for _ in 0..1000 {
            if let Some(trouble) = node.trouble() {
                return trouble;
            }
            ours.clock.sleep_until(ours.clock.now().plus(Duration::from_millis(100))).await;
        }
        panic!("it is as if nothing had happened");
    });
    (world, trouble.unwrap())
}

#[test]
fn an_abm_that_is_older_than_a_group_tells_it_nothing() {
    let (_, trouble) = without(ABM, true);
    assert!(trouble.contains("the ABM is older than group nsm-0"), "{trouble}");
    assert!(trouble.contains("alba recover-abm"), "{trouble}");
}

#[test]
fn a_group_that_is_older_than_the_abm_is_told_apart() {
    let (_, trouble) = without("nsm-0", false);
    assert!(trouble.contains("group nsm-0 is older than the ABM"), "{trouble}");
    assert!(trouble.contains("alba recover-nsm"), "{trouble}");
}

#[test]
fn osds_know_of_a_deletion_before_the_client_and_forget_it_with_the_fragments() {
    let world = World::new(18, 3);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        client.add_and_claim(0..3).await;
        let preset = alba_core::ids::PresetName::new("p").unwrap();
        let create = AbmCommand::CreatePreset { name: preset.clone(), preset: Box::new(fixtures::preset()) };
        client.abm(create).await.unwrap();
        let create = AbmCommand::CreateNamespace {
            name: NamespaceName::new("ns").unwrap(),
            preset: Some(preset),
            group: None,
        };
        let Ok(AbmOutcome::Namespace(record)) = client.abm(create).await else { panic!() };
        client.until(<[_]>::is_empty).await;
        let meta = Meta::connect(ours.clone(), vec![world.address()]);
        let tell = async |updates: Vec<ObjectUpdate>| {
            let epoch = GcEpoch::from_u32(0);
            let (namespace, asserts) = (record.id, Vec::new());
            let command = NsmCommand::Sequence { namespace, asserts, updates, epoch };
            meta.command(&record.group, command, ours.deadline_in(LIMIT)).await
        };
        let put = |name: &str, id: u8| {
            let manifest = fixtures::manifest(name, id, &[[Some(0), Some(1), Some(2)]]);
            fixtures::put(manifest, Overwrite::Unconditionally)
        };
        tell(vec![put("a", 1), put("b", 2)]).await.unwrap();
        let notes = || -> Vec<usize> {
            let prefix = osd_keys::deletion_notes(record.id);
            (0..3)
                .map(|n| world.osd(n).inner.content().keys().filter(|key| key.starts_with(&prefix)).count())
                .collect()
        };
        assert_eq!(notes(), [0, 0, 0]);
        let name = ObjectName::new("a").unwrap();
        let delete = || vec![ObjectUpdate::Delete { name: name.clone(), must_exist: false }];
        // One that does not answer is passed over.
        *world.osd(1).cut_off.lock().unwrap() = true;
        tell(delete()).await.unwrap();
        assert_eq!(notes(), [1, 0, 1]);
        tell(delete()).await.unwrap();
        assert_eq!(notes(), [1, 0, 1], "of what is not there no note is made");
        *world.osd(1).cut_off.lock().unwrap() = false;
        let key = |fragment| FragmentKey {
            object: ObjectId::new([1; 32]),
            chunk: ChunkIndex(0),
            fragment: FragmentIndex(fragment),
            version: ObjectVersion(0),
        };
        for n in 0..3 {
            assert_eq!(notes(), [1, 0, 1], "as long as a fragment waits to be deleted");
            let (namespace, osd) = (record.id, OsdId::from_u32(n));
            let deleted = NsmCommand::MarkKeysDeleted { namespace, osd, keys: vec![key(n)] };
            meta.command(&record.group, deleted, ours.deadline_in(LIMIT)).await.unwrap();
        }
        for _ in 0..100 {
            if notes() == [0, 0, 0] {
                return;
            }
            ours.clock.sleep_until(ours.clock.now().plus(Duration::from_millis(100))).await;
        }
        panic!("{:?}", notes());
    });
    running.unwrap();
}
