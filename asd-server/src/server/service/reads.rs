//! Operations that answer with values: their bytes are bounded before they are read.
//!
//! The order is always the same: first room in memory for the answer, then a turn at the disk, then the engine (maintenance beside clients:
//! with the device's turn, given back when it has answered). A
//! client's turn ends when the engine has answered, so that who reads slowly keeps nobody from the disk; maintenance keeps
//! its turn a little longer. The room ends when the answer is sent.

use alba_core::env::osd::{Osd, OsdError, OsdKey, Priority, ValueSlice};
use alba_core::env::{Deadline, Direction, within};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::asd::{AsdError, KeyCheck, Response, StoredEntry};

use super::{Answer, ROOM, Room, Service};
use crate::engine::Engine;
use crate::schedule::{Permit, cost};

/// Bytes of values after which a page of entries ends early.
const ENTRIES_BYTES: u64 = 16 << 20;

/// The turn of maintenance goes on while its answer is sent.
pub(super) fn kept(turn: Permit, priority: Priority) -> Option<Permit> {
    (priority == Priority::Low).then_some(turn)
}

impl Service {
    /// Room for `bytes` of an answer.
    pub(super) async fn room(
        &self,
        bytes: u64,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Room, AsdError> {
        if bytes > self.limits.answer {
            return Err(AsdError::BadRequest(format!(
                "the answer would have {bytes} bytes of values; {} are allowed: ask for less at once",
                self.limits.answer
            )));
        }
        let units = u32::try_from(bytes / ROOM + 1).unwrap_or(u32::MAX);
        let acquire = async {
            // Maintenance that waits for its turn must leave room to clients.
            let low = match priority {
                Priority::High => None,
                Priority::Low => {
                    let most = u32::try_from(self.low_room_units).unwrap_or(u32::MAX);
                    Some(self.low_room.clone().acquire_many_owned(units.min(most)).await.ok()?)
                }
            };
            Some(Room { _low: low, _all: self.room.clone().acquire_many_owned(units).await.ok()? })
        };
        let room = within(self.env.clock.as_ref(), deadline, acquire).await.ok().flatten();
        room.ok_or_else(|| AsdError::Overloaded("too many bytes of answers wait to be sent".into()))
    }

    pub(super) async fn range(
        &self,
        engine: &Engine,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Page<OsdKey>, AsdError> {
        let _turn = self.gate.admit(priority, cost::lookup(query.limit() + 1), deadline).await?;
        Ok(engine.range(query, priority, deadline).await?)
    }

    pub(super) async fn multi_exists(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let _turn = self.gate.admit(priority, cost::lookup(keys.len()), deadline).await?;
        Ok(Response::Exists(engine.multi_exists(keys, priority, deadline).await?).into())
    }

    pub(super) async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let bytes = engine.size_of(keys.clone(), deadline).await?;
        let room = self.room(bytes, priority, deadline).await?;
        let turn = self.gate.admit(priority, cost::transfer(keys.len(), bytes), deadline).await?;
        let get = engine.multi_get(keys, priority, deadline);
        let values = engine.in_turn(Direction::Read, (priority, bytes), get).await?;
        Ok(Answer { response: Response::Values(values), _room: Some(room), turn: kept(turn, priority) })
    }

    pub(super) async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let bytes = slices.iter().map(|slice| u64::from(slice.len)).sum();
        let room = self.room(bytes, priority, deadline).await?;
        let turn = self.gate.admit(priority, cost::transfer(slices.len(), bytes), deadline).await?;
        let get = engine.partial_get(key, slices, priority, deadline);
        let found = engine.in_turn(Direction::Read, (priority, bytes), get).await?;
        Ok(Answer { response: Response::Slices(found), _room: Some(room), turn: kept(turn, priority) })
    }

    pub(super) async fn entries(
        &self,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let page = self.range(&engine, query, priority, deadline).await?;
        let room = self.room(ENTRIES_BYTES.min(self.limits.answer), priority, deadline).await?;
        let (mut items, mut bytes, mut has_more) = (Vec::new(), 0_u64, page.has_more);
        for key in page.items {
            let size = engine.size_of(vec![key.clone()], deadline).await?;
            bytes = bytes.saturating_add(size);
            if bytes > ENTRIES_BYTES && !items.is_empty() {
                has_more = true;
                break;
            }
            let _turn = self.gate.admit(priority, cost::transfer(1, size), deadline).await?;
            let get = engine.multi_get(vec![key.clone()], priority, deadline);
            let found = engine.in_turn(Direction::Read, (priority, size), get).await?.pop().flatten();
            // None: deleted since the listing.
            items.extend(found.map(|value| StoredEntry { key, value }));
        }
        Ok(Answer { response: Response::Entries(Page { items, has_more }), _room: Some(room), turn: None })
    }

    pub(super) async fn validate(
        &self,
        query: RangeQuery,
        verify_checksum: bool,
        show_all: bool,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Answer, AsdError> {
        let engine = self.engine()?;
        let page = self.range(&engine, query, priority, deadline).await?;
        let continued = page.items.last().filter(|_| page.has_more).cloned();
        let mut checks = Vec::new();
        for key in page.items {
            let mut done = Vec::new();
            if verify_checksum {
                let size = engine.size_of(vec![key.clone()], deadline).await?;
                let _room = self.room(size, priority, deadline).await?;
                let _turn = self.gate.admit(priority, cost::transfer(1, size), deadline).await?;
                let get = engine.multi_get(vec![key.clone()], priority, deadline);
                match engine.in_turn(Direction::Read, (priority, size), get).await {
                    Ok(found) => {
                        if let Some(stored) = found.into_iter().next().flatten() {
                            let name = stored.checksum.algorithm().name().to_owned();
                            done.push((name, stored.checksum.matches(&stored.value)));
                        }
                    }
                    // Our own checksums of its blocks tell, before the value's could.
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
}
