//! OSDs over TCP or QUIC, as the engine reaches them outside of tests.
//!
//! Over TCP small calls have connections of their own: one that carries a large fragment is busy for as long as that takes, and
//! a slice that waits for it would show it. Over QUIC all calls are streams of one connection, which take turns in it; there
//! a part of the streams is for small calls, so that large ones never use up all that may be open. How long calls take is
//! measured here, per OSD and operation.

use std::sync::Arc;

use alba_core::env::osd::{
    DiskUsage, OsdBatch, OsdKey, OsdUpdate, Priority, ProvenSlice, StoredValue, ValueSlice,
};
use alba_core::env::real::quic::{self, QuicConnector, QuicLimits};
use alba_core::env::{Clock, Connector, Deadline, Env, Here, Osd, OsdError, Spawn};
use alba_core::net::asd::{AsdClientConfig, IdleLimit, OsdTransport, Reach};
use alba_core::range::{Page, RangeQuery};
use alba_core::request::{self, Stage};
use alba_core::wire::rpc::abm::OsdInfo;
use async_trait::async_trait;
use bytes::Bytes;
use metrics::Histogram;

use crate::{ClientConfig, ClientError, OsdConnector};

/// Up to this many bytes a call is small.
const SMALL: u64 = 64 << 10;

/// One connection (or stream) in so many is for small calls.
const SMALL_PART: usize = 4;

/// How a process with this configuration reaches OSDs. Reads the certificates: blocks, so for the start of a process.
pub fn reach(env: &Env, config: &ClientConfig) -> Result<Reach, ClientError> {
    let connector = match config.tls_files() {
        Some((authority, certificate, key)) if config.osd_transport != OsdTransport::Tcp => {
            let wrong = |error: &dyn std::error::Error| ClientError::Config(error.to_string());
            let identity =
                quic::Identity::read(authority, certificate, key).map_err(|error| wrong(&error))?;
            let limits = QuicLimits::default();
            let connector = QuicConnector::new(env.clock.clone(), &identity, quic::ASD, &limits);
            let connector: Arc<dyn Connector> = Arc::new(connector.map_err(|error| wrong(&error))?);
            Some(connector)
        }
        _ => None,
    };
    let idle = IdleLimit::new(config.max_idle_osd_connections);
    Ok(Reach::new(env.clone(), connector, config.osd_transport).with_idle(idle))
}

/// How many calls to an OSD may be under way at once, by way.
#[derive(Debug, Clone, Copy)]
struct Share {
    connections: usize,
    streams: usize,
}

impl Share {
    /// A part for small calls and the rest; of one nothing can be set apart.
    fn split(self) -> Option<(Self, Self)> {
        let small = |all: usize| all.div_ceil(SMALL_PART);
        let rest = |all: usize| all.saturating_sub(small(all)).max(1);
        (self.connections > 1 && self.streams > 1).then(|| {
            let (connections, streams) = (self.connections, self.streams);
            let small = Self { connections: small(connections), streams: small(streams) };
            (small, Self { connections: rest(connections), streams: rest(streams) })
        })
    }
}

/// Makes handles on OSDs.
pub(crate) struct Asds {
    clock: Arc<dyn Clock>,
    spawn: Arc<dyn Spawn>,
    reach: Reach,
    share: Share,
}

impl Asds {
    pub(crate) fn new(env: &Env, reach: Reach, config: &ClientConfig) -> Self {
        let share = Share { connections: config.osd_connections, streams: config.osd_streams };
        Self { clock: Arc::clone(&env.clock), spawn: Arc::clone(&env.spawn), reach, share }
    }

    fn client(&self, info: &OsdInfo, share: Share) -> Arc<dyn Osd> {
        let config = AsdClientConfig {
            max_connections: share.connections,
            max_streams: share.streams,
            ..AsdClientConfig::default()
        };
        self.reach.client(info, config)
    }
}

impl OsdConnector for Asds {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        let (small, bulk) = match self.share.split() {
            Some((small, bulk)) => (self.client(info, small), self.client(info, bulk)),
            None => {
                let one = self.client(info, self.share);
                (Arc::clone(&one), one)
            }
        };
        let (clock, spawn) = (Arc::clone(&self.clock), Arc::clone(&self.spawn));
        Arc::new(Lanes { clock, spawn, small, bulk, times: Times::of(info) })
    }
}

/// An OSD with connections for small calls and for all others.
struct Lanes {
    clock: Arc<dyn Clock>,
    spawn: Arc<dyn Spawn>,
    small: Arc<dyn Osd>,
    bulk: Arc<dyn Osd>,
    times: Times,
}

/// `alba_osd_request_seconds{osd,op}`: as many as there are OSDs, times six.
struct Times {
    apply: Histogram,
    multi_get: Histogram,
    multi_exists: Histogram,
    partial_get: Histogram,
    proven_get: Histogram,
    other: Histogram,
}

impl Times {
    fn of(info: &OsdInfo) -> Self {
        let osd = info.long_id.to_string();
        let time = |op: &'static str| metrics::histogram!("alba_osd_request_seconds", "osd" => osd.clone(), "op" => op);
        Self {
            apply: time("apply"),
            multi_get: time("multi_get"),
            multi_exists: time("multi_exists"),
            partial_get: time("partial_get"),
            proven_get: time("proven_get"),
            other: time("other"),
        }
    }
}

