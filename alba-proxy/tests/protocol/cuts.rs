//! One request of each command: cut off after every byte, and with more bytes behind it than it needs.

use alba_proxy::ProxyConfig;

use crate::harness::{Harness, PROLOGUE, Request, hex, request, slices};

/// Every command that exists, with valid arguments and nothing that changes what others see.
pub fn every_command() -> Vec<Request> {
    let file = "/nowhere/at/all";
    vec![
        request(1).whole_range(),
        request(2).str("demo"),
        request(3).str("demo").byte(1).str("default"),
        request(4).str("nowhere"),
        request(5).str("demo").str("a").bool(true).byte(1).str("b").bool(false).i32(7).bool(true),
        request(8).str("demo").str("none").bool(true),
        request(9).str("demo").str("obj").bool(true).bool(true),
        request(10).str("demo").str("none").str(file).bool(true).bool(true),
        request(11).str("demo").str("obj").str(file).bool(true).byte(1).byte(3).i32(1),
        slices(13, "demo", &[("obj", &[(0, 1), (2, 1)]), ("obj", &[])]),
        request(14).str("demo"),
        request(15).bool(false).list(&["a"], |r, name| r.str(name)),
        request(16).str("demo"),
        request(17),
        request(18),
        request(19),
        request(20).f64(0.0),
        request(21).str("demo").str("obj").str(file).bool(true).byte(0),
        request(22),
        slices(23, "demo", &[("obj", &[(0, 1)])]),
        request(24).str("demo").bool(true).i32(1).byte(1).str("obj").i32(1).byte(3).str("none"),
        request(25).str("demo").list(&["obj", "none"], |r, name| r.str(name)).bool(true).bool(true),
        request(26).str("demo").list(&["obj", "none"], |r, name| r.str(name)),
        request(28),
        request(29),
        request(30).whole_range(),
        request(31),
        request(32).i32(1).str("manifest_ser").byte(1).str([2]),
        request(33).str("the-backend").i64(7),
    ]
}

fn harness() -> Harness {
    // One connection more than any test here has open at once: a slot that is not given back is found out soon.
    let harness = Harness::with(|config: &mut ProxyConfig| config.max_client_connections = 3);
    harness.fake.put("obj", "data");
    harness
}

/// Waits until the server has a free slot, and makes sure that it serves.
async fn serves(harness: &Harness) {
    loop {
        let mut raw = harness.raw();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let hello = [hex(PROLOGUE), request(2).str("demo").frame()].concat();
        let mut answer = [0; 9];
        // Closed at once while the others still have their slots.
        if raw.0.write_all(&hello).await.is_ok() && raw.0.read_exact(&mut answer).await.is_ok() {
            assert_eq!(answer[4..], [0, 0, 0, 0, 1]);
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_may_go_after_any_byte_of_any_request() {
    let harness = harness();
    let mut cuts = 0;
    for request in every_command() {
        let all = [hex(PROLOGUE), request.frame()].concat();
        for length in 0..=all.len() {
            let mut raw = harness.raw();
            // The server may have closed before all of it was there.
            use tokio::io::AsyncWriteExt;
            drop(raw.0.write_all(&all[..length]).await);
            drop(raw);
            cuts += 1;
            if cuts % 2 == 0 {
                serves(&harness).await;
            }
        }
    }
    serves(&harness).await;
    assert!(cuts > 800, "{cuts}");
    assert_eq!(harness.fake.get("demo", "obj").unwrap(), "data");
}

#[tokio::test]
async fn bytes_behind_any_request_are_ignored() {
    let harness = harness();
    let mut raw = harness.connect().await;
    for request in every_command() {
        let mut plain = raw.ask(request.clone()).await;
        let more = Request([request.0.as_slice(), &[0xa5; 9]].concat());
        let mut tailed = raw.ask(more).await;
        // The times of Ping and in the statistics differ.
        match request.0[0] {
            20 => {
                plain.truncate(4);
                tailed.truncate(4);
            }
            15 => {
                plain.truncate(5);
                tailed.truncate(5);
            }
            _ => {}
        }
        assert_eq!(plain, tailed, "command {}", request.0[0]);
    }
    raw.alive().await;
}

/// Arguments that end too early are told as what they are, and the connection goes on.
#[tokio::test]
async fn a_frame_may_end_after_any_byte_of_any_request() {
    let harness = harness();
    let mut raw = harness.connect().await;
    let mut refused = 0;
    for request in every_command() {
        for length in 0..request.0.len() {
            // What a command may leave out.
            let complete = request.0[0] == 15 && length == 5;
            let answer = raw.ask(Request(request.0[..length].to_vec())).await;
            assert_eq!(answer[..4] == [1, 0, 0, 0], !complete, "command {} cut at {length}", request.0[0]);
            refused += 1;
        }
    }
    assert!(refused > 500, "{refused}");
    raw.alive().await;
}
