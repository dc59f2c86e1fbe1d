use proptest::prelude::*;

use super::*;
use crate::blake3_tree::{LEAF_BYTES, LeafTable};
use crate::checksum::Checksum;
use crate::env::Endpoint;
use crate::env::osd::{
    OsdAssert, OsdBatch, OsdUpdate, PeerSource, Priority, ProvenSlice, StoredValue, ValueSlice,
};
use crate::range::RangeQuery;
use crate::wire::llio::Message;
use crate::wire::osd_info::Capability;

fn payload(message: &Message) -> Bytes {
    message.to_bytes().slice(4..)
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn checksum() -> impl Strategy<Value = Checksum> {
    prop_oneof![
        Just(Checksum::None),
        any::<[u8; 20]>().prop_map(Checksum::Sha1),
        any::<u32>().prop_map(Checksum::Crc32c),
        any::<[u8; 32]>().prop_map(Checksum::Blake3),
    ]
}

fn stored() -> impl Strategy<Value = StoredValue> {
    let value = prop_oneof![4 => bytes(), 1 => (16_000_usize..17_000).prop_map(|len| vec![5; len].into())];
    (value, checksum()).prop_map(|(value, checksum)| StoredValue { value, checksum })
}

fn priority() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::High), Just(Priority::Low)]
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

fn batch() -> impl Strategy<Value = OsdBatch> {
    let assert = prop_oneof![
        bytes().prop_map(OsdAssert::Absent),
        (bytes(), bytes()).prop_map(|(key, value)| OsdAssert::Value(key, value)),
    ];
    let update = prop_oneof![
        bytes().prop_map(OsdUpdate::Delete),
        (bytes(), stored()).prop_map(|(key, value)| OsdUpdate::Set(key, value)),
        (bytes(), bytes()).prop_map(|(from, to)| OsdUpdate::DeleteRange(from, to)),
        (bytes(), "[a-z]{1,9}", bytes(), checksum()).prop_map(|(key, peer, there, checksum)| {
            let peer = LongId::new(peer).unwrap();
            OsdUpdate::SetFromPeer(key, PeerSource { peer, key: there, checksum })
        }),
    ];
    (prop::collection::vec(assert, 0..4), prop::collection::vec(update, 0..4))
        .prop_map(|(asserts, updates)| OsdBatch { asserts, updates })
}

fn peer() -> impl Strategy<Value = Peer> {
    let address = (any::<std::net::SocketAddr>(), any::<bool>()).prop_map(|(address, quic)| {
        // Flow and scope are not part of the text.
        let address = std::net::SocketAddr::new(address.ip(), address.port());
        if quic { Endpoint::Quic(address) } else { Endpoint::Tcp(address) }
    });
    ("[a-z]{1,9}", prop::collection::vec(address, 0..3))
        .prop_map(|(id, addresses)| Peer { long_id: LongId::new(id).unwrap(), addresses })
}

fn request() -> impl Strategy<Value = Request> {
    let keys = || prop::collection::vec(bytes(), 0..5);
    let slices = prop::collection::vec(
        (any::<u32>(), any::<u32>()).prop_map(|(offset, len)| ValueSlice { offset, len }),
        0..5,
    );
    prop_oneof![
        (query(), priority()).prop_map(|(query, priority)| Request::Range { query, priority }),
        (query(), priority()).prop_map(|(query, priority)| Request::RangeEntries { query, priority }),
        (keys(), priority()).prop_map(|(keys, priority)| Request::MultiGet { keys, priority }),
        (keys(), priority()).prop_map(|(keys, priority)| Request::MultiGet2 { keys, priority }),
        (keys(), priority()).prop_map(|(keys, priority)| Request::MultiExists { keys, priority }),
        (batch(), priority()).prop_map(|(batch, priority)| Request::Apply { batch, priority }),
        any::<bool>().prop_map(|clear| Request::Statistics { clear }),
        any::<bool>().prop_map(Request::SetFull),
        prop_oneof![Just(Request::GetVersion), Just(Request::GetDiskUsage), Just(Request::Capabilities)],
        (bytes(), slices, priority()).prop_map(|(key, slices, priority)| Request::PartialGet {
            key,
            slices,
            priority
        }),
        (query(), any::<bool>(), any::<bool>(), priority()).prop_map(
            |(query, verify_checksum, show_all, priority)| Request::RangeValidate {
                query,
                verify_checksum,
                show_all,
                priority,
            }
        ),
        prop::option::of((0.0..1e6, 0.0..1e6))
            .prop_map(|s| Request::Slowness(s.map(|(fixed, variable)| Slowness { fixed, variable }))),
        (bytes(), any::<(u32, u32)>(), priority()).prop_map(|(key, (offset, len), priority)| {
            Request::ProvenGet { key, slice: ValueSlice { offset, len }, priority }
        }),
        prop::collection::vec(peer(), 0..4).prop_map(Request::SetPeers),
        Just(Request::Health),
    ]
}

