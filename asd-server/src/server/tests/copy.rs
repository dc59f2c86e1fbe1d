//! Values copied from a peer, and what is refused then.

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::osd::{OsdAssert, PeerSource};
use alba_core::env::real::OsRandom;

use super::*;
use crate::home::Home;

const PEER: &str = "the-peer";

fn value() -> Bytes {
    (0..100_000_u32).map(|i| (i / 7).to_le_bytes()[0]).collect::<Vec<_>>().into()
}

fn checksum() -> Checksum {
    ChecksumAlgorithm::Crc32c.of(&value())
}

fn source(peer: &str, key: &'static str, checksum: Checksum) -> PeerSource {
    PeerSource { peer: LongId::new(peer).unwrap(), key: OsdKey::from_static(key.as_bytes()), checksum }
}

/// A batch like a repair's: the fragment from a peer, and two small values beside it.
fn repair(source: PeerSource) -> OsdBatch {
    let key = |name: &'static str| OsdKey::from_static(name.as_bytes());
    let small = StoredValue { value: Bytes::from_static(b"info"), checksum: Checksum::None };
    OsdBatch {
        asserts: vec![OsdAssert::Absent(key("fragment"))],
        updates: vec![
            OsdUpdate::Set(key("recovery info"), small.clone()),
            OsdUpdate::SetFromPeer(key("fragment"), source),
            OsdUpdate::Set(key("tag"), small),
        ],
    }
}

/// An ASD, and a peer that holds a value; registered with it or not.
fn with_peer(registered: bool, scenario: impl AsyncFnOnce(&Asd, &Asd)) {
    let simulation = Simulation::new(8);
    let main = async {
        let asd = serve(&simulation, 1, LONG_ID, ServerLimits::default()).await;
        let peer = serve(&simulation, 2, PEER, ServerLimits::default()).await;
        let stored = StoredValue { value: value(), checksum: Checksum::None };
        let there = OsdUpdate::Set(OsdKey::from_static(b"there"), stored);
        let batch = OsdBatch { asserts: vec![], updates: vec![there] };
        peer.osd().apply(batch, Priority::High, peer.deadline()).await.unwrap();
        if registered {
            asd.service.peers().set(vec![peer_at(&peer)]).await.unwrap();
        }
        scenario(&asd, &peer).await;
    };
    simulation.run(LIMIT, main).unwrap();
}

fn peer_at(asd: &Asd) -> Peer {
    Peer { long_id: LongId::new(asd.long_id).unwrap(), addresses: vec![asd.address] }
}

async fn refused(asd: &Asd, source: PeerSource) -> String {
    let before = asd.engine.usage().used;
    let error = asd.osd().apply(repair(source), Priority::Low, asd.deadline()).await.unwrap_err();
    assert_eq!(asd.engine.usage().used, before, "nothing happened");
    error.to_string()
}

#[test]
fn a_value_is_fetched_verified_and_stored_with_the_rest_of_its_batch() {
    with_peer(true, async |asd, _| {
        let osd = asd.osd();
        osd.apply(repair(source(PEER, "there", checksum())), Priority::Low, asd.deadline()).await.unwrap();
        let keys = ["fragment", "recovery info", "tag"].map(|key| OsdKey::from_static(key.as_bytes()));
        let found = osd.multi_get(keys.to_vec(), Priority::High, asd.deadline()).await.unwrap();
        assert_eq!(found[0], Some(StoredValue { value: value(), checksum: checksum() }));
        assert!(found[1].is_some() && found[2].is_some());
        // Its asserts count: the second time nothing happens.
        let again = osd.apply(repair(source(PEER, "there", checksum())), Priority::Low, asd.deadline()).await;
        assert_eq!(again, Err(OsdError::AssertFailed(keys[0].clone())));
    });
}

#[test]
fn what_works_long_without_being_large_is_known_as_such() {
    let apply = |batch| Request::Apply { batch, priority: Priority::Low };
    assert!(works_long(&apply(repair(source(PEER, "there", checksum())))));
    // A value in the frame: that it is large is seen, and its connection changes sides.
    assert!(!works_long(&apply(put("key", 1 << 20))));
    assert!(!works_long(&Request::Health));
}

#[test]
fn whatever_does_not_fit_is_said_and_changes_nothing() {
    with_peer(true, async |asd, peer| {
        let text = refused(asd, source("stranger", "there", checksum())).await;
        assert!(text.contains("stranger") && text.contains("not registered"), "{text}");
        let text = refused(asd, source(PEER, "nowhere", checksum())).await;
        assert!(text.contains("no such value") && text.contains("nowhere"), "{text}");
        let wrong = ChecksumAlgorithm::Crc32c.of(b"another");
        let text = refused(asd, source(PEER, "there", wrong)).await;
        assert!(text.contains("checksum"), "{text}");
        let text = refused(asd, source(PEER, "there", Checksum::None)).await;
        assert!(text.contains("cannot be verified"), "{text}");
        peer.node.crash();
        let text = refused(asd, source(PEER, "there", checksum())).await;
        assert!(text.contains(PEER), "{text}");
        // The connection was kept throughout, and the ASD works.
        asd.osd().apply(put("k", 10), Priority::High, asd.deadline()).await.unwrap();
    });
    with_peer(false, async |asd, _| {
        assert!(refused(asd, source(PEER, "there", checksum())).await.contains("not registered"));
    });
}

#[test]
fn a_peer_that_does_not_answer_costs_no_more_than_the_deadline() {
    with_peer(true, async |asd, peer| {
        // It is connected.
        refused(asd, source(PEER, "nowhere", checksum())).await;
        peer.node.stall();
        let before = asd.client.env().clock.now();
        let text = refused(asd, source(PEER, "there", checksum())).await;
        let taken = asd.client.env().clock.now().since(before);
        assert!(text.contains("overloaded") && text.contains(PEER), "{text}");
        assert!(taken <= Duration::from_secs(31), "{taken:?}");
        peer.node.resume();
    });
}

#[test]
fn peers_are_remembered_over_restarts_and_replaced_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let home = Home::format(directory.path(), None, &"node-0".parse().unwrap(), &OsRandom).unwrap();
    with_peer(false, async |asd, peer| {
        let peers = asd.service.peers();
        peers.keep_in(&home.peers()).unwrap();
        assert_eq!(peers.get(), []);
        peers.set(vec![peer_at(peer), peer_at(asd)]).await.unwrap();
        peers.set(vec![peer_at(peer)]).await.unwrap();
        // As after a restart.
        let service = Service::new(asd.node.env(), ServiceLimits::default());
        service.peers().keep_in(&home.peers()).unwrap();
        assert_eq!(service.peers().get(), [peer_at(peer)]);
        // A file that is damaged is not taken for an empty one.
        alba_core::env::files::replace(&home.peers(), b"{").unwrap();
        assert!(service.peers().keep_in(&home.peers()).is_err());
    });
}
