//! Golden bytes of format version 1.

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use openraft::Membership;

use super::super::format::*;
use super::*;
use crate::raft::types::Replica;

const SEED: Seed = Seed { store: StoreId(*b"store of a test!"), segment: 3 };

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encoded(record: &Record) -> Bytes {
    let mut out = BytesMut::new();
    record.encode(&mut out, SEED, (2, 9, 8));
    assert_eq!(offset(out.len()), record.encoded_len());
    out.freeze()
}

fn decoded(bytes: &Bytes) -> Result<Record, FormatError> {
    let header = RecordHeader::decode(bytes, SEED)?;
    assert_eq!((header.generation, header.sequence, header.synced, header.first), (2, 9, 8, true));
    header.payload(&bytes.slice(RECORD_HEADER..), SEED)
}

fn records() -> Vec<(Record, &'static str)> {
    let nodes: BTreeMap<u64, Replica> =
        [(1, Replica { address: "a:1".into() }), (2, Replica { address: "b:2".into() })].into();
    let membership = Membership::new(vec![BTreeSet::from([1])], nodes);
    let of = |payload| Record::Entry(Arc::new(Entry { log_id: id(5, 6), payload }));
    vec![
        (
            of(EntryPayload::Blank),
            "41524c310101010002000000000000000900000000000000080000000000000019000000026028be \
             0000000030b4cf0305000000000000000700000000000000060000000000000000",
        ),
        (
            of(EntryPayload::Normal(Payload(Bytes::from_static(b"input")))),
            "41524c31010101000200000000000000090000000000000008000000000000001e0000007c5f5dad \
             00000000968752d405000000000000000700000000000000060000000000000001696e707574",
        ),
        (
            of(EntryPayload::Membership(membership)),
            "41524c310101010002000000000000000900000000000000080000000000000027000000caf3fd40 \
             0000000030aa45ab0500000000000000070000000000000006000000000000000201010102010361 \
             3a310203623a32",
        ),
        (
            Record::Vote(Vote::new_committed(4, 1)),
            "41524c310102010002000000000000000900000000000000080000000000000011000000d61c2d52 \
             000000004513036d0400000000000000010000000000000001",
        ),
        (
            Record::Truncate(id(5, 6)),
            "41524c310103010002000000000000000900000000000000080000000000000018000000bfbe7d53 \
             000000008c16c300050000000000000007000000000000000600000000000000",
        ),
        (
            Record::Purge { upto: id(5, 6), oldest: 11 },
            "41524c310104010002000000000000000900000000000000080000000000000020000000f35e98f9 \
             00000000187af7860500000000000000070000000000000006000000000000000b00000000000000",
        ),
        (
            Record::Committed(Some(id(5, 6))),
            "41524c310105010002000000000000000900000000000000080000000000000018000000bfbe7d53 \
             000000008811c7c2050000000000000007000000000000000600000000000000",
        ),
        (
            Record::Committed(None),
            "41524c3101050100020000000000000009000000000000000800000000000000000000000e332ae8 \
             00000000ffae5ae8",
        ),
    ]
}

#[test]
fn records_have_golden_bytes() {
    for (nth, (record, golden)) in records().into_iter().enumerate() {
        let bytes = encoded(&record);
        assert_eq!(decoded(&bytes), Ok(record));
        assert_eq!(hex(&bytes), golden.replace(' ', ""), "record {nth}");
    }
}

#[test]
fn every_flipped_bit_of_a_record_is_noticed() {
    let bytes = encoded(&records().remove(1).0);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << bit;
            assert!(decoded(&damaged.into()).is_err(), "byte {at}");
        }
    }
    let other = Seed { segment: 4, ..SEED };
    assert!(RecordHeader::decode(&bytes, other).is_err(), "of another segment");
}

#[test]
fn header_blocks_have_golden_bytes() {
    let identity = Identity { store: SEED.store, number: 3, generation: 2, len: 1 << 24 };
    let block = identity.encode();
    assert_eq!(Identity::decode(&block), Ok(identity));
    assert_eq!(block.len(), 4096);
    assert!(block[512..].iter().all(|byte| *byte == 0));
    let golden = "414c4241524c4f47010000000000000073746f7265206f6620612074657374210300000000000000 \
             02000000000000000000000100000000fa315bb9";
    assert_eq!(hex(&block[..56]) + &hex(&block[508..512]), golden.replace(' ', ""));

    let activation = Activation {
        generation: 2,
        activation: 7,
        first: 100,
        synced: 101,
        oldest: 5,
        previous: Some(Previous { activation: 6, last: 90 }),
        head: Head { vote: Some(vote(4, 1)), purged: Some(id(3, 30)), committed: Some(id(4, 40)) },
    };
    let block = activation.encode(SEED);
    assert_eq!(Activation::decode(&block, SEED), Ok(activation));
    let golden = "414c4241524143540100000000000000020000000000000007000000000000006400000000000000 \
             65000000000000000500000000000000010000000000000006000000000000005a00000000000000 \
             01000000000000000400000000000000010000000000000001000000000000000300000000000000 \
             07000000000000001e00000000000000010000000000000004000000000000000700000000000000 \
             2800000000000000ec07dd86";
    assert_eq!(hex(&block[..168]) + &hex(&block[508..512]), golden.replace(' ', ""));
    assert_eq!(Activation::decode(&[0; 4096], SEED), Err(FormatError::Blank));
    let bare = Activation { previous: None, head: Head::default(), ..activation };
    assert_eq!(Activation::decode(&bare.encode(SEED), SEED), Ok(bare));
    let other = Seed { segment: 4, ..SEED };
    assert_eq!(Activation::decode(&block, other), Err(FormatError::Checksum("segment activation")));
}
