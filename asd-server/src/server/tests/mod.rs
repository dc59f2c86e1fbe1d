//! The server over connections: the contract, and clients that misbehave.

mod beside;
mod copy;
mod exposure;
mod extensions;
mod protocol;

use std::net::SocketAddr;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{Osd, OsdBatch, OsdError, OsdKey, OsdUpdate, Priority, StoredValue, ValueSlice};
use alba_core::env::sim::disk::SimDiskDevice;
use alba_core::env::sim::{Given, SimNode, Simulation};
use alba_core::env::{DeviceTurns, NoTurns, OsdError as Error, osd_conformance, real};
use alba_core::kv::{Kv, KvError, SimKvDevice};
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use alba_core::wire::asd::{Slowness, encode_prologue};
use alba_core::wire::llio::Writer;
use tokio::io::AsyncReadExt;

use super::*;
use crate::engine::{Engine, EngineConfig, EngineParts, IndexStore, StoreId};

const LIMIT: Duration = Duration::from_secs(7200);
const LONG_ID: &str = "the-asd";
/// The port that serves strangers.
const DIRECT_READS: u16 = 8001;

struct SimIndex(SimKvDevice);

impl IndexStore for SimIndex {
    fn open(&self) -> Result<Arc<dyn Kv>, KvError> {
        Ok(Arc::new(self.0.open()))
    }

    fn wipe(&self) -> Result<(), KvError> {
        self.0.wipe();
        Ok(())
    }
}

struct Asd {
    address: SocketAddr,
    server: Arc<Server>,
    engine: Arc<Engine>,
    service: Arc<Service>,
    long_id: &'static str,
    node: SimNode,
    client: SimNode,
}

impl Asd {
    fn osd(&self) -> Arc<AsdClient> {
        let id = LongId::new(self.long_id).unwrap();
        AsdClient::new(self.client.env(), vec![self.address], id, AsdClientConfig::default())
    }

    fn deadline(&self) -> Deadline {
        self.client.env().deadline_in(Duration::from_secs(60))
    }

    async fn connect(&self) -> Stream {
        self.client.env().net.connect(self.address, self.deadline()).await.unwrap()
    }

    /// A client of the port for strangers.
    async fn direct_reads(&self) -> Arc<AsdClient> {
        let address = SocketAddr::new(self.address.ip(), DIRECT_READS);
        let id = LongId::new(LONG_ID).unwrap();
        AsdClient::new(self.client.env(), vec![address], id, AsdClientConfig::default())
    }

    /// A connection after its prologue.
    async fn talk(&self) -> (Stream, FrameReader) {
        self.talk_at(self.address.port()).await
    }

    async fn talk_at(&self, port: u16) -> (Stream, FrameReader) {
        talk_to(&self.client.env(), SocketAddr::new(self.address.ip(), port), self.deadline()).await
    }
}

/// A connection after its prologue.
async fn talk_to(env: &Env, address: SocketAddr, deadline: Deadline) -> (Stream, FrameReader) {
    let mut stream = env.net.connect(address, deadline).await.unwrap();
    stream.write_all(&encode_prologue(None).unwrap()).await.unwrap();
    let mut reader = FrameReader::new();
    let answer = reader.exact(&mut stream, 4 + 4 + LONG_ID.len()).await.unwrap();
    assert_eq!(answer[..4], [0; 4]);
    (stream, reader)
}

/// Sends a payload as a frame; gives the status of the answer.
async fn status(stream: &mut Stream, reader: &mut FrameReader, payload: &[u8]) -> u32 {
    let frame = Writer::frame(|w| w.raw(payload)).unwrap();
    write_message(stream, &frame).await.unwrap();
    let answer = reader.frame(stream, 1 << 20).await.unwrap();
    u32::from_le_bytes(*answer.first_chunk().unwrap())
}

async fn is_closed(stream: &mut Stream) -> bool {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.is_ok_and(|_| rest.is_empty())
}

