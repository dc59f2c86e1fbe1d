//! What a request does: from decoded request to answer, on the engine.

mod copy;
mod names;
mod peers;
mod proofs;
mod reads;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::osd::{Osd, OsdBatch, OsdUpdate, Priority};
use alba_core::env::{Deadline, DeviceTurns, Direction, Env, Moment, NoTurns, within};
use alba_core::wire::asd::{
    AsdError, AsdStatistics, CLIENT_OPERATIONS, Command, Request, Response, Slowness,
};
use alba_core::wire::common::{Stat, Version};
use alba_core::wire::osd_info::Capability;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::beside::Beside;
use crate::engine::Engine;
use crate::schedule::{Gate, Permit, ScheduleLimits, cost};
use names::class;
pub use peers::{Peer, Peers};

/// What it says it can do: only what its engine does too.
const CAPABILITIES: [Capability; 7] = [
    Capability::MultiGet2,
    Capability::PartialGet,
    Capability::ProvenGet,
    Capability::DeleteRange,
    Capability::CopyFromPeer,
    Capability::Peers,
    Capability::Health,
];

/// Unit of the bound on bytes of answers.
const ROOM: u64 = 1024;

/// Longest delay that Slowness can ask for.
const SLOWEST: Duration = Duration::from_secs(3600);

/// Requests that take longer are logged.
const SLOW: Duration = Duration::from_millis(500);

/// Requests that take longer are logged as a warning.
const VERY_SLOW: Duration = Duration::from_secs(4);

/// How much the service takes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Bytes of values in one answer; more are refused.
    pub answer: u64,
    /// Bytes of values in answers, over all connections; callers wait for room. The low class has half of it at most.
    pub answers: u64,
    /// Of the disk.
    pub schedule: ScheduleLimits,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self { answer: 64 << 20, answers: 128 << 20, schedule: ScheduleLimits::default() }
    }
}

/// An answer, and what it holds until it is sent.
pub struct Answer {
    /// What to send.
    pub response: Response,
    _room: Option<Room>,
    /// Maintenance keeps its turn while it sends, for a while: bytes on the network and the processor's time delay clients
    /// just as the disk's work does.
    pub(super) turn: Option<Permit>,
}

/// Bytes of an answer in memory.
struct Room {
    _low: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self { response, _room: None, turn: None }
    }
}

/// Answers requests, with an engine behind it or while there is none.
pub struct Service {
    env: Env,
    limits: ServiceLimits,
    room: Arc<Semaphore>,
    low_room: Arc<Semaphore>,
    low_room_units: usize,
    gate: Arc<Gate>,
    peers: Arc<Peers>,
    copies: Semaphore,
    /// Values read and batches written by them.
    beside: Arc<Beside>,
    state: Mutex<State>,
}

struct State {
    engine: Result<Arc<Engine>, String>,
    slowness: Option<Slowness>,
    since: (u64, Moment),
    operations: BTreeMap<u32, Stat>,
    /// A JSON object.
    health: String,
}

impl Service {
    /// A service without an engine yet: every operation on data is answered with an error.
    pub fn new(env: Env, limits: ServiceLimits) -> Arc<Self> {
        Self::beside_others(env, limits, Arc::new(NoTurns))
    }

    /// The same on a device where other daemons have their data, too.
    pub fn beside_others(env: Env, limits: ServiceLimits, turns: Arc<dyn DeviceTurns>) -> Arc<Self> {
        let units = usize::try_from(limits.answers / ROOM).unwrap_or(Semaphore::MAX_PERMITS).max(1);
        let state = State {
            engine: Err("it is starting".into()),
            slowness: None,
            since: (env.clock.wall_micros(), env.clock.now()),
            operations: BTreeMap::new(),
            health: "{}".into(),
        };
        let low_room_units = (units / 2).max(1);
        Arc::new(Self {
            room: Arc::new(Semaphore::new(units)),
            low_room: Arc::new(Semaphore::new(low_room_units)),
            low_room_units,
            gate: Gate::new(env.clock.clone(), limits.schedule),
            peers: Arc::new(Peers::new(env.clone())),
            copies: Semaphore::new(copy::AT_ONCE),
            beside: Arc::new(Beside::new(turns, env.clock.clone())),
            state: Mutex::new(state),
            env,
            limits,
        })
    }