/// What a client makes of the server's answer.
fn through_the_wire(request: &Request, answer: &Result<Response, AsdError>) -> Result<Response, AsdError> {
    let message = encode_answer(request.command(), answer).unwrap().to_bytes();
    let mut r = Reader::new(message);
    let len = usize::try_from(r.uint32().unwrap()).unwrap();
    let frame = r.raw(len).unwrap();
    match decode_answer(request, frame).unwrap() {
        Decoded::Complete(answer) => {
            assert_eq!(r.left(), 0);
            answer
        }
        Decoded::Outside(outside) => {
            assert_eq!(outside.len(), u64::try_from(r.left()).unwrap());
            Ok(outside.complete(r.rest()).unwrap())
        }
    }
}

#[test]
fn large_values_of_an_apply_are_not_copied() {
    let value = Bytes::from(vec![1_u8; 1 << 20]);
    let update = OsdUpdate::Set("k".into(), StoredValue { value: value.clone(), checksum: Checksum::None });
    let batch = OsdBatch { asserts: Vec::new(), updates: vec![update] };
    let message = Request::Apply { batch, priority: Priority::High }.encode().unwrap();
    assert!(message.parts().iter().any(|part| part.as_ptr() == value.as_ptr()));

    let frame = payload(&message);
    let Request::Apply { batch, .. } = Request::decode(frame.clone()).unwrap() else { panic!("no apply") };
    let OsdUpdate::Set(_, decoded) = &batch.updates[0] else { panic!("no set") };
    assert!(frame.as_ptr_range().contains(&decoded.value.as_ptr()));
    assert_eq!(decoded.value, value);
}

#[test]
fn the_first_large_value_is_found_from_the_first_bytes() {
    let set = |key: &'static str, len: usize| {
        let value = StoredValue { value: vec![9; len].into(), checksum: Checksum::Crc32c(1) };
        OsdUpdate::Set(key.into(), value)
    };
    let request =
        |asserts, updates| Request::Apply { batch: OsdBatch { asserts, updates }, priority: Priority::High };
    let asserts = vec![OsdAssert::Absent("a".into()), OsdAssert::Value("b".into(), "value".into())];
    let others = || {
        vec![
            set("large", 20_000),
            OsdUpdate::Delete("deleted".into()),
            OsdUpdate::DeleteRange("from".into(), "to".into()),
            set("small", 7),
        ]
    };
    for (asserts, updates) in [(asserts, others()), (Vec::new(), vec![set("large", 20_000)])] {
        let payload = payload(&request(asserts, updates).encode().unwrap());
        let at = Request::large_value_at(&payload[..1000], 20_000).unwrap();
        assert_eq!(payload[at..at + 20_000], vec![9; 20_000]);
        assert_eq!(payload[at - 4..at], 20_000_u32.to_le_bytes());
        assert_eq!(Request::large_value_at(&payload[..at], 20_000), Some(at));
        assert_eq!(Request::large_value_at(&payload[..at - 1], 20_000), None);
        assert_eq!(Request::large_value_at(&payload, 20_001), None);
    }
    let other = Request::MultiGet { keys: vec!["k".into()], priority: Priority::High };
    assert_eq!(Request::large_value_at(&payload(&other.encode().unwrap()), 0), None);
}

