//! A backup of an ABM that was put together anew: it becomes a group the way every backup does.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alba_core::ids::{GroupId, IdError};
use alba_core::kv::{FjallKv, Kv, KvError};
use thiserror::Error;

use super::file::Draft;
use super::format::BackupError;
use super::make::pieces;
use super::old::Scratch;
use crate::abm::rebuild::{Known, RebuildError, rebuild};
use crate::abm::recount;

/// Cache of the store that it is made in, in bytes.
const CACHE: u64 = 32 << 20;

/// Why there is no backup.
#[derive(Debug, Error)]
pub enum RemakeError {
    /// The file.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The store in the work directory.
    #[error(transparent)]
    Store(#[from] KvError),
    /// What is known does not fit together.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// Never: the group's name is a constant.
    #[error(transparent)]
    Name(#[from] IdError),
}

/// Writes an ABM of what is known as a backup to `file`, which must not be there; its number of rows. The directory `scratch` is
/// emptied first and removed at the end. `now`: microseconds since 1970.
pub fn remake_abm(known: &Known, scratch: PathBuf, file: &Path, now: u64) -> Result<u64, RemakeError> {
    let scratch = Scratch::create(scratch)?;
    let kv: Arc<dyn Kv> = Arc::new(FjallKv::open(scratch.path(), CACHE)?);
    rebuild(kv.as_ref(), known, now)?;
    // Before anybody relies on it: does everything follow from the records?
    if let Some(difference) = recount(kv.snapshot()?.as_ref())?.first() {
        return Err(KvError::Damaged(format!("what was made is wrong: {}", difference.what)).into());
    }
    let mut draft = Draft::create(file).map_err(BackupError::from)?;
    let mut written = Ok(());
    let group = GroupId::new(crate::server::ABM)?;
    pieces(kv.snapshot()?.as_ref(), &group, now, &mut |bytes| {
        written = draft.write(&bytes);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written.map_err(BackupError::from)?;
    Ok(draft.finish()?.rows)
}
