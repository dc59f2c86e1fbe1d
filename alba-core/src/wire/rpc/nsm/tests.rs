//! The bytes of every message, command, outcome, query, answer and error. What is stored or sent once must be read for
//! ever: a line of `golden.txt` may be added, never changed.

use super::super::golden;
use super::*;
use crate::checksum::ChecksumAlgorithm;
use crate::ids::{LongId, NodeId, Place};
use crate::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Scheme, Timestamp};
use crate::policy::{CodeShape, Policy};
use crate::preset::{Compression, FragmentEncryption, ObjectChecksums, OsdSet};
use crate::units::ByteCount;
use crate::wire::rpc::abm::OsdEndpoint;

const NS: NamespaceId = NamespaceId::from_u32(7);
const OSD: OsdId = OsdId::from_u32(3);
const ID: ObjectId = ObjectId::new([9; 32]);

fn preset() -> Box<Preset> {
    Box::new(Preset {
        policies: vec![Policy::new(2, 1, 3, 1).unwrap()],
        fragment_size: 1024,
        osds: OsdSet::All,
        compression: Compression::None,
        fragment_checksum: ChecksumAlgorithm::Crc32c,
        object_checksum: ObjectChecksums {
            allowed: vec![ChecksumAlgorithm::Crc32c],
            default: ChecksumAlgorithm::Crc32c,
            verify_upload: true,
        },
        fragment_encryption: FragmentEncryption::aes_256_ctr(
            &crate::encryption::FragmentKey::new([1; 32]),
            &crate::encryption::ClusterKey::new([2; 32]),
        ),
        inline_limit: 300,
    })
}

fn info() -> Box<OsdInfo> {
    Box::new(OsdInfo {
        long_id: LongId::new("osd").unwrap(),
        place: Place::of_node(NodeId::new("node").unwrap()),
        endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 8000),
        capacity: ByteCount::mib(1),
        used: ByteCount(5),
    })
}

fn name() -> ObjectName {
    ObjectName::new("ab").unwrap()
}

fn namespace_name() -> NamespaceName {
    NamespaceName::new("ns").unwrap()
}

fn manifest() -> Manifest {
    let fragment = Fragment {
        location: Some(OSD),
        version: ObjectVersion(1),
        checksum: Checksum::Crc32c(0x0102_0304),
        packed_len: 5,
        ctr: Some([4; 16]),
    };
    let hole = Fragment { location: None, ctr: None, ..fragment.clone() };
    Manifest {
        name: name(),
        object_id: ID,
        size: 300,
        checksum: Checksum::Sha1([6; 20]),
        scheme: Scheme {
            shape: CodeShape::new(2, 1).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::Zstd,
        },
        encryption: EncryptInfo::None,
        chunks: vec![Chunk { size: 300, fragments: vec![fragment, hole] }],
        version: ObjectVersion(1),
        max_disks_per_node: 2,
        timestamp: Timestamp(77),
    }
}

fn value() -> InlineValue {
    InlineValue { packed: b"xyz".to_vec(), checksum: Checksum::Crc32c(8), ctr: Some([5; 16]) }
}

fn bucket() -> Bucket {
    Bucket { shape: CodeShape::new(2, 1).unwrap(), fragments: 3, max_per_node: 1 }
}

fn key() -> FragmentKey {
    FragmentKey { object: ID, chunk: ChunkIndex(1), fragment: FragmentIndex(2), version: ObjectVersion(4) }
}

fn epoch() -> GcEpoch {
    GcEpoch::from_u32(3)
}

fn range() -> RangeQuery {
    RangeQuery {
        first: b"a".to_vec(),
        first_included: true,
        last: Some((b"b".to_vec(), false)),
        reverse: true,
        max: 9,
    }
}