#[test]
fn partial_get_answers_in_the_order_asked() {
    let slices = vec![ValueSlice { offset: 9, len: 2 }, ValueSlice { offset: 0, len: 3 }];
    let request = Request::PartialGet { key: "k".into(), slices, priority: Priority::High };
    let found = Ok(Response::Slices(Some(vec!["ab".into(), "cde".into()])));
    let message = encode_answer(Command::PartialGet, &found).unwrap().to_bytes();
    assert_eq!(&message[..], b"\x05\0\0\0\0\0\0\0\x01abcde");
    assert_eq!(through_the_wire(&request, &found), found);
    let absent = Ok(Response::Slices(None));
    assert_eq!(through_the_wire(&request, &absent), absent);
}

#[test]
fn an_unknown_operation_is_told_from_a_malformed_one() {
    let unknown = Request::decode(Bytes::from_static(&[15, 0, 0, 0])).unwrap_err();
    assert_eq!(AsdError::from(unknown), AsdError::UnknownOperation);
    let malformed = Request::decode(Bytes::from_static(&[3, 0, 0, 0, 1])).unwrap_err();
    assert!(matches!(AsdError::from(malformed), AsdError::BadRequest(_)));
}

#[test]
fn an_old_client_sends_no_priority() {
    let frame = Bytes::from_static(&[9, 0, 0, 0, 0, 0, 0, 0]);
    let expected = Request::MultiExists { keys: Vec::new(), priority: Priority::High };
    assert_eq!(Request::decode(frame), Ok(expected));
}

#[test]
fn every_error_is_understood_by_its_client() {
    for error in [
        AsdError::Unknown("u".into()),
        AsdError::AssertFailed("k".into()),
        AsdError::UnknownOperation,
        AsdError::Full,
        AsdError::Damaged("d".into()),
        AsdError::BadRequest("b".into()),
        AsdError::Overloaded("o".into()),
        AsdError::WrongChecksum("k".into()),
        AsdError::Forbidden("f".into()),
    ] {
        assert_eq!(through_the_wire(&Request::GetVersion, &Err(error.clone())), Err(error));
    }
    // One nobody knows yet.
    let answer = Bytes::from_static(b"\xe7\x03\0\0\x03\0\0\0new");
    let decoded = decode_answer(&Request::GetVersion, answer).unwrap();
    assert_eq!(decoded, Decoded::Complete(Err(AsdError::Unknown("new".into()))));
}

#[test]
fn our_own_additions_have_their_golden_bytes() {
    for (error, code) in [
        (AsdError::Damaged("x".into()), "65000000"),
        (AsdError::BadRequest("x".into()), "66000000"),
        (AsdError::Overloaded("x".into()), "67000000"),
        (AsdError::WrongChecksum("x".into()), "68000000"),
        (AsdError::Forbidden("x".into()), "69000000"),
    ] {
        let message = encode_answer(Command::GetVersion, &Err(error)).unwrap();
        assert_eq!(hex::encode(message.to_bytes()), format!("09000000{code}0100000078"));
    }
    let stored = StoredValue { value: "v".into(), checksum: Checksum::Blake3([7; 32]) };
    let answer = Ok(Response::Values(vec![Some(stored)]));
    let message = encode_answer(Command::MultiGet, &answer).unwrap();
    let golden = format!("01000000 01 01000000 76 04 20000000 {}", "07".repeat(32)).replace(' ', "");
    assert_eq!(hex::encode(&message.to_bytes()[8..]), golden);
}

#[test]
fn codes_are_those_of_the_original_and_ours_begin_at_64() {
    let codes: Vec<u32> = Command::ALL.into_iter().map(Command::code).collect();
    assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 64, 65, 66]);
    for command in Command::ALL {
        assert_eq!(Command::from_code(command.code()), Some(command));
    }
    for code in [0, 15, 63, 67, u32::MAX] {
        assert_eq!(Command::from_code(code), None);
    }
    let names: std::collections::BTreeSet<&str> = Command::ALL.into_iter().map(Command::name).collect();
    assert_eq!(names.len(), Command::ALL.len());
}

