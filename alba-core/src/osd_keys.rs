//! Keys and small values on the OSDs (wire-protocol §5). Their bytes are a contract with original clients, which
//! read fragments directly, and with recovery, which reads everything back from them.

use bytes::Bytes;

use crate::env::osd::OsdKey;
use crate::ids::{
    AlbaId, ChunkIndex, FragmentIndex, GcEpoch, MessageId, NamespaceId, ObjectId, ObjectVersion,
};
use crate::wire::llio::{Reader, WireError, Writer};

/// Instance number of a backend on an OSD: always this one.
const INSTANCE: u32 = 0;

/// Value of [`next_instance`] on a claimed OSD: `int32` 1.
pub const NEXT_INSTANCE_VALUE: Bytes = Bytes::from_static(&[1, 0, 0, 0]);

/// Value of [`instance_index`]: `int32` 0.
pub const INSTANCE_INDEX_VALUE: Bytes = Bytes::from_static(&[0, 0, 0, 0]);

/// Value of [`namespace_marker`]: the namespace is active on this OSD.
pub const NAMESPACE_ACTIVE: Bytes = Bytes::from_static(&[1]);

/// One fragment in its namespace: the `F` of the key formats, 48 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentAddress {
    /// Whose.
    pub object_id: ObjectId,
    /// Which chunk.
    pub chunk: ChunkIndex,
    /// Which fragment of the chunk.
    pub fragment: FragmentIndex,
    /// The object version it was placed at.
    pub version: ObjectVersion,
}

impl FragmentAddress {
    fn write(&self, w: &mut Writer) {
        w.bytes(self.object_id.as_bytes());
        w.uint32(self.chunk.0);
        w.uint32(self.fragment.0);
        w.uint32(self.version.0);
    }

    fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            object_id: ObjectId::new(r.fixed("object id")?),
            chunk: ChunkIndex(r.uint32()?),
            fragment: FragmentIndex(r.uint32()?),
            version: ObjectVersion(r.uint32()?),
        })
    }
}

/// Collects a key.
fn key(write: impl FnOnce(&mut Writer)) -> OsdKey {
    let mut w = Writer::new();
    write(&mut w);
    // Only lengths and numbers beyond 31 and 63 bits cannot be written, and the types of the parts allow neither.
    w.finish().unwrap_or_default()
}

/// `i`: next backend instance number; present on a claimed OSD.
pub fn next_instance() -> OsdKey {
    key(|w| w.int8(b'i'))
}

/// `l`: who owns the OSD. Its value is the alba id, raw.
pub fn instance_log() -> OsdKey {
    key(|w| {
        w.int8(b'l');
        w.uint32_be(INSTANCE);
    })
}

/// `j`: from alba id to instance.
pub fn instance_index(alba: &AlbaId) -> OsdKey {
    key(|w| {
        w.int8(b'j');
        w.bytes(alba.as_str());
    })
}

fn instance_key(write: impl FnOnce(&mut Writer)) -> OsdKey {
    key(|w| {
        w.int8(b'p');
        w.uint32_be(INSTANCE);
        write(w);
    })
}

/// Next message (AddNamespace) to be delivered to this OSD; absent means 0. Value: [`message_id_value`].
pub fn next_message() -> OsdKey {
    instance_key(|w| w.int8(b'm'))
}

/// Value of [`next_message`].
pub fn message_id_value(id: MessageId) -> Bytes {
    key(|w| w.x_int64(id.get()))
}

/// Reads a value of [`next_message`].
pub fn parse_message_id(value: &[u8]) -> Result<MessageId, WireError> {
    Reader::new(Bytes::copy_from_slice(value)).x_id("message id")
}

/// Ours, for recovery: the OSD's own record (its id in the backend), below the instance prefix so that it goes when
/// the instance's keys go.
pub fn osd_record() -> OsdKey {
    instance_key(|w| w.int8(b'O'))
}

fn namespace_key(namespace: NamespaceId, write: impl FnOnce(&mut Writer)) -> OsdKey {
    instance_key(|w| {
        w.int8(b'n');
        w.x_int64_be(namespace.get());
        write(w);
    })
}

/// `N`: the namespace is on this OSD; each write asserts it (invariant 4). Also the prefix of all its other keys.
pub fn namespace_marker(namespace: NamespaceId) -> OsdKey {
    namespace_key(namespace, |_| ())
}

/// The namespace's name, raw.
pub fn namespace_name(namespace: NamespaceId) -> OsdKey {
    namespace_key(namespace, |w| w.int8(b'n'))
}

/// Ours, for recovery: the namespace's preset (architecture §5).
pub fn namespace_preset(namespace: NamespaceId) -> OsdKey {
    namespace_key(namespace, |w| w.int8(b'P'))
}

