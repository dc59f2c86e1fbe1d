//! One repaired fragment onto one OSD: the batch of an upload, at low priority, its data given or fetched by the OSD itself.

use std::ops::RangeInclusive;
use std::sync::Arc;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdAssert, OsdBatch, OsdKey, OsdUpdate, PeerSource, Priority, StoredValue};
use alba_core::env::{Deadline, OsdError};
use alba_core::failpoint::{Step, reach};
use alba_core::fragment::Packed;
use alba_core::ids::{GcEpoch, NamespaceId};
use alba_core::manifest::{Fragment, PackedFragment};
use alba_core::osd_keys::{self, FragmentAddress, gc_tag};
use bytes::Bytes;

use super::kept::Mark;
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
    /// What was kept is not there any more.
    #[error("what was stored before is gone")]
    Gone,
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
    /// Of the repair.
    pub(super) mark: Mark,
    /// Epochs that tags of others may have.
    pub(super) open: RangeInclusive<GcEpoch>,
}

/// Most epochs in which another one's tag is looked for: more are open only while garbage collection stands still.
const EPOCHS: u64 = 8;

/// Makes a fragment that is there this repair's, in its epoch, with its recovery info: while the tag is as it was seen, and so
/// neither garbage collection nor anybody else has decided about it.
///
/// `epoch` is never below `old`: a tag that came down into an epoch that is closed would be judged while the other repair can still
/// commit in its own, and what it commits would be deleted (`alba-maintenance/tests/gc_model.rs`).
pub(super) fn take_over(
    namespace: NamespaceId,
    address: &FragmentAddress,
    (old, seen): (GcEpoch, Bytes),
    (epoch, mark): (GcEpoch, &Mark),
    recovery: Bytes,
) -> OsdBatch {
    let bare = |value: Bytes| StoredValue { value, checksum: Checksum::None };
    let tag = gc_tag(namespace, old, address);
    OsdBatch {
        asserts: vec![
            OsdAssert::Value(osd_keys::namespace_marker(namespace), osd_keys::NAMESPACE_ACTIVE),
            OsdAssert::Value(tag.clone(), seen),
        ],
        updates: vec![
            OsdUpdate::Set(osd_keys::recovery_info(namespace, address), bare(recovery)),
            OsdUpdate::Delete(tag),
            OsdUpdate::Set(gc_tag(namespace, epoch, address), bare(mark.value())),
        ],
    }
}

/// Applies such a batch. `tag` and `mark` are what is there afterwards: when the first answer was lost, it has happened already.
pub(super) async fn use_again(
    engine: &Arc<Engine>,
    member: &Arc<Member>,
    batch: OsdBatch,
    (tag, mark): (OsdKey, &Mark),
    deadline: Deadline,
) -> Result<(), StoreError> {
    let apply = engine.pool.call(member, CallSize::Small, deadline, |osd, deadline| {
        let batch = batch.clone();
        async move { osd.apply(batch, Priority::Low, deadline).await }
    });
    match apply.await {
        Ok(()) => return Ok(()),
        Err(OsdError::AssertFailed(_)) => {}
        Err(error) => return Err(StoreError::Osd(error)),
    }
    let read = engine.pool.call_of(CallKind::Read, member, CallSize::Small, deadline, |osd, deadline| {
        let keys = vec![tag.clone()];
        async move { osd.multi_get(keys, Priority::Low, deadline).await }
    });
    let found = read.await.map_err(StoreError::Osd)?;
    let ours = found.into_iter().flatten().any(|stored| stored.value == mark.value());
    if ours { Ok(()) } else { Err(StoreError::Gone) }
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
        let recovery = self.recovery.clone();
        batch(self.namespace, self.epoch, &self.address, data, recovery, self.mark.value())
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
        let apply = engine.pool.call(member, CallSize::of(self.len()), deadline, |osd, deadline| {
            let batch = batch.clone();
            async move { osd.apply(batch, Priority::Low, deadline).await }
        });
        let clock = engine.env.clock.as_ref();
        let applied = engine.transfers.run(clock, deadline, apply).await.map_err(StoreError::Osd)?;
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

    /// The key is taken: by this very write, whose first answer was lost, when the tag has this repair's mark. What another repairer
    /// has written, which may be dead by now, is as good when the bytes are these and it is still tagged: it is taken over, and whoever's
    /// update the group takes owns it.
    async fn check_is_this(
        &self,
        engine: &Arc<Engine>,
        member: &Arc<Member>,
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let (first, last) = (self.open.start().get(), self.open.end().get().max(self.epoch.get()));
        let epochs: Vec<GcEpoch> = (first.max(last.saturating_sub(EPOCHS - 1))..=last)
            .filter_map(|id| GcEpoch::new(id).ok())
            .collect();
        let tags = epochs.iter().map(|epoch| gc_tag(self.namespace, *epoch, &self.address));
        let keys: Vec<_> = std::iter::once(self.data_key()).chain(tags).collect();
        let values = engine
            .pool
            .call_of(CallKind::Read, member, CallSize::of(self.len()), deadline, |osd, deadline| {
                let keys = keys.clone();
                async move { osd.multi_get(keys, Priority::Low, deadline).await }
            })
            .await
            .map_err(StoreError::Osd)?;
        let mut values = values.into_iter();
        let Some(Some(data)) = values.next() else { return Err(StoreError::KeyTaken) };
        let tag = epochs.into_iter().zip(values).find_map(|(epoch, tag)| Some((epoch, tag?.value)));
        let same = match &self.content {
            Content::Bytes(packed) => data.value == packed.bytes && data.checksum == packed.checksum,
            Content::OfPeer(_, entry) => {
                data.checksum == entry.checksum && PackedFragment(data.value).verify(entry).is_ok()
            }
        };
        let Some((epoch, seen)) = tag.filter(|_| same) else { return Err(StoreError::KeyTaken) };
        if (epoch, &seen) == (self.epoch, &self.mark.value()) {
            return Ok(());
        }
        let (recovery, to) = (self.recovery.clone(), (self.epoch, &self.mark));
        let batch = take_over(self.namespace, &self.address, (epoch, seen), to, recovery);
        let done = (gc_tag(self.namespace, self.epoch, &self.address), &self.mark);
        match use_again(engine, member, batch, done, deadline).await {
            Err(StoreError::Gone) => Err(StoreError::KeyTaken),
            other => other,
        }
    }
}