fn run<T>(limits: ServerLimits, scenario: impl AsyncFnOnce(Asd) -> T) -> T {
    let simulation = Simulation::new(5);
    simulation.run(LIMIT, async { scenario(serve(&simulation, 1, LONG_ID, limits).await).await }).unwrap()
}

/// Starts an ASD on a machine of its own.
async fn serve(simulation: &Simulation, number: u32, long_id: &'static str, limits: ServerLimits) -> Asd {
    serve_beside(simulation, number, long_id, limits, Arc::new(NoTurns)).await
}

/// The same on a device with these turns.
async fn serve_beside(
    simulation: &Simulation,
    number: u32,
    long_id: &'static str,
    limits: ServerLimits,
    turns: Arc<dyn DeviceTurns>,
) -> Asd {
    let node = simulation.node(number);
    let env = node.env();
    let parts = EngineParts {
        disk: Arc::new(SimDiskDevice::new(1, 1 << 40).open()),
        index: Arc::new(SimIndex(SimKvDevice::new())),
        clock: env.clock.clone(),
        bulk: env.bulk.clone(),
        spawn: env.spawn.clone(),
        store: StoreId([7; 16]),
    };
    let config = EngineConfig { segment_bytes: 16 << 20, capacity: Some(1 << 40), ..EngineConfig::default() };
    let engine = Arc::new(Engine::open(parts, config).await.unwrap().0);
    let service = Service::beside_others(env.clone(), ServiceLimits::default(), turns);
    service.set_engine(Ok(engine.clone()));
    let server = Server::new(env.clone(), LongId::new(long_id).unwrap(), service.clone(), limits);
    let strangers = env.net.listen(node.address(DIRECT_READS)).await.unwrap();
    let exposed = server.clone().serve_to(strangers, Exposure::DirectReads);
    env.spawn.spawn("server for strangers", Box::pin(exposed));
    let listener = env.net.listen(node.address(8000)).await.unwrap();
    env.spawn.spawn("server", Box::pin(server.clone().serve(listener)));
    Asd { long_id, address: node.address(8000), server, engine, service, node, client: simulation.node(1000) }
}

fn put(name: &'static str, len: usize) -> OsdBatch {
    let stored = StoredValue { value: vec![1; len].into(), checksum: Checksum::None };
    OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Set(OsdKey::from_static(name.as_bytes()), stored)] }
}

#[test]
fn conforms_over_a_connection() {
    run(ServerLimits::default(), async |asd| {
        osd_conformance::run(asd.osd(), asd.client.env().clock).await;
    });
}

/// Small and large requests mixed, the next ones sent before the last was answered: they are there when the connection changes sides.
async fn mix(stream: &mut Stream, reader: &mut FrameReader) {
    let request = |len: usize| {
        let request = Request::Apply { batch: put("key", len), priority: Priority::High };
        request.encode().unwrap().to_bytes()
    };
    for sizes in
        [[1, 1 << 20, 1, 1], [1 << 20, 1 << 20, 1, 200_000], [1; 4], [1; 4], [1; 4], [1, 1, 1, 150_000]]
    {
        let all = sizes.map(request).concat();
        stream.write_all(&all).await.unwrap();
        for size in sizes {
            let answer = reader.frame(stream, 1 << 20).await.unwrap();
            assert_eq!(answer[..4], [0; 4], "{size} bytes");
        }
    }
}

