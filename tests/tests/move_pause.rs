//! How long clients wait while a namespace moves to another metadata group. A measurement, so it runs when it is asked for:
//! `just move-pause`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alba_client::ClientConfig;
use alba_client::metadata::MetadataClient;
use alba_core::checksum::Checksum;
use alba_core::env::{Directory, Env, MetaError, NamespaceStore, real};
use alba_core::ids::{GcEpoch, GroupId, NamespaceName, ObjectId, ObjectName, ObjectVersion, OsdId};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::policy::CodeShape;
use alba_core::preset::Preset;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, NamespaceRecord};
use alba_core::wire::rpc::nsm::{NsmCommand, NsmError, ObjectUpdate, Overwrite};
use alba_tests::cluster::{Cluster, Options};

/// Objects in the namespace that moves; ALBA_MOVE_OBJECTS sets another number.
const OBJECTS: u64 = 100_000;

/// Objects of one command while filling.
const TOGETHER: u64 = 50;

/// Clients that go on writing.
const WRITERS: u64 = 8;

/// Longest any command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause before a namespace that is being moved is asked again, about what a client's first is.
const AGAIN: Duration = Duration::from_millis(10);

/// Writes before and after the move, to compare with.
const ASIDE: Duration = Duration::from_secs(3);

struct Writer {
    env: Env,
    client: Arc<MetadataClient>,
    name: NamespaceName,
    preset: Preset,
    osds: Vec<OsdId>,
    number: AtomicU64,
}

impl Writer {
    async fn ask(&self, query: AbmQuery) -> AbmAnswer {
        let deadline = self.env.deadline_in(PATIENCE);
        Directory::query(self.client.as_ref(), query, deadline).await.unwrap()
    }

    async fn record(&self) -> NamespaceRecord {
        match self.ask(AbmQuery::Namespace(self.name.clone())).await {
            AbmAnswer::Namespace(Some(record)) => record,
            other => panic!("{other:?}"),
        }
    }

    /// An object of which only the manifest exists, as safe as the preset's first policy wants it.
    fn put(&self) -> ObjectUpdate {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let id = *blake3::hash(&number.to_le_bytes()).as_bytes();
        let policy = &self.preset.policies[0];
        let (k, m) = policy.shape().as_u8();
        let first = usize::from(id[0]);
        let fragment = |n: usize| Fragment {
            location: Some(self.osds[(first + n) % self.osds.len()]),
            version: ObjectVersion(0),
            checksum: self.preset.fragment_checksum.of(&id),
            packed_len: 16,
            ctr: None,
        };
        let manifest = Manifest {
            name: ObjectName::new(format!("object-{number:012}")).unwrap(),
            object_id: ObjectId::new(id),
            size: u64::from(k) * 16,
            checksum: Checksum::Crc32c(7),
            scheme: Scheme {
                shape: CodeShape::new(k, m).unwrap(),
                matrix: CodingMatrix::VandermondeSystematic,
                compression: self.preset.compression,
            },
            encryption: EncryptInfo::None,
            chunks: vec![Chunk {
                size: u32::from(k) * 16,
                fragments: (0..usize::from(k) + usize::from(m)).map(fragment).collect(),
            }],
            version: ObjectVersion(0),
            max_disks_per_node: policy.max_per_node(),
            timestamp: Timestamp(0),
        };
        ObjectUpdate::Put { manifest: Box::new(manifest), overwrite: Overwrite::NoPrevious }
    }

