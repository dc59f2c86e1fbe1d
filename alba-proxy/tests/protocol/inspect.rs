//! What the proxy tells of its backend and of itself.

use std::sync::atomic::Ordering;

use alba_client::{ClientError, OsdOpinion, OsdReading};
use alba_core::encryption::{FragmentKey, KeyError};
use alba_core::ids::{LongId, NodeId, OsdId, Place};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{OsdEndpoint, OsdHealth, OsdInfo, OsdKind, OsdRecord, OsdState};

use crate::harness::{Harness, Raw, Reply, request, slices};

/// The OSD of the vectors Z01 and Y13.
pub fn vector_osd() -> OsdReading {
    OsdReading {
        record: OsdRecord {
            info: OsdInfo {
                long_id: LongId::new("asd_0").unwrap(),
                place: Place::of_node(NodeId::new("node_0").unwrap()),
                endpoint: OsdEndpoint::over_tcp(
                    vec!["127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
                    8000,
                ),
                capacity: ByteCount(1_000_000_000_000),
                used: ByteCount(4096),
            },
            osd_id: Some(OsdId::from_u32(3)),
            state: OsdState::Active,
            claimed_since: Some(1_000_000),
            kind: OsdKind::Asd,
            owner: None,
        },
        health: OsdHealth {
            read: vec![1_500_000],
            write: vec![3_000_000, 2_000_000],
            ..OsdHealth::default()
        },
        opinion: None,
    }
}

fn osd(long_id: &str, id: Option<u32>, state: OsdState) -> OsdReading {
    let mut reading = vector_osd();
    reading.record.info.long_id = LongId::new(long_id).unwrap();
    reading.record.osd_id = id.map(OsdId::from_u32);
    reading.record.state = state;
    reading
}

/// One in each state, in the order of long ids.
fn every_state() -> Vec<OsdReading> {
    let mut foreign = osd("f", None, OsdState::Foreign);
    foreign.record.owner = Some("another".to_owned());
    let mut odd = osd("g", None, OsdState::Foreign);
    odd.record.owner = None;
    vec![
        osd("a", None, OsdState::Available),
        osd("b", Some(5), OsdState::Active),
        osd("c", Some(2), OsdState::Decommissioning),
        osd("d", Some(9), OsdState::Draining),
        osd("e", Some(1), OsdState::Decommissioned),
        foreign,
        odd,
    ]
}

/// An entry of OsdInfo: id, and of the nested description (wire-protocol §7.1) the flag "decommissioned".
fn entry(r: &mut Reply) -> (u32, bool) {
    let id = r.u32();
    let mut info = Reply(r.str().into());
    assert_eq!(info.byte(), 3, "ser version");
    let mut inner = Reply(info.str().into());
    info.end();
    assert_eq!(inner.byte(), 1, "kind ASD");
    assert_eq!(inner.list(|r| r.text()), ["127.0.0.1", "10.0.0.1"]);
    assert_eq!((inner.u32(), inner.bool(), inner.bool()), (8000, false, false));
    let (_long_id, node, decommissioned) = (inner.text(), inner.text(), inner.bool());
    assert_eq!(node, "node_0");
    let capabilities = r.list(|r| (r.byte(), r.byte()));
    assert_eq!(capabilities, [(1, 1), (1, 2)]);
    (id, decommissioned)
}

#[tokio::test]
async fn claimed_osds_are_described_by_id() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    raw.ok(request(22)).await.list(entry).is_empty().then_some(()).unwrap();
    *harness.fake.osds.lock().unwrap() = every_state();
    let expected = [(1, true), (2, true), (5, false), (9, false)];
    let mut reply = raw.ok(request(22)).await;
    assert_eq!(reply.list(entry), expected);
    reply.end();
    let mut reply = raw.ok(request(28)).await;
    let levels = reply.list(|r| (r.text(), r.list(entry)));
    reply.end();
    assert_eq!(levels, [("the-backend".to_owned(), expected.to_vec())]);
}

