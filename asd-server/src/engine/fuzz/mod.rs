//! What the fuzz targets of the engine share: an OSD on simulated hardware.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a body fails by panicking")]

mod operations;
mod records;

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::sim::disk::SimDiskDevice;
use alba_core::env::sim::{SimNode, Simulation};
use alba_core::kv::{Kv, SimKvDevice};

use super::*;

#[cfg(test)]
pub(crate) use super::phase::Sabotage;
pub use operations::asd_operations;
pub use records::asd_records;

const STORE: StoreId = StoreId(*b"store of a fuzz!");

/// Small, so that a few values fill one.
const SEGMENT_BYTES: u64 = 64 << 10;

/// Virtual time of one life.
const LIMIT: Duration = Duration::from_secs(3600);

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

/// Disk and index of one OSD.
struct Hardware {
    disk: SimDiskDevice,
    index: SimKvDevice,
}

impl Hardware {
    fn new(capacity: u64) -> Self {
        Self { disk: SimDiskDevice::new(1, capacity), index: SimKvDevice::new() }
    }

    /// One life of its daemon. An opening that fails ends it.
    fn live<T>(&self, program: impl AsyncFnOnce(&SimNode, &Engine, &Opening) -> T) -> Result<T, OpenError> {
        let simulation = Simulation::new(1);
        let node = simulation.node(1);
        let env = node.env();
        let parts = EngineParts {
            disk: Arc::new(self.disk.open()),
            index: Arc::new(SimIndex(self.index.clone())),
            clock: env.clock,
            bulk: env.bulk.clone(),
            spawn: env.spawn,
            store: STORE,
        };
        let config =
            EngineConfig { segment_bytes: SEGMENT_BYTES, capacity: Some(1 << 30), ..EngineConfig::default() };
        let main = async {
            let (engine, opening) = Engine::open(parts, config).await?;
            Ok(program(&node, &engine, &opening).await)
        };
        simulation.run(LIMIT, main).expect("the engine is stuck")
    }
}

fn deadline(node: &SimNode) -> Deadline {
    node.env().deadline_in(Duration::from_secs(60))
}

/// Bytes that differ from block to block, and from one salt to the next.
fn pattern(len: usize, salt: u64) -> Bytes {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

fn stored(len: usize, salt: u64) -> StoredValue {
    let value = pattern(len, salt);
    let algorithm =
        if salt.is_multiple_of(2) { ChecksumAlgorithm::Blake3 } else { ChecksumAlgorithm::Crc32c };
    StoredValue { checksum: algorithm.of(&value), value }
}

async fn apply(node: &SimNode, engine: &Engine, updates: Vec<OsdUpdate>) -> Result<(), OsdError> {
    engine.apply(OsdBatch { asserts: Vec::new(), updates }, Priority::High, deadline(node)).await
}

/// Runs something on an engine with a fault built in.
#[cfg(test)]
pub(crate) fn with_fault<T>(fault: Sabotage, work: impl FnOnce() -> T) -> T {
    phase::testing::sabotage(Some(fault));
    let done = work();
    phase::testing::sabotage(None);
    done
}
