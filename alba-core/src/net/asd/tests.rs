use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt;

use super::*;
use crate::checksum::ChecksumAlgorithm;
use crate::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue, ValueSlice};
use crate::env::sim::{SimNode, Simulation};
use crate::env::{Connector, Endpoint, Env, Osd, OsdError, Stream};
use crate::net::frame::write_message;
use crate::range::{Page, RangeQuery};
use crate::units::ByteCount;
use crate::wire::asd::{AsdError, Request, Response, Slowness, encode_answer};
use crate::wire::common::Version;
use crate::wire::llio::Writer;

const PORT: u16 = 8000;
const LIMIT: Duration = Duration::from_secs(600);

/// What the test's ASD does with a request.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Serves it.
    Serve,
    /// Serves it, then closes without an answer.
    CloseUnanswered,
    /// Never answers.
    Silent,
    /// Claims a frame of 2 GiB.
    Boast,
    /// Answers bytes that mean nothing.
    Babble,
}

/// An ASD of the simplest kind.
struct TestAsd {
    id: LongId,
    mood: Mutex<Mood>,
    values: Mutex<BTreeMap<Bytes, StoredValue>>,
    batches: AtomicUsize,
    connected: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl TestAsd {
    fn start(node: &SimNode, id: &str) -> Arc<Self> {
        let asd = Arc::new(Self {
            id: LongId::new(id).unwrap(),
            mood: Mutex::new(Mood::Serve),
            values: Mutex::default(),
            batches: AtomicUsize::new(0),
            connected: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
        });
        asd.clone().listen(node);
        asd
    }

    fn listen(self: Arc<Self>, node: &SimNode) {
        let (env, address) = (node.env(), node.address(PORT));
        let spawn = env.spawn.clone();
        spawn.spawn(
            "asd",
            Box::pin(async move {
                let mut listener = env.net.listen(address).await.unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let asd = self.clone();
                    let env2 = env.clone();
                    env.spawn
                        .spawn("connection", Box::pin(async move { asd.connection(env2, stream).await }));
                }
            }),
        );
    }

    async fn connection(&self, env: Env, mut stream: Stream) {
        struct Open<'a>(&'a AtomicUsize);
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.connected.fetch_add(1, Ordering::SeqCst);
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        let _open = Open(&self.open);
        self.most_open.fetch_max(open, Ordering::SeqCst);
        let mut reader = FrameReader::new();
        if serve_prologue(&mut stream, &mut reader, &self.id).await.is_err() {
            return;
        }
        while reader.begin(&mut stream).await.unwrap_or(false) {
            let Ok(frame) = reader.frame(&mut stream, 4 << 20).await else { return };
            let request = Request::decode(frame).unwrap();
            let answer = self.serve(&request);
            let mood = *self.mood.lock().unwrap();
            let message = match mood {
                Mood::Serve => encode_answer(request.command(), &answer).unwrap(),
                Mood::CloseUnanswered => return,
                Mood::Silent => std::future::pending().await,
                Mood::Boast => {
                    let mut message = crate::wire::llio::Message::default();
                    message.push_outside(Bytes::from_static(&[0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0]));
                    message
                }
                Mood::Babble => {
                    let mut generator = env.rng.generator();
                    let babble: Vec<u8> =
                        (0..generator.random_range(0..60)).map(|_| generator.random()).collect();
                    Writer::frame(|w| w.raw(&babble)).unwrap()
                }
            };
            if write_message(&mut stream, &message).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }

