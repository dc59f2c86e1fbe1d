//! A metadata server as a process, and the plainest client of one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::env::{Deadline, Env};
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

pub const NS: NamespaceId = NamespaceId::from_u32(0);

/// Killed when dropped, so that nothing outlives a failed test.
pub struct Server(pub Child);

impl Server {
    pub fn start(config: &Path) -> Self {
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

pub struct Client {
    env: Env,
    pub connection: RpcConnection,
    session: SessionId,
    next: u64,
}

pub fn group() -> GroupId {
    GroupId::new("nsm-0").unwrap()
}

impl Client {
    /// Waits until the server answers.
    pub async fn connect(env: &Env, at: SocketAddr) -> Self {
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

    pub fn deadline(&self) -> Deadline {
        self.env.deadline_in(Duration::from_secs(20))
    }

    /// None when the server died meanwhile.
    pub async fn command(&mut self, command: NsmCommand) -> Option<NsmOutcome> {
        let id = RequestId { session: self.session, sequence: self.next, lowest_unacknowledged: self.next };
        self.next += 1;
        let request = Request::Nsm(group(), id, command);
        match self.connection.call(&request, self.deadline()).await.map(|answer| answer.reply) {
            Ok(Reply::Nsm(result)) => Some(result.unwrap()),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    pub async fn ask(&self, query: NsmQuery) -> NsmAnswer {
        let request = Request::NsmQuery(group(), Consistency::Linearizable, query);
        match self.connection.call(&request, self.deadline()).await.unwrap().reply {
            Reply::NsmAnswer(answer) => answer.unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

pub fn namespace() -> NsmCommand {
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
        ..Preset::built_in()
    };
    let info = OsdInfo {
        long_id: LongId::new("osd").unwrap(),
        place: Place::of_node(NodeId::new("node").unwrap()),
        endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 1),
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

pub fn object_name(n: u32) -> ObjectName {
    ObjectName::new(format!("object {n}")).unwrap()
}

pub fn put(n: u32) -> NsmCommand {
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
