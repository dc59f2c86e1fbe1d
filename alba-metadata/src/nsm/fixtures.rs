//! A namespace to try things on: 2+1 fragments, OSDs 0..6 on three nodes.

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::ids::{
    GcEpoch, LongId, MessageId, NamespaceId, NamespaceName, NodeId, ObjectId, ObjectName, ObjectVersion,
    OsdId, Place,
};
use alba_core::kv::{Durability, Kv};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::policy::{CodeShape, Policy};
use alba_core::preset::{Compression, ObjectChecksums, OsdSet, Preset};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{OsdEndpoint, OsdInfo};
use alba_core::wire::rpc::nsm::{NsmCommand, NsmError, NsmMessage, NsmOutcome, ObjectUpdate, Overwrite};

use super::Nsm;
use crate::machine::{Input, Output, OutputOf, step};
use crate::txn::KvTxn;

pub(crate) const NS: NamespaceId = NamespaceId::from_u32(7);

pub(crate) fn preset() -> Preset {
    Preset {
        policies: vec![Policy::new(2, 1, 3, 1).unwrap(), Policy::new(2, 1, 2, 2).unwrap()],
        fragment_size: 1024,
        osds: OsdSet::All,
        compression: Compression::None,
        fragment_checksum: ChecksumAlgorithm::Crc32c,
        object_checksum: ObjectChecksums {
            allowed: vec![ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Sha1],
            default: ChecksumAlgorithm::Crc32c,
            verify_upload: true,
        },
        ..Preset::built_in()
    }
}

/// A later version of [`preset`] under which objects up to `limit` bytes may live in the metadata.
pub(crate) fn allow_inline(limit: u32, version: u32) -> NsmMessage {
    let preset = Box::new(Preset { inline_limit: limit, ..preset() });
    NsmMessage::UpdatePreset { namespace: NS, preset, version }
}

/// OSD n stands on node n / 2.
pub(crate) fn osd_info(n: u32) -> OsdInfo {
    OsdInfo {
        long_id: LongId::new(format!("osd-{n}")).unwrap(),
        place: Place::of_node(NodeId::new(format!("node-{}", n / 2)).unwrap()),
        endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 8000),
        capacity: ByteCount::mib(1),
        used: ByteCount(0),
    }
}

pub(crate) fn messages() -> Vec<(MessageId, NsmMessage)> {
    let create = NsmMessage::CreateNamespace {
        id: NS,
        name: NamespaceName::new("ns").unwrap(),
        preset: Box::new(preset()),
        preset_version: 0,
    };
    let links = (0..6).map(|n| NsmMessage::LinkOsd {
        namespace: NS,
        osd: OsdId::from_u32(n),
        info: Box::new(osd_info(n)),
    });
    (0..).map(MessageId::from_u32).zip(std::iter::once(create).chain(links)).collect()
}

pub(crate) fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// An object of one chunk per entry; an entry says where the three fragments are.
pub(crate) fn manifest(text: &str, id: u8, chunks: &[[Option<u32>; 3]]) -> Manifest {
    // Of a length of its own, so that sums tell objects apart.
    let fragment_len = 10 + u32::from(id);
    let fragment = |at: &Option<u32>| Fragment {
        location: at.map(OsdId::from_u32),
        version: ObjectVersion(0),
        checksum: Checksum::Crc32c(1),
        packed_len: fragment_len,
        ctr: None,
    };
    Manifest {
        name: name(text),
        object_id: ObjectId::new([id; 32]),
        size: u64::from(fragment_len) * 2 * u64::try_from(chunks.len()).unwrap(),
        checksum: Checksum::Crc32c(u32::from(id)),
        scheme: Scheme {
            shape: CodeShape::new(2, 1).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::None,
        },
        encryption: EncryptInfo::None,
        chunks: chunks
            .iter()
            .map(|places| Chunk { size: fragment_len * 2, fragments: places.iter().map(fragment).collect() })
            .collect(),
        version: ObjectVersion(0),
        max_disks_per_node: 1,
        timestamp: Timestamp(0),
    }
}

pub(crate) const SPREAD: [Option<u32>; 3] = [Some(0), Some(2), Some(4)];

pub(crate) fn put(manifest: Manifest, overwrite: Overwrite) -> ObjectUpdate {
    ObjectUpdate::Put { manifest: Box::new(manifest), overwrite }
}

pub(crate) fn sequence(updates: Vec<ObjectUpdate>) -> NsmCommand {
    NsmCommand::Sequence { namespace: NS, asserts: Vec::new(), updates, epoch: GcEpoch::from_u32(0) }
}

/// Feeds one input and commits.
pub(crate) fn feed(store: &dyn Kv, wall: u64, input: &Input<NsmCommand>) -> OutputOf<Nsm> {
    let mut txn = KvTxn::new(store);
    let output = step::<Nsm>(&mut txn, wall, input).unwrap();
    store.commit(txn.into_batch(), Durability::Eventual).unwrap();
    output
}

pub(crate) fn run(store: &dyn Kv, command: NsmCommand) -> Result<NsmOutcome, NsmError> {
    match feed(store, 5, &Input::Internal(command)) {
        Output::Done(result) => result,
        other => panic!("{other:?}"),
    }
}

/// The namespace with its OSDs.
pub(crate) fn prepare(store: &dyn Kv) {
    run(store, NsmCommand::Deliver(messages())).unwrap();
}
