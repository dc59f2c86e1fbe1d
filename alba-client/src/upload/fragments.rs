//! One fragment onto one OSD, in one atomic batch {data, recovery info, gc tag}.

use std::pin::Pin;
use std::sync::Arc;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::env::{Deadline, OsdError};
use alba_core::failpoint::{Step, reach};
use alba_core::fragment::Packed;
use alba_core::ids::{GcEpoch, NamespaceId};
use alba_core::osd_keys::{self, FragmentAddress};
use bytes::Bytes;
use futures_util::future::{AbortHandle, Abortable, Aborted};

use crate::buffers::Room;
use crate::engine::Engine;
use crate::osd_pool::{CallSize, Member};

/// Why a fragment was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WriteError {
    /// The OSD does not (or no longer) have the namespace.
    #[error("the OSD does not accept fragments of the namespace")]
    NotInNamespace,
    /// Something else is stored under the key. Never overwritten: it is another attempt's (invariant 2).
    #[error("the key is in use")]
    KeyTaken,
    /// The call failed.
    #[error(transparent)]
    Osd(OsdError),
    /// Given up, since another OSD has the fragment. Whether this one has it too is unknown: its tag would tell.
    #[error("another OSD was faster")]
    Superseded,
}

/// The end of a fragment's write.
pub(super) struct Written {
    pub(super) address: FragmentAddress,
    pub(super) member: Arc<Member>,
    pub(super) result: Result<(), WriteError>,
}

/// A fragment's write under way. It owns what it needs: it may outlive its request as a straggler.
pub(super) type Write = Pin<Box<dyn Future<Output = Written> + Send>>;

/// A fragment to be stored.
pub(super) struct FragmentWrite {
    pub(super) namespace: NamespaceId,
    pub(super) epoch: GcEpoch,
    pub(super) address: FragmentAddress,
    pub(super) packed: Packed,
    pub(super) recovery: Bytes,
}

/// The one batch that stores a fragment: its data, its recovery info and its gc tag. Asserts: the namespace's marker, so that
/// a re-formatted, moved or foreign disk cannot be written (invariant 4); and that the data key is free, so that it is
/// written once (invariant 2). The value of the tag says who wrote it; of uploads, whose object ids are nobody else's, it is empty.
pub(crate) fn batch(
    namespace: NamespaceId,
    epoch: GcEpoch,
    address: &FragmentAddress,
    data: OsdUpdate,
    recovery: Bytes,
    tag: Bytes,
) -> OsdBatch {
    let bare = |value: Bytes| StoredValue { value, checksum: Checksum::None };
    OsdBatch {
        asserts: vec![
            OsdAssert::Value(osd_keys::namespace_marker(namespace), osd_keys::NAMESPACE_ACTIVE),
            OsdAssert::Absent(osd_keys::fragment(namespace, address)),
        ],
        updates: vec![
            data,
            OsdUpdate::Set(osd_keys::recovery_info(namespace, address), bare(recovery)),
            OsdUpdate::Set(osd_keys::gc_tag(namespace, epoch, address), bare(tag)),
        ],
    }
}

impl FragmentWrite {
    fn batch(&self) -> OsdBatch {
        let data = StoredValue { value: self.packed.bytes.clone(), checksum: self.packed.checksum };
        let data = OsdUpdate::Set(self.data_key(), data);
        batch(self.namespace, self.epoch, &self.address, data, self.recovery.clone(), Bytes::new())
    }

    fn data_key(&self) -> Bytes {
        osd_keys::fragment(self.namespace, &self.address)
    }

    fn tag_key(&self) -> Bytes {
        osd_keys::gc_tag(self.namespace, self.epoch, &self.address)
    }

    /// Starts the write on `member`; the handle gives it up. `room` is what its bytes take; it is given back with the last
    /// fragment that shares it.
    pub(super) fn start(
        self,
        engine: Arc<Engine>,
        member: Arc<Member>,
        room: Arc<Room>,
    ) -> (Write, AbortHandle) {
        let (handle, registration) = AbortHandle::new_pair();
        let write = Box::pin(async move {
            let deadline = engine.deadline_in(engine.config.osd_timeout());
            let call = Abortable::new(self.write(&engine, &member, deadline), registration);
            let result = call.await.unwrap_or_else(|Aborted| Err(WriteError::Superseded));
            drop(room);
            if let Err(error) = &result {
                tracing::debug!(osd = %member.id, fragment = ?self.address, %error, "fragment not stored");
            }
            Written { address: self.address, member, result }
        });
        (write, handle)
    }

    async fn write(
        &self,
        engine: &Engine,
        member: &Arc<Member>,
        deadline: Deadline,
    ) -> Result<(), WriteError> {
        let batch = self.batch();
        let applied = engine
            .pool
            .call(member, CallSize::of(u64::from(self.packed.len)), deadline, |osd, deadline| {
                let batch = batch.clone();
                async move { osd.apply(batch, Priority::High, deadline).await }
            })
            .await;
        match applied {
            Ok(()) => {
                reach(Step::UploadStored);
                Ok(())
            }
            Err(OsdError::AssertFailed(key)) if key == self.data_key() => {
                self.check_is_ours(engine, member, deadline).await
            }
            Err(OsdError::AssertFailed(_)) => Err(WriteError::NotInNamespace),
            Err(error) => Err(WriteError::Osd(error)),
        }
    }

    /// The key is taken. By this very write, when its first answer was lost: then the bytes are these, and the tag is of
    /// this epoch, so that GC treats them as this attempt's. Anything else is another's.
    async fn check_is_ours(
        &self,
        engine: &Engine,
        member: &Arc<Member>,
        deadline: Deadline,
    ) -> Result<(), WriteError> {
        let keys = vec![self.data_key(), self.tag_key()];
        let values = engine
            .pool
            .call(member, CallSize::of(u64::from(self.packed.len)), deadline, |osd, deadline| {
                let keys = keys.clone();
                async move { osd.multi_get(keys, Priority::High, deadline).await }
            })
            .await
            .map_err(WriteError::Osd)?;
        match values.as_slice() {
            [Some(data), Some(_tag)]
                if data.value == self.packed.bytes && data.checksum == self.packed.checksum =>
            {
                Ok(())
            }
            _ => Err(WriteError::KeyTaken),
        }
    }
}
