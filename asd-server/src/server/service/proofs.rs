//! BLAKE3 roots: compared with values when they come in, and proofs of slices against them when they go out.
//!
//! A proof is never given for bytes that do not have the root they are stored with.

use alba_core::blake3_tree::{LeafTable, TreeError};
use alba_core::checksum::Checksum;
use alba_core::env::osd::{
    Osd, OsdBatch, OsdError, OsdKey, OsdUpdate, Priority, ProvenSlice, StoredValue, ValueSlice,
};
use alba_core::env::{Deadline, blocking, within};
use alba_core::wire::asd::{AsdError, Response};

use super::reads::kept;
use super::{Answer, Service};
use crate::engine::Engine;
use crate::schedule::cost;

/// Bytes that are hashed here and now: it takes less than to hand them to another thread.
const SMALL: usize = 16 << 10;

impl Service {
    /// The batch, when its values have the BLAKE3 roots that they come with: what was damaged on its way is not stored.
    pub(super) async fn with_right_roots(
        &self,
        batch: OsdBatch,
        deadline: Deadline,
    ) -> Result<OsdBatch, AsdError> {
        let lens = batch.updates.iter().map(|update| match update {
            OsdUpdate::Set(_, StoredValue { value, checksum: Checksum::Blake3(_) }) => value.len(),
            _ => 0,
        });
        if lens.sum::<usize>() <= SMALL {
            return check_roots(batch);
        }
        self.hashed(deadline, move || check_roots(batch)).await?
    }

    pub(super) async fn proven_get(
        &self,
        key: OsdKey,
        slice: ValueSlice,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let bytes = engine.size_of(vec![key.clone()], deadline).await?;
        let room = self.room(bytes, priority, deadline).await?;
        let turn = self.gate.admit(priority, cost::transfer(1, bytes), deadline).await?;
        let proven = match engine.proven_get(key.clone(), slice, priority, deadline).await {
            Err(OsdError::UnknownOperation) => {
                self.prove_whole(&engine, key, slice, priority, deadline).await?
            }
            other => other?,
        };
        Ok(Answer { response: Response::Proven(proven), _room: Some(room), turn: kept(turn, priority) })
    }

    /// From an engine that keeps no leaves the whole value is read and hashed again.
    async fn prove_whole(
        &self,
        engine: &Engine,
        key: OsdKey,
        slice: ValueSlice,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<ProvenSlice>, AsdError> {
        let found = engine.multi_get(vec![key], priority, deadline).await?;
        let Some(stored) = found.into_iter().next().flatten() else { return Ok(None) };
        self.hashed(deadline, move || prove(&stored, slice)).await?.map(Some)
    }

    async fn hashed<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AsdError> {
        within(self.env.clock.as_ref(), deadline, blocking(self.env.spawn.as_ref(), work))
            .await
            .map_err(|_| AsdError::Overloaded("not hashed in time".into()))?
            .map_err(|gone| AsdError::Unknown(gone.to_string()))
    }
}

fn check_roots(batch: OsdBatch) -> Result<OsdBatch, AsdError> {
    let wrong = batch.updates.iter().find_map(|update| match update {
        OsdUpdate::Set(key, StoredValue { value, checksum: checksum @ Checksum::Blake3(_) })
            if !checksum.matches(value) =>
        {
            Some(key.clone())
        }
        _ => None,
    });
    wrong.map_or(Ok(batch), |key| Err(AsdError::WrongChecksum(key)))
}

fn prove(stored: &StoredValue, slice: ValueSlice) -> Result<ProvenSlice, AsdError> {
    let refused = |error: TreeError| AsdError::BadRequest(error.to_string());
    let Checksum::Blake3(root) = stored.checksum else {
        return Err(AsdError::BadRequest("stored without a BLAKE3 root".into()));
    };
    let covering = u32::try_from(stored.value.len())
        .map_err(|_| AsdError::BadRequest("the value is too long".into()))
        .and_then(|len| LeafTable::covering(len, slice).map_err(refused))?;
    let table = LeafTable::of(&stored.value).map_err(refused)?;
    if table.root() != root {
        return Err(AsdError::Damaged("the value does not have its root".into()));
    }
    let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
    Ok(ProvenSlice {
        value_len: table.value_len(),
        // Inside the value: LeafTable::covering gave them for its length.
        leaves: stored.value.slice(at(covering.start)..at(covering.end)),
        proof: table.prove(slice).map_err(refused)?,
    })
}
