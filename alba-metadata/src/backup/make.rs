//! Bytes of a backup, of a view of a store.

use std::ops::{Bound, ControlFlow};

use alba_core::ids::GroupId;
use alba_core::kv::{KvError, KvRead};
use bytes::Bytes;

use super::format::{Description, Encoder, ModelKind};
use crate::raft::{is_replicas_own, position_of, put_entry};
use crate::value::damaged;

/// A block is closed when it has this many bytes.
const BLOCK: usize = 256 << 10;

/// Entries per page of the scan: with values below 90 KiB a page takes 6 MiB at most.
const PAGE: usize = 64;

/// Gives the bytes of a backup in pieces of a few hundred KiB, until `each` breaks. `view` must be one state.
pub(crate) fn pieces(
    view: &dyn KvRead,
    group: &GroupId,
    taken: u64,
    each: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
) -> Result<(), KvError> {
    let (term, applied) = position_of(view)?.unwrap_or_default();
    let description = Description { group: group.clone(), model: ModelKind::of(group), term, applied, taken };
    let (mut encoder, first) = Encoder::begin(&description).map_err(damaged)?;
    if each(first).is_break() {
        return Ok(());
    }
    let mut from: Option<Vec<u8>> = None;
    let (mut body, mut count) = (Vec::new(), 0);
    loop {
        let lower = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let page = view.scan(lower, Bound::Unbounded, false, PAGE)?;
        let last = page.len() < PAGE;
        for (key, value) in page.iter().filter(|(key, _)| !is_replicas_own(key)) {
            put_entry(&mut body, key, value).map_err(damaged)?;
            count += 1;
            if body.len() >= BLOCK {
                let block = encoder.entries(std::mem::take(&mut body), std::mem::take(&mut count));
                if each(block.map_err(damaged)?).is_break() {
                    return Ok(());
                }
            }
        }
        from = page.into_iter().next_back().map(|(key, _)| key).or(from);
        if last {
            break;
        }
    }
    if !body.is_empty() && each(encoder.entries(body, count).map_err(damaged)?).is_break() {
        return Ok(());
    }
    // It was the last one in any case.
    let _ = each(encoder.end().map_err(damaged)?);
    Ok(())
}
