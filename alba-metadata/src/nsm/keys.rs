//! An NSM group's key space. The table is in `docs/formats/metadata.md`. Everything of a namespace but its header is
//! behind one prefix, so that dropping it is dropping a range.

use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, ObjectId, ObjectName, ObjectVersion, OsdId};
use alba_core::kv::KvError;
use alba_core::policy::{Bucket, CodeShape};
use alba_core::wire::rpc::nsm::FragmentKey;

use crate::value::{Key, damaged};

/// → the id of the next message expected from the ABM.
pub(super) const NEXT_MESSAGE: &[u8] = b"d";

/// Namespaces whose tables are being dropped.
pub(super) const DROPPED: &[u8] = b"g";

/// Namespaces whose noted changes are being dropped.
pub(super) const FORGOTTEN: &[u8] = b"f";

/// OSDs that moved, whose objects are being put into other buckets.
pub(super) const REINDEXED: &[u8] = b"r";

/// All tables of all namespaces.
pub(super) const ALL: &[u8] = b"n";

/// Headers.
pub(super) const HEADERS: &[u8] = b"h";

/// → counter: commands that changed something.
pub(super) const OPERATIONS: &[u8] = b"lo";

/// → counter: bytes that commands wrote.
pub(super) const WRITTEN: &[u8] = b"lw";

/// → `State`; absent: the default.
pub(super) fn state(namespace: NamespaceId) -> Vec<u8> {
    Key::table(b"v").number(namespace.get()).end()
}

/// → present.
pub(super) fn forgotten(namespace: NamespaceId) -> Vec<u8> {
    Key::table(FORGOTTEN).number(namespace.get()).end()
}

/// The markers of a namespace; with an OSD → the last object done, none at first.
pub(super) fn reindexed(namespace: NamespaceId, osd: Option<OsdId>) -> Vec<u8> {
    let key = Key::table(REINDEXED).number(namespace.get());
    match osd {
        Some(osd) => key.number(osd.get()).end(),
        None => key.end(),
    }
}

/// → `Header`.
pub(super) fn header(namespace: NamespaceId) -> Vec<u8> {
    Key::table(HEADERS).number(namespace.get()).end()
}

/// → present.
pub(super) fn dropped(namespace: NamespaceId) -> Vec<u8> {
    Key::table(DROPPED).number(namespace.get()).end()
}

/// Everything of a namespace but its header.
pub(super) fn all_of(namespace: NamespaceId) -> Vec<u8> {
    Key::table(ALL).number(namespace.get()).end()
}

/// The tables of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Epochs,
    ActiveOsds,
    OsdInfos,
    Names,
    Objects,
    ObjectsOnOsd,
    Buckets,
    BucketCounts,
    OsdBytes,
    ObjectCount,
    LogicalBytes,
    StorageBytes,
    DeleteQueue,
    Queued,
    DrainingOsds,
    InlineValues,
    InlineBytes,
    Findings,
    FindingNames,
    FindingCount,
    Changes,
    ChangedKeys,
}

impl Table {
    /// All of them.
    pub(super) const ALL: [Self; 22] = [
        Self::Epochs,
        Self::ActiveOsds,
        Self::OsdInfos,
        Self::Names,
        Self::Objects,
        Self::ObjectsOnOsd,
        Self::Buckets,
        Self::BucketCounts,
        Self::OsdBytes,
        Self::ObjectCount,
        Self::LogicalBytes,
        Self::StorageBytes,
        Self::DeleteQueue,
        Self::Queued,
        Self::DrainingOsds,
        Self::InlineValues,
        Self::InlineBytes,
        Self::Findings,
        Self::FindingNames,
        Self::FindingCount,
        Self::Changes,
        Self::ChangedKeys,
    ];

    /// The table of a letter.
    pub(super) fn of_letter(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.letter() == letter)
    }

    pub(super) fn letter(self) -> u8 {
        match self {
            Self::Epochs => b'e',
            Self::ActiveOsds => b'a',
            Self::OsdInfos => b'i',
            Self::Names => b'N',
            Self::Objects => b'o',
            Self::ObjectsOnOsd => b'p',
            Self::Buckets => b'b',
            Self::BucketCounts => b'B',
            Self::OsdBytes => b's',
            Self::ObjectCount => b'c',
            Self::LogicalBytes => b'l',
            Self::StorageBytes => b'S',
            Self::DeleteQueue => b'k',
            Self::Queued => b'K',
            Self::DrainingOsds => b'd',
            Self::InlineValues => b'v',
            Self::InlineBytes => b'j',
            Self::Findings => b'f',
            Self::FindingNames => b'F',
            Self::FindingCount => b'g',
            Self::Changes => b'y',
            Self::ChangedKeys => b'x',
        }
    }
}

/// A table, or the key of one that has a single entry.
pub(super) fn table(namespace: NamespaceId, table: Table) -> Vec<u8> {
    inside(namespace, table).end()
}

