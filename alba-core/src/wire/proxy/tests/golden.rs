//! Bytes of the messages for which the original's vectors have none, made from wire-protocol §2.3 with another program.

use crate::checksum::ChecksumAlgorithm;
use crate::wire::osd_info::ClaimInfo;

use super::*;

fn request(golden: &str, request: &Request) {
    assert_eq!(hex::encode(request.encode().unwrap().to_bytes()), golden, "{request:?}");
    let sent = Bytes::from(hex::decode(golden).unwrap()).slice(4..);
    assert_eq!(Request::decode(sent.clone()).unwrap(), *request);
    // What a newer client may send behind the arguments. (An old ProxyStatistics has such a tail.)
    if !matches!(request, Request::ProxyStatistics { .. }) {
        let more = [&sent[..], &[7; 13]].concat();
        assert_eq!(Request::decode(more.into()).unwrap(), *request, "with more behind it");
    }
}

fn answer(golden: &str, command: Command, response: Response) {
    let answer = Ok(response);
    let written = encode_answer(command, &answer, ManifestSer::V1).unwrap().to_bytes();
    assert_eq!(hex::encode(written), golden, "{command:?}");
    let sent = Bytes::from(hex::decode(golden).unwrap()).slice(4..);
    assert_eq!(decode_answer(command, sent).unwrap(), answer);
}

#[test]
fn requests_have_their_golden_bytes() {
    let demo = || Bytes::from("demo");
    let range = RangeQuery {
        first: "a".into(),
        first_included: true,
        last: Some(("b".into(), false)),
        reverse: true,
        max: 7,
    };
    request("160000001e000000010000006101010100000062000700000001", &Request::ListNamespaces2(range));
    request(
        "34000000150000000400000064656d6f030000006f626a020000002f6901010214000000a9993e364706816aba3e25717850c26c9cd0d89d",
        &Request::WriteObjectFs2(WriteObjectFs {
            namespace: demo(),
            object: "obj".into(),
            input_file: "/i".into(),
            allow_overwrite: true,
            checksum: Some(ChecksumAlgorithm::Sha1.of(b"abc")),
        }),
    );
    let slice = |offset, length| SliceRequest { offset, length };
    request(
        "3b0000000d0000000400000064656d6f0200000001000000620000000001000000610200000005000000000000000200000000000000\
         000000000100000001",
        &Request::ReadObjectsSlices {
            namespace: demo(),
            objects: vec![
                ObjectSlices { object: "a".into(), slices: vec![slice(0, 1), slice(5, 2)] },
                ObjectSlices { object: "b".into(), slices: Vec::new() },
            ],
            consistent_read: true,
        },
    );
    request("0400000012000000", &Request::OsdView);
    request("0400000013000000", &Request::GetClientConfig);
    request("0400000016000000", &Request::OsdInfo);
    request("040000001d000000", &Request::GetAlbaId);
    request(
        "1c000000190000000400000064656d6f02000000010000006201000000610100",
        &Request::ReadObjects {
            namespace: demo(),
            objects: vec!["a".into(), "b".into()],
            consistent_read: true,
            should_cache: false,
        },
    );
    request(
        "2d000000180000000400000064656d6f010200000003010000006202000000696401010000006101000000030100000063",
        &Request::ApplySequence {
            namespace: demo(),
            write_barrier: true,
            asserts: vec![Assert::ObjectExists("a".into()), Assert::ObjectHasId("b".into(), "id".into())],
            updates: vec![Update::DeleteObject("c".into())],
        },
    );
}

/// A view with everything in it.
pub(super) fn view() -> OsdView {
    let another = ClaimInfo::AnotherAlba(crate::ids::AlbaId::new("x").unwrap());
    let state = OsdState {
        disqualified: true,
        read: vec![1.5],
        write: vec![3.0, 2.0],
        errors: vec![(4.0, "eio".to_owned())],
        seen: vec![5.0],
        json: None,
        ips: Some(vec!["127.0.0.1".to_owned(), "10.0.0.1".to_owned()]),
        port: Some(8000),
        used: Some(4096),
        total: Some(1_000_000_000_000),
        checksum_errors: Some(2),
    };
    OsdView {
        claims: vec![
            ("a".into(), ClaimInfo::ThisAlba(OsdId::from_u32(3))),
            ("b".into(), another),
            ("c".into(), ClaimInfo::Available),
        ],
        osds: vec![(OsdId::from_u32(3), "{}".into(), state)],
    }
}