#[tokio::test]
async fn the_view_tells_claims_and_how_osds_fare() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let mut osds = every_state();
    osds[1].opinion = Some(OsdOpinion { disqualified: true, checksum_errors: 4 });
    osds[1].health.errors = vec![(9_250_000, "eio".to_owned())];
    osds[1].health.seen = vec![8_000_000];
    osds[1].health.checksum_errors = 6;
    *harness.fake.osds.lock().unwrap() = osds;
    let mut reply = raw.ok(request(18)).await;
    let claim = |r: &mut Reply| {
        let long_id = r.text();
        let claim = match r.byte() {
            1 => r.u32().to_string(),
            2 => r.text(),
            3 => "free".to_owned(),
            tag => panic!("{tag}"),
        };
        (long_id, claim)
    };
    let expected =
        [("a", "free"), ("b", "5"), ("c", "2"), ("d", "9"), ("e", "1"), ("f", "another"), ("g", "unknown")];
    let expected = expected.map(|(id, claim)| (id.to_owned(), claim.to_owned()));
    assert_eq!(reply.list(claim), expected);

    let state = |r: &mut Reply| {
        let (id, json) = (r.u32(), r.text());
        assert_eq!((r.byte(), r.bool()), (1, id == 5), "version, disqualified");
        let (read, write) = (r.list(|r| r.f64()), r.list(|r| r.f64()));
        assert_eq!((read, write), (vec![1.5], vec![3.0, 2.0]));
        let (errors, seen) = (r.list(|r| (r.f64(), r.text())), r.list(|r| r.f64()));
        assert_eq!((errors.len(), seen.len()), if id == 5 { (1, 1) } else { (0, 0) });
        assert_eq!(errors.first().is_some_and(|(at, text)| *at == 9.25 && text == "eio"), id == 5);
        assert!(!r.bool(), "nothing announced");
        assert!(r.bool());
        assert_eq!(r.list(|r| r.text()), ["127.0.0.1", "10.0.0.1"]);
        assert!(r.bool());
        assert_eq!(r.u32(), 8000);
        let sizes: Vec<i64> = (0..3).map(|_| if r.bool() { r.i64() } else { -1 }).collect();
        assert_eq!(sizes, [4096, 1_000_000_000_000, if id == 5 { 4 } else { 0 }]);
        (id, json)
    };
    let states = reply.list(state);
    reply.end();
    assert_eq!(states.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 5, 9]);
    let json = &states[2].1;
    let expected = concat!(
        r#"{"kind":["Asd",[["127.0.0.1","10.0.0.1"],8000,false,false],"b"],"decommissioned":false,"#,
        r#""node_id":"node_0","other":"","total":1000000000000,"used":4096,"seen":[8.0],"read":[1.5],"#,
        r#""write":[3.0,2.0],"errors":[[9.25,"eio"]],"checksum_errors":6,"claimed_since":1.0}"#
    );
    assert_eq!(json, expected);
}

#[tokio::test]
async fn keys_are_given_to_those_who_name_the_backend_and_the_namespace() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let ask = |alba: &str, id: i64| request(33).str(alba).i64(id);
    // A preset that does not encrypt.
    assert!(!raw.ok(ask("the-backend", 7)).await.bool());
    harness.fake.keys.lock().unwrap().insert(7, FragmentKey::new([9; 32]));
    let mut reply = raw.ok(ask("the-backend", 7)).await;
    assert!(reply.bool());
    assert_eq!(reply.str(), [9; 32]);
    reply.end();
    for other in ["", "another", "the-backend2"] {
        assert!(!raw.ok(ask(other, 7)).await.bool(), "{other}");
    }
    for unknown in [8, 0, -1, i64::MIN, i64::MAX, 1 << 32] {
        assert_eq!(raw.err(ask("the-backend", unknown)).await.0, 5, "{unknown}");
    }
    // The cluster's key is not there; what goes out has nothing of any key.
    *harness.fake.trouble.lock().unwrap() = Some(ClientError::Key(KeyError::NoClusterKey));
    let (code, text) = raw.err(ask("the-backend", 7)).await;
    assert!(code == 1 && text.contains("cluster_key"), "{text}");
}

#[tokio::test]
async fn a_local_fragment_cache_is_told_of() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    for there in [false, true] {
        harness.fake.local_cache.store(there, Ordering::SeqCst);
        let mut reply = raw.ok(request(31)).await;
        assert_eq!(reply.bool(), there);
        reply.end();
    }
}

#[tokio::test]
async fn the_metadata_servers_are_told_as_a_cluster() {
    let harness = Harness::new();
    let mut reply = harness.connect().await.ok(request(19)).await;
    assert_eq!((reply.byte(), reply.text()), (1, "the-backend".to_owned()));
    let nodes = reply.list(|r| (r.text(), r.list(|r| r.text()), r.u32()));
    let node = |name: &str, ip: &str, port| (name.to_owned(), vec![ip.to_owned()], port);
    assert_eq!(nodes, [node("metadata-0", "127.0.0.1", 4000), node("metadata-1", "::1", 4001)]);
    reply.end();
}

