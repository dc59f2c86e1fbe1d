//! Slices with the proof that leads to the BLAKE3 root of their value. The engine keeps the leaves, and refuses values
//! that do not have the root they come with.

use alba_core::blake3_tree::LEAF_BYTES;
use alba_core::env::osd::{Osd, OsdKey, Priority, ValueSlice};
use alba_core::env::{Deadline, Direction};
use alba_core::wire::asd::{AsdError, Response};

use super::reads::kept;
use super::{Answer, Service};
use crate::schedule::cost;

/// Bytes of a proof: 32 per level on each side, and there are at most 18 levels.
const PROOF_MAX: u64 = 2 * 18 * 32;

impl Service {
    pub(super) async fn proven_get(
        &self,
        key: OsdKey,
        slice: ValueSlice,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        // Leaves around the slice, and at most a chaining value per level on each side.
        let bytes = u64::from(slice.len) + 2 * u64::from(LEAF_BYTES) + PROOF_MAX;
        let room = self.room(bytes, priority, deadline).await?;
        let turn = self.gate.admit(priority, cost::transfer(1, bytes), deadline).await?;
        let get = engine.proven_get(key, slice, priority, deadline);
        let proven = engine.in_turn(Direction::Read, (priority, bytes), get).await?;
        Ok(Answer { response: Response::Proven(proven), _room: Some(room), turn: kept(turn, priority) })
    }
}
