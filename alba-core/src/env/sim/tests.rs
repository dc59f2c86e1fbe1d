use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rand::{Rng as _, RngExt as _};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{SimNode, Simulation, Stuck};
use crate::env::{Env, blocking, within};

const LIMIT: Duration = Duration::from_secs(3600);

/// Answers every byte with the byte plus one, on port 7.
fn start_echo(node: &SimNode) {
    let env = node.env();
    let inner = env.clone();
    env.spawn.spawn(
        "echo",
        Box::pin(async move {
            let mut listener = inner.net.listen("0.0.0.0:7".parse().unwrap()).await.unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                inner.spawn.spawn(
                    "echo connection",
                    Box::pin(async move {
                        let mut byte = [0];
                        while stream.read_exact(&mut byte).await.is_ok() {
                            if stream.write_all(&[byte[0].wrapping_add(1)]).await.is_err() {
                                break;
                            }
                        }
                    }),
                );
            }
        }),
    );
}

async fn ask(env: &Env, to: &SimNode, byte: u8) -> io::Result<u8> {
    let mut stream = env.net.connect(to.address(7), env.deadline_in(Duration::from_secs(5))).await?;
    stream.write_all(&[byte]).await?;
    stream.read_u8().await
}

/// Several clients with random pauses ask several servers, one of which crashes and returns.
fn busy_run(seed: u64) -> (String, u64, u64) {
    let sim = Simulation::new(seed);
    let servers: Vec<SimNode> = (1..4).map(|number| sim.node(number)).collect();
    servers.iter().for_each(start_echo);
    let answered = Arc::new(AtomicU32::new(0));
    let (done, mut all_done) = mpsc::channel::<()>(1);
    for client in 10..14 {
        let env = sim.node(client).env();
        let (servers, answered, done) = (servers.clone(), answered.clone(), done.clone());
        let inner = env.clone();
        env.spawn.spawn(
            "client",
            Box::pin(async move {
                let mut rng = inner.rng.generator();
                for _ in 0..20 {
                    let server = &servers[rng.random_range(0..servers.len())];
                    if let Ok(answer) = ask(&inner, server, 41).await {
                        assert_eq!(answer, 42);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    let pause = Duration::from_micros(rng.random_range(0..3000));
                    inner.clock.sleep_until(inner.clock.now().plus(pause)).await;
                }
                drop(done);
            }),
        );
    }
    drop(done);
    let env = sim.node(0).env();
    sim.run(LIMIT, async {
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(5))).await;
        servers[0].crash();
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(5))).await;
        start_echo(&servers[0]);
        assert!(all_done.recv().await.is_none());
    })
    .unwrap();
    assert!(answered.load(Ordering::Relaxed) > 40, "most answers arrive");
    (sim.trace().hash(), sim.trace().events(), sim.rng("end").next_u64())
}

#[test]
fn same_seed_gives_the_same_run() {
    for seed in 0..5 {
        assert_eq!(busy_run(seed), busy_run(seed));
    }
    assert_ne!(busy_run(1).0, busy_run(2).0);
}

#[test]
fn time_passes_only_when_nothing_can_run() {
    let sim = Simulation::new(1);
    let env = sim.node(1).env();
    sim.run(LIMIT, async {
        let start = env.clock.now();
        assert_eq!(blocking(env.spawn.as_ref(), || 7).await, Ok(7));
        assert_eq!(env.clock.now(), start);
        env.clock.sleep_until(start.plus(Duration::from_secs(1800))).await;
        assert_eq!(env.clock.now().since(start), Duration::from_secs(1800));
    })
    .unwrap();
}

#[test]
fn a_wait_without_end_is_found() {
    let sim = Simulation::new(1);
    let stuck = sim.run(LIMIT, std::future::pending::<()>());
    assert!(matches!(stuck, Err(Stuck::Deadlock { .. })), "{stuck:?}");
    let env = sim.node(1).env();
    let late = sim.run(Duration::from_secs(1), env.clock.sleep_until(crate::env::Moment(LIMIT)));
    assert!(matches!(late, Err(Stuck::OutOfTime { .. })), "{late:?}");
}

