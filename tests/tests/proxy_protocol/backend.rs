//! Namespaces, OSDs, versions, statistics.

use alba_tests::bytes::{Reply, asd, request, slices};

use crate::{World, refused, upload};

pub(crate) fn versions_and_sessions(world: &World) {
    let mut proxy = world.connect();
    let mut version = proxy.ok(request(17));
    let numbers = [version.i32(), version.i32(), version.i32()];
    assert!(numbers.iter().all(|number| *number >= -1), "{numbers:?}");
    assert!(!version.text().is_empty());
    version.end();

    let mut id = proxy.ok(request(29));
    let alba_id = id.text();
    id.end();
    assert_eq!(world.cluster.alba(&["get-alba-id"]).unwrap()["id"], alba_id.as_str());

    // The metadata servers, as version 1 of the original's description of a cluster.
    let mut config = proxy.ok(request(19));
    assert_eq!((config.byte(), config.text()), (1, alba_id));
    let nodes = config.list(|r| (r.text(), r.list(Reply::text), r.u32()));
    config.end();
    let servers: Vec<_> =
        world.cluster.ready.metadata.iter().map(|at| (at.ip(), u32::from(at.port()))).collect();
    let found: Vec<_> = nodes.iter().map(|(_, ips, port)| (ips[0].parse().unwrap(), *port)).collect();
    assert_eq!(found, servers);

    assert!(!proxy.ok(request(31)).bool(), "no fragment cache");

    // Session options: what is not known, has no value or means nothing is left out.
    let mut agreed = proxy.ok(request(32)
        .i32(3)
        .str("manifest_ser")
        .byte(1)
        .str([9])
        .str("manifest_ser")
        .byte(0)
        .str("x")
        .byte(1)
        .str("y"));
    assert_eq!(agreed.list(|r| (r.text(), r.str())), [("manifest_ser".to_owned(), vec![2])]);
    agreed.end();
    let mut agreed = proxy.ok(request(32).i32(1).str("manifest_ser").byte(1).str([1]));
    assert_eq!(agreed.list(|r| (r.text(), r.str())), [("manifest_ser".to_owned(), vec![1])]);
    proxy.ok(request(32).i32(0)).list(Reply::text);
}

pub(crate) fn namespaces(world: &World) {
    let mut proxy = world.connect();
    world.create_preset("mirror", [1, 1, 2, 1], "{}");
    proxy.done(request(3).str("plain").byte(0));
    proxy.done(request(3).str("mirrored").byte(1).str("mirror"));
    refused(&mut proxy, request(3).str("plain").byte(0), 4, "NamespaceAlreadyExists");
    refused(&mut proxy, request(3).str("other").byte(1).str("no such preset"), 9, "PresetDoesNotExist");
    for (name, there) in [("plain", true), ("other", false)] {
        let mut exists = proxy.ok(request(2).str(name));
        assert_eq!(exists.bool(), there);
        exists.end();
    }

    let mut page = proxy.ok(request(1).range(("", true), None, -1, false));
    assert_eq!((page.list(Reply::text), page.bool()), (named(&["demo", "mirrored", "plain"]), false));
    page.end();
    let mut page = proxy.ok(request(30).range(("demo", false), Some(("plain", true)), 1, true));
    assert_eq!(page.list(|r| (r.text(), r.text())), [("plain".to_owned(), "default".to_owned())]);
    assert!(page.bool());
    page.end();
    let mut page = proxy.ok(request(30).range(("demo", false), Some(("plain", false)), -1, false));
    assert_eq!(page.list(|r| (r.text(), r.text())), [("mirrored".to_owned(), "mirror".to_owned())]);
    assert!(!page.bool());

    proxy.done(request(4).str("plain"));
    assert!(!proxy.ok(request(2).str("plain")).bool());
    let nowhere = "plain";
    for command in [4, 14, 16] {
        refused(&mut proxy, request(command).str(nowhere), 5, "NamespaceDoesNotExist");
    }
    let everything = [
        request(5).str(nowhere).range(("", true), None, -1, false),
        request(8).str(nowhere).str("o").bool(true),
        request(9).str(nowhere).str("o").bool(true).bool(true),
        request(10).str(nowhere).str("o").str("/tmp/never-written").bool(true).bool(true),
        request(11).str(nowhere).str("o").str("/proc/self/cmdline").bool(true).byte(0),
        request(21).str(nowhere).str("o").str("/no/such/file").bool(true).byte(0),
        slices(13, nowhere, &[("o", &[(0, 1)])]),
        slices(23, nowhere, &[("o", &[(-5, -5)])]),
        upload(nowhere, &[("o", b"x")]),
        upload(nowhere, &[]),
        request(25).str(nowhere).names(&["o"]).bool(true).bool(true),
        request(26).str(nowhere).names(&["o"]),
    ];
    for request in everything {
        // Negative lengths together are found before anything else is looked at.
        if request.0[0] == 23 {
            refused(&mut proxy, request, 1, "Unknown");
        } else {
            refused(&mut proxy, request, 5, "NamespaceDoesNotExist");
        }
    }
    for command in [13, 23] {
        let mut nothing = proxy.ok(slices(command, nowhere, &[]));
        assert_eq!(nothing.str(), b"", "no entries: no error even here");
    }
    proxy.done(request(14).str("demo"));
    proxy.done(request(16).str("demo"));
}