    /// Gives it its engine, or the reason why there is none.
    pub fn set_engine(&self, engine: Result<Arc<Engine>, String>) {
        if let Ok(engine) = &engine {
            engine.work_beside(self.beside.clone());
        }
        self.lock().engine = engine;
    }

    /// The engine, while there is one; else why not.
    pub fn current_engine(&self) -> Result<Arc<Engine>, String> {
        self.lock().engine.clone()
    }

    /// What to answer to who asks how it feels: a JSON object.
    pub fn set_health(&self, json: String) {
        self.lock().health = json;
    }

    /// How it feels: a JSON object, with what clients have asked for until now.
    pub fn health(&self) -> String {
        let told = self.lock().health.clone();
        let Ok(mut object) = serde_json::from_str::<serde_json::Map<_, _>>(&told) else { return told };
        object.insert(CLIENT_OPERATIONS.to_owned(), self.beside.client_operations().into());
        serde_json::Value::Object(object).to_string()
    }

    /// Takes the engine away, to close it.
    pub fn take_engine(&self) -> Option<Arc<Engine>> {
        std::mem::replace(&mut self.lock().engine, Err("it is stopping".into())).ok()
    }

    /// No code panics while it holds the lock, so a poisoned lock holds sound data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn engine(&self) -> Result<Arc<Engine>, AsdError> {
        let engine = self.lock().engine.clone();
        engine.map_err(|reason| AsdError::Unknown(format!("this ASD cannot serve: {reason}")))
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request, deadline: Deadline) -> Result<Answer, AsdError> {
        let command = request.command();
        let begun = self.env.clock.now();
        if is_client_operation(&request) {
            self.beside.asked(begun);
        }
        if command != Command::Slowness {
            self.be_slow(deadline).await?;
        }
        let answer = self.perform(request, deadline).await;
        let elapsed = self.env.clock.now().since(begun);
        let taken = elapsed.as_secs_f64();
        if elapsed >= VERY_SLOW {
            tracing::warn!(operation = command.name(), seconds = taken, "slow request");
        } else if elapsed >= SLOW {
            tracing::info!(operation = command.name(), seconds = taken, "slow request");
        }
        self.lock().operations.entry(command.code()).or_default().add(taken);
        metrics::histogram!("alba_osd_request_seconds", "op" => command.name()).record(taken);
        if let Err(error) = &answer {
            metrics::counter!("alba_osd_errors_total", "class" => class(error)).increment(1);
        }
        answer
    }

    async fn be_slow(&self, deadline: Deadline) -> Result<(), AsdError> {
        let Some(slowness) = self.lock().slowness else { return Ok(()) };
        let random = u32::try_from(self.env.rng.u64() >> 32).unwrap_or(0);
        let seconds = slowness.fixed + slowness.variable * f64::from(random) / f64::from(u32::MAX);
        // Nonsense (negative, not a number) is no delay.
        let delay = Duration::try_from_secs_f64(seconds).unwrap_or_default().min(SLOWEST);
        let until = self.env.clock.now().plus(delay);
        within(self.env.clock.as_ref(), deadline, self.env.clock.sleep_until(until))
            .await
            .map_err(|_| AsdError::Overloaded("slowed down past the deadline".into()))
    }

    async fn perform(&self, request: Request, deadline: Deadline) -> Result<Answer, AsdError> {
        Ok(match request {
            Request::Slowness(slowness) => {
                self.lock().slowness = slowness;
                Response::Done.into()
            }
            Request::GetVersion => Response::Version(version()).into(),
            Request::Capabilities => Response::Capabilities(CAPABILITIES.to_vec()).into(),
            Request::Statistics { clear } => Response::Statistics(self.statistics(clear)).into(),
            Request::SetFull(full) => {
                self.engine()?.set_full(full);
                Response::Done.into()
            }
            Request::GetDiskUsage => Response::DiskUsage(self.engine()?.usage()).into(),
            Request::Apply { batch, priority } => {
                self.apply(batch, priority, deadline).await?;
                Response::Applied(Vec::new()).into()
            }
            Request::Range { query, priority } => {
                let engine = self.engine()?;
                Response::Keys(self.range(&engine, query, priority, deadline).await?).into()
            }
            Request::MultiExists { keys, priority } => self.multi_exists(keys, priority, deadline).await?,
            Request::MultiGet { keys, priority } | Request::MultiGet2 { keys, priority } => {
                self.multi_get(keys, priority, deadline).await?
            }
            Request::PartialGet { key, slices, priority } => {
                self.partial_get(key, slices, priority, deadline).await?
            }
            Request::ProvenGet { key, slice, priority } => {
                self.proven_get(key, slice, priority, deadline).await?
            }
            Request::SetPeers(peers) => {
                self.set_peers(peers, deadline).await?;
                Response::Done.into()
            }
            Request::Health => Response::Health(self.health()).into(),
            Request::RangeEntries { query, priority } => self.entries(query, priority, deadline).await?,
            Request::RangeValidate { query, verify_checksum, show_all, priority } => {
                self.validate(query, verify_checksum, show_all, priority, deadline).await?
            }
        })
    }

    async fn apply(&self, batch: OsdBatch, priority: Priority, deadline: Deadline) -> Result<(), AsdError> {
        let engine = self.engine()?;
        let copied = copy::copied(&batch);
        let (batch, _copy) = self.with_fetched_values(&engine, batch, deadline).await?;
        let cost = batch_cost(&batch);
        let _turn = self.gate.admit(priority, cost, deadline).await?;
        let apply = engine.apply(batch, priority, deadline);
        let applied = engine.in_turn(Direction::Write, (priority, cost), apply).await;
        applied.map_err(|error| Self::refused(&copied, error.into()))
    }

    /// The answer to what a listener for strangers does not serve.
    pub(super) fn forbid(&self) -> AsdError {
        metrics::counter!("alba_osd_errors_total", "class" => "forbidden").increment(1);
        AsdError::Forbidden(
            "this port is open to others and serves only GetVersion, PartialGet and Capabilities: \
             use a port with TLS or on loopback, or set asd.insecure_listen"
                .into(),
        )
    }

    /// The way to the disk: for metrics, and for work of the daemon itself.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The OSDs that values may be copied from.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    fn statistics(&self, clear: bool) -> AsdStatistics {
        let mut state = self.lock();
        let (created, from) = state.since;
        let statistics = AsdStatistics {
            creation: Duration::from_micros(created).as_secs_f64(),
            period: self.env.clock.now().since(from).as_secs_f64(),
            operations: state.operations.iter().map(|(code, stat)| (*code, *stat)).collect(),
        };
        if clear {
            state.operations.clear();
            state.since = (self.env.clock.wall_micros(), self.env.clock.now());
        }
        statistics
    }
}

