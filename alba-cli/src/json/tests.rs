use alba_core::ids::{
    GroupId, LongId, NamespaceId, NamespaceName, NodeId, ObjectId, ObjectName, ObjectVersion, OsdId, Place,
    PresetName,
};
use alba_core::manifest::{Chunk, CodingMatrix, Scheme, Timestamp};
use alba_core::policy::{Bucket, CodeShape};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{GroupLoad, OsdEndpoint, OsdInfo};

use super::*;

fn entry(osd: Option<u32>, checksum: Checksum) -> Fragment {
    Fragment {
        location: osd.map(OsdId::from_u32),
        version: ObjectVersion(0),
        checksum,
        packed_len: 16,
        ctr: None,
    }
}

#[test]
fn show_object_has_the_fields_of_the_original() {
    let object = Manifest {
        name: ObjectName::new(vec![0xff, 0x00]).unwrap(),
        object_id: ObjectId::new([7; 32]),
        size: 5,
        checksum: Checksum::Crc32c(0xab),
        scheme: Scheme {
            shape: CodeShape::new(1, 1).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::Snappy,
        },
        encryption: EncryptInfo::None,
        chunks: vec![Chunk {
            size: 16,
            fragments: vec![entry(Some(3), Checksum::Crc32c(1)), entry(None, Checksum::None)],
        }],
        version: ObjectVersion(2),
        max_disks_per_node: 3,
        timestamp: Timestamp(1_500_000),
    };
    let id = "07".repeat(32);
    let want = json!({
        "name": "ff00",
        "object_id": id,
        "storage_scheme": ["EncodeCompressEncrypt", ["RSVM", 1, 1, ["W8"]], ["Snappy"]],
        "encrypt_info": ["NoEncryption"],
        "chunk_sizes": [16],
        "size": 5,
        "checksum": ["Crc32c", "0x000000ab"],
        "fragments": [[
            { "osd": 3, "ver": 0, "crc": ["Crc32c", "0x00000001"], "len": 16, "ctr": null, "fnr": 0 },
            { "osd": null, "ver": 0, "crc": ["NoChecksum"], "len": 16, "ctr": null, "fnr": 1 },
        ]],
        "version_id": 2,
        "max_disks_per_node": 3,
        "timestamp": 1.5,
    });
    assert_eq!(manifest(&object), want);
}

#[test]
fn an_osd_has_the_fields_that_others_read() {
    let mut record = OsdRecord {
        info: OsdInfo {
            long_id: LongId::new("disk-1").unwrap(),
            place: Place::of_node(NodeId::new("node-0").unwrap()),
            endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 8000),
            capacity: ByteCount(100),
            used: ByteCount(7),
        },
        osd_id: Some(OsdId::from_u32(4)),
        state: OsdState::Active,
        claimed_since: Some(2_000_000),
        kind: OsdKind::Asd,
        owner: None,
    };
    let alba_id = AlbaId::new("alba").unwrap();
    let health = OsdHealth {
        seen: vec![3_000_000],
        errors: vec![(4_000_000, "slow".to_owned())],
        checksum_errors: 2,
        ..OsdHealth::default()
    };
    let shown = osd(&record, &alba_id, &health);
    let fields = "id alba_id kind ips port use_tls use_rdma albamgr_cfg prefix preset endpoints decommissioned node_id \
                  long_id total used seen read write errors checksum_errors claimed_since";
    for field in fields.split_whitespace() {
        assert!(shown.get(field).is_some(), "{field} is missing");
    }
    assert_eq!(shown["id"], 4);
    assert_eq!(shown["alba_id"], "alba");
    assert_eq!(shown["ips"], json!(["127.0.0.1"]));
    assert_eq!(shown["total"], 100);
    assert_eq!(shown["claimed_since"], 2.0);
    record.state = OsdState::Available;
    record.osd_id = None;
    assert_eq!(shown["seen"], json!([3.0]));
    assert_eq!(shown["errors"], json!([[4.0, "slow"]]));
    assert_eq!(shown["checksum_errors"], 2);
    let free = osd(&record, &alba_id, &OsdHealth::default());
    assert_eq!(
        (&free["id"], &free["alba_id"], &free["decommissioned"]),
        (&Value::Null, &Value::Null, &json!(false))
    );
}

#[test]
fn groups_namespaces_and_counters() {
    let group = GroupRecord {
        id: GroupId::new("nsm-0").unwrap(),
        servers: vec!["127.0.0.1:4000".to_owned()],
        namespaces: 2,
        lost: false,
        load: GroupLoad::default(),
    };
    let node = json!({ "name": "nsm-0-0", "ips": ["127.0.0.1"], "port": 4000 });
    assert_eq!(nsm_host(&group)["nodes"], json!([node]));
    assert_eq!(nsm_host(&group)["namespaces_count"], 2);

    let record = NamespaceRecord {
        id: NamespaceId::from_u32(9),
        name: NamespaceName::new("demo").unwrap(),
        group: group.id,
        state: NamespaceState::Active,
        preset: PresetName::new("default").unwrap(),
    };
    let want = json!({
        "id": 9, "name": "demo", "nsm_host_id": "nsm-0", "state": "active", "preset_name": "default",
    });
    assert_eq!(namespace(&record), want);

    let bucket = Bucket { shape: CodeShape::new(5, 4).unwrap(), fragments: 8, max_per_node: 3 };
    let counters = NamespaceStatistics {
        objects: 1,
        logical_bytes: 10,
        storage_bytes: 20,
        storage_per_osd: vec![(OsdId::from_u32(1), 20)],
        buckets: vec![(bucket, 1)],
    };
    let want = json!({
        "objects": 1, "logical": 10, "storage": 20, "storage_per_osd": [[1, 20]],
        "bucket_count": [[[5, 4, 8, 3], 1]],
    });
    assert_eq!(statistics(&counters), want);
}