fn sealed() -> Box<Sealed> {
    Box::new(Sealed {
        name: namespace_name(),
        preset: *preset(),
        preset_version: 2,
        lifecycle: Lifecycle::Active,
        trashed: true,
        floor: Timestamp(1234),
        digest: Digest { rows: 6, sum: 1 << 100 },
    })
}

fn page() -> MovePage {
    MovePage {
        rows: vec![(b"Nab".to_vec(), Some(vec![1, 2])), (b"c".to_vec(), None)],
        next: Cursor::Rows(b"c".to_vec()),
    }
}

fn messages() -> Vec<NsmMessage> {
    let (name, preset_version) = (namespace_name(), 2);
    vec![
        NsmMessage::CreateNamespace { id: NS, name: name.clone(), preset: preset(), preset_version },
        NsmMessage::DeleteNamespace { id: NS },
        NsmMessage::LinkOsd { namespace: NS, osd: OSD, info: info() },
        NsmMessage::UnlinkOsd { namespace: NS, osd: OSD },
        NsmMessage::UpdatePreset { namespace: NS, preset: preset(), version: 4 },
        NsmMessage::UpdateOsd { namespace: NS, osd: OSD, info: info() },
        NsmMessage::RecoverNamespace { id: NS, name, preset: preset(), preset_version },
        NsmMessage::SetTrashed { namespace: NS, trashed: true },
        NsmMessage::SetOsdUse { namespace: NS, osd: OSD, how: OsdUse::Draining },
    ]
}

fn sequence() -> NsmCommand {
    NsmCommand::Sequence {
        namespace: NS,
        asserts: vec![
            ObjectAssert::Exists(name()),
            ObjectAssert::DoesNotExist(name()),
            ObjectAssert::HasId(name(), ID),
            ObjectAssert::HasChecksum(name(), Checksum::None),
        ],
        updates: vec![
            ObjectUpdate::Put { manifest: Box::new(manifest()), overwrite: Overwrite::Unconditionally },
            ObjectUpdate::Put { manifest: Box::new(manifest()), overwrite: Overwrite::NoPrevious },
            ObjectUpdate::Delete { name: name(), must_exist: true },
            ObjectUpdate::PutInline {
                manifest: Box::new(Manifest { chunks: vec![], ..manifest() }),
                value: value(),
                overwrite: Overwrite::PreviousObjectId(ID),
            },
        ],
        epoch: epoch(),
    }
}

fn commands() -> Vec<NsmCommand> {
    let mut commands = vec![
        NsmCommand::Deliver(vec![(MessageId::from_u32(5), NsmMessage::DeleteNamespace { id: NS })]),
        sequence(),
        NsmCommand::AddLateFragments {
            namespace: NS,
            object: ID,
            fragments: vec![(ChunkIndex(0), FragmentIndex(1), OSD)],
            epoch: epoch(),
        },
        NsmCommand::EnableGcEpoch { namespace: NS, epoch: epoch() },
        NsmCommand::DisableGcEpochs { namespace: NS, upto: epoch() },
        NsmCommand::MarkKeysDeleted { namespace: NS, osd: OSD, keys: vec![key()] },
        NsmCommand::UpdateObject {
            namespace: NS,
            object: ID,
            version: ObjectVersion(1),
            fragments: vec![FragmentUpdate {
                chunk: ChunkIndex(1),
                fragment: FragmentIndex(2),
                osd: Some(OSD),
                packed: Some((5, Checksum::Crc32c(8))),
                ctr: Some([5; 16]),
            }],
            epoch: epoch(),
        },
        NsmCommand::CleanupOsd { namespace: NS, osd: OSD },
        NsmCommand::UpdatePresets(vec![PresetUpdate { namespace: NS, preset: preset(), version: 4 }]),
        NsmCommand::RecoverObjects {
            namespace: NS,
            objects: vec![RecoveredObject { manifest: manifest(), possibly_deleted: true }],
        },
        NsmCommand::ResolveFinding { namespace: NS, object: ID, resolution: Resolution::Discard },
        NsmCommand::FinishRecovery { namespace: NS, epoch: epoch() },
    ];
    let steps = [
        MoveStep::Prepare,
        MoveStep::Cover,
        MoveStep::Freeze,
        MoveStep::HandOver { copied: 300 },
        MoveStep::Resume,
        MoveStep::Drop,
        MoveStep::Receive,
        MoveStep::Import { number: 2, page: page() },
        MoveStep::Activate(sealed()),
        MoveStep::Reject,
        MoveStep::Withdraw,
    ];
    commands.extend(steps.map(|step| NsmCommand::Move { namespace: NS, id: MoveId(5), step }));
    if let NsmCommand::Sequence { namespace, asserts, updates, epoch } = sequence() {
        commands.push(NsmCommand::DeletingSequence { namespace, asserts, updates, epoch });
    }
    commands
}

