//! What the original does not have: roots that are compared, slices with their proof, peers, health.

use alba_core::blake3_tree::verify;
use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::Endpoint;
use alba_core::env::real::OsRandom;
use alba_core::range::RangeQuery;
use alba_core::wire::asd::Peer as WirePeer;
use alba_core::wire::osd_info::Capability;

use super::*;
use crate::home::Home;

fn value(len: usize) -> Bytes {
    (0..=250_u8).cycle().take(len).collect()
}

fn set(name: &'static str, stored: StoredValue) -> OsdBatch {
    OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Set(name.into(), stored)] }
}

fn with_root(value: Bytes) -> StoredValue {
    StoredValue { checksum: ChecksumAlgorithm::Blake3.of(&value), value }
}

fn peer(name: &str, addresses: &[&str]) -> WirePeer {
    let addresses = addresses.iter().map(|address| address.parse::<Endpoint>().unwrap()).collect();
    WirePeer { long_id: LongId::new(name).unwrap(), addresses }
}

#[test]
fn it_says_what_it_can_do() {
    run(ServerLimits::default(), async |asd| {
        let said = asd.osd().capabilities(asd.deadline()).await.unwrap();
        for ours in [Capability::ProvenGet, Capability::CopyFromPeer, Capability::Peers, Capability::Health] {
            assert!(said.contains(&ours), "{ours:?}");
        }
        // It says so exactly when it does so.
        let updates = vec![OsdUpdate::DeleteRange("a".into(), "b".into())];
        let batch = OsdBatch { asserts: vec![], updates };
        let done = asd.osd().apply(batch, Priority::High, asd.deadline()).await;
        assert_eq!(done.is_ok(), said.contains(&Capability::DeleteRange), "{done:?}");
    });
}

#[test]
fn values_with_a_wrong_root_are_refused_and_nothing_is_changed() {
    run(ServerLimits::default(), async |asd| {
        let osd = asd.osd();
        for len in [10, 1 << 20] {
            let wrong = StoredValue { value: value(len), checksum: with_root(value(len + 1)).checksum };
            let mut batch = set("right", with_root(value(len)));
            batch.updates.push(OsdUpdate::Set("wrong".into(), wrong));
            let refused = osd.apply(batch, Priority::High, asd.deadline()).await;
            assert_eq!(refused, Err(OsdError::WrongChecksum("wrong".into())));
            let keys = vec!["right".into(), "wrong".into()];
            let found = osd.multi_exists(keys, Priority::High, asd.deadline()).await.unwrap();
            assert_eq!(found, [false, false]);
        }
    });
}

#[test]
fn slices_are_proven_against_the_root() {
    run(ServerLimits::default(), async |asd| {
        let osd = asd.osd();
        let get = async |name: &'static str, offset, len| {
            osd.proven_get(name.into(), ValueSlice { offset, len }, Priority::High, asd.deadline()).await
        };
        for len in [1_u32, 16_384, 16_385, 1_000_000] {
            let stored = with_root(value(usize::try_from(len).unwrap()));
            osd.apply(set("k", stored.clone()), Priority::High, asd.deadline()).await.unwrap();
            let Checksum::Blake3(root) = stored.checksum else { panic!("a root") };
            for (from, to) in [(0, len), (len - 1, len), (len / 2, len), (len / 3, len / 3), (0, 1)] {
                let slice = ValueSlice { offset: from, len: to - from };
                let proven = get("k", slice.offset, slice.len).await.unwrap().unwrap();
                let verified = verify(root, len, slice, &proven).unwrap();
                let range = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
                assert_eq!(verified.as_bytes(), &stored.value.slice(range));
            }
            assert!(matches!(get("k", len, 1).await, Err(OsdError::BadRequest(_))));
        }
        assert_eq!(get("absent", 0, 1).await, Ok(None));
        osd.apply(put("without", 10), Priority::High, asd.deadline()).await.unwrap();
        assert!(matches!(get("without", 0, 1).await, Err(OsdError::BadRequest(_))));
    });
}

#[test]
fn peers_are_set_over_the_wire_and_kept_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let home = Home::format(directory.path(), None, &"node-0".parse().unwrap(), &OsRandom).unwrap();
    run(ServerLimits::default(), async |asd| {
        asd.service.peers().keep_in(&home.peers()).unwrap();
        let osd = asd.osd();
        let both = peer("a", &["quic://10.0.0.1:2", "tcp://10.0.0.1:1"]);
        osd.set_peers(vec![both, peer("b", &["tcp://10.0.0.2:1"])], asd.deadline()).await.unwrap();
        osd.set_peers(vec![peer("a", &["quic://10.0.0.1:2", "tcp://10.0.0.1:1"])], asd.deadline())
            .await
            .unwrap();
        let expected =
            Peer { long_id: LongId::new("a").unwrap(), addresses: vec!["10.0.0.1:1".parse().unwrap()] };
        for unreachable in [peer("c", &[]), peer("c", &["quic://10.0.0.1:2"])] {
            let refused = osd.set_peers(vec![unreachable], asd.deadline()).await;
            assert!(matches!(refused, Err(OsdError::BadRequest(_))), "{refused:?}");
        }
        assert_eq!(asd.service.peers().get(), std::slice::from_ref(&expected));
        let restarted = Service::new(asd.node.env(), ServiceLimits::default());
        restarted.peers().keep_in(&home.peers()).unwrap();
        assert_eq!(restarted.peers().get(), [expected]);
    });
}

#[test]
fn health_is_the_object_that_the_daemon_gave_it() {
    run(ServerLimits::default(), async |asd| {
        let health = async || asd.osd().health(asd.deadline()).await.unwrap();
        assert_eq!(health().await, r#"{"client_operations":0}"#);
        asd.service.set_health(r#"{"state":"failing"}"#.into());
        assert_eq!(health().await, r#"{"client_operations":0,"state":"failing"}"#);
        asd.service.set_engine(Err("the disk is on fire".into()));
        assert_eq!(health().await, r#"{"client_operations":0,"state":"failing"}"#, "also without a store");
    });
}

#[test]
fn what_clients_read_and_write_is_counted_and_nothing_else() {
    run(ServerLimits::default(), async |asd| {
        let osd = asd.osd();
        let key = OsdKey::from_static(b"k");
        let value = StoredValue { value: "v".into(), checksum: Checksum::None };
        let batch = OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Set(key.clone(), value)] };
        for (priority, counted) in [(Priority::Low, 0), (Priority::High, 2)] {
            osd.apply(batch.clone(), priority, asd.deadline()).await.unwrap();
            osd.multi_get(vec![key.clone()], priority, asd.deadline()).await.unwrap();
            osd.multi_exists(vec![key.clone()], priority, asd.deadline()).await.unwrap();
            osd.range(RangeQuery::all(), priority, asd.deadline()).await.unwrap();
            assert_eq!(osd.client_operations(asd.deadline()).await, Ok(Some(counted)));
        }
    });
}