/// Counts a call when it ends, also one that is given up: those are the slow ones.
struct Measured<'a> {
    clock: &'a dyn Clock,
    times: &'a Histogram,
    started: alba_core::env::Moment,
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        let took = self.clock.now().since(self.started);
        self.times.record(took.as_secs_f64());
        request::spent(Stage::Osds, took);
    }
}

fn len(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

impl Lanes {
    fn measure<'a>(&'a self, times: &'a Histogram) -> Measured<'a> {
        Measured { clock: &*self.clock, times, started: self.clock.now() }
    }

    fn lane(&self, bytes: u64) -> &dyn Osd {
        if bytes <= SMALL { &*self.small } else { &*self.bulk }
    }
}

fn size_of(batch: &OsdBatch) -> u64 {
    let size = |update: &OsdUpdate| match update {
        OsdUpdate::Set(_, stored) => len(&stored.value),
        OsdUpdate::Delete(_) => 0,
        // The OSD itself is busy with these for long.
        OsdUpdate::DeleteRange(..) | OsdUpdate::SetFromPeer(..) => SMALL + 1,
    };
    batch.updates.iter().map(size).fold(0, u64::saturating_add)
}

#[async_trait]
impl Osd for Lanes {
    async fn apply(&self, batch: OsdBatch, priority: Priority, deadline: Deadline) -> Result<(), OsdError> {
        let _measured = self.measure(&self.times.apply);
        // What is left to do after a large upload is small, but in no hurry: small requests must not wait for it.
        let lane = if self.spawn.here() == Here::Shared { self.lane(size_of(&batch)) } else { &*self.bulk };
        lane.apply(batch, priority, deadline).await
    }

    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredValue>>, OsdError> {
        let _measured = self.measure(&self.times.multi_get);
        // How large the values are is not known here.
        self.bulk.multi_get(keys, priority, deadline).await
    }

    async fn multi_exists(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<bool>, OsdError> {
        let _measured = self.measure(&self.times.multi_exists);
        self.small.multi_exists(keys, priority, deadline).await
    }

    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<Vec<Bytes>>, OsdError> {
        let _measured = self.measure(&self.times.partial_get);
        let bytes = slices.iter().map(|slice| u64::from(slice.len)).sum();
        self.lane(bytes).partial_get(key, slices, priority, deadline).await
    }

    async fn proven_get(
        &self,
        key: OsdKey,
        slice: ValueSlice,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<ProvenSlice>, OsdError> {
        let _measured = self.measure(&self.times.proven_get);
        self.lane(u64::from(slice.len)).proven_get(key, slice, priority, deadline).await
    }

    async fn range(
        &self,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Page<OsdKey>, OsdError> {
        let _measured = self.measure(&self.times.other);
        self.bulk.range(query, priority, deadline).await
    }

    async fn disk_usage(&self, deadline: Deadline) -> Result<DiskUsage, OsdError> {
        let _measured = self.measure(&self.times.other);
        self.small.disk_usage(deadline).await
    }

    async fn client_operations(&self, deadline: Deadline) -> Result<Option<u64>, OsdError> {
        let _measured = self.measure(&self.times.other);
        self.small.client_operations(deadline).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alba_core::checksum::Checksum;
    use alba_core::env::sim::Simulation;
    use alba_core::env::sim::memory_osd::MemoryOsd;
    use alba_core::ids::LongId;
    use alba_core::request::Request;
    use alba_core::units::ByteCount;

    use super::*;

    #[test]
    fn small_and_large_calls_use_different_connections_and_count() {
        let simulation = Simulation::new(1);
        let env = simulation.node(1).env();
        let (small, bulk) = (MemoryOsd::new(ByteCount::mib(8)), MemoryOsd::new(ByteCount::mib(8)));
        let (small, bulk) = (Arc::new(small), Arc::new(bulk));
        let info = OsdInfo {
            long_id: LongId::new("osd").unwrap(),
            place: alba_core::ids::Place::of_node(alba_core::ids::NodeId::new("n").unwrap()),
            endpoint: alba_core::wire::rpc::abm::OsdEndpoint::over_tcp(vec![], 1),
            capacity: ByteCount::mib(8),
            used: ByteCount(0),
        };
        let lanes = Lanes {
            clock: env.clock.clone(),
            spawn: env.spawn.clone(),
            small: small.clone(),
            bulk: bulk.clone(),
            times: Times::of(&info),
        };
        let set = |key: &'static [u8], len: usize| {
            let value = StoredValue { value: vec![1; len].into(), checksum: Checksum::None };
            OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Set(Bytes::from_static(key), value)] }
        };
        let request = Request::new(None, None);
        let work = request.clone().scope(async {
            let soon = env.deadline_in(Duration::from_secs(1));
            lanes.apply(set(b"small", 4096), Priority::High, soon).await.unwrap();
            lanes.apply(set(b"large", 1 << 20), Priority::High, soon).await.unwrap();
            let part = |len| vec![ValueSlice { offset: 0, len }];
            let key = Bytes::from_static;
            let (s, l) = (key(b"small"), key(b"large"));
            assert!(lanes.partial_get(s.clone(), part(4096), Priority::High, soon).await.unwrap().is_some());
            assert!(lanes.partial_get(l, part(1 << 20), Priority::High, soon).await.unwrap().is_some());
            assert_eq!(lanes.multi_get(vec![s], Priority::High, soon).await.unwrap(), [None]);
        });
        simulation.run(Duration::from_secs(10), work).unwrap();
        assert_eq!((small.content().len(), bulk.content().len()), (1, 1));
        assert_eq!(request.spent(Stage::Osds).steps, 5);
    }
}