fn outcomes() -> Vec<NsmOutcome> {
    vec![
        NsmOutcome::Done,
        NsmOutcome::Stored(vec![manifest()]),
        NsmOutcome::Updated(Box::new(manifest())),
        NsmOutcome::Cleaned { more: true },
        NsmOutcome::Each(vec![Ok(()), Err(NsmError::ObjectNotFound)]),
        NsmOutcome::Recovered(vec![
            Recovered::Stored,
            Recovered::Known,
            Recovered::Apart(FindingReason::Conflict),
            Recovered::Refused(NsmError::InsufficientFragments),
        ]),
        NsmOutcome::StoredAndDeleted { stored: vec![manifest()], deleted: vec![(300, ID)] },
    ]
}

fn queries() -> Vec<NsmQuery> {
    let (namespace, names) = (NS, vec![name()]);
    vec![
        NsmQuery::Namespace(NS),
        NsmQuery::Statistics(NS),
        NsmQuery::Objects { namespace, range: range() },
        NsmQuery::Manifests { namespace, names: names.clone() },
        NsmQuery::ManifestById { namespace, object: ID },
        NsmQuery::ObjectsOnOsd { namespace, osd: OSD, after: Some(ID), max: 5 },
        NsmQuery::ObjectsInBucket { namespace, bucket: bucket(), after: None, max: 5 },
        NsmQuery::DeleteQueue { namespace, osd: OSD, max: 5 },
        NsmQuery::Details(NS),
        NsmQuery::StatisticsOf(vec![NS]),
        NsmQuery::Exist { namespace, names: names.clone() },
        NsmQuery::ObjectsById { namespace, range: range() },
        NsmQuery::ManifestsById { namespace, range: range() },
        NsmQuery::Contents { namespace, names },
        NsmQuery::RecoveryFindings { namespace, after: Some(ID), max: 5 },
        NsmQuery::MoveStatus(NS),
        NsmQuery::ExportPage { namespace, id: MoveId(5), from: Cursor::Changes(300) },
        NsmQuery::Load,
        NsmQuery::Namespaces { after: Some(NS), max: 5 },
        NsmQuery::NextMessage,
        NsmQuery::DeleteQueues(NS),
    ]
}