/// Maintenance gives way to these. Look-ups are left out: agents time them at a client's priority.
fn is_client_operation(request: &Request) -> bool {
    let moves_values = matches!(
        request,
        Request::Apply { .. }
            | Request::MultiGet { .. }
            | Request::MultiGet2 { .. }
            | Request::PartialGet { .. }
            | Request::ProvenGet { .. }
    );
    moves_values && request.priority() == Priority::High
}

/// A batch is one write, and a look-up for each key.
fn batch_cost(batch: &OsdBatch) -> u64 {
    let values = batch.updates.iter().map(|update| match update {
        OsdUpdate::Set(_, stored) => u64::try_from(stored.value.len()).unwrap_or(u64::MAX),
        OsdUpdate::Delete(_) | OsdUpdate::DeleteRange(..) | OsdUpdate::SetFromPeer(..) => 0,
    });
    let keys = cost::lookup(batch.asserts.len() + batch.updates.len());
    cost::transfer(1, values.fold(keys, u64::saturating_add))
}

fn version() -> Version {
    let number = |text: &str| text.parse().unwrap_or(-1);
    Version {
        major: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: number(env!("CARGO_PKG_VERSION_MINOR")),
        patch: number(env!("CARGO_PKG_VERSION_PATCH")),
        revision: String::new(),
    }
}
