//! An ASD over the network, as [`Osd`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::connection::{Connection, Failed};
use super::pool::{IdleLimit, Permit, Pool};
use super::reach::NO_CERTIFICATE;
use crate::env::osd::{DiskUsage, OsdBatch, OsdKey, Priority, ProvenSlice, StoredValue, ValueSlice};
use crate::env::{Connector, Deadline, Endpoint, Env, Osd, OsdError, within};
use crate::ids::LongId;
use crate::range::{Page, RangeQuery};
use crate::units::ByteCount;
use crate::wire::asd::{AsdStatistics, CLIENT_OPERATIONS, Peer, Request, Response, Slowness};
use crate::wire::common::Version;
use crate::wire::llio::Message;
use crate::wire::osd_info::Capability;

/// Limits of an [`AsdClient`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsdClientConfig {
    /// Connections to one ASD over TCP; further calls wait for one. At least 1.
    pub max_connections: usize,
    /// The same for requests in flight to an ASD that is reached over QUIC only.
    pub max_streams: usize,
    /// For each address.
    pub connect_timeout: Duration,
    /// For the prologue.
    pub handshake_timeout: Duration,
    /// A longer answer is refused and its connection closed.
    pub max_answer: ByteCount,
}

impl Default for AsdClientConfig {
    /// The original's numbers (features, appendix A); answers up to 128 MiB.
    fn default() -> Self {
        Self {
            max_connections: 10,
            max_streams: 64,
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            max_answer: ByteCount::mib(128),
        }
    }
}

impl AsdClientConfig {
    fn answer_max(&self) -> usize {
        self.max_answer.as_len().unwrap_or(usize::MAX)
    }
}

/// A client of one ASD: over TCP a bounded pool of plain connections, each carrying one request at a time; over QUIC a stream per
/// request, a bounded number at once, in the one connection there is.
pub struct AsdClient {
    env: Env,
    connector: Option<Arc<dyn Connector>>,
    endpoints: Vec<Endpoint>,
    /// Where the last connection was made: tried first.
    last_good: AtomicUsize,
    expected: LongId,
    config: AsdClientConfig,
    /// What is in flight at once, as the pool has it.
    most: usize,
    pool: Pool,
}

/// A way to the ASD, and which of the endpoints it leads to.
struct Way {
    connection: Connection,
    position: usize,
    /// It serves one request and shares its fate with others.
    is_stream: bool,
}

impl AsdClient {
    /// Over TCP. Connects when first used. Whoever answers at `addresses` must be `expected`.
    pub fn new(env: Env, addresses: Vec<SocketAddr>, expected: LongId, config: AsdClientConfig) -> Arc<Self> {
        let endpoints = addresses.into_iter().map(Endpoint::Tcp).collect();
        Self::over(env, None, endpoints, expected, config)
    }

    /// Over whatever the endpoints say; those of QUIC are passed over without a `connector`.
    pub fn over(
        env: Env,
        connector: Option<Arc<dyn Connector>>,
        endpoints: Vec<Endpoint>,
        expected: LongId,
        config: AsdClientConfig,
    ) -> Arc<Self> {
        Self::sharing(env, connector, endpoints, expected, config, None)
    }