fn answers() -> Vec<NsmAnswer> {
    let statistics = NamespaceStatistics {
        objects: 1,
        logical_bytes: 2,
        storage_bytes: 3,
        storage_per_osd: vec![(OSD, 3)],
        buckets: vec![(bucket(), 1)],
    };
    let phases = [Phase::Prepared, Phase::Frozen, Phase::HandedOver(sealed())];
    let mut answers = vec![
        NsmAnswer::Namespace(Box::new(NamespaceInfo {
            name: namespace_name(),
            preset: *preset(),
            preset_version: 2,
            active_osds: vec![(OSD, *info())],
            min_epoch: epoch(),
            newest_epoch: epoch(),
        })),
        NsmAnswer::Statistics(statistics.clone()),
        NsmAnswer::Objects(Page { items: vec![name()], has_more: true }),
        NsmAnswer::Manifests(vec![Some(manifest()), None]),
        NsmAnswer::Manifest(Some(Box::new(manifest()))),
        NsmAnswer::ObjectIds(Page { items: vec![ID], has_more: false }),
        NsmAnswer::Keys(Page { items: vec![key()], has_more: true }),
        NsmAnswer::Details(Box::new(NamespaceDetails {
            lifecycle: Lifecycle::Recovering,
            trashed: true,
            frozen: false,
            osds: vec![(OSD, *info(), OsdUse::Unlinked)],
            inline_objects: 2,
            inline_bytes: 3,
            findings: 4,
        })),
        NsmAnswer::EachStatistics(vec![Ok(statistics), Err(NsmError::NamespaceMoved(NS))]),
        NsmAnswer::Exist(vec![true, false]),
        NsmAnswer::ManifestPage(Page { items: vec![manifest()], has_more: true }),
        NsmAnswer::Contents(vec![None, Some((manifest(), Some(value())))]),
        NsmAnswer::Findings(Page {
            items: vec![Finding { reason: FindingReason::PossiblyDeleted, manifest: manifest() }],
            has_more: true,
        }),
        NsmAnswer::MoveStatus(MoveStatus::Absent { ended: MoveId(0) }),
        NsmAnswer::MoveStatus(MoveStatus::Owned { ended: MoveId(5) }),
        NsmAnswer::MoveStatus(MoveStatus::Incoming {
            id: MoveId(5),
            next_page: 2,
            cursor: Cursor::Changes(300),
        }),
        NsmAnswer::Exported(page()),
        NsmAnswer::Load(GroupLoad { namespaces: 1, operations: 300, written: 70_000 }),
        NsmAnswer::Namespaces(Page { items: vec![(NS, namespace_name())], has_more: false }),
    ];
    answers.extend(phases.map(|phase| {
        NsmAnswer::MoveStatus(MoveStatus::Outgoing {
            id: MoveId(5),
            phase,
            covered: Some(b"c".to_vec()),
            last_change: 300,
            overflowed: false,
            busy: true,
        })
    }));
    answers.push(NsmAnswer::NextMessage(MessageId::from_u32(300)));
    answers.push(NsmAnswer::DeleteQueues(vec![(OSD, 5)]));
    answers
}

fn errors() -> Vec<NsmError> {
    vec![
        NsmError::Unknown("a".to_owned()),
        NsmError::InvalidGcEpoch(epoch()),
        NsmError::ObjectNotFound,
        NsmError::NonUniqueObjectId,
        NsmError::NamespaceMoved(NS),
        NsmError::OverwriteNotAllowed(name()),
        NsmError::InvalidVersion(ObjectVersion(1)),
        NsmError::InvalidFragmentSpread,
        NsmError::InactiveOsd(OSD),
        NsmError::AssertFailed(name()),
        NsmError::InvalidBucket,
        NsmError::PresetViolated("a".to_owned()),
        NsmError::TooLarge("a".to_owned()),
        NsmError::InvalidUpdate("a".to_owned()),
        NsmError::InsufficientFragments,
        NsmError::NamespaceFrozen(NS),
        NsmError::NamespaceTrashed(NS),
        NsmError::NamespaceRecovering(NS),
        NsmError::NotRecovering(NS),
        NsmError::MoveRefused("a".to_owned()),
    ]
}

#[test]
fn everything_has_golden_bytes() {
    let mut lines = Vec::new();
    golden::show("message", &messages(), &mut lines);
    golden::show("command", &commands(), &mut lines);
    golden::show("outcome", &outcomes(), &mut lines);
    golden::show("query", &queries(), &mut lines);
    golden::show("answer", &answers(), &mut lines);
    golden::show("error", &errors(), &mut lines);
    golden::compare(&lines, include_str!("golden.txt"));
}
