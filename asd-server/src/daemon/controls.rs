//! What the daemon asks of a running engine beyond the OSD's operations. Everything of that kind is called here only.

use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{Osd, OsdBatch, OsdError, OsdKey, OsdUpdate, Priority, StoredValue};
use alba_core::env::{Deadline, Env};
use bytes::Bytes;

use crate::engine::Engine;

/// A key of the area for tests and benchmarks, which belongs to nobody.
const PROBE: &[u8] = b"@asd-server probe";

/// How long a probe may take.
const PROBE_TIME: Duration = Duration::from_secs(10);

/// Writes a little and takes it away again. An engine whose writes failed is back to normal when this works: clients stay
/// away from it meanwhile, so their writes would not tell.
pub(super) async fn probe(env: &Env, engine: &Engine) -> Result<(), OsdError> {
    let deadline = env.deadline_in(PROBE_TIME);
    let key = OsdKey::from_static(PROBE);
    let value = StoredValue { value: Bytes::from_static(b"probe"), checksum: Checksum::None };
    let apply = async |update, deadline: Deadline| {
        let batch = OsdBatch { asserts: Vec::new(), updates: vec![update] };
        engine.apply(batch, Priority::Low, deadline).await
    };
    apply(OsdUpdate::Set(key.clone(), value), deadline).await?;
    apply(OsdUpdate::Delete(key), deadline).await
}
