//! What is delivered when destinations refuse, are lost, or change.

use alba_core::wire::rpc::abm::{DeadLetter, Message, OsdMessage, WorkItem};

use super::*;

impl Client {
    async fn ask(&self, query: AbmQuery) -> AbmAnswer {
        match self.call(Request::AbmQuery(Consistency::Linearizable, query)).await {
            Reply::AbmAnswer(Ok(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    async fn letters(&self, destination: &Destination) -> Vec<DeadLetter> {
        let query = AbmQuery::DeadLetters { destination: destination.clone(), after: None, max: 10 };
        match self.ask(query).await {
            AbmAnswer::DeadLetters(page) => page.items,
            other => panic!("{other:?}"),
        }
    }

    async fn pause(&self) {
        self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(100))).await;
    }
}

fn marker(namespace: u32) -> OsdKey {
    osd_keys::namespace_marker(NamespaceId::from_u32(namespace))
}

async fn write(osd: &TestOsd, update: OsdUpdate, env: &Env) {
    let batch = OsdBatch { asserts: Vec::new(), updates: vec![update] };
    osd.inner.apply(batch, Priority::High, env.deadline_in(LIMIT)).await.unwrap();
}

/// The original's queue stood still for ever.
#[test]
fn a_message_that_a_device_refuses_does_not_hold_up_the_others() {
    let world = World::new(11, 1);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        client.add_and_claim(0..1).await;
        client.until(<[_]>::is_empty).await;
        // What should not be there: the device will not take namespace 0 on.
        let stray = OsdUpdate::Set(marker(0), on_device::value(osd_keys::NAMESPACE_ACTIVE));
        write(world.osd(0), stray, &ours).await;
        let (first, second) = (client.create("first").await, client.create("second").await);
        assert_eq!((first.id, second.id), (NamespaceId::from_u32(0), NamespaceId::from_u32(1)));
        client.until(<[_]>::is_empty).await;
        let destination = Destination::Osd(OsdId::from_u32(0));
        let letters = client.letters(&destination).await;
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        let is_first =
            matches!(&letter.message, Message::Osd(OsdMessage::AddNamespace { id, .. }) if *id == first.id);
        assert!(is_first, "{letter:?}");
        let osds = client.ask(AbmQuery::NamespaceOsds(second.id)).await;
        assert_eq!(osds, AbmAnswer::OsdIds(vec![OsdId::from_u32(0)]));
        assert_eq!(client.ask(AbmQuery::NamespaceOsds(first.id)).await, AbmAnswer::OsdIds(vec![]));
        // The device's counter has moved on as if nothing were missing.
        let next = &world.osd(0).inner.content()[&osd_keys::next_message()].value;
        assert_eq!(osd_keys::parse_message_id(next).unwrap().get(), 3);
        // The operator takes the stray key away and has it sent again.
        write(world.osd(0), OsdUpdate::Delete(marker(0)), &ours).await;
        client.abm(AbmCommand::RetryDeadLetter { destination, id: letter.id }).await.unwrap();
        client.until(<[_]>::is_empty).await;
        let osds = client.ask(AbmQuery::NamespaceOsds(first.id)).await;
        assert_eq!(osds, AbmAnswer::OsdIds(vec![OsdId::from_u32(0)]));
        assert_eq!(world.osd(0).inner.content()[&marker(0)].value, osd_keys::NAMESPACE_ACTIVE);
    });
    running.unwrap();
}

/// A wiped device, or one that is cut off, is trouble and not a refusal: nothing of its queue is given up.
#[test]
fn trouble_with_a_device_makes_no_dead_letters() {
    let world = World::new(12, 1);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        client.add_and_claim(0..1).await;
        client.until(<[_]>::is_empty).await;
        // As if it had been formatted anew: it counts from 0 again.
        write(world.osd(0), OsdUpdate::Delete(osd_keys::next_message()), &ours).await;
        client.create("ns").await;
        let until = ours.clock.now().plus(Duration::from_secs(120));
        ours.clock.sleep_until(until).await;
        assert_eq!(client.queues().await.len(), 1);
        assert_eq!(client.ask(AbmQuery::DeadLetterCounts).await, AbmAnswer::Queues(vec![]));
        // It is gone for good, says the operator: so is its queue.
        client.abm(AbmCommand::PurgeOsd { long_id: info(0).long_id }).await.unwrap();
        client.until(<[_]>::is_empty).await;
    });
    running.unwrap();
}

#[test]
fn a_lost_group_takes_its_messages_to_nowhere() {
    let world = World::new(13, 1);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        let gone = GroupId::new("gone").unwrap();
        let servers = vec!["10.9.9.9:1".to_owned()];
        client.abm(AbmCommand::CreateGroup { id: gone.clone(), servers }).await.unwrap();
        let name = NamespaceName::new("ns").unwrap();
        let group = Some(gone.clone());
        client.abm(AbmCommand::CreateNamespace { name: name.clone(), preset: None, group }).await.unwrap();
        assert_eq!(client.queues().await, [(Destination::Group(gone.clone()), 1)]);
        client.abm(AbmCommand::UpdateGroup { id: gone, servers: None, lost: true }).await.unwrap();
        client.until(<[_]>::is_empty).await;
        let group = GroupId::new("nsm-1").unwrap();
        client.abm(AbmCommand::RecoverNamespace { name: name.clone(), group: group.clone() }).await.unwrap();
        client.until(<[_]>::is_empty).await;
        let AbmAnswer::Namespace(Some(record)) = client.ask(AbmQuery::Namespace(name)).await else {
            panic!()
        };
        assert_eq!((record.state.clone(), &record.group), (NamespaceState::Active, &group));
        client.namespace(&record).await;
    });
    running.unwrap();
}