fn inside(namespace: NamespaceId, table: Table) -> Key {
    Key::table(ALL).number(namespace.get()).bytes(&[table.letter()])
}

/// An entry of a table ordered by OSD: active OSDs, infos, bytes; or the prefix of one OSD's objects or queue.
pub(super) fn of_osd(namespace: NamespaceId, table: Table, osd: OsdId) -> Vec<u8> {
    about_osd(namespace, table, osd).end()
}

/// The same, for a look at it or a counter.
#[inline]
pub(super) fn about_osd(namespace: NamespaceId, table: Table, osd: OsdId) -> Key {
    inside(namespace, table).number(osd.get())
}

/// → object id.
pub(super) fn name(namespace: NamespaceId, name: &ObjectName) -> Vec<u8> {
    inside(namespace, Table::Names).bytes(name.as_bytes()).end()
}

/// → `ObjectRecord`, in pieces.
pub(super) fn object(namespace: NamespaceId, object: &ObjectId) -> Vec<u8> {
    inside(namespace, Table::Objects).bytes(object.as_bytes()).end()
}

/// → present.
pub(super) fn object_on_osd(namespace: NamespaceId, osd: OsdId, object: &ObjectId) -> Vec<u8> {
    inside(namespace, Table::ObjectsOnOsd).number(osd.get()).bytes(object.as_bytes()).end()
}

/// → `InlineValue`.
pub(super) fn inline_value(namespace: NamespaceId, object: &ObjectId) -> Vec<u8> {
    inside(namespace, Table::InlineValues).bytes(object.as_bytes()).end()
}

/// → `Finding`, in pieces.
pub(super) fn finding(namespace: NamespaceId, object: &ObjectId) -> Vec<u8> {
    inside(namespace, Table::Findings).bytes(object.as_bytes()).end()
}

/// The findings of a name; with an object → present.
pub(super) fn finding_name(namespace: NamespaceId, name: &ObjectName, object: Option<&ObjectId>) -> Vec<u8> {
    let key = inside(namespace, Table::FindingNames).counted(name.as_bytes());
    match object {
        Some(object) => key.bytes(object.as_bytes()).end(),
        None => key.end(),
    }
}

/// → the key that changed.
pub(super) fn change(namespace: NamespaceId, number: u64) -> Vec<u8> {
    inside(namespace, Table::Changes).number(number).end()
}

/// → number of its last change. `key` is without the part that names the namespace.
pub(super) fn changed_key(namespace: NamespaceId, key: &[u8]) -> Vec<u8> {
    inside(namespace, Table::ChangedKeys).bytes(key).end()
}

