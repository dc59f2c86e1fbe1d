mod golden;

use proptest::prelude::*;

use super::*;
use crate::checksum::Checksum;
use crate::ids::{NamespaceId, ObjectId, ObjectVersion, OsdId};
use crate::manifest::EncryptInfo;
use crate::range::{Page, RangeQuery};
use crate::wire::common::{Stat, Version};
use crate::wire::llio::Reader;
use crate::wire::manifest::{
    LocatedManifest, ManifestSer, WireChunk, WireCompression, WireFragment, WireManifest, WireScheme,
};
use crate::wire::osd_info::{ASD_CAPABILITIES, ConnInfo, OsdInfo, OsdKind};

fn payload(message: &Message) -> Bytes {
    message.to_bytes().slice(4..)
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

/// Checksums that the original knows.
fn checksum() -> impl Strategy<Value = Checksum> {
    prop_oneof![
        Just(Checksum::None),
        any::<[u8; 20]>().prop_map(Checksum::Sha1),
        any::<u32>().prop_map(Checksum::Crc32c),
    ]
}

fn query() -> impl Strategy<Value = RangeQuery> {
    let key = || prop::collection::vec(any::<u8>(), 0..20);
    (key(), any::<bool>(), prop::option::of((key(), any::<bool>())), any::<bool>(), any::<i32>()).prop_map(
        |(first, first_included, last, reverse, max)| RangeQuery {
            first,
            first_included,
            last,
            reverse,
            max,
        },
    )
}

fn objects() -> impl Strategy<Value = Vec<ObjectSlices>> {
    let slice = (any::<i64>(), any::<i32>()).prop_map(|(offset, length)| SliceRequest { offset, length });
    let object = (bytes(), prop::collection::vec(slice, 0..4))
        .prop_map(|(object, slices)| ObjectSlices { object, slices });
    prop::collection::vec(object, 0..4)
}

fn assert() -> impl Strategy<Value = Assert> {
    prop_oneof![
        bytes().prop_map(Assert::ObjectExists),
        bytes().prop_map(Assert::ObjectDoesNotExist),
        (bytes(), bytes()).prop_map(|(name, id)| Assert::ObjectHasId(name, id)),
        (bytes(), checksum()).prop_map(|(name, checksum)| Assert::ObjectHasChecksum(name, checksum)),
    ]
}

fn update() -> impl Strategy<Value = Update> {
    let data = prop_oneof![4 => bytes(), 1 => (4000..5000_usize).prop_map(|len| vec![3; len].into())];
    prop_oneof![
        (bytes(), bytes(), prop::option::of(checksum()))
            .prop_map(|(object, file, checksum)| Update::UploadObjectFromFile { object, file, checksum }),
        (bytes(), data, prop::option::of(checksum()))
            .prop_map(|(object, data, checksum)| Update::UploadObject { object, data, checksum }),
        bytes().prop_map(Update::DeleteObject),
    ]
}

fn write_fs() -> impl Strategy<Value = WriteObjectFs> {
    (bytes(), bytes(), bytes(), any::<bool>(), prop::option::of(checksum())).prop_map(
        |(namespace, object, input_file, allow_overwrite, checksum)| WriteObjectFs {
            namespace,
            object,
            input_file,
            allow_overwrite,
            checksum,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let names = || prop::collection::vec(bytes(), 0..4);
    let flags = || (any::<bool>(), any::<bool>());
    let simple = prop::sample::select(vec![
        Request::GetVersion,
        Request::OsdView,
        Request::GetClientConfig,
        Request::OsdInfo,
        Request::OsdInfo2,
        Request::GetAlbaId,
        Request::HasLocalFragmentCache,
    ]);
    let by_name = (bytes(), 0..4).prop_map(|(name, which)| match which {
        0 => Request::NamespaceExists(name),
        1 => Request::DeleteNamespace(name),
        2 => Request::InvalidateCache(name),
        _ => Request::DropCache(name),
    });
    let listing = (bytes(), query(), 0..3).prop_map(|(namespace, query, which)| match which {
        0 => Request::ListNamespaces(query),
        1 => Request::ListNamespaces2(query),
        _ => Request::ListObjects { namespace, query },
    });
    let one_object = (bytes(), bytes(), bytes(), flags(), 0..3).prop_map(
        |(namespace, object, dest_file, (consistent_read, should_cache), which)| match which {
            0 => Request::DeleteObject { namespace, object, may_not_exist: should_cache },
            1 => Request::GetObjectInfo { namespace, object, consistent_read, should_cache },
            _ => Request::ReadObjectFs { namespace, object, dest_file, consistent_read, should_cache },
        },
    );
    let slices = (bytes(), objects(), flags()).prop_map(|(namespace, objects, (second, consistent_read))| {
        if second {
            Request::ReadObjectsSlices2 { namespace, objects, consistent_read }
        } else {
            Request::ReadObjectsSlices { namespace, objects, consistent_read }
        }
    });
    let sequence = (
        bytes(),
        any::<bool>(),
        prop::collection::vec(assert(), 0..4),
        prop::collection::vec(update(), 0..4),
    )
        .prop_map(|(namespace, write_barrier, asserts, updates)| Request::ApplySequence {
            namespace,
            write_barrier,
            asserts,
            updates,
        });
    let many = (bytes(), names(), flags(), any::<bool>()).prop_map(
        |(namespace, objects, (consistent_read, should_cache), read)| {
            if read {
                Request::ReadObjects { namespace, objects, consistent_read, should_cache }
            } else {
                Request::MultiExists { namespace, objects }
            }
        },
    );
    prop_oneof![
        simple,
        by_name,
        listing,
        one_object,
        slices,
        sequence,
        many,
        (bytes(), prop::option::of(bytes()))
            .prop_map(|(name, preset)| Request::CreateNamespace { name, preset }),
        write_fs().prop_map(Request::WriteObjectFs),
        write_fs().prop_map(Request::WriteObjectFs2),
        (any::<bool>(), names()).prop_map(|(clear, forget)| Request::ProxyStatistics { clear, forget }),
        (0.0..1e9).prop_map(|delay| Request::Ping { delay }),
        prop::collection::vec((bytes(), prop::option::of(bytes())), 0..4).prop_map(Request::UpdateSession),
        (bytes(), any::<i64>())
            .prop_map(|(alba_id, namespace_id)| Request::GetFragmentEncryptionKey { alba_id, namespace_id }),
    ]
}

fn object_info(name: &'static str) -> ObjectInfo {
    let fragment = |osd| WireFragment {
        location: Some(OsdId::from_u32(osd)),
        version: ObjectVersion(1),
        checksum: Checksum::Crc32c(osd),
        packed_len: 16,
        ctr: Some(Bytes::from_static(&[1; 16])),
        fnr: None,
    };
    let manifest = WireManifest {
        name: name.into(),
        object_id: ObjectId::new([5; 32]),
        scheme: WireScheme { k: 2, m: 1, compression: WireCompression::Snappy },
        encryption: EncryptInfo::None,
        checksum: Checksum::Sha1([6; 20]),
        size: 30,
        chunks: vec![WireChunk { size: 32, fragments: (0..3).map(fragment).collect() }],
        version: ObjectVersion(1),
        max_disks_per_node: 3,
        timestamp: 2.5,
    };
    let manifest = LocatedManifest { manifest, namespace: NamespaceId::from_u32(9) };
    ObjectInfo { name: name.into(), alba_id: "alba".into(), manifest }
}

/// An answer of each kind.
fn answers() -> Vec<(Command, Response)> {
    let conn = ConnInfo { ips: vec!["10.0.0.1".to_owned()], port: 8000, use_tls: true, use_rdma: false };
    let osd = |id| OsdEntry {
        id: OsdId::from_u32(id),
        info: OsdInfo {
            kind: OsdKind::Asd(conn.clone(), "asd".to_owned()),
            node_id: "n".to_owned(),
            decommissioned: true,
            other: "o".to_owned(),
            total: 10,
            used: 3,
            seen: vec![3.0, 1.0],
            read: Vec::new(),
            write: vec![1.0],
            errors: vec![(1.0, "e".to_owned())],
            checksum_errors: 2,
            claimed_since: None,
        },
        capabilities: ASD_CAPABILITIES.to_vec(),
    };
    let version = Version { major: -1, minor: -1, patch: -1, revision: "r".to_owned() };
    let mut upload = Stat::default();
    upload.add(1.5);
    let statistics = ProxyStatistics {
        creation: 1.0,
        period: 2.0,
        namespaces: vec![
            ("a".into(), NamespaceStatistics { upload, manifest_stale: 4, ..Default::default() }),
            ("b".into(), NamespaceStatistics::default()),
        ],
    };
    let names = |items| Response::Names(Page { items, has_more: true });
    let pairs = Page { items: vec![("n".into(), "p".into())], has_more: false };
    let read = ReadObject { manifest: object_info("x").manifest.manifest, data: vec![vec![8; 5000].into()] };
    vec![
        (Command::CreateNamespace, Response::Done),
        (Command::ListNamespaces, names(vec!["b".into(), "a".into()])),
        (Command::ListObjects, names(Vec::new())),
        (Command::ListNamespaces2, Response::NamesWithPresets(pairs)),
        (Command::NamespaceExists, Response::Flag(true)),
        (Command::HasLocalFragmentCache, Response::Flag(false)),
        (Command::GetObjectInfo, Response::Summary { size: 9, checksum: Checksum::Crc32c(1) }),
        (Command::ReadObjectsSlices, Response::Data(vec![vec![4; 9000].into()])),
        (
            Command::ReadObjectsSlices2,
            Response::DataAndObjects(vec!["d".into()], vec![object_info("a"), object_info("b")]),
        ),
        (Command::WriteObjectFs2, Response::Manifest(Box::new(object_info("a").manifest))),
        (Command::ApplySequence, Response::Objects(vec![object_info("a")])),
        (Command::ProxyStatistics, Response::Statistics(statistics)),
        (Command::GetVersion, Response::Version(version)),
        (Command::GetClientConfig, Response::ClientConfig(ClientConfig::default())),
        (Command::Ping, Response::Time(1.25)),
        (Command::OsdView, Response::OsdView(golden::view())),
        (Command::OsdInfo, Response::Osds(vec![osd(1), osd(2)])),
        (Command::OsdInfo2, Response::OsdsByAlba(vec![("a".into(), vec![osd(1)]), ("b".into(), vec![])])),
        (Command::ReadObjects, Response::ReadObjects(NamespaceId::from_u32(4), vec![None, Some(read)])),
        (Command::MultiExists, Response::Exists(vec![true, false, false])),
        (Command::GetAlbaId, Response::AlbaId("id".into())),
        (Command::UpdateSession, Response::Session(vec![("k".into(), "v".into())])),
        (Command::GetFragmentEncryptionKey, Response::Key(Some(Bytes::from_static(&[1; 32])))),
        (Command::GetFragmentEncryptionKey, Response::Key(None)),
    ]
}

#[test]
fn every_answer_is_understood_by_its_client() {
    for ser in [ManifestSer::V1, ManifestSer::V2] {
        for (command, response) in answers() {
            let message = encode_answer(command, &Ok(response.clone()), ser).unwrap();
            let len = u32::from_le_bytes(message.to_bytes()[..4].try_into().unwrap());
            assert_eq!(usize::try_from(len).unwrap(), message.len() - 4);
            assert_eq!(decode_answer(command, payload(&message)), Ok(Ok(response)));
        }
    }
}

#[test]
fn pieces_of_data_are_joined_on_the_wire_not_in_memory() {
    let pieces = vec![Bytes::from(vec![1; 5000]), Bytes::from_static(&[2]), Bytes::from(vec![3; 6000])];
    let answer = Ok(Response::Data(pieces.clone()));
    let message = encode_answer(Command::ReadObjectsSlices, &answer, ManifestSer::V1).unwrap();
    assert!(message.parts().iter().any(|part| part.as_ptr() == pieces[2].as_ptr()));
    let decoded = decode_answer(Command::ReadObjectsSlices, payload(&message)).unwrap().unwrap();
    assert_eq!(decoded, Response::Data(vec![pieces.concat().into()]));
}

#[test]
fn every_error_has_its_code_and_the_originals_text() {
    for (number, code) in ErrorCode::ALL {
        let error = ProxyError::of(code);
        assert_eq!((code.number(), ErrorCode::from_number(number)), (number, code));
        let message = encode_answer(Command::Ping, &Err(error.clone()), ManifestSer::V1).unwrap();
        assert_eq!(decode_answer(Command::Ping, payload(&message)), Ok(Err(error)));
    }
    let text = ProxyError::of(ErrorCode::NamespaceDoesNotExist).payload;
    assert_eq!(&text[..], b"Proxy_protocol.Protocol.Error.NamespaceDoesNotExist");
    assert_eq!(ErrorCode::from_number(6), ErrorCode::Unknown);
}

#[test]
fn codes_that_do_not_exist_are_unknown_operations() {
    for code in [0_u32, 6, 7, 12, 27, 34, u32::MAX] {
        let error = Request::decode(code.to_le_bytes().to_vec().into()).unwrap_err();
        assert_eq!(error, RequestError::UnknownOperation(code));
        assert_eq!(ProxyError::from(error).code, ErrorCode::UnknownOperation);
    }
    let error = Request::decode(Bytes::from_static(&[2, 0, 0, 0])).unwrap_err();
    assert_eq!(ProxyError::from(error).code, ErrorCode::Unknown);
}

#[test]
fn an_answer_of_another_operation_is_not_sent() {
    assert!(encode_answer(Command::Ping, &Ok(Response::Done), ManifestSer::V1).is_err());
}

#[test]
fn old_clients_ask_for_statistics_without_names() {
    let frame = Bytes::from_static(&[15, 0, 0, 0, 1]);
    assert_eq!(Request::decode(frame), Ok(Request::ProxyStatistics { clear: true, forget: Vec::new() }));
}

#[test]
fn a_session_agrees_on_the_manifests_form() {
    let ask = |value: Option<&'static [u8]>| {
        let wishes = [
            (Bytes::from("unknown"), Some(Bytes::from("x"))),
            (Bytes::from_static(MANIFEST_SER), value.map(Bytes::from_static)),
        ];
        Session::default().updated(&wishes)
    };
    let agreed = |ser: u8| vec![(Bytes::from_static(MANIFEST_SER), Bytes::copy_from_slice(&[ser]))];
    let session = |manifest_ser| Session { manifest_ser };
    assert_eq!(Session::default(), session(ManifestSer::V1));
    assert_eq!(ask(Some(&[2])), (session(ManifestSer::V2), agreed(2)));
    assert_eq!(ask(Some(&[200])), (session(ManifestSer::V2), agreed(2)));
    assert_eq!(ask(Some(&[1])), (session(ManifestSer::V1), agreed(1)));
    for nothing in [None, Some(&[0_u8][..]), Some(&[][..]), Some(&[2, 2][..])] {
        assert_eq!(ask(nothing), (Session::default(), Vec::new()));
    }
}

proptest! {
    #[test]
    fn requests_read_back(request in request()) {
        prop_assert_eq!(Request::decode(payload(&request.encode().unwrap())), Ok(request));
    }

    #[test]
    fn damaged_requests_never_panic(request in request(), at: prop::sample::Index, bit in 0..8_u32, cut: prop::sample::Index) {
        let frame = payload(&request.encode().unwrap());
        let mut damaged = frame.to_vec();
        damaged[at.index(frame.len())] ^= 1 << bit;
        let _ = Request::decode(damaged.into());
        let _ = Request::decode(frame.slice(..cut.index(frame.len())));
    }

    #[test]
    fn damaged_answers_never_panic(which: prop::sample::Index, at: prop::sample::Index, bit in 0..8_u32, cut: prop::sample::Index) {
        let answers = answers();
        let (command, response) = answers[which.index(answers.len())].clone();
        let frame = payload(&encode_answer(command, &Ok(response), ManifestSer::V2).unwrap());
        let mut damaged = frame.to_vec();
        damaged[at.index(frame.len())] ^= 1 << bit;
        let _ = decode_answer(command, damaged.into());
        let _ = decode_answer(command, frame.slice(..cut.index(frame.len())));
    }

    #[test]
    fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..200), command in 0..29_usize) {
        let (code, command) = Command::ALL[command];
        let _ = Request::decode([&code.to_le_bytes()[..], &garbage].concat().into());
        let _ = Request::decode(garbage.clone().into());
        for status in [0_u32, 3] {
            let _ = decode_answer(command, [&status.to_le_bytes()[..], &garbage].concat().into());
        }
        let _ = OsdInfo::read(&mut Reader::new(garbage));
    }
}
