//! What a request does: from decoded request to answer, on the engine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::osd::{Osd, OsdError, OsdKey, Priority, ValueSlice};
use alba_core::env::{Deadline, Env, Moment, within};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::asd::{
    AsdError, AsdStatistics, Command, KeyCheck, Request, Response, Slowness, StoredEntry,
};
use alba_core::wire::common::{Stat, Version};
use alba_core::wire::osd_info::Capability;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::Engine;

/// Unit of the bound on bytes of answers.
const ROOM: u64 = 1024;

/// Bytes of values after which a page of entries ends early.
const ENTRIES_BYTES: u64 = 16 << 20;

/// Longest delay that Slowness can ask for.
const SLOWEST: Duration = Duration::from_secs(3600);

/// How much the service takes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Bytes of values in one answer; more are refused.
    pub answer: u64,
    /// Bytes of values in answers, over all connections; callers wait for room.
    pub answers: u64,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self { answer: 64 << 20, answers: 128 << 20 }
    }
}

/// An answer, and the room its bytes take until it is sent.
pub struct Answer {
    /// What to send.
    pub response: Response,
    _room: Option<OwnedSemaphorePermit>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self { response, _room: None }
    }
}

/// Answers requests, with an engine behind it or while there is none.
pub struct Service {
    env: Env,
    limits: ServiceLimits,
    room: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    engine: Result<Arc<Engine>, String>,
    slowness: Option<Slowness>,
    since: (u64, Moment),
    operations: BTreeMap<u32, Stat>,
}

impl Service {
    /// A service without an engine yet: every operation on data is answered with an error.
    pub fn new(env: Env, limits: ServiceLimits) -> Arc<Self> {
        let units = usize::try_from(limits.answers / ROOM).unwrap_or(Semaphore::MAX_PERMITS).max(1);
        let state = State {
            engine: Err("it is starting".into()),
            slowness: None,
            since: (env.clock.wall_micros(), env.clock.now()),
            operations: BTreeMap::new(),
        };
        Arc::new(Self { env, limits, room: Arc::new(Semaphore::new(units)), state: Mutex::new(state) })
    }