/// A namespace in the statistics: how often uploaded, downloaded, deleted, read in part, read emptily; manifests cached and
/// fetched.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    namespace: String,
    requests: [i64; 5],
    manifests: [u32; 2],
}

fn stat(r: &mut Reply) -> (i64, f64) {
    let (n, average) = (r.i64(), r.f64());
    let rest: Vec<f64> = (0..6).map(|_| r.f64()).collect();
    // alpha; smallest and largest; mean square.
    assert_eq!(rest[5].to_bits(), 0.9_f64.to_bits());
    assert!(n == 0 || (rest[3] <= average && average <= rest[4]), "{rest:?}");
    (n, average)
}

fn counts(r: &mut Reply) -> Counts {
    let namespace = r.text();
    let (upload, download) = (stat(r), stat(r));
    let manifests = [r.u32(), r.u32()];
    assert_eq!((r.u32(), r.u32(), r.u32()), (0, 0, 0), "stale, hits, misses");
    let (size, count, _time, objects) = (stat(r), stat(r), stat(r), stat(r));
    assert_eq!((size.0, count.0), (objects.0, objects.0));
    if size.0 > 0 {
        // As `work` below does it: 3 bytes in 2 slices of 1 object.
        assert_eq!((size.1, count.1, objects.1), (3.0, 2.0, 1.0));
    }
    let delete = stat(r);
    let (empty, _time, objects) = (stat(r), stat(r), stat(r));
    assert_eq!(empty.0, objects.0);
    assert!(r.f64() > 1e9, "last updated");
    Counts { namespace, requests: [upload.0, download.0, delete.0, size.0, empty.0], manifests }
}

async fn work(raw: &mut Raw, namespace: &str) {
    let sequence = |updates: i32| request(24).str(namespace).bool(false).i32(0).i32(updates);
    raw.ok(sequence(1).byte(2).str("obj").str("123456789").byte(0)).await;
    raw.ok(slices(13, namespace, &[("obj", &[(0, 1), (5, 2)])])).await;
    raw.ok(slices(23, namespace, &[("obj", &[])])).await;
    raw.ok(request(9).str(namespace).str("obj").bool(true).bool(true)).await;
    let both = ["obj", "obj"];
    raw.ok(request(25).str(namespace).list(&both, |r, name| r.str(name)).bool(true).bool(true)).await;
    raw.ok(request(8).str(namespace).str("obj").bool(true)).await;
    raw.ok(sequence(1).byte(3).str("obj")).await;
    // Nothing to count: nothing was done.
    raw.ok(sequence(0)).await;
    raw.err(request(8).str(namespace).str("obj").bool(false)).await;
    raw.err(slices(13, "nowhere", &[("obj", &[(0, 1)])])).await;
    raw.ok(slices(13, "nowhere", &[])).await;
}

fn worked(namespace: &str) -> Counts {
    // The manifests: one for object info; two for the whole objects, of which the second is cached.
    Counts { namespace: namespace.to_owned(), requests: [1, 1, 2, 1, 1], manifests: [1, 2] }
}

#[tokio::test]
async fn statistics_are_kept_per_namespace() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    raw.ok(request(3).str("other").byte(0)).await;
    for namespace in ["demo", "other"] {
        work(&mut raw, namespace).await;
    }
    let tell = |clear: bool, forget: &[&str]| request(15).bool(clear).list(forget, |r, name| r.str(name));
    let read = |mut reply: Reply| {
        assert_eq!(reply.byte(), 1, "version");
        let (creation, period) = (reply.f64(), reply.f64());
        assert!(creation > 1e9 && period >= 0.0);
        let namespaces = reply.list(counts);
        reply.end();
        (creation, namespaces)
    };
    // Without the list of names, as old clients ask.
    let (creation, all) = read(raw.ok(request(15).bool(false)).await);
    assert_eq!(all, [worked("demo"), worked("other")]);
    // Forgotten, told, cleared; in this order.
    let (same, left) = read(raw.ok(tell(true, &["demo", "unknown", ""])).await);
    assert_eq!((same, left), (creation, vec![worked("other")]));
    let (later, none) = read(raw.ok(tell(false, &[])).await);
    assert!(later >= creation && none.is_empty());
    // A namespace that is deleted is not told of any more.
    work(&mut raw, "other").await;
    raw.ok(request(4).str("other")).await;
    assert!(read(raw.ok(tell(false, &[])).await).1.is_empty());
    // More bytes that are no list are an error of this request only.
    assert_eq!(raw.err(request(15).bool(false).i32(5)).await.0, 1);
    raw.alive().await;
}