/// Packed fragment.
pub fn fragment(namespace: NamespaceId, address: &FragmentAddress) -> OsdKey {
    namespace_key(namespace, |w| {
        w.int8(b'o');
        address.write(w);
    })
}

/// Recovery info of a fragment (§6.7).
pub fn recovery_info(namespace: NamespaceId, address: &FragmentAddress) -> OsdKey {
    namespace_key(namespace, |w| {
        w.int8(b'r');
        address.write(w);
    })
}

/// gc tag: the fragment was written by an attempt of this epoch that has not removed the tag. Empty value.
pub fn gc_tag(namespace: NamespaceId, epoch: GcEpoch, address: &FragmentAddress) -> OsdKey {
    namespace_key(namespace, |w| {
        w.int8(b'g');
        // int64_be, whatever its size: tags sort by epoch.
        w.raw(&epoch.get().to_be_bytes());
        address.write(w);
    })
}

/// Prefix of all gc tags of a namespace.
pub fn gc_tags(namespace: NamespaceId) -> OsdKey {
    namespace_key(namespace, |w| w.int8(b'g'))
}

/// Prefix of the gc tags of one epoch.
pub fn gc_tags_of(namespace: NamespaceId, epoch: GcEpoch) -> OsdKey {
    namespace_key(namespace, |w| {
        w.int8(b'g');
        w.raw(&epoch.get().to_be_bytes());
    })
}

/// Prefix of all fragments of a namespace.
pub fn fragments(namespace: NamespaceId) -> OsdKey {
    namespace_key(namespace, |w| w.int8(b'o'))
}

/// Prefix of all recovery infos of a namespace.
pub fn recovery_infos(namespace: NamespaceId) -> OsdKey {
    namespace_key(namespace, |w| w.int8(b'r'))
}

/// Ours, for recovery: somebody was about to delete or replace this object. Value: its name, raw.
pub fn deletion_note(namespace: NamespaceId, object_id: &ObjectId) -> OsdKey {
    namespace_key(namespace, |w| {
        w.int8(b'd');
        w.bytes(object_id.as_bytes());
    })
}

/// Prefix of all deletion notes of a namespace.
pub fn deletion_notes(namespace: NamespaceId) -> OsdKey {
    namespace_key(namespace, |w| w.int8(b'd'))
}

/// Prefix of everything a backend instance keeps on an OSD.
pub fn instance() -> OsdKey {
    instance_key(|_| ())
}

/// What a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// [`namespace_marker`].
    NamespaceMarker(NamespaceId),
    /// [`namespace_name`].
    NamespaceName(NamespaceId),
    /// [`namespace_preset`].
    NamespacePreset(NamespaceId),
    /// [`fragment`].
    Fragment(NamespaceId, FragmentAddress),
    /// [`recovery_info`].
    RecoveryInfo(NamespaceId, FragmentAddress),
    /// [`gc_tag`].
    GcTag(NamespaceId, GcEpoch, FragmentAddress),
    /// [`deletion_note`].
    DeletionNote(NamespaceId, ObjectId),
    /// None of a namespace.
    Other,
}

/// Recognises the keys of namespaces.
pub fn parse(key: &[u8]) -> Result<Parsed, WireError> {
    let Some(rest) = key.strip_prefix(&namespace_prefix()[..]) else { return Ok(Parsed::Other) };
    let mut r = Reader::new(Bytes::copy_from_slice(rest));
    let id = r.x_int64_be()?;
    let namespace = NamespaceId::new(id).map_err(|error| WireError::invalid("namespace id", error))?;
    if r.left() == 0 {
        return Ok(Parsed::NamespaceMarker(namespace));
    }
    let parsed = match r.int8()? {
        b'n' => Parsed::NamespaceName(namespace),
        b'P' => Parsed::NamespacePreset(namespace),
        b'o' => Parsed::Fragment(namespace, FragmentAddress::read(&mut r)?),
        b'r' => Parsed::RecoveryInfo(namespace, FragmentAddress::read(&mut r)?),
        b'g' => {
            let epoch: [u8; 8] = r.raw(8)?[..].try_into().unwrap_or_default();
            let epoch = GcEpoch::new(u64::from_be_bytes(epoch))
                .map_err(|error| WireError::invalid("gc epoch", error))?;
            Parsed::GcTag(namespace, epoch, FragmentAddress::read(&mut r)?)
        }
        b'd' => Parsed::DeletionNote(namespace, ObjectId::new(r.fixed("object id")?)),
        other => return Err(WireError::Tag { what: "namespace key", tag: u32::from(other) }),
    };
    if r.left() == 0 { Ok(parsed) } else { Err(WireError::invalid("namespace key", "bytes behind its end")) }
}