    fn serve(&self, request: &Request) -> Result<Response, AsdError> {
        let mut values = self.values.lock().unwrap();
        Ok(match request {
            Request::Apply { batch, .. } => {
                self.batches.fetch_add(1, Ordering::SeqCst);
                for assert in &batch.asserts {
                    let holds = match assert {
                        OsdAssert::Absent(key) => !values.contains_key(key),
                        OsdAssert::Value(key, value) => values.get(key).is_some_and(|v| v.value == value),
                    };
                    if !holds {
                        return Err(AsdError::AssertFailed(assert.key().clone()));
                    }
                }
                for update in &batch.updates {
                    match update {
                        OsdUpdate::Set(key, value) => drop(values.insert(key.clone(), value.clone())),
                        OsdUpdate::Delete(key) => drop(values.remove(key)),
                        other => unreachable!("not asked for here: {other:?}"),
                    }
                }
                Response::Applied(Vec::new())
            }
            Request::MultiGet { keys, .. } => {
                Response::Values(keys.iter().map(|k| values.get(k).cloned()).collect())
            }
            Request::MultiExists { keys, .. } => {
                Response::Exists(keys.iter().map(|k| values.contains_key(k)).collect())
            }
            Request::PartialGet { key, slices, .. } => Response::Slices(values.get(key).map(|stored| {
                let slice = |s: &ValueSlice| {
                    let (from, len) = (usize::try_from(s.offset).unwrap(), usize::try_from(s.len).unwrap());
                    stored.value.slice(from..from + len)
                };
                slices.iter().map(slice).collect()
            })),
            Request::Range { query, .. } => {
                let found = values.keys().filter(|key| query.contains(key)).cloned().collect();
                Response::Keys(Page { items: found, has_more: false })
            }
            Request::GetDiskUsage => Response::DiskUsage(crate::env::osd::DiskUsage {
                used: ByteCount(4096),
                capacity: ByteCount(1_000_000_000_000),
            }),
            Request::GetVersion => Response::Version(version()),
            Request::SetFull(_) | Request::Slowness(_) => Response::Done,
            _ => return Err(AsdError::UnknownOperation),
        })
    }

    fn mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

fn version() -> Version {
    Version { major: 1, minor: 2, patch: 3, revision: "r".into() }
}

struct World {
    simulation: Simulation,
    asd_node: SimNode,
    asd: Arc<TestAsd>,
    env: Env,
}

fn world() -> World {
    let simulation = Simulation::new(7);
    let (asd_node, client_node) = (simulation.node(1), simulation.node(2));
    let asd = TestAsd::start(&asd_node, "asd_0");
    let env = client_node.env();
    World { simulation, asd_node, asd, env }
}

impl World {
    fn client(&self, max_connections: usize) -> Arc<AsdClient> {
        let config =
            AsdClientConfig { max_connections, max_answer: ByteCount::mib(4), ..AsdClientConfig::default() };
        AsdClient::new(
            self.env.clone(),
            vec![self.asd_node.address(PORT)],
            LongId::new("asd_0").unwrap(),
            config,
        )
    }

    fn soon(&self) -> crate::env::Deadline {
        self.env.deadline_in(Duration::from_secs(10))
    }