#[test]
fn nobody_listens() {
    let sim = Simulation::new(1);
    let env = sim.node(1).env();
    let error = sim.run(LIMIT, ask(&env, &sim.node(2), 1)).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn an_address_is_taken_once() {
    let sim = Simulation::new(1);
    let env = sim.node(1).env();
    sim.run(LIMIT, async {
        let at = "127.0.0.1:9".parse().unwrap();
        let first = env.net.listen(at).await.unwrap();
        assert_eq!(env.net.listen(at).await.err().unwrap().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(env.net.listen(at).await.is_ok());
    })
    .unwrap();
}

/// Counts itself out when it is dropped.
struct Guard(Arc<AtomicU32>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_crash_drops_tasks_and_resets_connections() {
    let sim = Simulation::new(3);
    let server = sim.node(1);
    start_echo(&server);
    let dropped = Arc::new(AtomicU32::new(0));
    let guard = Guard(dropped.clone());
    let old = server.env();
    old.spawn.spawn(
        "holder",
        Box::pin(async move {
            std::future::pending::<()>().await;
            drop(guard);
        }),
    );
    let env = sim.node(2).env();
    sim.run(LIMIT, async {
        let deadline = env.deadline_in(Duration::from_secs(1));
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(1))).await;
        let mut stream = env.net.connect(server.address(7), deadline).await.unwrap();
        server.crash();
        assert_eq!(dropped.load(Ordering::Relaxed), 1, "the future and what it owned are gone at once");
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let refused = env.net.connect(server.address(7), deadline).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

        // The life that ended can neither start tasks nor connect.
        let late = Guard(dropped.clone());
        old.spawn.spawn("late", Box::pin(async move { drop(late) }));
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        assert!(ask(&old, &server, 1).await.is_err());

        start_echo(&server);
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(1))).await;
        assert_eq!(ask(&env, &server, 1).await.unwrap(), 2);
    })
    .unwrap();
}

#[test]
fn an_aborted_task_is_gone() {
    let sim = Simulation::new(3);
    let env = sim.node(1).env();
    let dropped = Arc::new(AtomicU32::new(0));
    let guard = Guard(dropped.clone());
    let handle = env.spawn.spawn(
        "sleeper",
        Box::pin(async move {
            std::future::pending::<()>().await;
            drop(guard);
        }),
    );
    sim.run(LIMIT, async {
        drop(handle.abort_on_drop());
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    })
    .unwrap();
}

#[test]
fn a_blocked_link_delays_and_a_slow_one_is_slow() {
    let sim = Simulation::new(4);
    let (client, server) = (sim.node(1), sim.node(2));
    start_echo(&server);
    let env = client.env();
    sim.run(LIMIT, async {
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(1))).await;
        let mut stream =
            env.net.connect(server.address(7), env.deadline_in(Duration::from_secs(1))).await.unwrap();
        sim.block(&server, &client);
        stream.write_all(&[1]).await.unwrap();
        let answer =
            within(env.clock.as_ref(), env.deadline_in(Duration::from_secs(2)), stream.read_u8()).await;
        assert!(answer.is_err(), "nothing comes through");
        let late = env.net.connect(server.address(7), env.deadline_in(Duration::from_secs(2))).await;
        assert_eq!(late.err().unwrap().kind(), io::ErrorKind::TimedOut);
        sim.heal();
        assert_eq!(stream.read_u8().await.unwrap(), 2, "late, not lost");

        sim.slow(&client, &server, Duration::from_secs(1));
        let start = env.clock.now();
        stream.write_all(&[5]).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 6);
        assert!(env.clock.now().since(start) > Duration::from_secs(1));

        sim.sever(&client, &server);
        assert!(stream.write_all(&[5]).await.is_err());
    })
    .unwrap();
}

#[test]
fn a_stalled_node_goes_on_later() {
    let sim = Simulation::new(5);
    let server = sim.node(2);
    start_echo(&server);
    let env = sim.node(1).env();
    sim.run(LIMIT, async {
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(1))).await;
        server.stall();
        let short =
            within(env.clock.as_ref(), env.deadline_in(Duration::from_secs(1)), ask(&env, &server, 1));
        assert!(short.await.is_err());
        server.resume();
        assert_eq!(ask(&env, &server, 1).await.unwrap(), 2);
    })
    .unwrap();
}

#[test]
fn a_pipe_is_bounded_and_keeps_the_order() {
    let sim = Simulation::new(6);
    let server = sim.node(2);
    let env = sim.node(1).env();
    let theirs = server.env();
    sim.run(LIMIT, async {
        let mut listener = theirs.net.listen(server.address(7)).await.unwrap();
        let mut ours =
            env.net.connect(server.address(7), env.deadline_in(Duration::from_secs(1))).await.unwrap();
        let (mut remote, _) = listener.accept().await.unwrap();
        let data: Vec<u8> = (0..1_000_000_u32).flat_map(|i| i.to_le_bytes().into_iter().take(1)).collect();
        let copy = data.clone();
        let full =
            within(env.clock.as_ref(), env.deadline_in(Duration::from_secs(1)), ours.write_all(&data)).await;
        assert!(full.is_err(), "the writer waits when nobody reads");
        // A cancelled write_all has sent a prefix of unknown length: read what there is, compare it as a prefix.
        ours.shutdown().await.unwrap();
        let mut received = Vec::new();
        remote.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 256 * 1024);
        assert!(copy.starts_with(&received));
    })
    .unwrap();
}

#[test]
fn wall_clocks_differ() {
    let sim = Simulation::new(7);
    let (one, other) = (sim.node(1), sim.node(2));
    other.set_wall_offset(-3_600_000_000);
    assert_eq!(one.env().clock.wall_micros() - other.env().clock.wall_micros(), 3_600_000_000);
    assert_eq!(one.env().clock.now(), other.env().clock.now());
}