#[test]
fn our_own_operations_have_their_golden_bytes() {
    let golden = |request: Request, expected: &str| {
        let frame = payload(&request.encode().unwrap());
        assert_eq!(hex::encode(&frame), expected.replace(' ', ""), "{request:?}");
        assert_eq!(Request::decode(frame), Ok(request));
    };
    let slice = ValueSlice { offset: 5, len: 6 };
    golden(
        Request::ProvenGet { key: "k1".into(), slice, priority: Priority::Low },
        "40000000 02000000 6b31 05000000 06000000 02",
    );
    let addresses = vec!["tcp://1.2.3.4:5".parse().unwrap(), "quic://[::1]:6".parse().unwrap()];
    let peers = vec![
        Peer { long_id: LongId::new("a").unwrap(), addresses },
        Peer { long_id: LongId::new("b").unwrap(), addresses: Vec::new() },
    ];
    golden(
        Request::SetPeers(peers),
        "41000000 02000000 01000000 62 00000000 01000000 61 02000000 \
         0e000000 717569633a2f2f5b3a3a315d3a36 0f000000 7463703a2f2f312e322e332e343a35",
    );
    golden(Request::Health, "42000000");
    let updates = vec![
        OsdUpdate::DeleteRange("a".into(), "b".into()),
        OsdUpdate::SetFromPeer(
            "k".into(),
            PeerSource {
                peer: LongId::new("p").unwrap(),
                key: "t".into(),
                checksum: Checksum::Crc32c(0x0102_0304),
            },
        ),
    ];
    golden(
        Request::Apply { batch: OsdBatch { asserts: Vec::new(), updates }, priority: Priority::High },
        "03000000 00000000 02000000 03 01000000 6b 01000000 70 01000000 74 03 04030201 \
         02 01000000 61 01000000 62 01",
    );
    let answer =
        |command, answer: Response| hex::encode(encode_answer(command, &Ok(answer)).unwrap().to_bytes());
    let proven = ProvenSlice { value_len: 16_385, leaves: "leaf".into(), proof: "proof".into() };
    assert_eq!(
        answer(Command::ProvenGet, Response::Proven(Some(proven))),
        "12000000 00000000 01 01400000 05000000 70726f6f66 6c656166".replace(' ', "")
    );
    assert_eq!(answer(Command::ProvenGet, Response::Proven(None)), "050000000000000000");
    assert_eq!(answer(Command::SetPeers, Response::Done), "0400000000000000");
    assert_eq!(answer(Command::Health, Response::Health("{}".into())), "0a00000000000000020000007b7d");
    let ours = vec![Capability::MultiGet2, Capability::ProvenGet, Capability::DeleteRange];
    assert_eq!(
        answer(Command::Capabilities, Response::Capabilities(ours)),
        "16000000 00000000 03000000 02 01000000 81 02 01000000 80 01 01".replace(' ', "")
    );
}

#[test]
fn a_proven_slice_is_read_up_to_its_leaves_and_no_further() {
    let slice = ValueSlice { offset: LEAF_BYTES - 1, len: 2 };
    let request = Request::ProvenGet { key: "k".into(), slice, priority: Priority::High };
    let claim = |value_len: u32, proof: &[u8]| {
        let mut w = Writer::new();
        w.uint32(0);
        w.int8(1);
        w.uint32(value_len);
        w.bytes(proof);
        decode_answer(&request, w.finish().unwrap())
    };
    for value_len in [3 * LEAF_BYTES, u32::MAX] {
        let Ok(Decoded::Outside(outside)) = claim(value_len, &[7; 64]) else { panic!("leaves follow") };
        assert_eq!(outside.len(), u64::from(2 * LEAF_BYTES));
        assert!(outside.clone().complete(Bytes::from(vec![0; 100])).is_err(), "too few");
        let leaves = Bytes::from(vec![1; 2 * 16_384]);
        let proven = ProvenSlice { value_len, leaves: leaves.clone(), proof: Bytes::from(vec![7; 64]) };
        assert_eq!(outside.complete(leaves), Ok(Response::Proven(Some(proven))));
    }
    // A value that the slice is not in cannot be meant.
    assert!(claim(LEAF_BYTES, &[]).is_err());
    let absent = Ok(Response::Proven(None));
    assert_eq!(through_the_wire(&request, &absent), absent);
}

