//! What clients that go away, stall or send nonsense leave behind: nothing. A process of its own, since descriptors and
//! memory are counted for all of it.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests; the harness has more than is used here"
)]

use std::sync::atomic::Ordering;
use std::time::Duration;

use alba_core::daemon::Context;
use alba_core::env::{Deadline, Env, Stream, real};
use alba_proxy::{ProxyConfig, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::fake::Fake;
use crate::harness::{Harness, PROLOGUE, Raw, hex, request, slices};

#[path = "protocol/fake.rs"]
mod fake;
#[path = "protocol/harness.rs"]
mod harness;

/// One at a time: they count what the process has.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Requests in all, and how many at once.
const REQUESTS: usize = 10_000;
const AT_ONCE: usize = 400;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes of memory in use.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// What one client says before it goes away; the requests of all kinds hang in the engine.
fn words(number: usize, file: &str) -> Vec<u8> {
    let whole = match number % 6 {
        0 => slices(13, "demo", &[("o", &[(0, 4096)])]),
        1 => request(11).str("demo").str("o").str(file).bool(true).byte(0),
        2 => request(10).str("demo").str("o").str(format!("{file}.{number}")).bool(true).bool(true),
        3 => request(24).str("demo").bool(false).i32(0).i32(1).byte(2).str("o").str([7; 100_000]).byte(0),
        4 => request(26).str("demo").i32(1).str("o"),
        _ => request(5).str("demo").whole_range(),
    };
    [hex(PROLOGUE), whole.frame()].concat()
}

#[tokio::test]
async fn ten_thousand_cancelled_requests_leave_no_task_and_no_descriptor() {
    let _alone = ALONE.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("input");
    std::fs::write(&file, [1; 5000]).unwrap();
    let file = file.to_str().unwrap();
    let mut config = ProxyConfig::new(vec![([127, 0, 0, 1], 4000).into()]);
    config.max_client_connections = 2 * AT_ONCE;
    let fake = Fake::with_demo();
    let env = real::env();
    let listener = env.net.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new(env.clone(), config, fake.clone());
    let (context, stopper) = Context::new(env.clone());
    let serving = {
        let server = server.clone();
        tokio::spawn(async move { server.run(listener, context.stop).await })
    };
    *fake.stalled.lock().unwrap() = true;
    let round = async |from: usize| {
        let mut clients: Vec<Stream> = Vec::new();
        for number in from..from + AT_ONCE {
            let mut client = env.net.connect(address, soon(&env)).await.unwrap();
            client.write_all(&words(number, file)).await.unwrap();
            clients.push(client);
        }
        until("all requests hang", || fake.waiting.load(Ordering::SeqCst) == AT_ONCE).await;
        drop(clients);
        until("all are cancelled", || fake.waiting.load(Ordering::SeqCst) == 0).await;
        until("no connection is left", || server.connections() == 0).await;
    };
    // Once, so that what is kept for later (blocking threads, buffers of the runtime) is there.
    round(0).await;
    let (tasks, open) = (Handle::current().metrics().num_alive_tasks(), descriptors());
    for from in (0..REQUESTS).step_by(AT_ONCE) {
        round(from).await;
    }
    assert_eq!(fake.cancelled.load(Ordering::SeqCst), REQUESTS + AT_ONCE);
    until("as many tasks as before", || Handle::current().metrics().num_alive_tasks() <= tasks).await;
    until("as many descriptors as before", || descriptors() <= open).await;
    assert_eq!(server.request_bytes(), 0);
    // Temporary files of downloads that never ended are no leak either.
    until("only the input is left", || std::fs::read_dir(directory.path()).unwrap().count() == 1).await;
    *fake.stalled.lock().unwrap() = false;
    let mut client = env.net.connect(address, soon(&env)).await.unwrap();
    client.write_all(&[hex(PROLOGUE), request(2).str("demo").frame()].concat()).await.unwrap();
    let mut answer = [0; 9];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer.as_slice(), hex("050000000000000001"));
    drop(client);
    stopper.stop();
    serving.await.unwrap().unwrap();
}

fn soon(env: &Env) -> Deadline {
    env.deadline_in(Duration::from_secs(30))
}

/// Idle, half a prologue, half a frame, a frame announced that never comes, an answer that nobody takes: ten thousand of
/// them, and another client does not notice.
#[tokio::test]
async fn ten_thousand_idle_and_half_dead_connections_cost_little_and_harm_nobody() {
    let _alone = ALONE.lock().await;
    let harness = Harness::with(|config| {
        config.max_client_connections = REQUESTS + 1;
        // Long enough that none is closed before all are there.
        config.request_timeout_ms = 600_000;
        config.handshake_timeout_ms = 600_000;
    });
    harness.fake.put("o", vec![7; 100_000]);
    let (tasks, memory) = (Handle::current().metrics().num_alive_tasks(), resident());
    let mut others: Vec<Raw> = Vec::new();
    for number in 0..REQUESTS {
        let mut raw = harness.raw();
        let said = match number % 6 {
            0 => hex(PROLOGUE),
            1 => hex("1bde79"),
            2 => hex(&format!("{PROLOGUE}0c0000")),
            3 => hex(&format!("{PROLOGUE}0c00000002000000040000")),
            4 => hex(&format!("{PROLOGUE}0000001018000000")),
            _ => [hex(PROLOGUE), slices(13, "demo", &[("o", &[(0, 100_000)])]).frame()].concat(),
        };
        raw.send(&said).await;
        others.push(raw);
    }
    until("all are connected", || harness.server.connections() == REQUESTS).await;
    let mut alive = harness.connect().await;
    alive.alive().await;
    harness.raw().closed().await;
    alive.ok(slices(13, "demo", &[("o", &[(0, 50)])])).await;
    // Pipes and tasks of this test included.
    let grown = resident().saturating_sub(memory);
    println!("leaks: {REQUESTS} connections take {} KiB each", grown / REQUESTS / 1024);
    assert!(grown < REQUESTS * 32 * 1024, "{grown} bytes for {REQUESTS} connections");
    drop(others);
    until("only one is left", || harness.server.connections() == 1).await;
    alive.alive().await;
    drop(alive);
    until("as many tasks as before", || Handle::current().metrics().num_alive_tasks() <= tasks).await;
}