    /// The same; its idle connections count with those of others that have the same `limit`.
    pub fn sharing(
        env: Env,
        connector: Option<Arc<dyn Connector>>,
        endpoints: Vec<Endpoint>,
        expected: LongId,
        config: AsdClientConfig,
        limit: Option<Arc<IdleLimit>>,
    ) -> Arc<Self> {
        let is_stream = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Quic(_));
        let only_streams = !endpoints.is_empty() && endpoints.iter().all(is_stream);
        let most = if only_streams { config.max_streams } else { config.max_connections }.max(1);
        let (pool, last_good) = (Pool::new(most, limit), AtomicUsize::new(0));
        Arc::new(Self { env, connector, endpoints, last_good, expected, config, most, pool })
    }

    /// Who it talks to.
    pub fn long_id(&self) -> &LongId {
        &self.expected
    }

    /// Version of the server.
    pub async fn version(&self, deadline: Deadline) -> Result<Version, OsdError> {
        match self.call(Request::GetVersion, deadline).await? {
            Response::Version(version) => Ok(version),
            other => Err(misplaced(&other)),
        }
    }

    /// Counts and durations per operation; `clear` starts them anew.
    pub async fn statistics(&self, clear: bool, deadline: Deadline) -> Result<AsdStatistics, OsdError> {
        match self.call(Request::Statistics { clear }, deadline).await? {
            Response::Statistics(statistics) => Ok(statistics),
            other => Err(misplaced(&other)),
        }
    }

    /// Delays every later request to that ASD, from anyone; none ends it. A test aid.
    pub async fn set_slowness(&self, slowness: Option<Slowness>, deadline: Deadline) -> Result<(), OsdError> {
        self.done(Request::Slowness(slowness), deadline).await
    }

    /// Makes the ASD refuse data as if it were full, or ends that.
    pub async fn set_full(&self, full: bool, deadline: Deadline) -> Result<(), OsdError> {
        self.done(Request::SetFull(full), deadline).await
    }

    /// What it can do; an older one may lack what is ours.
    pub async fn capabilities(&self, deadline: Deadline) -> Result<Vec<Capability>, OsdError> {
        match self.call(Request::Capabilities, deadline).await? {
            Response::Capabilities(capabilities) => Ok(capabilities),
            other => Err(misplaced(&other)),
        }
    }

    /// Tells it which OSDs it may copy from: these and no others.
    pub async fn set_peers(&self, peers: Vec<Peer>, deadline: Deadline) -> Result<(), OsdError> {
        self.done(Request::SetPeers(peers), deadline).await
    }

    /// How it feels: a JSON object for people and tools (states, damage, scrub).
    pub async fn health(&self, deadline: Deadline) -> Result<String, OsdError> {
        match self.call(Request::Health, deadline).await? {
            Response::Health(json) => Ok(json),
            other => Err(misplaced(&other)),
        }
    }

    fn fits(&self, wanted: u64) -> Result<(), OsdError> {
        if wanted <= self.config.max_answer.get() {
            return Ok(());
        }
        Err(OsdError::BadRequest(format!(
            "{wanted} bytes in one answer; at most {} are accepted",
            self.config.max_answer
        )))
    }

    async fn done(&self, request: Request, deadline: Deadline) -> Result<(), OsdError> {
        match self.call(request, deadline).await? {
            Response::Done => Ok(()),
            other => Err(misplaced(&other)),
        }
    }

    async fn call(&self, request: Request, deadline: Deadline) -> Result<Response, OsdError> {
        let message = request.encode().map_err(|error| OsdError::BadRequest(error.to_string()))?;
        let clock = self.env.clock.as_ref();
        let busy = || OsdError::Overloaded(format!("{} requests are in flight already", self.most));
        let permit = within(clock, deadline, self.pool.permit()).await.ok().flatten().ok_or_else(busy)?;
        // Cancelled by the deadline, or by our caller: the connection is dropped with the future, the permit freed.
        within(clock, deadline, self.exchange(permit, &request, &message, deadline))
            .await
            .unwrap_or(Err(OsdError::Timeout))
    }

    async fn exchange(
        &self,
        permit: Permit<'_>,
        request: &Request,
        message: &Message,
        deadline: Deadline,
    ) -> Result<Response, OsdError> {
        let answer_max = self.config.answer_max();
        if let Some(mut connection) = permit.take_idle(self.env.net.as_ref()).await {
            match connection.exchange(message, request, answer_max).await {
                Ok(answer) => {
                    permit.give_back(connection);
                    return Ok(answer?);
                }
                // The ASD was restarted since, and we did not see it yet. A request that was not handed over
                // completely cannot have been acted on: a frame counts only when it is whole. One that was sent and
                // not answered may have been: a batch that is repeated then would fail on its own assert, or undo
                // what someone else did in between. So only what is harmless to repeat is sent again.
                Err(Failed::Unanswered(_)) if !is_harmless_to_repeat(request) => {
                    permit.forget_idle();
                    return Err(OsdError::Connection("closed before it answered".to_owned()));
                }
                Err(Failed::NotSent(_) | Failed::Unanswered(_)) => permit.forget_idle(),
                Err(failed @ Failed::Final(_)) => return Err(failed.into_error()),
            }
        }
        let mut repeated = false;
        let mut passed_over = 0;
        loop {
            let mut way = self.connect(deadline).await?;
            match way.connection.exchange(message, request, answer_max).await {
                Ok(answer) => {
                    if !way.is_stream {
                        permit.give_back(way.connection);
                    }
                    return Ok(answer?);
                }
                // The connection that the stream is in may be one of before a restart: the same as with an idle one.
                Err(Failed::NotSent(_)) if way.is_stream && !repeated => repeated = true,
                Err(Failed::Unanswered(_))
                    if way.is_stream && !repeated && is_harmless_to_repeat(request) =>
                {
                    repeated = true;
                }
                // Over TCP that is found when connecting. Whoever it is has not looked at the request.
                Err(Failed::Final(OsdError::WrongOsd { .. }))
                    if way.is_stream && passed_over + 1 < self.endpoints.len() =>
                {
                    passed_over += 1;
                    self.last_good.store(way.position.wrapping_add(1), Ordering::Relaxed);
                }
                Err(failed) => return Err(failed.into_error()),
            }
        }
    }

    /// Tries all endpoints, the one that worked last first.
    async fn connect(&self, deadline: Deadline) -> Result<Way, OsdError> {
        let count = self.endpoints.len();
        let first = self.last_good.load(Ordering::Relaxed);
        let mut failure = OsdError::Connection("it has no address that may be used here".to_owned());
        for position in (0..count).map(|i| first.wrapping_add(i) % count) {
            let Some(endpoint) = self.endpoints.get(position) else { continue };
            match self.connect_to(*endpoint, deadline).await {
                Ok(connection) => {
                    self.last_good.store(position, Ordering::Relaxed);
                    return Ok(Way {
                        connection,
                        position,
                        is_stream: matches!(endpoint, Endpoint::Quic(_)),
                    });
                }
                // That another device answers at one address says more than that nobody does at the other.
                Err(error) if !matches!(failure, OsdError::WrongOsd { .. }) => failure = error,
                Err(_) => {}
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, endpoint: Endpoint, deadline: Deadline) -> Result<Connection, OsdError> {
        match endpoint {
            Endpoint::Tcp(address) => {
                Connection::open(&self.env, address, Some(&self.expected), &self.config, deadline)
                    .await
                    .map(|(connection, _)| connection)
            }
            Endpoint::Quic(address) => {
                let broken =
                    |error: &dyn std::fmt::Display| OsdError::Connection(format!("{endpoint}: {error}"));
                let connector = self.connector.as_ref().ok_or_else(|| broken(&NO_CERTIFICATE))?;
                let connect_by = deadline.capped(self.env.clock.as_ref(), self.config.connect_timeout);
                let stream = connector.open(address, connect_by).await.map_err(|error| broken(&error))?;
                Ok(Connection::for_one_request(stream, self.expected.clone()))
            }
        }
    }
}

/// Would doing it twice be the same as once, whoever else is at work?
fn is_harmless_to_repeat(request: &Request) -> bool {
    !matches!(request, Request::Apply { .. } | Request::Statistics { clear: true })
}

fn misplaced(response: &Response) -> OsdError {
    // Answers are decoded by their request, so each request has one kind.
    OsdError::Connection(format!("an answer to another request: {response:?}"))
}

/// Asks who answers at `address`.
pub async fn probe(env: &Env, address: SocketAddr, deadline: Deadline) -> Result<LongId, OsdError> {
    let (_, found) = Connection::open(env, address, None, &AsdClientConfig::default(), deadline).await?;
    LongId::new(found).map_err(|error| OsdError::Connection(format!("{address}: {error}")))
}

#[async_trait]
impl Osd for AsdClient {
    async fn apply(&self, batch: OsdBatch, priority: Priority, deadline: Deadline) -> Result<(), OsdError> {
        match self.call(Request::Apply { batch, priority }, deadline).await? {
            // Tokens of files mean something only to the original's clients.
            Response::Applied(_) => Ok(()),
            other => Err(misplaced(&other)),
        }
    }

    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredValue>>, OsdError> {
        match self.call(Request::MultiGet { keys, priority }, deadline).await? {
            Response::Values(values) => Ok(values),
            other => Err(misplaced(&other)),
        }
    }

    async fn multi_exists(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<bool>, OsdError> {
        match self.call(Request::MultiExists { keys, priority }, deadline).await? {
            Response::Exists(flags) => Ok(flags),
            other => Err(misplaced(&other)),
        }
    }

    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<Vec<Bytes>>, OsdError> {
        let wanted = slices.iter().fold(0_u64, |sum, slice| sum.saturating_add(u64::from(slice.len)));
        self.fits(wanted)?;
        match self.call(Request::PartialGet { key, slices, priority }, deadline).await? {
            Response::Slices(slices) => Ok(slices),
            other => Err(misplaced(&other)),
        }
    }

    /// Not verified here: [`crate::blake3_tree::verify`] does, with the root that the caller trusts.
    async fn proven_get(
        &self,
        key: OsdKey,
        slice: ValueSlice,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<ProvenSlice>, OsdError> {
        self.fits(u64::from(slice.len))?;
        match self.call(Request::ProvenGet { key, slice, priority }, deadline).await? {
            Response::Proven(proven) => Ok(proven),
            other => Err(misplaced(&other)),
        }
    }

    async fn range(
        &self,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Page<OsdKey>, OsdError> {
        match self.call(Request::Range { query, priority }, deadline).await? {
            Response::Keys(page) => Ok(page),
            other => Err(misplaced(&other)),
        }
    }

    async fn disk_usage(&self, deadline: Deadline) -> Result<DiskUsage, OsdError> {
        match self.call(Request::GetDiskUsage, deadline).await? {
            Response::DiskUsage(usage) => Ok(usage),
            other => Err(misplaced(&other)),
        }
    }

    async fn client_operations(&self, deadline: Deadline) -> Result<Option<u64>, OsdError> {
        match self.health(deadline).await {
            Ok(json) => Ok(serde_json::from_str::<serde_json::Value>(&json)
                .ok()
                .and_then(|health| health.get(CLIENT_OPERATIONS)?.as_u64())),
            // Of before it counted.
            Err(OsdError::UnknownOperation) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
