//! Objects to commit: 1 MiB with a 5+4 code on twelve OSDs of four nodes.

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::ids::{
    GcEpoch, LongId, MessageId, NamespaceId, NamespaceName, NodeId, ObjectId, ObjectName, ObjectVersion,
    OsdId, Place,
};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::policy::{CodeShape, Policy};
use alba_core::preset::{Compression, ObjectChecksums, OsdSet, Preset};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{OsdEndpoint, OsdInfo};
use alba_core::wire::rpc::nsm::{NsmCommand, NsmMessage, ObjectUpdate, Overwrite};

pub(crate) const NAMESPACE: NamespaceId = NamespaceId::from_u32(7);
const OSDS: u32 = 12;
const FRAGMENTS: u32 = 9;

fn preset() -> Preset {
    Preset {
        policies: vec![Policy::new(5, 4, 8, 3).unwrap()],
        fragment_size: 1 << 20,
        osds: OsdSet::All,
        compression: Compression::None,
        fragment_checksum: ChecksumAlgorithm::Blake3,
        object_checksum: ObjectChecksums {
            allowed: vec![ChecksumAlgorithm::Crc32c],
            default: ChecksumAlgorithm::Crc32c,
            verify_upload: true,
        },
        ..Preset::built_in()
    }
}

/// Makes the namespace with its OSDs.
pub(crate) fn namespace() -> NsmCommand {
    let create = NsmMessage::CreateNamespace {
        id: NAMESPACE,
        name: NamespaceName::new("bench").unwrap(),
        preset: Box::new(preset()),
        preset_version: 0,
    };
    let links = (0..OSDS).map(|osd| NsmMessage::LinkOsd {
        namespace: NAMESPACE,
        osd: OsdId::from_u32(osd),
        info: Box::new(OsdInfo {
            long_id: LongId::new(format!("osd-{osd}")).unwrap(),
            place: Place::of_node(NodeId::new(format!("node-{}", osd / 3)).unwrap()),
            endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 8000),
            capacity: ByteCount::mib(1),
            used: ByteCount(0),
        }),
    });
    NsmCommand::Deliver((0..).map(MessageId::from_u32).zip(std::iter::once(create).chain(links)).collect())
}

/// What the session of a client is opened with.
pub(crate) fn nonce(client: usize) -> [u8; 16] {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&u64::try_from(client).unwrap().to_le_bytes());
    nonce
}

/// A new object under a new name.
pub(crate) fn put(number: u64) -> NsmCommand {
    // The id looks random to the store, as real ones do; the checksums are made of it.
    let id = *blake3::hash(&number.to_le_bytes()).as_bytes();
    let first = u32::from(id[0]) % OSDS;
    let fragment = |n: u32| Fragment {
        location: Some(OsdId::from_u32((first + n) % OSDS)),
        version: ObjectVersion(0),
        checksum: Checksum::Blake3(id.map(|byte| byte ^ u8::try_from(n + 1).unwrap())),
        packed_len: 209_728,
        ctr: None,
    };
    let manifest = Manifest {
        name: ObjectName::new(format!("volume-1/sco-{number:012}")).unwrap(),
        object_id: ObjectId::new(id),
        size: 1 << 20,
        checksum: Checksum::Crc32c(7),
        scheme: Scheme {
            shape: CodeShape::new(5, 4).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::None,
        },
        encryption: EncryptInfo::None,
        chunks: vec![Chunk { size: 5 * 209_728, fragments: (0..FRAGMENTS).map(fragment).collect() }],
        version: ObjectVersion(0),
        max_disks_per_node: 3,
        timestamp: Timestamp(0),
    };
    NsmCommand::Sequence {
        namespace: NAMESPACE,
        asserts: Vec::new(),
        updates: vec![ObjectUpdate::Put {
            manifest: Box::new(manifest),
            overwrite: Overwrite::Unconditionally,
        }],
        epoch: GcEpoch::from_u32(0),
    }
}