fn namespace_prefix() -> OsdKey {
    instance_key(|w| w.int8(b'n'))
}

/// Name of a fragment as an object of a fragment cache in another backend (§5.5). For k = 1 the fragment is always 0.
pub fn cache_object_name(object_id: &ObjectId, chunk: ChunkIndex, fragment: FragmentIndex) -> Bytes {
    key(|w| {
        w.bytes(object_id.as_bytes());
        w.uint32(chunk.0);
        w.uint32(fragment.0);
    })
}

/// Namespace of a fragment cache in another backend that holds the fragments of `namespace` (§5.5).
pub fn cache_namespace_name(prefix: &str, namespace: NamespaceId) -> String {
    format!("{prefix}_{:09}", namespace.get())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> FragmentAddress {
        FragmentAddress {
            object_id: ObjectId::new(std::array::from_fn(|i| u8::try_from(i).unwrap())),
            chunk: ChunkIndex(0),
            fragment: FragmentIndex(1),
            version: ObjectVersion(0),
        }
    }

    #[test]
    fn keys_have_the_bytes_of_the_format() {
        // The example of wire-protocol §5.2.
        let expected = concat!(
            "70000000006e000000076f20000000",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
            "000000000100000000000000"
        );
        assert_eq!(hex::encode(fragment(NamespaceId::from_u32(7), &address())), expected);
        assert_eq!(hex::encode(next_message()), "70000000006d");
        assert_eq!(hex::encode(instance_log()), "6c00000000");
        assert_eq!(
            parse_message_id(&message_id_value(MessageId::from_u32(5))).unwrap(),
            MessageId::from_u32(5)
        );
    }

    #[test]
    fn a_cache_namespace_is_padded_to_nine_digits() {
        assert_eq!(cache_namespace_name("acc", NamespaceId::from_u32(7)), "acc_000000007");
    }

    #[test]
    fn all_keys_of_a_namespace_lie_below_its_marker() {
        let namespace = NamespaceId::from_u32(7);
        let marker = namespace_marker(namespace);
        let end = crate::range::next_prefix(&marker).unwrap();
        for key in [
            namespace_name(namespace),
            namespace_preset(namespace),
            fragment(namespace, &address()),
            recovery_info(namespace, &address()),
            gc_tag(namespace, GcEpoch::from_u32(1), &address()),
            deletion_note(namespace, &address().object_id),
        ] {
            assert!(key.starts_with(&marker) && key[..] < end[..]);
            assert!(!key.starts_with(&namespace_marker(NamespaceId::from_u32(8))));
        }
        assert!(
            gc_tag(namespace, GcEpoch::from_u32(1), &address())
                .starts_with(&gc_tags_of(namespace, GcEpoch::from_u32(1)))
        );
    }

    proptest! {
        #[test]
        fn keys_parse_back(
            namespace in 0..=i64::MAX.unsigned_abs(),
            epoch in 0..=i64::MAX.unsigned_abs(),
            object: [u8; 32],
            chunk: u32,
            index: u32,
            version: u32,
        ) {
            let namespace = NamespaceId::new(namespace).unwrap();
            let epoch = GcEpoch::new(epoch).unwrap();
            let address = FragmentAddress {
                object_id: ObjectId::new(object),
                chunk: ChunkIndex(chunk),
                fragment: FragmentIndex(index),
                version: ObjectVersion(version),
            };
            prop_assert_eq!(parse(&namespace_marker(namespace)).unwrap(), Parsed::NamespaceMarker(namespace));
            prop_assert_eq!(parse(&namespace_name(namespace)).unwrap(), Parsed::NamespaceName(namespace));
            prop_assert_eq!(parse(&namespace_preset(namespace)).unwrap(), Parsed::NamespacePreset(namespace));
            prop_assert_eq!(
                parse(&fragment(namespace, &address)).unwrap(), Parsed::Fragment(namespace, address)
            );
            prop_assert_eq!(
                parse(&recovery_info(namespace, &address)).unwrap(), Parsed::RecoveryInfo(namespace, address)
            );
            prop_assert_eq!(
                parse(&gc_tag(namespace, epoch, &address)).unwrap(), Parsed::GcTag(namespace, epoch, address)
            );
            prop_assert_eq!(
                parse(&deletion_note(namespace, &address.object_id)).unwrap(),
                Parsed::DeletionNote(namespace, address.object_id)
            );
            prop_assert_eq!(parse(&next_message()).unwrap(), Parsed::Other);
        }

        #[test]
        fn foreign_keys_never_panic(key in prop::collection::vec(any::<u8>(), 0..80), prefixed: bool) {
            let key = if prefixed { [&namespace_prefix()[..], &key].concat() } else { key };
            let _ = parse(&key);
        }
    }
}
