//! What a connection may do wrong, and that nobody else is hurt.

use std::sync::atomic::Ordering;
use std::time::Duration;

use alba_core::daemon::Context;
use alba_core::env::real;
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{Harness, PROLOGUE, Raw, hex, request, slices, until};

#[tokio::test]
async fn a_wrong_magic_is_closed_without_a_word() {
    let harness = Harness::new();
    for stranger in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0; 8], &[0x1b, 0xde, 0x79, 0x45]] {
        let mut raw = harness.raw();
        raw.send(stranger).await;
        raw.closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_closed() {
    let harness = Harness::new();
    let start = Instant::now();
    harness.raw().closed().await;
    assert_eq!(start.elapsed().as_secs(), 5);
    let mut half = harness.raw();
    half.send(&hex("1bde7944")).await;
    half.closed().await;
}

#[tokio::test(start_paused = true)]
async fn the_prologue_may_come_in_pieces_and_with_the_first_request() {
    let harness = Harness::new();
    let mut raw = harness.raw();
    let all = [hex(PROLOGUE), hex("0400000011000000"), hex("0c000000020000000400000064656d6f")].concat();
    for byte in all {
        raw.send(&[byte]).await;
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(raw.answer().await[..4], [0; 4]);
    assert_eq!(raw.answer().await, hex("0000000001"));
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_order() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    let ahead: Vec<u8> =
        (0..20).flat_map(|i| request(2).str(if i % 2 == 0 { "demo" } else { "nowhere" }).frame()).collect();
    raw.send(&ahead).await;
    for i in 0..20 {
        assert_eq!(raw.answer().await, [0, 0, 0, 0, u8::from(i % 2 == 0)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_length_beyond_the_limit_is_told_and_closed() {
    let harness = Harness::new();
    for prefix in [0x7fff_ffff_u32, 0x8000_0000, u32::MAX, (256 << 20) + 1] {
        let mut raw = harness.connect().await;
        raw.send(&prefix.to_le_bytes()).await;
        // More of it than the pipe holds: the error must come through all the same.
        raw.send(&[0; 5000]).await;
        let (code, text) = raw.error().await;
        assert_eq!(code, 1);
        assert!(text.contains("268435456") && text.contains("max_frame_bytes"), "{text}");
        raw.closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_uploads_may_have_long_frames() {
    let harness = Harness::new();
    let mut raw = harness.connect().await;
    raw.send(&(2_u32 << 20).to_le_bytes()).await;
    raw.send(&hex("02000000")).await;
    let (code, text) = raw.error().await;
    assert_eq!(code, 1);
    assert!(text.contains("1048576"), "{text}");
    raw.closed().await;
}

#[tokio::test(start_paused = true)]
async fn half_a_frame_is_told_and_closed_in_time() {
    let harness = Harness::new();
    let start = Instant::now();
    for half in ["0c0000", "0c00000002000000040000", "000000041800000004000000"] {
        let mut raw = harness.connect().await;
        raw.send(&hex(half)).await;
        let (code, text) = raw.error().await;
        assert_eq!(code, 1);
        assert!(text.contains("in time"), "{text}");
        raw.closed().await;
    }
    // 20 s each, for 64 MiB at 4 MiB/s 16 s more, and 2 s for the last word.
    assert!(start.elapsed() < Duration::from_secs(20 * 3 + 16 + 6), "{:?}", start.elapsed());
}

#[tokio::test]
async fn half_a_frame_and_gone_leaves_nothing() {
    for half in ["", "0c", "0c00000002000000040000"] {
        let harness = Harness::with(|config| config.max_client_connections = 1);
        let mut raw = harness.connect().await;
        raw.send(&hex(half)).await;
        drop(raw);
        served_again(&harness).await;
    }
}

/// With one connection allowed: the next one is served once the last one's slot is free.
async fn served_again(harness: &Harness) {
    let attempt = async {
        loop {
            let mut raw = harness.raw();
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let sent = [hex(PROLOGUE), request(2).str("demo").frame()].concat();
            let mut answer = [0; 9];
            if raw.0.write_all(&sent).await.is_ok() && raw.0.read_exact(&mut answer).await.is_ok() {
                assert_eq!(answer.as_slice(), hex("050000000000000001"));
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), attempt).await.expect("never served again");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let harness = Harness::with(|config| config.max_client_connections = 2);
    let mut first = harness.connect().await;
    let mut second = harness.connect().await;
    harness.raw().closed().await;
    first.alive().await;
    second.alive().await;
    drop((first, second));
    served_again(&harness).await;
}

#[tokio::test]
async fn a_request_is_cancelled_when_its_client_goes() {
    let harness = Harness::with(|config| config.max_client_connections = 1);
    *harness.fake.stalled.lock().unwrap() = true;
    let mut raw = harness.connect().await;
    raw.send(&request(4).str("demo").frame()).await;
    until(|| harness.fake.waiting.load(Ordering::SeqCst) == 1).await;
    drop(raw);
    until(|| harness.fake.cancelled.load(Ordering::SeqCst) == 1).await;
    *harness.fake.stalled.lock().unwrap() = false;
    served_again(&harness).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_end_is_answered_at_its_deadline() {
    let harness = Harness::new();
    *harness.fake.stalled.lock().unwrap() = true;
    let mut raw = harness.connect().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    std::fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    let all = [
        request(1).whole_range(),
        request(2).str("demo"),
        request(3).str("ns").byte(0),
        request(4).str("demo"),
        request(5).str("demo").whole_range(),
        request(8).str("demo").str("o").bool(true),
        request(9).str("demo").str("o").bool(true).bool(true),
        request(10).str("demo").str("o").str(file).bool(true).bool(true),
        request(11).str("demo").str("o").str(file).bool(true).byte(0),
        slices(13, "demo", &[("o", &[(0, 1)])]),
        request(14).str("demo"),
        request(16).str("demo"),
        request(21).str("demo").str("o").str(file).bool(true).byte(0),
        slices(23, "demo", &[("o", &[(0, 1)])]),
        request(24).str("demo").bool(false).i32(0).i32(1).byte(3).str("o"),
        request(26).str("demo").i32(1).str("o"),
        request(29),
        request(30).whole_range(),
    ];
    for request in all {
        let start = Instant::now();
        let (code, text) = raw.err(request.clone()).await;
        assert_eq!(code, 1);
        assert!(text.contains("deadline"), "{text}");
        assert_eq!(start.elapsed().as_secs(), 20, "{:?}", request.0);
    }
    assert_eq!(harness.fake.waiting.load(Ordering::SeqCst), 0);
    *harness.fake.stalled.lock().unwrap() = false;
    raw.alive().await;
}

#[tokio::test(start_paused = true)]
async fn a_ping_sleeps_alone() {
    let harness = Harness::new();
    let mut sleeper = harness.connect().await;
    let mut other = harness.connect().await;
    let start = Instant::now();
    sleeper.send(&request(20).f64(1.5).frame()).await;
    other.alive().await;
    assert!(start.elapsed() < Duration::from_millis(50));
    let mut reply = crate::harness::Reply(sleeper.answer().await.into());
    assert_eq!(reply.u32(), 0);
    let elapsed = start.elapsed();
    assert!((1500..1600).contains(&elapsed.as_millis()), "{elapsed:?}");
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!((reply.f64() - wall.as_secs_f64()).abs() < 60.0);
    reply.end();
    // Longer than any request's deadline.
    assert_eq!(other.ask(request(20).f64(100.0)).await[..4], [0; 4]);
    // No time at all, in two ways.
    for none in [0.0, -3.0] {
        assert_eq!(other.ask(request(20).f64(none)).await[..4], [0; 4]);
    }
    for nonsense in [f64::NAN, f64::INFINITY, 1e300, 3601.0] {
        let (code, text) = other.err(request(20).f64(nonsense)).await;
        assert_eq!(code, 1);
        assert!(text.contains("3600"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_ends_with_its_client() {
    let harness = Harness::with(|config| config.max_client_connections = 1);
    let mut raw = harness.connect().await;
    raw.send(&request(20).f64(3600.0).frame()).await;
    sleep(Duration::from_millis(10)).await;
    drop(raw);
    let start = Instant::now();
    served_again(&harness).await;
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_client_that_only_ended_its_own_side_gets_its_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let harness = Harness::new();
    let mut raw = harness.raw();
    raw.send(&[hex(PROLOGUE), request(2).str("demo").frame()].concat()).await;
    raw.0.shutdown().await.unwrap();
    let mut all = Vec::new();
    raw.0.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, hex("050000000000000001"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_is_given_up() {
    let harness = Harness::with(|config| config.max_client_connections = 1);
    harness.fake.put("obj", vec![7; 100_000]);
    let mut raw = harness.connect().await;
    raw.send(&slices(13, "demo", &[("obj", &[(0, 100_000)])]).frame()).await;
    let start = Instant::now();
    // Reads nothing; the pipe is full long before the end.
    sleep(Duration::from_secs(21)).await;
    served_again(&harness).await;
    assert!(start.elapsed() < Duration::from_secs(22));
    drop(raw);
}

#[tokio::test(start_paused = true)]
async fn large_requests_wait_for_room_and_are_told_when_there_is_none() {
    let mib = 1 << 20;
    let harness = Harness::with(|config| {
        config.max_frame_bytes = mib;
        config.max_request_bytes_in_flight = mib;
    });
    let upload = |len: usize| {
        request(24).str("demo").bool(false).i32(0).i32(1).byte(2).str("o").str(vec![1; len]).byte(0)
    };
    *harness.fake.stalled.lock().unwrap() = true;
    let mut holder = harness.connect().await;
    holder.send(&upload(900_000).frame()).await;
    until(|| harness.fake.waiting.load(Ordering::SeqCst) == 1).await;
    *harness.fake.stalled.lock().unwrap() = false;
    let mut other = harness.connect().await;
    let start = Instant::now();
    let (code, text) = other.err(upload(900_000)).await;
    assert_eq!(code, 1);
    assert!(text.contains("room"), "{text}");
    assert_eq!(start.elapsed().as_secs(), 10);
    // Small ones need none.
    other.alive().await;
    drop(holder);
    until(|| harness.fake.waiting.load(Ordering::SeqCst) == 0).await;
    other.ok(upload(900_000)).await;
}

#[tokio::test(start_paused = true)]
async fn stopping_lets_requests_end_and_idle_connections_go() {
    let harness = Harness::new();
    let env = real::env();
    let listener = env.net.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (context, stopper) = Context::new(env);
    let mut idle = harness.connect().await;
    idle.alive().await;
    let mut busy = harness.connect().await;
    busy.send(&request(20).f64(3.0).frame()).await;
    let mut stuck = harness.connect().await;
    stuck.send(&request(20).f64(3000.0).frame()).await;
    sleep(Duration::from_millis(10)).await;
    let server = harness.server.clone();
    let run = tokio::spawn(async move { server.run(listener, context.stop).await });
    sleep(Duration::from_millis(10)).await;
    let start = Instant::now();
    stopper.stop();
    idle.closed().await;
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(busy.answer().await[..4], [0; 4]);
    assert_eq!(start.elapsed().as_secs(), 2);
    busy.closed().await;
    stuck.closed().await;
    run.await.unwrap().unwrap();
    assert_eq!(start.elapsed().as_secs(), 8);
}

#[tokio::test]
async fn many_clients_at_once_get_their_own_answers() {
    let harness = std::sync::Arc::new(Harness::new());
    for i in 0..50 {
        harness.fake.put(&format!("o{i}"), format!("object {i}"));
    }
    let clients = (0..50_u8).map(|i| {
        let harness = harness.clone();
        tokio::spawn(async move {
            let mut raw: Raw = harness.connect().await;
            let name = format!("o{i}");
            for _ in 0..50 {
                let length = if i < 10 { 8 } else { 9 };
                let mut reply = raw.ok(slices(13, "demo", &[(&name, &[(0, length)])])).await;
                assert_eq!(reply.text(), format!("object {i}"));
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

mod garbage {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever arrives as a frame is answered with a frame, and the connection goes on.
        #[test]
        fn any_frame_is_answered(command in 0_i32..40, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Not commands that wait (ping) or touch files of the host (10, 11, 21, 24).
            prop_assume!(![10, 11, 20, 21, 24].contains(&command));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let harness = Harness::new();
                let mut raw = harness.connect().await;
                let mut request = request(command);
                request.0.extend(rest);
                raw.ask(request).await;
                raw.ask(crate::harness::request(17)).await;
            });
        }

        /// Whatever arrives on a connection, another one is served.
        #[test]
        fn any_bytes_harm_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..500), hello in any::<bool>()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(async {
                use tokio::io::AsyncWriteExt;
                let harness = Harness::new();
                let mut raw = if hello { harness.connect().await } else { harness.raw() };
                // It may be closed already.
                drop(timeout(Duration::from_secs(1), raw.0.write_all(&bytes)).await);
                harness.connect().await.alive().await;
            });
        }
    }
}