    fn run<T>(&self, main: impl Future<Output = T>) -> T {
        self.simulation.run(LIMIT, main).unwrap()
    }
}

fn stored(value: impl Into<Bytes>) -> StoredValue {
    let value = value.into();
    StoredValue { checksum: ChecksumAlgorithm::Crc32c.of(&value), value }
}

fn set(key: &'static str, value: impl Into<Bytes>) -> OsdBatch {
    OsdBatch { asserts: Vec::new(), updates: vec![OsdUpdate::Set(key.into(), stored(value))] }
}

const HIGH: Priority = Priority::High;

#[test]
fn every_operation_goes_there_and_back() {
    let world = world();
    let client = world.client(2);
    world.run(async {
        let big: Bytes = vec![9; 1 << 20].into();
        client.apply(set("big", big.clone()), HIGH, world.soon()).await.unwrap();
        client.apply(set("small", "abc"), Priority::Low, world.soon()).await.unwrap();
        let refused = OsdBatch { asserts: vec![OsdAssert::Absent("big".into())], updates: Vec::new() };
        let error = client.apply(refused, HIGH, world.soon()).await.unwrap_err();
        assert_eq!(error, OsdError::AssertFailed("big".into()));

        let keys: Vec<Bytes> = vec!["small".into(), "none".into(), "big".into()];
        let values = client.multi_get(keys.clone(), HIGH, world.soon()).await.unwrap();
        assert_eq!(values, [Some(stored("abc")), None, Some(stored(big.clone()))]);
        assert_eq!(client.multi_exists(keys, HIGH, world.soon()).await.unwrap(), [true, false, true]);

        let slices = vec![ValueSlice { offset: 2, len: 1 }, ValueSlice { offset: 0, len: 2 }];
        let found = client.partial_get("small".into(), slices.clone(), HIGH, world.soon()).await.unwrap();
        assert_eq!(found, Some(vec!["c".into(), "ab".into()]));
        assert_eq!(client.partial_get("none".into(), slices, HIGH, world.soon()).await.unwrap(), None);
        let whole = vec![ValueSlice { offset: 0, len: 1 << 20 }];
        let found = client.partial_get("big".into(), whole, HIGH, world.soon()).await.unwrap();
        assert_eq!(found, Some(vec![big]));

        let page = client.range(RangeQuery::all(), HIGH, world.soon()).await.unwrap();
        assert_eq!(page, Page { items: vec!["big".into(), "small".into()], has_more: false });
        assert_eq!(client.disk_usage(world.soon()).await.unwrap().used, ByteCount(4096));
        assert_eq!(client.version(world.soon()).await.unwrap(), version());
        client.set_full(true, world.soon()).await.unwrap();
        client.set_slowness(Some(Slowness { fixed: 1.0, variable: 0.0 }), world.soon()).await.unwrap();
        let error = client.statistics(true, world.soon()).await.unwrap_err();
        assert_eq!(error, OsdError::UnknownOperation);
    });
    // An error of the ASD is an answer: the connection stays in use.
    assert_eq!(world.asd.connected.load(Ordering::SeqCst), 1);
}

#[test]
fn another_device_at_the_address_is_recognised() {
    let world = world();
    world.run(async {
        let wanted = LongId::new("asd_1").unwrap();
        let address = world.asd_node.address(PORT);
        let client =
            AsdClient::new(world.env.clone(), vec![address], wanted.clone(), AsdClientConfig::default());
        let error = client.apply(set("k", "v"), HIGH, world.soon()).await.unwrap_err();
        assert_eq!(error, OsdError::WrongOsd { expected: wanted, found: "asd_0".into() });
        assert_eq!(probe(&world.env, address, world.soon()).await.unwrap().as_str(), "asd_0");
    });
    assert_eq!(world.asd.batches.load(Ordering::SeqCst), 0);
}

#[test]
fn an_address_that_is_dead_is_passed_over() {
    let world = world();
    let addresses = vec![world.simulation.node(9).address(PORT), world.asd_node.address(PORT)];
    let id = LongId::new("asd_0").unwrap();
    let client = AsdClient::new(world.env.clone(), addresses, id, AsdClientConfig::default());
    world.run(async {
        client.version(world.soon()).await.unwrap();
        let nobody = AsdClient::new(world.env.clone(), Vec::new(), client.long_id().clone(), client_config());
        assert!(matches!(nobody.version(world.soon()).await, Err(OsdError::Connection(_))));
    });
}

#[test]
fn clients_that_share_a_limit_keep_no_more_idle_connections_than_that() {
    let world = world();
    let limit = IdleLimit::new(1);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let at = vec![Endpoint::Tcp(world.asd_node.address(PORT))];
            let id = LongId::new("asd_0").unwrap();
            AsdClient::sharing(world.env.clone(), None, at, id, client_config(), Some(limit.clone()))
        })
        .collect();
    world.run(async {
        for _ in 0..2 {
            for client in &clients {
                client.version(world.soon()).await.unwrap();
                assert_eq!(limit.idle(), 1);
            }
        }
    });
    drop(clients);
    assert_eq!(limit.idle(), 0);
}

fn client_config() -> AsdClientConfig {
    AsdClientConfig::default()
}