/// Weakest first: k, m, fragments ascending, then the most crowded nodes first.
pub(super) fn bucket_bytes(bucket: &Bucket) -> [u8; 10] {
    let (k, m) = bucket.shape.as_u8();
    let mut bytes = [k, m, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[2..6].copy_from_slice(&bucket.fragments.to_be_bytes());
    bytes[6..].copy_from_slice(&(u32::MAX - bucket.max_per_node).to_be_bytes());
    bytes
}

/// The reverse of [`bucket_bytes`].
pub(super) fn parse_bucket(bytes: &[u8]) -> Result<Bucket, KvError> {
    let [k, m, f0, f1, f2, f3, x0, x1, x2, x3] = <[u8; 10]>::try_from(bytes).map_err(damaged)?;
    Ok(Bucket {
        shape: CodeShape::new(k, m).map_err(damaged)?,
        fragments: u32::from_be_bytes([f0, f1, f2, f3]),
        max_per_node: u32::MAX - u32::from_be_bytes([x0, x1, x2, x3]),
    })
}

/// The objects of a bucket.
pub(super) fn bucket(namespace: NamespaceId, bucket: &Bucket) -> Vec<u8> {
    inside(namespace, Table::Buckets).bytes(&bucket_bytes(bucket)).end()
}

/// → present.
pub(super) fn object_in_bucket(namespace: NamespaceId, bucket: &Bucket, object: &ObjectId) -> Vec<u8> {
    inside(namespace, Table::Buckets).bytes(&bucket_bytes(bucket)).bytes(object.as_bytes()).end()
}

/// → counter.
pub(super) fn bucket_count(namespace: NamespaceId, bucket: &Bucket) -> Vec<u8> {
    inside(namespace, Table::BucketCounts).bytes(&bucket_bytes(bucket)).end()
}

/// → present.
pub(super) fn to_delete(namespace: NamespaceId, osd: OsdId, key: &FragmentKey) -> Vec<u8> {
    inside(namespace, Table::DeleteQueue)
        .number(osd.get())
        .bytes(key.object.as_bytes())
        .bytes(&key.chunk.0.to_be_bytes())
        .bytes(&key.fragment.0.to_be_bytes())
        .bytes(&key.version.0.to_be_bytes())
        .end()
}

/// → counter: keys of the object that are in delete queues.
pub(super) fn queued(namespace: NamespaceId, object: &ObjectId) -> Vec<u8> {
    inside(namespace, Table::Queued).bytes(object.as_bytes()).end()
}

/// The part of a `to_delete` key behind the OSD.
pub(super) fn parse_to_delete(bytes: &[u8]) -> Result<FragmentKey, KvError> {
    let (object, rest) = bytes.split_at_checked(32).ok_or_else(|| damaged("a short fragment key"))?;
    let [c0, c1, c2, c3, f0, f1, f2, f3, v0, v1, v2, v3] = <[u8; 12]>::try_from(rest).map_err(damaged)?;
    Ok(FragmentKey {
        object: ObjectId::try_from(object).map_err(damaged)?,
        chunk: ChunkIndex(u32::from_be_bytes([c0, c1, c2, c3])),
        fragment: FragmentIndex(u32::from_be_bytes([f0, f1, f2, f3])),
        version: ObjectVersion(u32::from_be_bytes([v0, v1, v2, v3])),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_sort_weakest_first() {
        let bucket = |fragments, max_per_node| Bucket {
            shape: CodeShape::new(5, 4).unwrap(),
            fragments,
            max_per_node,
        };
        let order = [bucket(5, 3), bucket(5, 1), bucket(8, 2), bucket(9, 3), bucket(9, 1)];
        let keys = order.map(|bucket| bucket_bytes(&bucket));
        assert!(keys.is_sorted());
        assert_eq!(keys.map(|key| parse_bucket(&key).unwrap()), order);
        assert_eq!(keys[0], [5, 4, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xfc]);
    }

    #[test]
    fn letters_tell_tables_apart() {
        for table in Table::ALL {
            assert_eq!(Table::of_letter(table.letter()), Some(table));
        }
    }

    #[test]
    fn keys_have_golden_bytes() {
        let ns = NamespaceId::from_u32(7);
        let osd = OsdId::from_u32(3);
        let id = ObjectId::new([9; 32]);
        let start = b"n\0\0\0\0\0\0\0\x07".to_vec();
        let with = |rest: &[u8]| [start.as_slice(), rest].concat();
        assert_eq!(name(ns, &ObjectName::new("ab").unwrap()), with(b"Nab"));
        assert_eq!(object(ns, &id), with(&[b"o".as_slice(), &[9; 32]].concat()));
        let on_osd = [b"p\0\0\0\0\0\0\0\x03".as_slice(), &[9; 32]].concat();
        assert_eq!(object_on_osd(ns, osd, &id), with(&on_osd));
        assert_eq!(of_osd(ns, Table::OsdBytes, osd), with(b"s\0\0\0\0\0\0\0\x03"));
        assert_eq!(header(ns), b"h\0\0\0\0\0\0\0\x07");
        assert_eq!(dropped(ns), b"g\0\0\0\0\0\0\0\x07");
        assert_eq!(forgotten(ns), b"f\0\0\0\0\0\0\0\x07");
        assert_eq!(state(ns), b"v\0\0\0\0\0\0\0\x07");
        assert_eq!(reindexed(ns, Some(osd)), b"r\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x03");
        assert_eq!(of_osd(ns, Table::DrainingOsds, osd), with(b"d\0\0\0\0\0\0\0\x03"));
        assert_eq!(inline_value(ns, &id), with(&[b"v".as_slice(), &[9; 32]].concat()));
        assert_eq!(table(ns, Table::InlineBytes), with(b"j"));
        assert_eq!(finding(ns, &id), with(&[b"f".as_slice(), &[9; 32]].concat()));
        let finding = finding_name(ns, &ObjectName::new("ab").unwrap(), Some(&id));
        assert_eq!(finding, with(&[b"F\0\x02ab".as_slice(), &[9; 32]].concat()));
        assert_eq!(table(ns, Table::FindingCount), with(b"g"));
        assert_eq!(change(ns, 258), with(b"y\0\0\0\0\0\0\x01\x02"));
        assert_eq!(changed_key(ns, b"Nab"), with(b"xNab"));
        assert_eq!(queued(ns, &id), with(&[b"K".as_slice(), &[9; 32]].concat()));
        let key = FragmentKey {
            object: id,
            chunk: ChunkIndex(1),
            fragment: FragmentIndex(2),
            version: ObjectVersion(4),
        };
        let queued = to_delete(ns, osd, &key);
        let rest = [b"k\0\0\0\0\0\0\0\x03".as_slice(), &[9; 32], b"\0\0\0\x01\0\0\0\x02\0\0\0\x04"].concat();
        assert_eq!(queued, with(&rest));
        assert_eq!(parse_to_delete(&queued[queued.len() - 44..]).unwrap(), key);
    }
}
