//! The real program, killed with SIGKILL at random moments: what it acknowledged is there when it comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::env::{Deadline, Env, real};
use alba_core::ids::{
    GcEpoch, GroupId, LongId, MessageId, NamespaceId, NamespaceName, NodeId, ObjectId, ObjectName,
    ObjectVersion, OsdId, Place,
};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::net::rpc::RpcConnection;
use alba_core::policy::{CodeShape, Policy};
use alba_core::preset::{Compression, ObjectChecksums, OsdSet, Preset};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{OsdEndpoint, OsdInfo};
use alba_core::wire::rpc::nsm::{
    NsmAnswer, NsmCommand, NsmMessage, NsmOutcome, NsmQuery, ObjectUpdate, Overwrite,
};
use alba_core::wire::rpc::{Consistency, Reply, Request, RequestId, SessionId};

const NS: NamespaceId = NamespaceId::from_u32(0);

/// Killed when dropped, so that nothing outlives a failed test.
struct Server(Child);

impl Server {
    fn start(config: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_alba-metadata"))
            .arg("--config")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL; it may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Client {
    env: Env,
    connection: RpcConnection,
    session: SessionId,
    next: u64,
}

fn group() -> GroupId {
    GroupId::new("nsm-0").unwrap()
}

impl Client {
    /// Waits until the server answers.
    async fn connect(env: &Env, at: SocketAddr) -> Self {
        let until = env.deadline_in(Duration::from_secs(60));
        loop {
            let attempt = env.deadline_in(Duration::from_secs(5));
            if let Ok(connection) = RpcConnection::open(env, at, attempt).await {
                let mut nonce = [0; 16];
                env.rng.fill(&mut nonce);
                let open = Request::OpenSession { group: group(), nonce };
                if let Ok(Reply::Session(session)) = connection.call(&open, attempt).await.map(|a| a.reply) {
                    return Self { env: env.clone(), connection, session, next: 1 };
                }
            }
            assert!(!until.left(env.clock.as_ref()).is_zero(), "the server does not come up");
            env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(50))).await;
        }
    }

    fn deadline(&self) -> Deadline {
        self.env.deadline_in(Duration::from_secs(20))
    }

