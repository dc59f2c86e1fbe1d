//! What is large is moved by threads that give way to small requests, and small requests are not handed to them.

use std::sync::Arc;

use alba_core::env::sim::Given;
use alba_core::env::{Env, real};

use crate::harness::{Harness, request, slices, until};

/// Real threads of both kinds.
fn with_bulk() -> (Harness, Arc<Given>) {
    let env = real::env();
    let bulk = Given::to(env.bulk.clone());
    (Harness::on(Env { bulk: bulk.clone(), ..env }, |_| {}), bulk)
}

#[tokio::test]
async fn large_frames_and_answers_are_moved_by_threads_that_give_way() {
    const LARGE: usize = 1 << 20;
    let (harness, bulk) = with_bulk();
    harness.fake.put("large", vec![7; LARGE]);
    harness.fake.put("small", "small");
    let mut raw = harness.connect().await;

    let small = raw.ok(slices(13, "demo", &[("small", &[(0, 5)])])).await.str();
    assert_eq!((small.as_slice(), bulk.taken()), (b"small".as_slice(), vec![]));

    // The work itself is bulk, and so is its answer.
    let length = i32::try_from(LARGE).unwrap();
    let large = raw.ok(slices(13, "demo", &[("large", &[(0, length)])])).await.str();
    assert!(large == [7; LARGE]);
    assert_eq!(bulk.taken(), ["large request", "large frame"]);
    // The largest of what is small is that to its end, with manifests and without.
    for command in [13, 23] {
        raw.ok(slices(command, "demo", &[("large", &[(5, 64 << 10)])])).await;
        assert_eq!(bulk.taken(), Vec::<&str>::new(), "{command}");
    }
    // Many objects are much work, however little is asked of each.
    let many: [(&str, &[(i64, i32)]); 17] = [("small", &[(0, 1)]); 17];
    raw.ok(slices(23, "demo", &many)).await;
    assert_eq!(bulk.taken(), ["large request"]);

    // ApplySequence, one object by value, without a checksum.
    let upload = |data: &[u8]| {
        let none: [(); 0] = [];
        request(24)
            .str("demo")
            .bool(true)
            .list(&none, |r, ()| r)
            .list(&[data], |r, data| r.byte(2).str("new").str(data).byte(0))
    };
    raw.ok(upload(&[8; LARGE])).await;
    // Received there, and all that follows from it is done there.
    assert_eq!(bulk.taken()[..2], ["large frame", "request"]);
    raw.ok(upload(b"small")).await;
    assert_eq!(bulk.taken(), Vec::<&str>::new());

    // And the connection goes on.
    raw.alive().await;
}

#[tokio::test]
async fn who_goes_in_the_middle_of_something_large_ends_its_connection_only() {
    let (harness, bulk) = with_bulk();
    harness.fake.put("large", vec![7; 1 << 20]);
    // Half a frame, and half an answer.
    let mut raw = harness.connect().await;
    raw.send(&(1_u32 << 20).to_le_bytes()).await;
    raw.send(&24_u32.to_le_bytes()).await;
    raw.send(&[0; 200_000]).await;
    drop(raw);
    let mut raw = harness.connect().await;
    raw.send(&slices(13, "demo", &[("large", &[(0, 1 << 20)])]).frame()).await;
    let mut prefix = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut raw.0, &mut prefix).await.unwrap();
    drop(raw);
    until(|| harness.server.connections() == 0 && harness.server.request_bytes() == 0).await;
    assert!(bulk.taken().iter().filter(|name| **name == "large frame").count() >= 2);
    harness.connect().await.alive().await;
}