    /// Puts, wherever the namespace is by then; how long that took.
    async fn write(&self, record: &mut NamespaceRecord, updates: u64) -> Duration {
        let command = NsmCommand::Sequence {
            namespace: record.id,
            asserts: Vec::new(),
            updates: (0..updates).map(|_| self.put()).collect(),
            epoch: GcEpoch::from_u32(0),
        };
        let began = Instant::now();
        loop {
            let deadline = self.env.deadline_in(PATIENCE);
            match NamespaceStore::command(self.client.as_ref(), &record.group, command.clone(), deadline)
                .await
            {
                Ok(_) => return began.elapsed(),
                Err(MetaError::Nsm(NsmError::NamespaceFrozen(_))) => tokio::time::sleep(AGAIN).await,
                Err(MetaError::Nsm(NsmError::NamespaceMoved(_))) => {
                    let before = std::mem::replace(record, self.record().await);
                    if before.group == record.group {
                        // Between the hand-over and the word of the ABM nobody serves it.
                        tokio::time::sleep(AGAIN).await;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[ignore = "a measurement"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_while_a_namespace_moves() {
    let objects = std::env::var("ALBA_MOVE_OBJECTS").ok().map_or(OBJECTS, |text| text.parse().unwrap());
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    options.more = ["--metadata-nodes", "3", "--nsm-groups", "2"].map(str::to_owned).into();
    let cluster = Arc::new(Cluster::start("move-pause", options));
    let env = real::env();
    let file = |name: &str| Some(cluster.data_dir().join("tls").join(name));
    let config = ClientConfig {
        metadata: cluster.ready.metadata.clone(),
        tls_ca: file("ca.pem"),
        tls_cert: file("client.pem"),
        tls_key: file("client.key"),
        ..ClientConfig::default()
    };
    let client = MetadataClient::of(&env, &config).unwrap();
    let preset = Preset::built_in();
    let name = NamespaceName::new("demo").unwrap();
    let mut writer = Writer { env, client, name, preset, osds: Vec::new(), number: AtomicU64::new(0) };
    let record = writer.record().await;
    match writer.ask(AbmQuery::Preset(record.preset.clone())).await {
        AbmAnswer::Preset(Some(found)) => writer.preset = found.preset,
        other => panic!("{other:?}"),
    }
    match writer.ask(AbmQuery::NamespaceOsds(record.id)).await {
        AbmAnswer::OsdIds(osds) => writer.osds = osds,
        other => panic!("{other:?}"),
    }
    let writer = Arc::new(writer);
    let began = Instant::now();
    let mut filling = tokio::task::JoinSet::new();
    let commands = Arc::new(AtomicU64::new(objects / TOGETHER));
    for _ in 0..WRITERS {
        let (writer, mut record, commands) = (writer.clone(), record.clone(), commands.clone());
        filling.spawn(async move {
            let less = |left: u64| left.checked_sub(1);
            while commands.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                writer.write(&mut record, TOGETHER).await;
            }
        });
    }
    filling.join_all().await;
    println!("{objects} objects put in {:.1} s", began.elapsed().as_secs_f64());

    let over = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let mut writing = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (writer, mut record, over) = (writer.clone(), record.clone(), over.clone());
        writing.spawn(async move {
            // When each put began, and how long it took.
            let mut times = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let began = started.elapsed();
                times.push((began, writer.write(&mut record, 1).await));
            }
            times
        });
    }
    tokio::time::sleep(ASIDE).await;
    let from = started.elapsed();
    let moving = cluster.clone();
    let moved = tokio::task::spawn_blocking(move || moving.alba(&["move-namespace", "demo", "nsm-1"]));
    moved.await.unwrap().unwrap();
    let to = started.elapsed();
    tokio::time::sleep(ASIDE).await;
    over.store(true, Ordering::Relaxed);
    let times: Vec<(Duration, Duration)> = writing.join_all().await.into_iter().flatten().collect();
    assert_eq!(writer.record().await.group, GroupId::new("nsm-1").unwrap());

    let longest = |within: &dyn Fn(Duration, Duration) -> bool| {
        let inside = times.iter().filter(|(began, took)| within(*began, *began + *took));
        inside.map(|(_, took)| took.as_secs_f64()).fold(0.0, f64::max)
    };
    let pause = longest(&|began, ended| began < to && ended > from);
    let aside = longest(&|began, ended| began >= to || ended <= from);
    println!(
        r#"{{"name":"metadata/move-pause/{objects}","value":{pause:.3},"unit":"s","limit":"1 s","longest_otherwise":{aside:.3},"move":{:.1},"puts":{}}}"#,
        (to - from).as_secs_f64(),
        times.len(),
    );
}
