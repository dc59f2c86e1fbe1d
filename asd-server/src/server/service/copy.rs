//! Values that an OSD fetches itself from a peer, for a batch of someone else's.
//!
//! It happens before the batch: the value is fetched, compared with the checksum that the batch names, and put in its
//! place. Only registered peers are asked, never an address that a request names. Whatever fails, nothing is applied.

use alba_core::checksum::Checksum;
use alba_core::env::osd::{Osd, OsdBatch, OsdError, OsdKey, OsdUpdate, PeerSource, Priority, StoredValue};
use alba_core::env::{Deadline, within};
use alba_core::ids::text_or_hex;
use alba_core::wire::asd::AsdError;
use tokio::sync::SemaphorePermit;

use super::Service;
use crate::engine::Engine;

/// Batches with fetched values at once: with the largest value that bounds their bytes.
pub(super) const AT_ONCE: usize = 4;

impl Service {
    /// The batch with every value that is to be copied in its place, and the right to hold these in memory.
    pub(super) async fn with_fetched_values(
        &self,
        engine: &Engine,
        batch: OsdBatch,
        deadline: Deadline,
    ) -> Result<(OsdBatch, Option<SemaphorePermit<'_>>), AsdError> {
        if !batch.updates.iter().any(|update| matches!(update, OsdUpdate::SetFromPeer(..))) {
            return Ok((batch, None));
        }
        let overloaded = || AsdError::Overloaded("too many values are being copied from peers".into());
        let permit = within(self.env.clock.as_ref(), deadline, self.copies.acquire()).await;
        let permit = permit.map_err(|_| overloaded())?.map_err(|_| overloaded())?;
        let OsdBatch { asserts, updates } = batch;
        let mut fetched = Vec::with_capacity(updates.len());
        let mut left = u64::from(engine.value_max());
        for update in updates {
            fetched.push(match update {
                OsdUpdate::SetFromPeer(key, source) => {
                    let stored = self.fetch(&source, deadline).await?;
                    let len = u64::try_from(stored.value.len()).unwrap_or(u64::MAX);
                    left = left.checked_sub(len).ok_or_else(|| {
                        AsdError::BadRequest("the values to copy are too large for one batch".into())
                    })?;
                    OsdUpdate::Set(key, stored)
                }
                other => other,
            });
        }
        Ok((OsdBatch { asserts, updates: fetched }, Some(permit)))
    }

    /// What to say when the engine refused a batch with fetched values, under these keys.
    pub(super) fn refused(copied: &[OsdKey], error: AsdError) -> AsdError {
        match error {
            AsdError::WrongChecksum(key) if copied.contains(&key) => mismatch(&key),
            other => other,
        }
    }

    async fn fetch(&self, source: &PeerSource, deadline: Deadline) -> Result<StoredValue, AsdError> {
        if source.checksum == Checksum::None {
            return Err(AsdError::BadRequest(
                "a value is copied only by a checksum: without one it cannot be verified".into(),
            ));
        }
        let Some(peer) = self.peers.client(&source.peer) else {
            return Err(AsdError::BadRequest(format!(
                "OSD {} is not registered with this one as a peer to copy from",
                source.peer
            )));
        };
        let about = |what: &str| format!("peer {}, key {}: {what}", source.peer, text_or_hex(&source.key));
        let found = peer.multi_get(vec![source.key.clone()], Priority::Low, deadline).await;
        let found = found.map_err(|error| match error {
            OsdError::Timeout | OsdError::Overloaded(_) => AsdError::Overloaded(about(&error.to_string())),
            // Not a fault of this OSD, nor damage of its own: the caller should name another peer.
            other => AsdError::BadRequest(about(&other.to_string())),
        })?;
        let Some(stored) = found.into_iter().next().flatten() else {
            return Err(AsdError::BadRequest(about("it has no such value")));
        };
        // A BLAKE3 root the engine compares, as it does with every value: hashing twice would cost as much as the copy itself.
        if !matches!(source.checksum, Checksum::Blake3(_)) && !source.checksum.matches(&stored.value) {
            return Err(mismatch(&source.key));
        }
        metrics::counter!("alba_osd_copied_bytes_total")
            .increment(u64::try_from(stored.value.len()).unwrap_or(u64::MAX));
        Ok(StoredValue { value: stored.value, checksum: source.checksum })
    }
}

/// A peer has something else than what was asked for.
fn mismatch(key: &OsdKey) -> AsdError {
    metrics::counter!("alba_osd_copy_mismatches_total").increment(1);
    AsdError::BadRequest(format!(
        "key {}: the peer's value does not have the checksum asked for",
        text_or_hex(key)
    ))
}

/// The keys whose values are to be fetched.
pub(super) fn copied(batch: &OsdBatch) -> Vec<OsdKey> {
    let key = |update: &OsdUpdate| match update {
        OsdUpdate::SetFromPeer(key, _) => Some(key.clone()),
        _ => None,
    };
    batch.updates.iter().filter_map(key).collect()
}