    /// Gives it its engine, or the reason why there is none.
    pub fn set_engine(&self, engine: Result<Arc<Engine>, String>) {
        self.lock().engine = engine;
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
        if command != Command::Slowness {
            self.be_slow(deadline).await?;
        }
        let answer = self.perform(request, deadline).await;
        let taken = self.env.clock.now().since(begun).as_secs_f64();
        self.lock().operations.entry(command.code()).or_default().add(taken);
        metrics::histogram!("alba_osd_request_seconds", "op" => name(command)).record(taken);
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
            Request::Capabilities => {
                Response::Capabilities(vec![Capability::MultiGet2, Capability::PartialGet]).into()
            }
            Request::Statistics { clear } => Response::Statistics(self.statistics(clear)).into(),
            Request::SetFull(full) => {
                self.engine()?.set_full(full);
                Response::Done.into()
            }
            Request::GetDiskUsage => Response::DiskUsage(self.engine()?.usage()).into(),
            Request::Apply { batch, priority } => {
                self.engine()?.apply(batch, priority, deadline).await?;
                Response::Applied(Vec::new()).into()
            }
            Request::Range { query, priority } => {
                Response::Keys(self.engine()?.range(query, priority, deadline).await?).into()
            }
            Request::MultiExists { keys, priority } => {
                Response::Exists(self.engine()?.multi_exists(keys, priority, deadline).await?).into()
            }
            Request::MultiGet { keys, priority } | Request::MultiGet2 { keys, priority } => {
                self.multi_get(keys, priority, deadline).await?
            }
            Request::PartialGet { key, slices, priority } => {
                self.partial_get(key, slices, priority, deadline).await?
            }
            Request::RangeEntries { query, priority } => self.entries(query, priority, deadline).await?,
            Request::RangeValidate { query, verify_checksum, show_all, priority } => {
                self.validate(query, verify_checksum, show_all, priority, deadline).await?
            }
        })
    }

    /// Room for `bytes` of an answer.
    async fn admit(&self, bytes: u64, deadline: Deadline) -> Result<OwnedSemaphorePermit, AsdError> {
        if bytes > self.limits.answer {
            return Err(AsdError::BadRequest(format!(
                "the answer would have {bytes} bytes of values; {} are allowed: ask for less at once",
                self.limits.answer
            )));
        }
        let units = u32::try_from(bytes / ROOM + 1).unwrap_or(u32::MAX);
        let room = within(self.env.clock.as_ref(), deadline, self.room.clone().acquire_many_owned(units));
        let overloaded = || AsdError::Overloaded("too many bytes of answers wait to be sent".into());
        room.await.map_err(|_| overloaded())?.map_err(|_| overloaded())
    }

    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let bytes = engine.size_of(keys.clone(), deadline).await?;
        let room = self.admit(bytes, deadline).await?;
        let values = engine.multi_get(keys, priority, deadline).await?;
        Ok(Answer { response: Response::Values(values), _room: Some(room) })
    }

    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let bytes = slices.iter().map(|slice| u64::from(slice.len)).sum();
        let room = self.admit(bytes, deadline).await?;
        let found = self.engine()?.partial_get(key, slices, priority, deadline).await?;
        Ok(Answer { response: Response::Slices(found), _room: Some(room) })
    }

    async fn entries(
        &self,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let page = engine.range(query, priority, deadline).await?;
        let room = self.admit(ENTRIES_BYTES.min(self.limits.answer), deadline).await?;
        let (mut items, mut bytes, mut has_more) = (Vec::new(), 0, page.has_more);
        for key in page.items {
            let found = engine.multi_get(vec![key.clone()], priority, deadline).await?.pop().flatten();
            // Deleted since the listing.
            let Some(value) = found else { continue };
            bytes += u64::try_from(value.value.len()).unwrap_or(u64::MAX);
            if bytes > ENTRIES_BYTES && !items.is_empty() {
                has_more = true;
                break;
            }
            items.push(StoredEntry { key, value });
        }
        Ok(Answer { response: Response::Entries(Page { items, has_more }), _room: Some(room) })
    }

    async fn validate(
        &self,
        query: RangeQuery,
        verify_checksum: bool,
        show_all: bool,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let page = engine.range(query, priority, deadline).await?;
        let continued = page.items.last().filter(|_| page.has_more).cloned();
        let mut checks = Vec::new();
        for key in page.items {
            let mut done = Vec::new();
            if verify_checksum {
                match engine.multi_get(vec![key.clone()], priority, deadline).await {
                    Ok(found) => {
                        if let Some(stored) = found.into_iter().next().flatten() {
                            let name = stored.checksum.algorithm().name().to_owned();
                            done.push((name, stored.checksum.matches(&stored.value)));
                        }
                    }
                    Err(OsdError::Damaged(_)) => done.push(("crc-32c".to_owned(), false)),
                    Err(other) => return Err(other.into()),
                }
            }
            if show_all || done.iter().any(|(_, passed)| !passed) {
                checks.push(KeyCheck { key, checks: done });
            }
        }
        Ok(Response::Checked(checks, continued).into())
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

fn version() -> Version {
    let number = |text: &str| text.parse().unwrap_or(-1);
    Version {
        major: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: number(env!("CARGO_PKG_VERSION_MINOR")),
        patch: number(env!("CARGO_PKG_VERSION_PATCH")),
        revision: String::new(),
    }
}

fn name(command: Command) -> &'static str {
    match command {
        Command::Range => "range",
        Command::MultiGet => "multi_get",
        Command::Apply => "apply",
        Command::RangeEntries => "range_entries",
        Command::Statistics => "statistics",
        Command::SetFull => "set_full",
        Command::GetVersion => "get_version",
        Command::MultiGet2 => "multi_get2",
        Command::MultiExists => "multi_exists",
        Command::GetDiskUsage => "get_disk_usage",
        Command::PartialGet => "partial_get",
        Command::Capabilities => "capabilities",
        Command::RangeValidate => "range_validate",
        Command::Slowness => "slowness",
    }
}

fn class(error: &AsdError) -> &'static str {
    match error {
        AsdError::Unknown(_) => "device",
        AsdError::AssertFailed(_) => "assert",
        AsdError::UnknownOperation | AsdError::ProtocolVersionMismatch(_) | AsdError::BadRequest(_) => {
            "caller"
        }
        AsdError::Full => "full",
        AsdError::Damaged(_) => "damage",
        AsdError::Overloaded(_) => "overload",
    }
}