#[test]
fn concurrent_calls_share_a_bounded_number_of_connections() {
    let world = world();
    let client = world.client(3);
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..50 {
        let (client, done, deadline) = (client.clone(), done.clone(), world.soon());
        world.env.spawn.spawn(
            "caller",
            Box::pin(async move {
                assert_eq!(client.version(deadline).await.unwrap(), version());
                done.fetch_add(1, Ordering::SeqCst);
            }),
        );
    }
    world.run(async {
        while done.load(Ordering::SeqCst) < 50 {
            world.env.clock.sleep_until(world.env.clock.now().plus(Duration::from_millis(1))).await;
        }
    });
    assert_eq!(world.asd.most_open.load(Ordering::SeqCst), 3);
    assert_eq!(world.asd.connected.load(Ordering::SeqCst), 3);
}

#[test]
fn waiting_for_a_connection_counts_against_the_deadline() {
    let world = world();
    let client = world.client(1);
    world.asd.mood(Mood::Silent);
    let deadline = world.env.deadline_in(Duration::from_secs(2));
    let (first, second) = world.run(async {
        tokio::join!(
            client.version(deadline.max(world.env.deadline_in(Duration::from_secs(3)))),
            client.version(deadline)
        )
    });
    assert_eq!(first, Err(OsdError::Timeout));
    assert!(matches!(second, Err(OsdError::Overloaded(_))));
    assert_eq!(world.simulation.now().0, Duration::from_secs(3));
    // The connection with the outstanding answer is gone, the right to have one is not.
    world.asd.mood(Mood::Serve);
    world.run(async { client.version(world.soon()).await.unwrap() });
    assert_eq!(world.asd.connected.load(Ordering::SeqCst), 2);
}

#[test]
fn calls_cancelled_anywhere_lose_no_connection_and_mix_no_answers() {
    let world = world();
    let client = world.client(2);
    let mut random = world.simulation.rng("cancel");
    world.run(async {
        for key in ["a", "b"] {
            client.apply(set(key, key), HIGH, world.soon()).await.unwrap();
        }
        for round in 0..500 {
            let key = if round % 2 == 0 { "a" } else { "b" };
            let patience = Duration::from_micros(random.random_range(0..4000));
            let call = client.multi_get(vec![key.into()], HIGH, world.soon());
            tokio::select! {
                biased;
                values = call => assert_eq!(values.unwrap(), [Some(stored(key))]),
                () = world.env.clock.sleep_until(world.env.clock.now().plus(patience)) => {}
            }
        }
        // Both rights are there.
        let (a, b) = tokio::join!(client.version(world.soon()), client.version(world.soon()));
        assert!(a.is_ok() && b.is_ok());
    });
    assert!(world.asd.most_open.load(Ordering::SeqCst) >= 2);
    // The server closes a dropped connection only when it hears of it, hence more than two; but never one per round.
    assert!(world.asd.open.load(Ordering::SeqCst) <= 2);
}

#[test]
fn after_a_restart_of_the_asd_calls_go_on() {
    let world = world();
    let client = world.client(2);
    world.run(async { client.apply(set("a", "1"), HIGH, world.soon()).await.unwrap() });
    for round in 0..5 {
        world.asd_node.crash();
        world.asd.clone().listen(&world.asd_node);
        world.run(async {
            if round % 2 == 0 {
                // Time enough to hear of the reset: then a batch does not fail either.
                world.env.clock.sleep_until(world.env.clock.now().plus(Duration::from_secs(1))).await;
                client.apply(set("a", "1"), HIGH, world.soon()).await.unwrap();
            }
            let values = client.multi_get(vec!["a".into()], HIGH, world.soon()).await.unwrap();
            assert_eq!(values, [Some(stored("1"))]);
        });
    }
}

