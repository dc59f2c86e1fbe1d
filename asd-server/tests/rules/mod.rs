//! What the program refuses, and what it lets strangers do.

mod idle;
mod quic;

use alba_core::checksum::Checksum;
use alba_core::env::files;
use alba_core::env::osd::ValueSlice;
use alba_core::range::RangeQuery;

use super::*;

fn small() -> OsdBatch {
    let stored = StoredValue { value: Bytes::from_static(b"value"), checksum: Checksum::None };
    OsdBatch { asserts: Vec::new(), updates: vec![OsdUpdate::Set("k".into(), stored)] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_others_reach_serves_direct_reads_unless_told_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let deadline = || env.deadline_in(WAIT);
    let (inside, metrics) = (free_address(), free_address());
    let outside = SocketAddr::from(([0, 0, 0, 0], inside.port()));
    let shown = format!("metrics_listen=\"{metrics}\"");
    {
        let _asd = start(&env, directory.path(), inside, &[]).await;
        client(&env, inside).apply(small(), Priority::High, deadline()).await.unwrap();
    }
    {
        let _asd = start(&env, directory.path(), outside, &[&shown]).await;
        let osd = client(&env, outside);
        let refused = osd.apply(small(), Priority::High, deadline()).await.unwrap_err().to_string();
        assert!(refused.contains("insecure_listen"), "{refused}");
        osd.range(RangeQuery::all(), Priority::High, deadline()).await.unwrap_err();
        osd.version(deadline()).await.unwrap();
        let slices = vec![ValueSlice { offset: 1, len: 3 }];
        let found = osd.partial_get("k".into(), slices, Priority::High, deadline()).await.unwrap();
        assert_eq!(found.unwrap(), [&b"alu"[..]]);
        let health = page(&env, metrics, "/health/ready").await;
        assert!(!health.contains("without authentication"), "{health}");
    }
    let _asd = start(&env, directory.path(), outside, &[&shown, "insecure_listen=true"]).await;
    client(&env, outside).apply(small(), Priority::High, deadline()).await.unwrap();
    let limit = deadline();
    loop {
        let health = page(&env, metrics, "/health/ready").await;
        if health.contains("without authentication") && health.starts_with("HTTP/1.1 200") {
            assert!(health.contains(&format!("\"long_id\":\"{LONG_ID}\"")), "{health}");
            break;
        }
        assert!(!limit.left(env.clock.as_ref()).is_zero(), "{health}");
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(50))).await;
    }
    let shown = page(&env, metrics, "/metrics").await;
    for name in [
        "alba_osd_condition{condition=\"full\"} 0",
        "alba_osd_queue_bytes{class=\"low\"} 0",
        "alba_osd_request_seconds_bucket{op=\"apply\"",
        "alba_osd_used_bytes 5",
    ] {
        assert!(shown.contains(name), "{name} is not in\n{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn formatting_and_looking_keep_to_their_rules() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    let env = real::env();
    let address = free_address();
    let closed = ["auto_format=false"];
    let text = ended(&mut command(&disk, address, &closed), 1);
    assert!(text.contains("is not formatted") && text.contains("asd-server format"), "{text}");
    assert!(!disk.exists());

    let format = |disk: &Path, id: &str| {
        let mut format = program("format");
        format.args(["--place", "node-0", "--long-id", id, "--data-dir"]).arg(disk);
        format
    };
    files::create_dir_all(&directory.path().join("other/photos")).unwrap();
    let text = ended(&mut format(&directory.path().join("other"), "x"), 1);
    assert!(text.contains("photos"), "{text}");
    let text = ended(&mut format(&disk, LONG_ID), 0);
    assert!(text.contains(LONG_ID) && text.contains("node-0"), "{text}");
    let text = ended(&mut format(&disk, "another"), 1);
    assert!(text.contains("already"), "{text}");
    let other = ["auto_format=false", "place=\"node-1\""];
    let text = ended(&mut command(&disk, address, &other), 1);
    assert!(text.contains("belongs to the ASD with place node-0"), "{text}");

    let asd = start(&env, &disk, address, &closed).await;
    client(&env, address).apply(small(), Priority::High, env.deadline_in(WAIT)).await.unwrap();
    let mut inspect = program("inspect");
    inspect.args(["--to-json", "--segments", "--keys", "k", "--data-dir"]).arg(&disk);
    for busy in [&mut inspect, &mut format(&disk, LONG_ID), &mut command(&disk, free_address(), &closed)] {
        let text = ended(busy, 1);
        assert!(text.contains("in use by a running ASD"), "{text}");
    }
    drop(asd);
    let found: serde_json::Value = serde_json::from_str(&ended(&mut inspect, 0)).unwrap();
    assert_eq!(found["identity"]["long_id"], LONG_ID);
    assert_eq!(found["keys"], serde_json::json!([{ "key": "6b", "text": "k", "bytes": 5 }]));
    assert!(!found["segments"].as_array().unwrap().is_empty());
    let mut people = program("inspect");
    people.args(["--keys", "--data-dir"]).arg(&disk);
    assert!(ended(&mut people, 0).contains("key k 5"));
    ended(&mut program("inspect"), 2);
    // Segments without an identity are nobody's to format.
    files::remove_file(&disk.join("identity.toml")).unwrap();
    for over in [&mut format(&disk, LONG_ID), &mut command(&disk, address, &[])] {
        let text = ended(over, 1);
        assert!(text.contains("nothing is formatted over data"), "{text}");
    }
}
