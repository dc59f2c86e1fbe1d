//! One repaired fragment onto one OSD: the batch of an upload, at low priority, its data given or fetched by the OSD itself.

use std::sync::Arc;

use alba_core::env::osd::{OsdBatch, OsdUpdate, PeerSource, Priority, StoredValue};
use alba_core::env::{Deadline, OsdError};
use alba_core::failpoint::{Step, reach};
use alba_core::fragment::Packed;
use alba_core::ids::{GcEpoch, NamespaceId};
use alba_core::manifest::{Fragment, PackedFragment};
use alba_core::osd_keys::{self, FragmentAddress, gc_tag};
use bytes::Bytes;

use crate::engine::Engine;
use crate::osd_pool::{CallKind, CallSize, Member};
use crate::upload::fragments::batch;

/// What is to be stored.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// These bytes.
    Bytes(Packed),
    /// What another OSD has, which the manifest describes so.
    OfPeer(PeerSource, Fragment),
}

/// Why it was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StoreError {
    /// The OSD does not have the namespace.
    #[error("the OSD does not accept fragments of the namespace")]
    NotInNamespace,
    /// Something else is stored under the key: another repairer's. Never overwritten (invariant 2).
    #[error("the key is in use")]
    KeyTaken,
    /// The OSD cannot fetch the value itself; it can still be given.
    #[error("no copy from the peer: {0}")]
    NoCopy(OsdError),
    /// The call failed.
    #[error(transparent)]
    Osd(OsdError),
}

/// A fragment to be stored.
pub(super) struct Store {
    pub(super) namespace: NamespaceId,
    pub(super) epoch: GcEpoch,
    pub(super) address: FragmentAddress,
    pub(super) content: Content,
    pub(super) recovery: Bytes,
}

impl Store {
    fn data_key(&self) -> Bytes {
        osd_keys::fragment(self.namespace, &self.address)
    }

    fn batch(&self) -> OsdBatch {
        let key = self.data_key();
        let data = match &self.content {
            Content::Bytes(packed) => {
                OsdUpdate::Set(key, StoredValue { value: packed.bytes.clone(), checksum: packed.checksum })
            }
            Content::OfPeer(source, _) => OsdUpdate::SetFromPeer(key, source.clone()),
        };
        batch(self.namespace, self.epoch, &self.address, data, self.recovery.clone())
    }

    fn len(&self) -> u64 {
        u64::from(match &self.content {
            Content::Bytes(packed) => packed.len,
            Content::OfPeer(_, entry) => entry.packed_len,
        })
    }

    /// Stores it on `member`.
    pub(super) async fn run(
        &self,
        engine: &Arc<Engine>,
        member: &Arc<Member>,
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let batch = self.batch();
        let applied = engine
            .pool
            .call(member, CallSize::of(self.len()), deadline, |osd, deadline| {
                let batch = batch.clone();
                async move { osd.apply(batch, Priority::Low, deadline).await }
            })
            .await;
        match applied {
            Ok(()) => {
                reach(Step::UpdateStored);
                Ok(())
            }
            Err(OsdError::AssertFailed(key)) if key == self.data_key() => {
                self.check_is_this(engine, member, deadline).await
            }
            Err(OsdError::AssertFailed(_)) => Err(StoreError::NotInNamespace),
            // Refused before anything happened: the same bytes can be given instead of fetched.
            Err(
                error @ (OsdError::UnknownOperation
                | OsdError::BadRequest(_)
                | OsdError::WrongChecksum(_)
                | OsdError::Overloaded(_)),
            ) if matches!(self.content, Content::OfPeer(..)) => Err(StoreError::NoCopy(error)),
            Err(error) => Err(StoreError::Osd(error)),
        }
    }

    /// The key is taken: by this very write, whose first answer was lost, when the bytes are these and the tag is of this epoch.
    /// If another repairer has written the same, that is as good: whoever's update the group takes owns it.
    async fn check_is_this(
        &self,
        engine: &Arc<Engine>,
        member: &Arc<Member>,
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let keys = vec![self.data_key(), gc_tag(self.namespace, self.epoch, &self.address)];
        let values = engine
            .pool
            .call_of(CallKind::Read, member, CallSize::of(self.len()), deadline, |osd, deadline| {
                let keys = keys.clone();
                async move { osd.multi_get(keys, Priority::Low, deadline).await }
            })
            .await
            .map_err(StoreError::Osd)?;
        let mut values = values.into_iter();
        let (Some(Some(data)), Some(Some(_tag))) = (values.next(), values.next()) else {
            return Err(StoreError::KeyTaken);
        };
        let same = match &self.content {
            Content::Bytes(packed) => data.value == packed.bytes && data.checksum == packed.checksum,
            Content::OfPeer(_, entry) => {
                data.checksum == entry.checksum && PackedFragment(data.value).verify(entry).is_ok()
            }
        };
        if same { Ok(()) } else { Err(StoreError::KeyTaken) }
    }
}
