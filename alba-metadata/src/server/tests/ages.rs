//! Groups of different ages; notes of deletions.

use alba_core::env::NamespaceStore as _;
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, ObjectName, ObjectVersion};
use alba_core::wire::rpc::nsm::{FragmentKey, NsmOutcome, ObjectUpdate, Overwrite};

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

/// A group in which something happens just before a proposal.
struct Meanwhile {
    group: Arc<dyn Replicator<Nsm>>,
    /// Agreed on before the next client's command.
    first: Mutex<Option<NsmCommand>>,
    /// A member does not know the newer kind of sequence.
    old_member: bool,
}

#[async_trait]
impl Replicator<Nsm> for Meanwhile {
    async fn propose(
        &self,
        input: Input<NsmCommand>,
        deadline: Deadline,
    ) -> Result<(OutputOf<Nsm>, u64), ReplicationError> {
        if self.old_member && crate::machine::format_of::<Nsm>(&input) > 1 {
            return Err(ReplicationError::NotAgreed { needed: 2, agreed: 1 });
        }
        let first = self.first.lock().unwrap().take();
        if let Some(first) = first {
            let output = self.group.propose(Input::Internal(first), deadline).await?.0;
            assert!(matches!(output, Output::Done(Ok(_))), "{output:?}");
        }
        self.group.propose(input, deadline).await
    }

    async fn query(
        &self,
        query: NsmQuery,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<(Result<NsmAnswer, NsmError>, u64), ReplicationError> {
        self.group.query(query, consistency, deadline).await
    }

    async fn read(
        &self,
        read: crate::replicator::ReadWork,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<u64, ReplicationError> {
        self.group.read(read, consistency, deadline).await
    }

    fn commits(&self) -> tokio::sync::watch::Receiver<u64> {
        self.group.commits()
    }

    fn leadership(&self) -> tokio::sync::watch::Receiver<bool> {
        self.group.leadership()
    }

    fn copies(&self) -> usize {
        self.group.copies()
    }

    fn trouble(&self) -> Option<String> {
        self.group.trouble()
    }
}

#[test]
fn what_a_sequence_deleted_is_noted_whatever_came_before_it_and_whoever_answers() {
    let world = World::new(19, 3);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        let node = serve_all(&world, &theirs).await;
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
        let group = node.groups.nsm[&record.group].clone();
        let sequence = |updates| NsmCommand::Sequence {
            namespace: record.id,
            asserts: Vec::new(),
            updates,
            epoch: GcEpoch::from_u32(0),
        };
        let put = |name: &str, id: u8| {
            let manifest = fixtures::manifest(name, id, &[[Some(0), Some(1), Some(2)]]);
            fixtures::put(manifest, Overwrite::Unconditionally)
        };
        let delete = |name: &str| {
            let name = ObjectName::new(name).unwrap();
            ObjectUpdate::Delete { name, must_exist: true }
        };
        let soon = || theirs.deadline_in(Duration::from_secs(60));
        let is_noted = |id: u8| {
            let key = osd_keys::deletion_note(record.id, &ObjectId::new([id; 32]));
            (0..3).all(|n| world.osd(n).inner.content().contains_key(&key))
        };
        let Output::Session(session) = group.propose(Input::OpenSession([5; 16]), soon()).await.unwrap().0
        else {
            panic!()
        };
        let request = |sequence| RequestId { session, sequence, lowest_unacknowledged: 1 };
        let store = async |name: &str, id: u8| {
            let command = Input::Internal(sequence(vec![put(name, id)]));
            assert!(matches!(group.propose(command, soon()).await.unwrap().0, Output::Done(Ok(_))));
        };
        // A put gets in between the look and the deletion.
        store("a", 1).await;
        let racing = |first, old_member| -> Arc<dyn Replicator<Nsm>> {
            Arc::new(Meanwhile { group: group.clone(), first: Mutex::new(Some(first)), old_member })
        };
        let nsm = racing(sequence(vec![put("a", 2)]), false);
        let both = sequence(vec![put("c", 7), delete("a")]);
        let answer = node.nsm_command(&nsm, request(1), both, soon()).await;
        let Reply::Nsm(Ok(NsmOutcome::Stored(stored))) = &answer.reply else { panic!("{answer:?}") };
        assert_eq!(stored.len(), 1, "as to any sequence");
        assert!(is_noted(2), "it was deleted, and the client has heard so");
        // The server that had it agreed on did not live to note it; the client asks another one.
        store("b", 3).await;
        let NsmCommand::Sequence { namespace, asserts, updates, epoch } = sequence(vec![delete("b")]) else {
            panic!()
        };
        let telling = NsmCommand::DeletingSequence { namespace, asserts, updates, epoch };
        let output = group.propose(Input::Command(request(2), telling), soon()).await.unwrap().0;
        let deleted = vec![(0, ObjectId::new([3; 32]))];
        let told = NsmOutcome::StoredAndDeleted { stored: Vec::new(), deleted };
        assert_eq!(output, Output::Done(Ok(told)));
        assert!(!is_noted(3));
        // Whether that one knows that all members know the kind of sequence, or not yet.
        for old_member in [true, false] {
            let nsm: Arc<dyn Replicator<Nsm>> =
                Arc::new(Meanwhile { group: group.clone(), first: Mutex::default(), old_member });
            let answer = node.nsm_command(&nsm, request(2), sequence(vec![delete("b")]), soon()).await;
            assert_eq!(answer.reply, Reply::Nsm(Ok(NsmOutcome::Stored(Vec::new()))));
            assert!(is_noted(3), "old member: {old_member}");
        }
        // With a member of the version before: as it is at the look.
        store("d", 4).await;
        let nsm: Arc<dyn Replicator<Nsm>> =
            Arc::new(Meanwhile { group: group.clone(), first: Mutex::default(), old_member: true });
        let answer = node.nsm_command(&nsm, request(3), sequence(vec![delete("d")]), soon()).await;
        assert_eq!(answer.reply, Reply::Nsm(Ok(NsmOutcome::Stored(Vec::new()))));
        assert!(is_noted(4));
        // A retry of what was agreed on as the older kind, by a server that proposes the newer one.
        let answer = node.nsm_command(&group, request(3), sequence(vec![delete("d")]), soon()).await;
        assert_eq!(answer.reply, Reply::Nsm(Ok(NsmOutcome::Stored(Vec::new()))));
        // Clients have nothing to say about it.
        let NsmCommand::Sequence { namespace, asserts, updates, epoch } = sequence(vec![delete("c")]) else {
            panic!()
        };
        let theirs = NsmCommand::DeletingSequence { namespace, asserts, updates, epoch };
        let answer = node.nsm_command(&group, request(4), theirs, soon()).await;
        assert!(matches!(&answer.reply, Reply::Refused(Refusal::BadRequest(_))), "{answer:?}");
    });
    running.unwrap();
}