#[test]
fn a_batch_is_never_sent_twice_a_read_is_repeated_once() {
    let world = world();
    let client = world.client(2);
    world.run(async {
        client.version(world.soon()).await.unwrap();
        world.asd.mood(Mood::CloseUnanswered);
        let error = client.apply(set("a", "1"), HIGH, world.soon()).await.unwrap_err();
        assert!(matches!(error, OsdError::Connection(_)), "{error}");
        assert_eq!(world.asd.batches.load(Ordering::SeqCst), 1);

        world.asd.mood(Mood::Serve);
        client.version(world.soon()).await.unwrap();
        let before = world.asd.connected.load(Ordering::SeqCst);
        world.asd.mood(Mood::CloseUnanswered);
        let error = client.multi_get(vec!["a".into()], HIGH, world.soon()).await.unwrap_err();
        assert!(matches!(error, OsdError::Connection(_)), "{error}");
        assert_eq!(world.asd.connected.load(Ordering::SeqCst), before + 1);
    });
}

#[test]
fn boasts_and_babble_are_errors() {
    let world = world();
    let client = world.client(1);
    world.run(async {
        world.asd.mood(Mood::Boast);
        let error = client.multi_get(vec!["a".into()], HIGH, world.soon()).await.unwrap_err();
        assert!(matches!(&error, OsdError::Connection(text) if text.contains("at most")), "{error}");
        let slices = vec![ValueSlice { offset: 0, len: u32::MAX }];
        let error = client.partial_get("a".into(), slices, HIGH, world.soon()).await.unwrap_err();
        assert!(matches!(error, OsdError::BadRequest(_)), "{error}");

        world.asd.mood(Mood::Babble);
        for _ in 0..200 {
            let deadline = world.env.deadline_in(Duration::from_secs(1));
            assert!(client.multi_get(vec!["a".into(), "b".into()], HIGH, deadline).await.is_err());
        }
        world.asd.mood(Mood::Serve);
        client.version(world.soon()).await.unwrap();
    });
}

