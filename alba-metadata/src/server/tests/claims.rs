//! Whom devices belong to, and that none begins a second life with what is left of its first.

use super::*;

#[test]
fn a_device_of_another_backend_is_refused_with_its_owner() {
    let world = World::new(2, 1);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        let deadline = ours.deadline_in(LIMIT);
        let other = AlbaId::new("other-backend").unwrap();
        claim::take(&world.osd(0).inner, &info(0).long_id, &other, deadline).await.unwrap();
        claim::take(&world.osd(0).inner, &info(0).long_id, &other, deadline).await.unwrap();
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        assert_eq!(client.claim(0).await, Err(AbmError::OsdUnknown(info(0).long_id)));
        client.abm(AbmCommand::AddOsd(info(0))).await.unwrap();
        let owner = "other-backend".to_owned();
        let claimed = AbmError::OsdClaimed { long_id: info(0).long_id, owner: owner.clone() };
        assert_eq!(client.claim(0).await, Err(claimed));
        let record =
            client.call(Request::AbmQuery(Consistency::Linearizable, AbmQuery::Osd(info(0).long_id)));
        let Reply::AbmAnswer(Ok(AbmAnswer::Osd(Some(record)))) = record.await else { panic!() };
        assert_eq!((record.state, record.owner), (OsdState::Foreign, Some(owner)));
        *world.osd(0).cut_off.lock().unwrap() = true;
        assert!(matches!(client.claim(0).await, Err(AbmError::OsdUnreachable { .. })));
    });
    running.unwrap();
}

impl Client {
    /// What a maintenance agent does in the end: nothing is linked to the OSD any more.
    async fn complete_all_work(&mut self) {
        let query = AbmQuery::Work { after: None, max: 100 };
        let Reply::AbmAnswer(Ok(AbmAnswer::Work(page))) =
            self.call(Request::AbmQuery(Consistency::Linearizable, query)).await
        else {
            panic!()
        };
        let ids = page.items.into_iter().map(|record| record.id).collect();
        self.abm(AbmCommand::MarkWorkCompleted(ids)).await.unwrap();
    }
}

/// It would take the first messages of its new life for repetitions, and namespaces would never be made known to it.
#[test]
fn a_purged_osd_that_was_not_wiped_is_not_claimed() {
    let world = World::new(16, 1);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        client.add_and_claim(0..1).await;
        client.create("before").await;
        client.until(<[_]>::is_empty).await;
        client
            .abm(AbmCommand::DeleteNamespace { name: NamespaceName::new("before").unwrap() })
            .await
            .unwrap();
        client.until(<[_]>::is_empty).await;
        let long_id = info(0).long_id;
        client.abm(AbmCommand::PurgeOsd { long_id: long_id.clone() }).await.unwrap();
        assert_eq!(
            client.claim(0).await,
            Err(AbmError::OsdDecommissioned(long_id.clone())),
            "on its way out"
        );
        client.complete_all_work().await;
        client.until(<[_]>::is_empty).await;
        assert_eq!(client.claim(0).await, Err(AbmError::OsdUnknown(long_id.clone())), "it is forgotten");

        client.abm(AbmCommand::AddOsd(info(0))).await.unwrap();
        let before = world.osd(0).inner.content();
        for _ in 0..2 {
            match client.claim(0).await {
                Err(AbmError::OsdInfoMismatch { long_id: of, reason }) => {
                    assert_eq!(of, long_id);
                    for word in ["OSD 0", "purged", "asd-server format", "alba recover-abm"] {
                        assert!(reason.contains(word), "{word}: {reason}");
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(world.osd(0).inner.content(), before);

        // Wiped, it is as good as new.
        let updates = before.into_keys().map(OsdUpdate::Delete).collect();
        let wipe = OsdBatch { asserts: Vec::new(), updates };
        world.osd(0).inner.apply(wipe, Priority::High, ours.deadline_in(LIMIT)).await.unwrap();
        assert_eq!(client.claim(0).await, Ok(OsdId::from_u32(1)));
        let record = client.create("after").await;
        client.until(<[_]>::is_empty).await;
        let marker = osd_keys::namespace_marker(record.id);
        assert_eq!(world.osd(0).inner.content()[&marker].value, osd_keys::NAMESPACE_ACTIVE);
    });
    running.unwrap();
}

#[test]
fn claims_at_the_same_time_come_to_one_id() {
    for seed in 0..20 {
        let world = World::new(seed, 1);
        let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
        let running = world.sim.run(LIMIT, async {
            world.start(&theirs).await;
            let mut client = Client::connect(&ours, world.address()).await;
            let other = Client::connect(&ours, world.address()).await;
            client.abm(AbmCommand::AddOsd(info(0))).await.unwrap();
            let late = async {
                // While the first claim is under way, or just after it.
                let pause = Duration::from_micros(seed * 100);
                ours.clock.sleep_until(ours.clock.now().plus(pause)).await;
                other.claim(0).await
            };
            let (first, second) = tokio::join!(client.claim(0), late);
            assert_eq!((first, second), (Ok(OsdId::from_u32(0)), Ok(OsdId::from_u32(0))), "{seed}");
        });
        running.unwrap();
    }
}
