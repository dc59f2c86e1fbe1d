//! Clients that work on few names at once, and what they saw.
//!
//! The objects are only manifests: no fragment is stored anywhere. Each client has its own sessions and request ids, as
//! real ones do; some give up early, so that commands of unknown outcome are in the history.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_client::metadata::MetadataClient;
use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::env::{Env, MetaError, NamespaceStore};
use alba_core::ids::{
    GcEpoch, LongId, MessageId, NamespaceId, NamespaceName, NodeId, ObjectId, ObjectName, ObjectVersion,
    OsdId, Place,
};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::policy::{CodeShape, Policy};
use alba_core::preset::{Compression, ObjectChecksums, OsdSet, Preset};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{OsdEndpoint, OsdInfo};
use alba_core::wire::rpc::nsm::{
    NsmAnswer, NsmCommand, NsmError, NsmMessage, NsmOutcome, NsmQuery, ObjectUpdate, Overwrite,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use crate::linearizable::timestamps::Stamp;
use crate::linearizable::{Answer, Call, Condition, History, Recorder, State, Value};
use crate::metadata_nodes::nsm_group;

/// The namespace they work in.
pub const NS: NamespaceId = NamespaceId::from_u32(0);

/// How long a patient client waits for one operation.
const PATIENT: Duration = Duration::from_secs(20);

/// How long an impatient one does: shorter than an election.
const IMPATIENT: Duration = Duration::from_millis(400);

/// One client in so many is impatient.
const IMPATIENT_ONE_IN: u32 = 4;

/// One client in so many only reads: nothing tells it that the server it asks is no leader any more, but its answers.
const READER_ONE_IN: u32 = 4;

/// Makes the namespace, with one OSD that takes fragments. A repeat has no effect.
pub async fn create_namespace(client: &MetadataClient, env: &Env) {
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
    let name = NamespaceName::new("hot").unwrap();
    let create = NsmMessage::CreateNamespace { id: NS, name, preset: Box::new(preset), preset_version: 0 };
    let link = NsmMessage::LinkOsd { namespace: NS, osd: OsdId::from_u32(0), info: Box::new(info) };
    let command = NsmCommand::Deliver(vec![(MessageId::from_u32(0), create), (MessageId::from_u32(1), link)]);
    let deadline = env.deadline_in(Duration::from_secs(60));
    NamespaceStore::command(client, &nsm_group(), command, deadline).await.unwrap();
}

/// The name with this number.
pub fn name(number: usize) -> ObjectName {
    ObjectName::new(format!("hot {number}")).unwrap()
}

fn object_id(value: Value) -> ObjectId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&value.0.to_be_bytes());
    ObjectId::new(id)
}