/// Serves with real threads and talks on one connection, seeing what the server gives to those for bulk, and to those for maintenance.
async fn talk_for_real(talk: impl AsyncFnOnce(&mut Stream, &mut FrameReader, [&Given; 2])) {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let parts = EngineParts {
        disk: Arc::new(real::disk::RealDisk::new(directory.path(), env.spawn.clone())),
        index: Arc::new(SimIndex(SimKvDevice::new())),
        clock: env.clock.clone(),
        bulk: env.bulk.clone(),
        spawn: env.spawn.clone(),
        store: StoreId([7; 16]),
    };
    let config = EngineConfig { segment_bytes: 16 << 20, capacity: Some(1 << 30), ..EngineConfig::default() };
    let engine = Arc::new(Engine::open(parts, config).await.unwrap().0);
    let [bulk, aside] = [&env.bulk, &env.aside].map(|threads| Given::to(threads.clone()));
    let env = Env { bulk: bulk.clone(), aside: aside.clone(), ..env };
    let service = Service::new(env.clone(), ServiceLimits::default());
    service.set_engine(Ok(engine.clone()));
    let server = Server::new(env.clone(), LongId::new(LONG_ID).unwrap(), service, ServerLimits::default());
    let listener = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let _serving = env.spawn.spawn("server", Box::pin(server.serve(listener))).abort_on_drop();
    let soon = env.deadline_in(Duration::from_secs(60));
    let talk = async {
        let (mut stream, mut reader) = talk_to(&env, address, soon).await;
        talk(&mut stream, &mut reader, [&bulk, &aside]).await;
    };
    within(env.clock.as_ref(), soon, talk).await.unwrap();
    engine.close(soon).await;
}