#[test]
fn osds_are_told_from_whom_they_may_copy() {
    let world = World::new(14, 3);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        let know = |n: usize, others: &[usize]| {
            let known = world.osd(n).peers.lock().unwrap().clone();
            others.iter().all(|other| known.contains(&info(*other).long_id)) && known.len() == others.len()
        };
        client.add_and_claim(0..2).await;
        while !(know(0, &[0, 1]) && know(1, &[0, 1])) {
            client.pause().await;
        }
        *world.osd(0).cut_off.lock().unwrap() = true;
        client.add_and_claim(2..3).await;
        while !(know(1, &[0, 1, 2]) && know(2, &[0, 1, 2])) {
            client.pause().await;
        }
        assert!(know(0, &[0, 1]), "it was cut off");
        *world.osd(0).cut_off.lock().unwrap() = false;
        client.abm(AbmCommand::PurgeOsd { long_id: info(2).long_id }).await.unwrap();
        while !(know(0, &[0, 1]) && know(1, &[0, 1])) {
            client.pause().await;
        }
    });
    running.unwrap();
}

/// What happened outside is the leader's word alone.
#[test]
fn clients_cannot_say_what_happened_outside() {
    let world = World::new(15, 1);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        let long_id = info(0).long_id;
        let destination = Destination::Osd(OsdId::from_u32(0));
        let id = alba_core::ids::MessageId::from_u32(0);
        for command in [
            AbmCommand::MarkClaimed { long_id: long_id.clone() },
            AbmCommand::MarkForeign { long_id, owner: "x".to_owned() },
            AbmCommand::MarkDelivered { destination: destination.clone(), upto: id },
            AbmCommand::MarkRefused { destination, id, reason: "x".to_owned() },
            AbmCommand::MarkPeersTold { osd: OsdId::from_u32(0), revision: 1 },
            AbmCommand::FinishMove {
                name: NamespaceName::new("x").unwrap(),
                to: GroupId::new("nsm-1").unwrap(),
            },
            AbmCommand::AbortMove {
                name: NamespaceName::new("x").unwrap(),
                to: GroupId::new("nsm-1").unwrap(),
            },
        ] {
            assert!(matches!(client.abm(command).await, Err(AbmError::BadArgument(_))));
        }
    });
    running.unwrap();
}

/// A large namespace that goes is millions of keys on each OSD: no message may wait for that.
#[test]
fn a_deleted_namespace_costs_an_osd_one_batch_and_the_rest_is_work_for_agents() {
    let world = World::new(4, 3);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        client.add_and_claim(0..3).await;
        let record = client.create("ns").await;
        let neighbour = client.create("neighbour").await;
        client.until(<[_]>::is_empty).await;
        let key = |namespace, n: u32| {
            let address = osd_keys::FragmentAddress {
                object_id: ObjectId::new([7; 32]),
                chunk: alba_core::ids::ChunkIndex(n),
                fragment: alba_core::ids::FragmentIndex(0),
                version: alba_core::ids::ObjectVersion(0),
            };
            osd_keys::fragment(namespace, &address)
        };
        let stored = || StoredValue { value: Bytes::from_static(b"x"), checksum: Checksum::None };
        for n in 0..450 {
            write(world.osd(0), OsdUpdate::Set(key(record.id, n), stored()), &ours).await;
        }
        write(world.osd(0), OsdUpdate::Set(key(neighbour.id, 0), stored()), &ours).await;
        client.abm(AbmCommand::DeleteNamespace { name: record.name.clone() }).await.unwrap();
        client.until(<[_]>::is_empty).await;
        assert_eq!(client.ask(AbmQuery::DeadLetterCounts).await, AbmAnswer::Queues(vec![]));
        let of = |namespace: NamespaceId| {
            let prefix = osd_keys::namespace_marker(namespace);
            world.osd(0).inner.content().keys().filter(|key| key.starts_with(&prefix)).count()
        };
        // The neighbour's: marker, name, preset and the fragment. Of the other all but the marker, which every write asserts.
        assert_eq!((of(record.id), of(neighbour.id)), (452, 4));
        assert!(!world.osd(0).inner.content().contains_key(&osd_keys::namespace_marker(record.id)));
        let AbmAnswer::Work(page) = client.ask(AbmQuery::Work { after: None, max: 10 }).await else {
            panic!()
        };
        let items: Vec<WorkItem> = page.items.into_iter().map(|record| record.item).collect();
        let clean = |n| WorkItem::CleanupOsdNamespace { osd: OsdId::from_u32(n), namespace: record.id };
        assert!(items.len() == 3 && (0..3).all(|n| items.contains(&clean(n))), "{items:?}");
        // The OSD has gone on counting.
        let again = client.create("ns").await;
        assert_ne!(again.id, record.id);
        client.until(<[_]>::is_empty).await;
        assert!(world.osd(0).inner.content().contains_key(&osd_keys::namespace_marker(again.id)));
    });
    running.unwrap();
}