#[test]
fn the_prologue_tells_versions_ids_and_strangers_apart() {
    let world = world();
    let ask = |bytes: Vec<u8>| {
        world.run(async {
            let mut stream = world.env.net.connect(world.asd_node.address(PORT), world.soon()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
            (answer, read.is_ok())
        })
    };
    // Vector A04.
    let refused = "07000000300000006173645f70726f746f636f6c2076657273696f6e3a2028736572766572292031203c3e203636362028636c69656e7429";
    assert_eq!(hex::encode(ask(b"aLbA\x9a\x02\0\0".to_vec()).0), refused);
    assert_eq!(ask(b"GET / HTTP/1.1\r\n\r\n".to_vec()).0, b"");
    // Another id, and the bogus one used to find out who it is: the own id, then the end.
    assert_eq!(ask(b"aLbA\x01\0\0\0\x01\x05\0\0\0bogus".to_vec()).0, b"\0\0\0\0\x05\0\0\0asd_0");
    // A flag that is none, an id of 2 GiB: closed.
    assert_eq!(ask(b"aLbA\x01\0\0\0\x02".to_vec()).0, b"");
    assert_eq!(ask(b"aLbA\x01\0\0\0\x01\xff\xff\xff\x7f".to_vec()).0, b"");
}

/// Streams that are connections of their own.
struct Streams(Env);

#[async_trait::async_trait]
impl Connector for Streams {
    async fn open(&self, to: std::net::SocketAddr, deadline: crate::env::Deadline) -> io::Result<Stream> {
        self.0.net.connect(to, deadline).await
    }
}

impl World {
    fn over(&self, nodes: &[&SimNode], id: &str) -> Arc<AsdClient> {
        let endpoints = nodes.iter().map(|node| Endpoint::Quic(node.address(PORT))).collect();
        let config = AsdClientConfig { max_streams: 3, ..AsdClientConfig::default() };
        let connector = Arc::new(Streams(self.env.clone()));
        AsdClient::over(self.env.clone(), Some(connector), endpoints, LongId::new(id).unwrap(), config)
    }
}

#[test]
fn over_streams_every_request_has_its_own_and_begins_with_the_prologue() {
    let world = world();
    let client = world.over(&[&world.asd_node], "asd_0");
    world.run(async {
        let big: Bytes = vec![9; 1 << 20].into();
        client.apply(set("big", big.clone()), HIGH, world.soon()).await.unwrap();
        let found = client.multi_get(vec!["big".into(), "none".into()], HIGH, world.soon()).await.unwrap();
        assert_eq!(found, [Some(stored(big)), None]);
        let calls = (0..20).map(|_| client.version(world.soon()));
        for answer in all_of(calls).await {
            assert_eq!(answer.unwrap(), version());
        }
    });
    assert_eq!(world.asd.connected.load(Ordering::SeqCst), 22);
    assert!(world.asd.most_open.load(Ordering::SeqCst) > 1, "several at once");
}

/// Polls all to their end.
async fn all_of<F: Future>(calls: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut calls: Vec<_> = calls.map(|call| (Box::pin(call), None)).collect();
    std::future::poll_fn(|cx| {
        for (call, answer) in calls.iter_mut().filter(|(_, answer)| answer.is_none()) {
            if let std::task::Poll::Ready(ready) = call.as_mut().poll(cx) {
                *answer = Some(ready);
            }
        }
        if calls.iter().all(|(_, answer)| answer.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    calls.into_iter().filter_map(|(_, answer)| answer).collect()
}

#[test]
fn over_streams_another_device_is_recognised_and_passed_over() {
    let world = world();
    let other_node = world.simulation.node(3);
    let other = TestAsd::start(&other_node, "asd_1");
    world.run(async {
        // It refuses the id, and has not looked at the batch that came with it.
        let client = world.over(&[&other_node], "asd_0");
        // More than fits in a window.
        let big: Bytes = vec![9; 8 << 20].into();
        let error = client.apply(set("k", big), HIGH, world.soon()).await.unwrap_err();
        let expected = LongId::new("asd_0").unwrap();
        assert_eq!(error, OsdError::WrongOsd { expected, found: "asd_1".into() });

        let client = world.over(&[&other_node, &world.asd_node], "asd_0");
        client.apply(set("k", "v"), HIGH, world.soon()).await.unwrap();
        client.apply(set("k", "w"), HIGH, world.soon()).await.unwrap();
        // One that cannot be reached, and one without a connector.
        let dead = world.simulation.node(9);
        world.over(&[&dead, &world.asd_node], "asd_0").version(world.soon()).await.unwrap();
        let endpoints = vec![Endpoint::Quic(world.asd_node.address(PORT))];
        let id = LongId::new("asd_0").unwrap();
        let client = AsdClient::over(world.env.clone(), None, endpoints, id, client_config());
        assert!(matches!(client.version(world.soon()).await, Err(OsdError::Connection(_))));
    });
    assert_eq!(other.batches.load(Ordering::SeqCst), 0);
    assert_eq!(world.asd.batches.load(Ordering::SeqCst), 2);
}

#[test]
fn over_streams_too_a_batch_is_never_sent_twice_a_read_is_repeated_once() {
    let world = world();
    let client = world.over(&[&world.asd_node], "asd_0");
    world.run(async {
        world.asd.mood(Mood::CloseUnanswered);
        let error = client.apply(set("a", "1"), HIGH, world.soon()).await.unwrap_err();
        assert!(matches!(error, OsdError::Connection(_)), "{error}");
        assert_eq!(world.asd.batches.load(Ordering::SeqCst), 1);
        let error = client.multi_get(vec!["a".into()], HIGH, world.soon()).await.unwrap_err();
        assert!(matches!(error, OsdError::Connection(_)), "{error}");
        assert_eq!(world.asd.connected.load(Ordering::SeqCst), 3);
        world.asd.mood(Mood::Silent);
        let deadline = world.env.deadline_in(Duration::from_secs(1));
        assert_eq!(client.version(deadline).await, Err(OsdError::Timeout));
        world.asd.mood(Mood::Serve);
        client.version(world.soon()).await.unwrap();
    });
}