/// Where there really are two executors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_changes_executors_with_what_it_carries() {
    talk_for_real(async |stream, reader, _| mix(stream, reader).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_large_or_long_is_not_done_where_small_requests_are() {
    const LARGE: u32 = 1 << 20;
    let keys = |count| vec![OsdKey::from_static(b"key"); count];
    let apply = |len| Request::Apply { batch: put("key", len), priority: Priority::High };
    let get = |count| Request::MultiGet { keys: keys(count), priority: Priority::High };
    let part = |len| {
        let slices = vec![ValueSlice { offset: 0, len }];
        Request::PartialGet { key: OsdKey::from_static(b"key"), slices, priority: Priority::High }
    };
    talk_for_real(async |stream, reader, [given, aside]| {
        let mut ask = async |request: Request| {
            write_message(stream, &request.encode().unwrap()).await.unwrap();
            let answer = reader.frame(stream, 32 << 20).await.unwrap();
            assert_eq!(answer[..4], [0; 4]);
            if let Request::PartialGet { slices, .. } = request {
                // Behind the frame.
                let len = slices.iter().map(|slice| usize::try_from(slice.len).unwrap()).sum();
                reader.exact(stream, len).await.unwrap();
            }
            given.taken()
        };
        // The connection changes sides before it is received.
        assert_eq!(ask(apply(1 << 20)).await, ["asd connection"]);
        // And back, for the next ones.
        for request in [part(LARGE), get(1), get(17)] {
            for _ in 0..lane::CHANGED {
                ask(part(1)).await;
            }
            let long = works_long(&request);
            let expected: &[&str] = if long { &["asd request", "asd answer"] } else { &["asd answer"] };
            let seen = ask(request).await;
            assert_eq!(seen[..expected.len()], *expected, "what follows is for the next request");
        }
        for _ in 0..lane::CHANGED {
            ask(part(1)).await;
        }
        assert_eq!(ask(part(4096)).await, Vec::<&str>::new());
        assert_eq!(aside.taken(), Vec::<&str>::new(), "nothing of it was maintenance");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_maintenance_moves_is_done_where_it_gives_way_to_clients_uploads() {
    let low = Priority::Low;
    let put = |len| Request::Apply { batch: put("key", len), priority: low };
    let get = |count| Request::MultiGet { keys: vec![OsdKey::from_static(b"key"); count], priority: low };
    talk_for_real(async |stream, reader, [bulk, aside]| {
        let mut ask = async |request: Request| {
            write_message(stream, &request.encode().unwrap()).await.unwrap();
            let answer = reader.frame(stream, 32 << 20).await.unwrap();
            assert_eq!(answer[..4], [0; 4]);
            // So that the connection has gone where it goes.
            write_message(stream, &Request::Health.encode().unwrap()).await.unwrap();
            reader.frame(stream, 1 << 20).await.unwrap();
            [bulk, aside].map(Given::taken)
        };
        let (none, one) = (Vec::<&str>::new(), vec!["asd connection"]);
        // Whose the first large one is stands at its end: received for a client, and what follows is not.
        assert_eq!(ask(put(1 << 20)).await, [one.clone(), one.clone()]);
        assert_eq!(ask(put(1 << 20)).await, [none.clone(), none.clone()]);
        assert_eq!(ask(get(1)).await, [none.clone(), none.clone()]);
        for _ in 0..lane::CHANGED {
            ask(Request::Health).await;
        }
        // Small as requests, and much to do or to answer.
        assert_eq!(ask(get(17)).await, [none, vec!["asd request", "asd answer", "asd connection"]]);
    })
    .await;
}

#[test]
fn a_connection_serves_small_and_large_requests_in_any_order() {
    run(ServerLimits { connections: 1, ..ServerLimits::default() }, async |asd| {
        let (mut stream, mut reader) = asd.talk().await;
        mix(&mut stream, &mut reader).await;
        let (mut other, mut nothing) = (asd.connect().await, Vec::new());
        assert!(
            other.read_to_end(&mut nothing).await.is_ok() && nothing.is_empty(),
            "its place is still taken"
        );
        drop((stream, reader));
        let next = async {
            loop {
                let mut stream = asd.connect().await;
                stream.write_all(&encode_prologue(None).unwrap()).await.unwrap();
                if stream.read_i32_le().await.is_ok() {
                    return;
                }
                asd.client
                    .env()
                    .clock
                    .sleep_until(asd.client.env().clock.now().plus(Duration::from_millis(10)))
                    .await;
            }
        };
        within(asd.client.env().clock.as_ref(), asd.deadline(), next).await.expect("and is free afterwards");
    });
}

#[test]
fn a_prologue_that_is_wrong_ends_the_connection() {
    run(ServerLimits::default(), async |asd| {
        let mut stream = asd.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(is_closed(&mut stream).await, "wrong magic: closed without a word");

        let mut stream = asd.connect().await;
        stream.write_all(b"aLbA\x02\0\0\0").await.unwrap();
        assert_eq!(stream.read_i32_le().await.unwrap(), 7);

        let mut stream = asd.connect().await;
        stream.write_all(&encode_prologue(Some("another")).unwrap()).await.unwrap();
        let mut answer = vec![0; 8 + LONG_ID.len()];
        stream.read_exact(&mut answer).await.unwrap();
        assert!(answer.ends_with(LONG_ID.as_bytes()), "it says who it is");
        assert!(is_closed(&mut stream).await);
        // And one that says nothing.
        let mut silent = asd.connect().await;
        let before = asd.client.env().clock.now();
        assert!(is_closed(&mut silent).await);
        assert!(asd.client.env().clock.now().since(before) >= Duration::from_secs(5));
    });
}

#[test]
fn bad_requests_are_answered_and_the_connection_kept() {
    run(ServerLimits::default(), async |asd| {
        let (mut stream, mut reader) = asd.talk().await;
        assert_eq!(status(&mut stream, &mut reader, &99_u32.to_le_bytes()).await, 4, "unknown operation");
        assert_ne!(status(&mut stream, &mut reader, b"\x03\0\0\0half").await, 0, "undecodable");
        assert_ne!(status(&mut stream, &mut reader, b"").await, 0, "empty");
        let huge_list = [&3_u32.to_le_bytes()[..], &[0xff, 0xff, 0xff, 0x7f]].concat();
        assert_ne!(status(&mut stream, &mut reader, &huge_list).await, 0, "a list of two thousand millions");
        assert_eq!(status(&mut stream, &mut reader, &7_u32.to_le_bytes()).await, 0, "GetVersion still works");
    });
}

#[test]
fn a_frame_that_is_too_long_is_said_and_closed() {
    run(ServerLimits::default(), async |asd| {
        let (mut stream, mut reader) = asd.talk().await;
        stream.write_all(&[0xff, 0xff, 0xff, 0x7f]).await.unwrap();
        let answer = reader.frame(&mut stream, 1 << 20).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("at most"), "{answer:?}");
        assert!(is_closed(&mut stream).await);
        // Half a frame: closed after its time.
        let (mut stream, _) = asd.talk().await;
        stream.write_all(&[100, 0, 0, 0, 1]).await.unwrap();
        assert!(is_closed(&mut stream).await);
        asd.osd().apply(put("k", 10), Priority::High, asd.deadline()).await.unwrap();
    });
}

#[test]
fn connections_are_limited_and_idle_ones_closed() {
    let limits = ServerLimits { connections: 3, ..ServerLimits::default() };
    run(limits, async |asd| {
        let mut open = [asd.talk().await, asd.talk().await, asd.talk().await];
        let mut fourth = asd.connect().await;
        assert!(is_closed(&mut fourth).await);
        let clock = asd.client.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(601))).await;
        assert!(is_closed(&mut open[0].0).await, "idle for too long");
        asd.talk().await;
    });
}

#[test]
fn slowness_delays_everything_but_itself() {
    run(ServerLimits::default(), async |asd| {
        let osd = asd.osd();
        let clock = asd.client.env().clock;
        osd.set_slowness(Some(Slowness { fixed: 2.0, variable: 1.0 }), asd.deadline()).await.unwrap();
        let before = clock.now();
        osd.version(asd.deadline()).await.unwrap();
        let taken = clock.now().since(before);
        assert!(taken >= Duration::from_secs(2) && taken < Duration::from_secs(4), "{taken:?}");
        let before = clock.now();
        for nonsense in [f64::NAN, -1.0, f64::INFINITY] {
            let slowness = Slowness { fixed: nonsense, variable: 0.0 };
            osd.set_slowness(Some(slowness), asd.deadline()).await.unwrap();
        }
        osd.set_slowness(None, asd.deadline()).await.unwrap();
        osd.version(asd.deadline()).await.unwrap();
        assert!(clock.now().since(before) < Duration::from_secs(1));
    });
}

#[test]
fn full_statistics_and_answers_that_are_too_large() {
    run(ServerLimits::default(), async |asd| {
        let osd = asd.osd();
        osd.set_full(true, asd.deadline()).await.unwrap();
        let full = osd.apply(put("k", 10), Priority::High, asd.deadline()).await;
        assert_eq!(full, Err(Error::Full));
        osd.set_full(false, asd.deadline()).await.unwrap();
        osd.apply(put("k", 7 << 20), Priority::High, asd.deadline()).await.unwrap();
        let statistics = osd.statistics(true, asd.deadline()).await.unwrap();
        let count = |code| statistics.operations.iter().find(|(c, _)| *c == code).map(|(_, stat)| stat.n);
        assert_eq!((count(3), count(6), count(1)), (Some(2), Some(2), None));
        let cleared = osd.statistics(false, asd.deadline()).await.unwrap();
        assert!(cleared.operations.len() <= 1);

        let keys = vec![OsdKey::from_static(b"k"); 10];
        let refused = osd.multi_get(keys, Priority::High, asd.deadline()).await;
        assert!(matches!(refused, Err(OsdError::BadRequest(_))), "{refused:?}");
        let slices = vec![ValueSlice { offset: 0, len: 7 << 20 }; 10];
        let refused =
            osd.partial_get(OsdKey::from_static(b"k"), slices, Priority::High, asd.deadline()).await;
        assert!(matches!(refused, Err(OsdError::BadRequest(_))), "{refused:?}");
        assert_eq!(asd.engine.usage().used.get(), 7 << 20);
    });
}