const VIEW: &str = "\
    b100000000000000030000000100000063030100000062020100000078010000006101030000000100000003000000020000007b7d010101\
    000000000000000000f83f02000000000000000000004000000000000008400100000000000000000010400300000065696f010000000000\
    0000000014400001020000000800000031302e302e302e31090000003132372e302e302e3101401f0000010010000000000000010010a5d4\
    e8000000010200000000000000";

#[test]
fn answers_have_their_golden_bytes() {
    let pairs = Page { items: vec![("a".into(), "p".into()), ("b".into(), "q".into())], has_more: false };
    answer(
        "1d0000000000000002000000010000006201000000710100000061010000007000",
        Command::ListNamespaces2,
        Response::NamesWithPresets(pairs),
    );
    answer("050000000000000000", Command::HasLocalFragmentCache, Response::Flag(false));
    answer("0a00000000000000020000006964", Command::GetAlbaId, Response::AlbaId("id".into()));
    answer("050000000000000000", Command::GetFragmentEncryptionKey, Response::Key(None));
    answer("0b000000000000000300000078797a", Command::ReadObjectsSlices, Response::Data(vec!["xyz".into()]));
    answer(VIEW, Command::OsdView, Response::OsdView(view()));
}

/// Of an older proxy, which did not count damaged fragments: that field is only read if it is there.
#[test]
fn a_view_without_checksum_errors_is_understood() {
    let whole = Bytes::from(hex::decode(VIEW).unwrap()).slice(4..);
    let old = whole.slice(..whole.len() - 9);
    let mut expected = view();
    expected.osds[0].2.checksum_errors = None;
    assert_eq!(decode_answer(Command::OsdView, old).unwrap(), Ok(Response::OsdView(expected)));
}

const STATISTICS: &str = "\
    ba0200000000000001000010c00b5ad64100000000000004400100000001000000610100000000000000000000000000e03f989999999999\
    a93f00000000000000000000000000000000000000000000e03f000000000000e03fcdccccccccccec3f0200000000000000000000000000\
    08408ec2f5285c8fe23f0000000000000040000000000000004000000000000000400000000000001040cdccccccccccec3f010000000200\
    00000300000004000000050000000100000000000000000000000000b0409899999999997940000000000000000000000000000000000000\
    00000000b040000000000000b040cdccccccccccec3f01000000000000000000000000000040989999999999c93f00000000000000000000\
    00000000000000000000000000400000000000000040cdccccccccccec3f0100000000000000000000000000d03f989999999999993f0000\
    0000000000000000000000000000000000000000d03f000000000000d03fcdccccccccccec3f0100000000000000000000000000f03f9899\
    99999999b93f00000000000000000000000000000000000000000000f03f000000000000f03fcdccccccccccec3f01000000000000000000\
    000000002040989999999999e93f0000000000000000000000000000000000000000000020400000000000002040cdccccccccccec3f0100\
    0000000000000000000000003040989999999999f93f0000000000000000000000000000000000000000000030400000000000003040cdcc\
    ccccccccec3f0100000000000000000000000000404098999999999909400000000000000000000000000000000000000000000040400000\
    000000004040cdccccccccccec3f010000000000000000000000000050409899999999991940000000000000000000000000000000000000\
    0000000050400000000000005040cdccccccccccec3f000010c00b5ad641";

/// Each field has a value of its own, so that one in the wrong place shows.
#[test]
fn statistics_have_their_golden_bytes() {
    let stat = |samples: &[f64]| {
        let mut stat = Stat::default();
        samples.iter().for_each(|sample| stat.add(*sample));
        stat
    };
    let of_a = NamespaceStatistics {
        upload: stat(&[0.5]),
        download: stat(&[2.0, 4.0]),
        manifest_cached: 1,
        manifest_from_nsm: 2,
        manifest_stale: 3,
        fragment_cache_hits: 4,
        fragment_cache_misses: 5,
        partial_read_size: stat(&[4096.0]),
        partial_read_count: stat(&[2.0]),
        partial_read_time: stat(&[0.25]),
        partial_read_objects: stat(&[1.0]),
        delete: stat(&[8.0]),
        empty_partial_read_count: stat(&[16.0]),
        empty_partial_read_time: stat(&[32.0]),
        empty_partial_read_objects: stat(&[64.0]),
        last_updated: 1_500_000_000.25,
    };
    let statistics =
        ProxyStatistics { creation: 1_500_000_000.25, period: 2.5, namespaces: vec![("a".into(), of_a)] };
    answer(STATISTICS, Command::ProxyStatistics, Response::Statistics(statistics));
}