#[test]
fn addresses_of_peers_are_parsed_and_bounded() {
    let peers = |addresses: &[&str]| {
        let mut w = Writer::new();
        w.uint32(Command::SetPeers.code());
        w.list([addresses], |w, addresses| {
            w.bytes("asd");
            w.list(addresses, |w, address| w.bytes(address));
        });
        Request::decode(w.finish().unwrap())
    };
    assert!(peers(&["tcp://127.0.0.1:1"]).is_ok());
    for wrong in ["127.0.0.1:1", "http://127.0.0.1:1", "tcp://host:1", ""] {
        assert!(matches!(peers(&[wrong]), Err(RequestError::Malformed(_))), "{wrong}");
    }
    assert!(peers(&vec!["tcp://127.0.0.1:1"; PEER_ADDRESSES_MAX]).is_ok());
    let too_many = peers(&vec!["tcp://127.0.0.1:1"; PEER_ADDRESSES_MAX + 1]);
    assert!(matches!(too_many, Err(RequestError::Malformed(WireError::TooMany { .. }))));
}

#[test]
fn an_answer_of_another_length_than_asked_is_refused() {
    let message = encode_answer(Command::MultiExists, &Ok(Response::Exists(vec![true]))).unwrap();
    let request = Request::MultiExists { keys: vec!["a".into(), "b".into()], priority: Priority::High };
    assert!(decode_answer(&request, payload(&message)).is_err());
}

#[test]
fn an_answer_of_another_operation_is_not_sent() {
    assert!(encode_answer(Command::GetVersion, &Ok(Response::Done)).is_err());
}

proptest! {
    #[test]
    fn requests_read_back(request in request()) {
        prop_assert_eq!(Request::decode(payload(&request.encode().unwrap())), Ok(request));
    }

    #[test]
    fn values_read_back(
        values in prop::collection::vec(prop::option::of(stored()), 0..5), priority in priority()
    ) {
        let keys: Vec<Bytes> = values.iter().map(|_| "k".into()).collect();
        let answer = Ok(Response::Values(values));
        let in_frame = Request::MultiGet { keys: keys.clone(), priority };
        prop_assert_eq!(&through_the_wire(&in_frame, &answer), &answer);
        prop_assert_eq!(&through_the_wire(&Request::MultiGet2 { keys, priority }, &answer), &answer);
    }

    #[test]
    fn proven_slices_read_back(
        value in (0_usize..60_000).prop_map(|len| Bytes::from(vec![3; len])), from: prop::sample::Index, to: prop::sample::Index
    ) {
        let (from, to) = (from.index(value.len() + 1), to.index(value.len() + 1));
        let (from, to) = (u32::try_from(from.min(to)).unwrap(), u32::try_from(from.max(to)).unwrap());
        let slice = ValueSlice { offset: from, len: to - from };
        let table = LeafTable::of(&value).unwrap();
        let covering = LeafTable::covering(table.value_len(), slice).unwrap();
        let leaves = value.slice(usize::try_from(covering.start).unwrap()..usize::try_from(covering.end).unwrap());
        let proven = ProvenSlice { value_len: table.value_len(), leaves, proof: table.prove(slice).unwrap() };
        let request = Request::ProvenGet { key: "k".into(), slice, priority: Priority::High };
        let answer = Ok(Response::Proven(Some(proven)));
        prop_assert_eq!(&through_the_wire(&request, &answer), &answer);
    }

    #[test]
    fn garbage_never_panics(request in request(), garbage in prop::collection::vec(any::<u8>(), 0..200), code in 0..70_u32) {
        let _ = Request::decode(garbage.clone().into());
        let _ = Request::decode([&code.to_le_bytes()[..], &garbage].concat().into());
        let _ = Request::large_value_at(&[&3_u32.to_le_bytes()[..], &garbage].concat(), 0);
        for status in [0_u32, 2] {
            let frame = [&status.to_le_bytes()[..], &garbage].concat();
            if let Ok(Decoded::Outside(outside)) = decode_answer(&request, frame.into()) {
                let _ = outside.complete(garbage.clone().into());
            }
        }
        let _ = decode_prologue_answer(&mut Reader::new(garbage));
    }

    #[test]
    fn damaged_requests_never_panic(request in request(), at: prop::sample::Index, bit in 0..8_u32, cut: prop::sample::Index) {
        let frame = payload(&request.encode().unwrap());
        let mut damaged = frame.to_vec();
        damaged[at.index(frame.len())] ^= 1 << bit;
        let _ = Request::decode(damaged.into());
        let _ = Request::decode(frame.slice(..cut.index(frame.len())));
    }
}
