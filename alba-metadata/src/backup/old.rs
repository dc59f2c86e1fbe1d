//! A group as a backup has it, to be asked like one that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alba_core::env::files;
use alba_core::ids::{NamespaceId, ObjectId, OsdId};
use alba_core::kv::{FjallKv, Kv, KvError};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmError, AbmQuery};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmError, NsmQuery};

use super::file::{load, verify};
use super::format::{BackupError, Description};
use crate::abm::Abm;
use crate::model::{Fault, Model};
use crate::nsm::{self, Nsm};

/// Cache of the store that is made of a backup, in bytes.
const CACHE: u64 = 32 << 20;

/// A backup's rows in a store of their own: as many as there are need not fit into memory. Its methods wait for a disk.
pub struct OldGroup {
    description: Description,
    kv: Arc<dyn Kv>,
    /// Removed after the store in it was closed: fields go in their order.
    _scratch: Scratch,
}

/// The directory of a store that is made for one purpose only.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// An empty one. What a run that was cut off left there goes.
    pub(crate) fn create(path: PathBuf) -> Result<Self, BackupError> {
        if path.exists() {
            files::remove_dir_all(&path)?;
        }
        files::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left over is removed by the next run.
        drop(files::remove_dir_all(&self.0));
    }
}

impl OldGroup {
    /// Verifies `backup` and makes a store of it in the directory `scratch`, which is emptied first and removed at the end.
    ///
    /// # Errors
    /// A backup that is not sound; a disk that refuses.
    pub fn open(backup: &Path, scratch: PathBuf) -> Result<Self, BackupError> {
        let description = verify(backup)?.description;
        let scratch = Scratch::create(scratch)?;
        let failed = |error: KvError| BackupError::Io(std::io::Error::other(error));
        let kv: Arc<dyn Kv> = Arc::new(FjallKv::open(&scratch.0, CACHE).map_err(failed)?);
        load(backup, kv.as_ref())?;
        Ok(Self { description, kv, _scratch: scratch })
    }

    /// What the backup says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Its rows.
    pub(crate) fn kv(&self) -> &Arc<dyn Kv> {
        &self.kv
    }

    /// Asks an NSM group.
    pub fn nsm(&self, query: &NsmQuery) -> Result<Result<NsmAnswer, NsmError>, KvError> {
        answered(Nsm::query(self.kv.snapshot()?.as_ref(), query))
    }

    /// Asks the ABM.
    pub fn abm(&self, query: &AbmQuery) -> Result<Result<AbmAnswer, AbmError>, KvError> {
        answered(Abm::query(self.kv.snapshot()?.as_ref(), query))
    }

    /// Does a fragment of this object wait to be deleted from one of these OSDs? Of an object that is not stored any more it
    /// tells that it had been.
    pub fn waits_for_deletion(
        &self,
        namespace: NamespaceId,
        object: &ObjectId,
        osds: &[OsdId],
    ) -> Result<bool, KvError> {
        nsm::waits_for_deletion(self.kv.snapshot()?.as_ref(), namespace, object, osds)
    }
}

fn answered<T, E>(result: Result<T, Fault<E>>) -> Result<Result<T, E>, KvError> {
    match result {
        Ok(answer) => Ok(Ok(answer)),
        Err(Fault::Refused(error)) => Ok(Err(error)),
        Err(Fault::Store(error)) => Err(error),
    }
}