    /// None when the server died meanwhile.
    async fn command(&mut self, command: NsmCommand) -> Option<NsmOutcome> {
        let id = RequestId { session: self.session, sequence: self.next, lowest_unacknowledged: self.next };
        self.next += 1;
        let request = Request::Nsm(group(), id, command);
        match self.connection.call(&request, self.deadline()).await.map(|answer| answer.reply) {
            Ok(Reply::Nsm(result)) => Some(result.unwrap()),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    async fn ask(&self, query: NsmQuery) -> NsmAnswer {
        let request = Request::NsmQuery(group(), Consistency::Linearizable, query);
        match self.connection.call(&request, self.deadline()).await.unwrap().reply {
            Reply::NsmAnswer(answer) => answer.unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

fn namespace() -> NsmCommand {
    let preset = Preset {
        policies: vec![Policy::new(1, 0, 1, 1).unwrap()],
        fragment_size: 1024,
        osds: OsdSet::All,
        compression: Compression::None,
        fragment_checksum: ChecksumAlgorithm::Crc32c,
        object_checksum: ObjectChecksums {
            allowed: vec![ChecksumAlgorithm::Crc32c],
            default: ChecksumAlgorithm::Crc32c,
            verify_upload: true,
        },
    };
    let info = OsdInfo {
        long_id: LongId::new("osd").unwrap(),
        place: Place::of_node(NodeId::new("node").unwrap()),
        endpoint: OsdEndpoint { ips: vec!["127.0.0.1".parse().unwrap()], port: 1 },
        capacity: ByteCount(0),
        used: ByteCount(0),
    };
    let name = NamespaceName::new("ns").unwrap();
    NsmCommand::Deliver(vec![
        (
            MessageId::from_u32(0),
            NsmMessage::CreateNamespace { id: NS, name, preset: Box::new(preset), preset_version: 0 },
        ),
        (
            MessageId::from_u32(1),
            NsmMessage::LinkOsd { namespace: NS, osd: OsdId::from_u32(0), info: Box::new(info) },
        ),
    ])
}

fn object_name(n: u32) -> ObjectName {
    ObjectName::new(format!("object {n}")).unwrap()
}

fn put(n: u32) -> NsmCommand {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    let fragment = Fragment {
        location: Some(OsdId::from_u32(0)),
        version: ObjectVersion(0),
        checksum: Checksum::Crc32c(n),
        packed_len: 16,
        ctr: None,
    };
    let manifest = Manifest {
        name: object_name(n),
        object_id: ObjectId::new(id),
        size: 16,
        checksum: Checksum::Crc32c(n),
        scheme: Scheme {
            shape: CodeShape::new(1, 0).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::None,
        },
        encryption: EncryptInfo::None,
        chunks: vec![Chunk { size: 16, fragments: vec![fragment] }],
        version: ObjectVersion(0),
        max_disks_per_node: 1,
        timestamp: Timestamp(0),
    };
    let updates = vec![ObjectUpdate::Put { manifest: Box::new(manifest), overwrite: Overwrite::NoPrevious }];
    NsmCommand::Sequence { namespace: NS, asserts: Vec::new(), updates, epoch: GcEpoch::from_u32(0) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_puts_survive_kill_9() {
    let env = real::env();
    let directory = tempfile::tempdir().unwrap();
    let at = {
        // A port that was free a moment ago.
        let listener = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        listener.local_addr().unwrap()
    };
    let config = directory.path().join("metadata.toml");
    let data_dir = directory.path().join("data");
    let text = format!("data_dir = {:?}\nlisten = \"{at}\"\n", data_dir.display().to_string());
    alba_core::env::files::replace(&config, text.as_bytes()).unwrap();
    let mut acknowledged: Vec<u32> = Vec::new();
    let mut next = 0;
    for _ in 0..4 {
        let mut server = Server::start(&config);
        let mut client = Client::connect(&env, at).await;
        client.command(namespace()).await.expect("delivered");
        for n in &acknowledged {
            let query = NsmQuery::Manifests { namespace: NS, names: vec![object_name(*n)] };
            match client.ask(query).await {
                NsmAnswer::Manifests(found) => assert!(found[0].is_some(), "object {n} was acknowledged"),
                other => panic!("{other:?}"),
            }
        }
        let NsmAnswer::Statistics(statistics) = client.ask(NsmQuery::Statistics(NS)).await else { panic!() };
        let (least, most) = (u64::try_from(acknowledged.len()).unwrap(), u64::from(next));
        assert!((least..=most).contains(&statistics.objects), "{statistics:?}");
        assert_eq!(statistics.logical_bytes, 16 * statistics.objects);
        let lifetime = Duration::from_millis(20 + env.rng.u64() % 200);
        #[allow(clippy::disallowed_methods, reason = "a thread of the test itself")]
        let killer = tokio::task::spawn_blocking({
            let end = env.clock.now().plus(lifetime);
            let clock = env.clock.clone();
            move || {
                tokio::runtime::Handle::current().block_on(clock.sleep_until(end));
                server.0.kill().unwrap();
                server
            }
        });
        while let Some(outcome) = client.command(put(next)).await {
            assert!(matches!(outcome, NsmOutcome::Stored(_)));
            acknowledged.push(next);
            next += 1;
        }
        // The last one may have happened or not.
        next += 1;
        drop(killer.await.unwrap());
    }
    assert!(acknowledged.len() > 4, "only {} puts in all", acknowledged.len());
}

#[test]
fn bad_configuration_is_a_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("metadata.toml");
    let run = |text: &str| {
        alba_core::env::files::replace(&config, text.as_bytes()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_alba-metadata"))
            .args(["--check-config", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run("data_dir = \"/nowhere\"\nlisten = \"0.0.0.0:1\"\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("insecure_listen"), "{text}");
    let (code, text) = run("data_dir = \"/nowhere\"\nsurprise = 1\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("surprise"), "{text}");
    assert_eq!(run("data_dir = \"/nowhere\"\n").0, Some(0));
}
