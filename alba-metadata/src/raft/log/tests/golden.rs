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
        (of(EntryPayload::Blank), "RECORD0"),
        (of(EntryPayload::Normal(Payload(Bytes::from_static(b"input")))), "RECORD1"),
        (of(EntryPayload::Membership(membership)), "RECORD2"),
        (Record::Vote(Vote::new_committed(4, 1)), "RECORD3"),
        (Record::Truncate(id(5, 6)), "RECORD4"),
        (Record::Purge { upto: id(5, 6), oldest: 11 }, "RECORD5"),
        (Record::Committed(Some(id(5, 6))), "RECORD6"),
        (Record::Committed(None), "RECORD7"),
    ]
}

#[test]
fn records_have_golden_bytes() {
    for (nth, (record, golden)) in records().into_iter().enumerate() {
        let bytes = encoded(&record);
        assert_eq!(decoded(&bytes), Ok(record));
        assert_eq!(hex(&bytes), golden, "record {nth}");
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
    assert_eq!(hex(&block[..56]) + &hex(&block[508..512]), "IDENTITY");

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
    assert_eq!(hex(&block[..168]) + &hex(&block[508..512]), "ACTIVATION");
    assert_eq!(Activation::decode(&[0; 4096], SEED), Err(FormatError::Blank));
    let bare = Activation { previous: None, head: Head::default(), ..activation };
    assert_eq!(Activation::decode(&bare.encode(SEED), SEED), Ok(bare));
    let other = Seed { segment: 4, ..SEED };
    assert_eq!(Activation::decode(&block, other), Err(FormatError::Checksum("segment activation")));
}