fn named(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(crate) fn osds(world: &World) {
    let mut proxy = world.connect();
    let alba_id = proxy.ok(request(29)).text();
    let osds = asd::osd_info(&mut proxy);
    let levels = asd::osd_info_2(&mut proxy);
    assert_eq!(levels, [(alba_id.clone(), osds.clone())]);
    let mut found: Vec<_> =
        osds.values().map(|osd| (osd.long_id.as_str(), osd.node_id.as_str(), osd.at.port())).collect();
    let ready = &world.cluster.ready.osds;
    let mut expected: Vec<_> =
        ready.iter().map(|osd| (osd.long_id.as_str(), osd.node_id.as_str(), osd.port)).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);

    let mut view = proxy.ok(request(18));
    let claims = view.list(|r| {
        let long_id = r.text();
        assert_eq!(r.byte(), 1, "ours");
        (r.x_int64(), long_id)
    });
    let by_id: Vec<_> = osds.iter().map(|(id, osd)| (*id, osd.long_id.clone())).collect();
    let mut claims = claims;
    claims.sort();
    assert_eq!(claims, by_id);
    let states = view.list(|r| {
        let (id, json) = (r.x_int64(), r.text());
        assert_eq!((r.byte(), r.bool()), (1, false), "version; not disqualified");
        for _ in 0..2 {
            assert!(r.list(Reply::f64).len() <= 10);
        }
        assert!(r.list(|r| (r.f64(), r.text())).len() <= 10);
        assert!(r.list(Reply::f64).len() <= 10);
        drop(r.option(Reply::text));
        let ips = r.option(|r| r.list(Reply::text)).unwrap();
        let port = r.option(Reply::u32).unwrap();
        let (used, total) = (r.option(Reply::i64).unwrap(), r.option(Reply::i64).unwrap());
        assert!(used <= total && total > 0);
        assert_eq!(r.option(Reply::i64), Some(0), "damaged fragments");
        (id, json, ips, port)
    });
    view.end();
    assert_eq!(states.len(), osds.len());
    for (id, json, ips, port) in states {
        let osd = &osds[&id];
        assert_eq!((ips[0].as_str(), port), ("127.0.0.1", u32::from(osd.at.port())));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json["kind"],
            serde_json::json!(["Asd", [["127.0.0.1"], port, false, false], osd.long_id])
        );
        assert_eq!(json["node_id"], osd.node_id.as_str());
    }

    // No preset here encrypts; another backend's keys are not ours.
    for (alba, id) in [(alba_id.as_str(), 0), ("another", 0)] {
        let mut key = proxy.ok(request(33).str(alba).i64(id));
        assert!(!key.bool());
        key.end();
    }
    refused(&mut proxy, request(33).str(&alba_id).i64(1_000_000), 5, "NamespaceDoesNotExist");
}

/// What was counted for a namespace: requests as upload, download, partial reads (bytes, requests), deletes.
fn counted(r: &mut Reply) -> (String, [i64; 4], f64) {
    let stat = |r: &mut Reply| {
        let (n, average) = (r.i64(), r.f64());
        for _ in 0..6 {
            r.f64();
        }
        (n, average)
    };
    let namespace = r.text();
    let (upload, download) = (stat(r), stat(r));
    let manifests: Vec<u32> = (0..3).map(|_| r.u32()).collect();
    assert_eq!((r.u32(), r.u32()), (0, 0), "no fragment cache");
    let (size, count, _time, _objects) = (stat(r), stat(r), stat(r), stat(r));
    let delete = stat(r);
    for _ in 0..3 {
        stat(r);
    }
    assert!(r.f64() > 1e9);
    assert!(count.0 == 0 || manifests[0] + manifests[1] > 0, "what is read has a manifest");
    (namespace, [upload.0, download.0, count.0, delete.0], size.1)
}

pub(crate) fn statistics(world: &World) {
    let mut proxy = world.connect();
    let all = |clear: bool, forget: &[&str]| request(15).bool(clear).names(forget);
    proxy.ok(all(true, &[]));
    proxy.done(request(3).str("counted").byte(1).str("mirror"));
    proxy.ok(upload("counted", &[("a", &[7; 1000])]));
    proxy.ok(slices(13, "counted", &[("a", &[(0, 300), (500, 100)])]));
    proxy.ok(request(9).str("counted").str("a").bool(false).bool(true));
    let file = world.directory.join("counted-out");
    proxy.done(request(10).str("counted").str("a").str(file.to_str().unwrap()).bool(false).bool(false));
    proxy.done(request(8).str("counted").str("a").bool(false));
    proxy.ok(upload("demo", &[("b", b"b")]));

    let mut told = proxy.ok(request(15).bool(false));
    assert_eq!(told.byte(), 1);
    assert!(told.f64() > 1e9 && told.f64() >= 0.0);
    let mut namespaces = told.list(counted);
    told.end();
    namespaces.sort_by(|a, b| a.0.cmp(&b.0));
    let names: Vec<&str> = namespaces.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["counted", "demo"]);
    assert_eq!(namespaces[0].1, [1, 1, 1, 1]);
    assert_eq!(namespaces[0].2.to_bits(), 400.0_f64.to_bits());

    let names_of = |mut told: Reply| {
        assert_eq!(told.byte(), 1);
        assert!(told.f64() > 1e9 && told.f64() >= 0.0);
        told.list(counted).into_iter().map(|(name, ..)| name).collect::<Vec<_>>()
    };
    assert_eq!(names_of(proxy.ok(all(true, &["counted"]))), ["demo"]);
    assert_eq!(names_of(proxy.ok(all(false, &[]))), [""; 0]);
}