fn value_of(manifest: &Manifest) -> Value {
    let [a, b, c, d, e, f, g, h, ..] = *manifest.object_id.as_bytes();
    Value(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

/// An object that says it has one fragment.
pub fn manifest(name: ObjectName, value: Value) -> Manifest {
    let fragment = Fragment {
        location: Some(OsdId::from_u32(0)),
        version: ObjectVersion(0),
        checksum: Checksum::Crc32c(1),
        packed_len: 16,
        ctr: None,
    };
    Manifest {
        name,
        object_id: object_id(value),
        size: 16,
        checksum: Checksum::Crc32c(1),
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
    }
}

/// A change of the namespace.
pub fn change(update: ObjectUpdate) -> NsmCommand {
    NsmCommand::Sequence {
        namespace: NS,
        asserts: Vec::new(),
        updates: vec![update],
        epoch: GcEpoch::from_u32(0),
    }
}

fn command_of(name: ObjectName, call: Call) -> Option<NsmCommand> {
    Some(change(match call {
        Call::Read => return None,
        Call::Put { value, condition } => ObjectUpdate::Put {
            manifest: Box::new(manifest(name, value)),
            overwrite: match condition {
                Condition::Unconditionally => Overwrite::Unconditionally,
                Condition::NoPrevious => Overwrite::NoPrevious,
                Condition::Previous(value) => Overwrite::PreviousObjectId(object_id(value)),
            },
        },
        Call::Delete { must_exist } => ObjectUpdate::Delete { name, must_exist },
    }))
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Every operation.
    pub history: History,
    /// Times of acknowledged puts.
    pub stamps: Vec<Stamp>,
    /// Every value and time that was stored or read.
    pub times: Vec<(Value, u64)>,
    /// Answers that no model gives, such as "the object id is in use" for one used once.
    pub impossible: Vec<String>,
    /// Why outcomes are unknown, and how many; numbers left out.
    pub unknown: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Notes {
    stamps: Vec<Stamp>,
    times: Vec<(Value, u64)>,
    impossible: Vec<String>,
    unknown: BTreeMap<String, usize>,
}

#[derive(Clone)]
struct Shared {
    env: Env,
    recorder: Recorder,
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
    names: usize,
}

/// Clients at work.
pub struct Load {
    shared: Shared,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `clients` clients on `names` names. Each begins with another server.
    pub fn start(env: &Env, servers: &[SocketAddr], names: usize, clients: u32, seed: u64) -> Self {
        let shared = Shared {
            env: env.clone(),
            recorder: Recorder::new(names),
            notes: Arc::default(),
            stop: Arc::default(),
            names,
        };
        let clients = (0..clients)
            .map(|number| {
                let mut servers = servers.to_vec();
                let first = number as usize % servers.len();
                servers.rotate_left(first);
                let client = Client {
                    number,
                    metadata: MetadataClient::connect(env.clone(), servers),
                    shared: shared.clone(),
                    rng: StdRng::seed_from_u64(seed ^ (u64::from(number) << 32)),
                    known: vec![None; names],
                };
                tokio::spawn(client.run())
            })
            .collect();
        Self { shared, clients }
    }

    /// Operations answered so far.
    pub fn completed(&self) -> usize {
        self.shared.recorder.completed()
    }

    /// What was seen up to now; what is under way is of unknown outcome.
    pub fn history(&self) -> History {
        self.shared.recorder.history()
    }

    /// Is no more recorded?
    pub fn is_full(&self) -> bool {
        self.shared.recorder.is_full()
    }

    /// Lets them finish what they have begun and reads every name once more.
    pub async fn end(self, servers: &[SocketAddr]) -> Seen {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        let metadata = MetadataClient::connect(self.shared.env.clone(), servers.to_vec());
        let rng = StdRng::seed_from_u64(0);
        let known = vec![None; self.shared.names];
        let mut last = Client { number: 1000, metadata, shared: self.shared.clone(), rng, known };
        for name in 0..last.shared.names {
            last.perform(name, Call::Read, PATIENT).await;
        }
        let notes = std::mem::take(&mut *lock(&self.shared.notes));
        Seen {
            history: self.shared.recorder.history(),
            stamps: notes.stamps,
            times: notes.times,
            impossible: notes.impossible,
            unknown: notes.unknown,
        }
    }
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Client {
    number: u32,
    metadata: Arc<MetadataClient>,
    shared: Shared,
    rng: StdRng,
    /// What it saw last of each name.
    known: Vec<State>,
}

/// What a client heard, with the time of the object.
enum Heard {
    Answer(Answer, Option<(Value, u64)>),
    Nothing(String),
    Impossible(String),
}

impl Client {
    async fn run(mut self) {
        let patience = if self.number % IMPATIENT_ONE_IN == 1 { IMPATIENT } else { PATIENT };
        while !self.shared.stop.load(Ordering::Relaxed) && !self.shared.recorder.is_full() {
            let name = self.rng.random_range(0..self.shared.names);
            let call = self.choose(name);
            self.perform(name, call, patience).await;
        }
    }

    fn choose(&mut self, name: usize) -> Call {
        if self.number % READER_ONE_IN == 2 {
            return Call::Read;
        }
        let value = self.shared.recorder.fresh();
        match (self.rng.random_range(0..20), self.known[name]) {
            (0..9, _) => Call::Read,
            (9..11, _) => Call::Delete { must_exist: self.rng.random_bool(0.5) },
            (11..14, _) => Call::Put { value, condition: Condition::NoPrevious },
            (14..17, Some(known)) => Call::Put { value, condition: Condition::Previous(known) },
            _ => Call::Put { value, condition: Condition::Unconditionally },
        }
    }

    async fn perform(&mut self, number: usize, call: Call, patience: Duration) {
        let shared = self.shared.clone();
        let pending = shared.recorder.begin(self.number, number, call);
        let heard = self.ask(name(number), call, patience).await;
        let operation = match heard {
            Heard::Answer(answer, _) => Some(pending.answered(answer)),
            Heard::Nothing(_) | Heard::Impossible(_) => None,
        };
        let mut notes = lock(&shared.notes);
        match heard {
            Heard::Answer(answer, time) => {
                match (answer, call) {
                    (Answer::Found(state), _) => self.known[number] = state,
                    (Answer::Done, Call::Put { value, .. }) => self.known[number] = Some(value),
                    (Answer::Done, _) => self.known[number] = None,
                    (Answer::Refused, _) => {}
                }
                notes.times.extend(time);
                if let (Some((value, time)), Answer::Done, Some((invoked, returned))) =
                    (time, answer, operation)
                {
                    notes.stamps.push(Stamp { value, time, invoked, returned });
                }
            }
            Heard::Nothing(reason) => {
                let kind = reason.chars().filter(|letter| !letter.is_ascii_digit()).collect();
                *notes.unknown.entry(kind).or_default() += 1;
            }
            Heard::Impossible(what) => notes.impossible.push(format!("{number}: {call:?}: {what}")),
        }
    }

    async fn ask(&self, name: ObjectName, call: Call, patience: Duration) -> Heard {
        let deadline = self.shared.env.deadline_in(patience);
        let store: &dyn NamespaceStore = self.metadata.as_ref();
        let group = nsm_group();
        let Some(command) = command_of(name.clone(), call) else {
            let query = NsmQuery::Manifests { namespace: NS, names: vec![name.clone()] };
            return match store.query(&group, query, deadline).await {
                Ok(NsmAnswer::Manifests(found)) => match found.as_slice() {
                    [found] => {
                        let seen = found.as_ref().map(|found| (value_of(found), found.timestamp.0));
                        Heard::Answer(Answer::Found(seen.map(|(value, _)| value)), seen)
                    }
                    _ => Heard::Impossible(format!("{} answers to one question", found.len())),
                },
                Ok(other) => Heard::Impossible(format!("{other:?}")),
                Err(error) => heard(&error),
            };
        };
        match store.command(&group, command, deadline).await {
            Ok(NsmOutcome::Stored(stored)) => {
                let time = stored.first().map(|stored| (value_of(stored), stored.timestamp.0));
                Heard::Answer(Answer::Done, time)
            }
            Ok(other) => Heard::Impossible(format!("{other:?}")),
            Err(error) => heard(&error),
        }
    }
}

fn heard(error: &MetaError) -> Heard {
    match error {
        MetaError::Nsm(NsmError::OverwriteNotAllowed(_) | NsmError::ObjectNotFound) => {
            Heard::Answer(Answer::Refused, None)
        }
        // Everything the clients do is in order otherwise.
        MetaError::Nsm(_) | MetaError::Abm(_) | MetaError::Protocol(_) => {
            Heard::Impossible(error.to_string())
        }
        MetaError::SessionUnknown | MetaError::Unreachable { .. } | MetaError::Storage(_) => {
            Heard::Nothing(error.to_string())
        }
    }
}
