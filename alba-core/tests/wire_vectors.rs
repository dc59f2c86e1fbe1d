//! Every byte-exact vector of the original's wire formats is a test here, or named in [`NOT_YET`] with the reason.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::env::osd::{DiskUsage, OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue, ValueSlice};
use alba_core::ids::{
    AlbaId, ChunkIndex, FragmentIndex, GcEpoch, LongId, NamespaceId, ObjectId, ObjectName, ObjectVersion,
    OsdId,
};
use alba_core::manifest::{CipherMode, EncryptInfo};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::preset::Compression;
use alba_core::range::{Page, RangeQuery};
use alba_core::units::ByteCount;
use alba_core::wire::asd::{self, AsdError, Decoded};
use alba_core::wire::common::{Stat, Version, read_checksum, read_page, write_checksum, write_page};
use alba_core::wire::llio::{Reader, WireError, Writer};
use alba_core::wire::manifest::{
    LocatedManifest, ManifestSer, WireChunk, WireCompression, WireFragment, WireManifest, WireScheme,
    read_encrypt_info, read_fragment, write_encrypt_info, write_fragment,
};
use alba_core::wire::osd_info::{
    Capability, ClaimInfo, ClientConfig, ConnInfo, OsdInfo, OsdKind, read_capabilities, write_capabilities,
};
use alba_core::wire::proxy::{
    self, ErrorCode, ObjectInfo, ObjectSlices, OsdEntry, ProxyError, SliceRequest, Update, WriteObjectFs,
};
use alba_core::wire::recovery::{
    RecoveryInfo, RecoveryMatrix, RecoveryObject, RecoveryScheme, compress_bzip2, decompress_bzip2,
};
use bytes::Bytes;

const VECTORS: &str = include_str!("vectors/wire-vectors.json");

/// Vectors of what is not built, and why.
const NOT_YET: [(&str, &str); 14] = [
    ("C01", "a key: input of the ciphers, which come with encryption"),
    ("C02", "identification of a key: comes with encryption"),
    ("C03", "CBC iv: comes with encryption"),
    ("C04", "CBC iv of recovery info: comes with encryption"),
    ("C05", "AES-CBC: comes with encryption"),
    ("C06", "counter block: input of the ciphers, which come with encryption"),
    ("C07", "AES-CTR: comes with encryption"),
    ("C08", "AES-CTR from the middle: comes with encryption"),
    ("E01", "parity of the original's matrix, which is not ours"),
    ("E02", "parity of the original's matrix, which is not ours"),
    ("E03", "parity of the original's matrix, which is not ours"),
    ("M01", "an encrypted fragment: comes with encryption"),
    ("M02", "an encrypted fragment: comes with encryption"),
    ("M03", "an encrypted fragment: comes with encryption"),
];

/// The vectors, and which of them were looked at.
struct Vectors {
    bytes: BTreeMap<String, Bytes>,
    tested: BTreeSet<String>,
}

impl Vectors {
    fn load() -> Self {
        let parsed: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
        let vector = |v: &serde_json::Value| {
            let hex = hex::decode(v["hex"].as_str().unwrap()).unwrap();
            (v["name"].as_str().unwrap().to_owned(), Bytes::from(hex))
        };
        Self { bytes: parsed.as_array().unwrap().iter().map(vector).collect(), tested: BTreeSet::new() }
    }

    fn get(&self, name: &str) -> Bytes {
        self.bytes.get(name).unwrap_or_else(|| panic!("no vector {name}")).clone()
    }

    /// `value` is written as the vector, and the vector read as `value`, to its last byte.
    fn codec<T: PartialEq + std::fmt::Debug>(
        &mut self,
        name: &str,
        value: T,
        write: impl FnOnce(&mut Writer, &T),
        read: impl FnOnce(&mut Reader) -> Result<T, WireError>,
    ) {
        let expected = self.get(name);
        let mut w = Writer::new();
        write(&mut w, &value);
        assert_eq!(hex::encode(w.finish().unwrap()), hex::encode(&expected), "{name} written");
        let mut r = Reader::new(expected);
        assert_eq!(read(&mut r).unwrap(), value, "{name} read");
        assert_eq!(r.left(), 0, "{name} read to its end");
        self.tested.insert(name.to_owned());
    }

    fn bytes(&mut self, name: &str, actual: impl AsRef<[u8]>) {
        assert_eq!(hex::encode(actual), hex::encode(self.get(name)), "{name}");
        self.tested.insert(name.to_owned());
    }

    fn payload(&self, name: &str) -> Bytes {
        let mut r = Reader::new(self.get(name));
        let payload = r.bytes().unwrap();
        assert_eq!(r.left(), 0, "{name} is one frame");
        payload
    }

    fn asd_request(&mut self, name: &str, request: asd::Request) {
        assert_eq!(asd::Request::decode(self.payload(name)).unwrap(), request, "{name} read");
        self.bytes(name, request.encode().unwrap().to_bytes());
    }

    fn asd_answer(&mut self, name: &str, request: &asd::Request, answer: Result<asd::Response, AsdError>) {
        let decoded = asd::decode_answer(request, self.payload(name)).unwrap();
        assert_eq!(decoded, Decoded::Complete(answer.clone()), "{name} read");
        self.bytes(name, asd::encode_answer(request.command(), &answer).unwrap().to_bytes());
    }

    fn proxy_request(&mut self, name: &str, request: proxy::Request) {
        assert_eq!(proxy::Request::decode(self.payload(name)).unwrap(), request, "{name} read");
        self.bytes(name, request.encode().unwrap().to_bytes());
    }

    fn proxy_answer(
        &mut self,
        name: &str,
        command: proxy::Command,
        answer: Result<proxy::Response, ProxyError>,
    ) {
        self.proxy_answer_read(name, command, &answer);
        self.bytes(name, proxy::encode_answer(command, &answer, ManifestSer::V1).unwrap().to_bytes());
    }

    fn proxy_answer_read(
        &mut self,
        name: &str,
        command: proxy::Command,
        answer: &Result<proxy::Response, ProxyError>,
    ) {
        assert_eq!(proxy::decode_answer(command, self.payload(name)).unwrap(), *answer, "{name} read");
        self.tested.insert(name.to_owned());
    }

    /// An answer with a manifest: its compressed bytes may differ, so what we write is compared decoded.
    fn manifest_answer(
        &mut self,
        name: &str,
        command: proxy::Command,
        response: proxy::Response,
        ser: ManifestSer,
    ) {
        let answer = Ok(response);
        self.proxy_answer_read(name, command, &answer);
        let ours = proxy::encode_answer(command, &answer, ser).unwrap().to_bytes();
        let ours = Reader::new(ours).bytes().unwrap();
        assert_eq!(proxy::decode_answer(command, ours).unwrap(), answer, "{name} written");
    }
}

#[test]
fn every_vector_is_spoken_or_excused() {
    let mut vectors = Vectors::load();
    primitives(&mut vectors);
    proxy_requests(&mut vectors);
    proxy_answers(&mut vectors);
    osd_descriptions(&mut vectors);
    manifests(&mut vectors);
    asd_messages(&mut vectors);
    keys(&mut vectors);
    recovery(&mut vectors);

    let all: BTreeSet<String> = vectors.bytes.keys().cloned().collect();
    let excused: BTreeSet<String> = NOT_YET.iter().map(|(name, _)| (*name).to_owned()).collect();
    let both: Vec<_> = vectors.tested.intersection(&excused).collect();
    assert!(both.is_empty(), "tested and excused: {both:?}");
    let covered: BTreeSet<String> = vectors.tested.union(&excused).cloned().collect();
    assert_eq!(covered, all, "every vector, and nothing else, is tested or excused");
}

fn primitives(v: &mut Vectors) {
    v.codec("P01", 1, |w, x| w.int32(*x), Reader::int32);
    v.codec("P02", -1, |w, x| w.int32(*x), Reader::int32);
    v.codec("P03", 4_294_967_296, |w, x| w.int64(*x), Reader::int64);
    v.codec("P04", true, |w, x| w.bool(*x), Reader::bool);
    v.codec("P05", Bytes::from("abc"), |w, x| w.bytes(x), Reader::bytes);
    let option = |w: &mut Writer, x: &Option<Bytes>| w.option(x.as_ref(), |w, x| w.bytes(x));
    v.codec("P06", None, option, |r| r.option(Reader::bytes));
    v.codec("P07", Some("x".into()), option, |r| r.option(Reader::bytes));
    v.codec("P08", vec![1, 2, 3], |w, x| w.list(x, |w, x| w.int32(*x)), |r| r.list(4, Reader::int32));
    let page = Page { items: vec![Bytes::from("a"), "b".into()], has_more: true };
    v.codec("P09", page, |w, x| write_page(w, x, |w, x| w.bytes(x)), |r| read_page(r, 4, Reader::bytes));
    for (name, value) in [("P10", 5), ("P11", 2_147_483_646), ("P12", 2_147_483_647)] {
        v.codec(name, value, |w, x| w.x_int64(*x), Reader::x_int64);
    }
    for (name, value) in [("P13", 5), ("P14", 2_147_483_647)] {
        v.codec(name, value, |w, x| w.x_int64_be(*x), Reader::x_int64_be);
    }
    v.codec("P15", 1.0, |w, x| w.float(*x), Reader::float);
    v.codec("P16", 300, |w, x| w.varint(*x), Reader::varint);
    v.codec("P17", Bytes::from("abc"), |w, x| w.small_bytes(x), Reader::small_bytes);
    v.codec("P18", Checksum::None, write_checksum, read_checksum);
    v.codec("P19", ChecksumAlgorithm::Crc32c.of(b"123456789"), write_checksum, read_checksum);
    v.codec("P20", ChecksumAlgorithm::Sha1.of(b"abc"), write_checksum, read_checksum);
    v.codec("S01", Stat::default(), |w, x| x.write(w), Stat::read);
    v.codec("C09", EncryptInfo::None, write_encrypt_info, read_encrypt_info);
    v.codec("C10", encryption(v), write_encrypt_info, read_encrypt_info);
    let packed = v.get("C12");
    assert_eq!(snap::raw::Decoder::new().decompress_vec(&packed).unwrap(), b"abc");
    v.bytes("C12", snap::raw::Encoder::new().compress_vec(b"abc").unwrap());
    assert_eq!(decompress_bzip2(&v.get("C11"), 3).unwrap(), b"abc");
    v.bytes("C11", compress_bzip2(b"abc").unwrap());
}

fn encryption(v: &Vectors) -> EncryptInfo {
    let key_sha256 = v.get("C02")[..].try_into().unwrap();
    EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256 }
}

const CRC: Checksum = Checksum::Crc32c(0xe306_9283);

fn slices(object: &'static str, slices: &[(i64, i32)]) -> ObjectSlices {
    let slices =
        slices.iter().map(|(offset, length)| SliceRequest { offset: *offset, length: *length }).collect();
    ObjectSlices { object: object.into(), slices }
}

fn proxy_requests(v: &mut Vectors) {
    use proxy::{Assert, Request};
    let demo = || Bytes::from("demo");
    let obj = || Bytes::from("obj");
    v.bytes("X01", proxy::encode_prologue());
    v.proxy_request("X02", Request::NamespaceExists(demo()));
    let preset = Some("preset_rora".into());
    v.proxy_request("X03", Request::CreateNamespace { name: "ns".into(), preset });
    v.proxy_request("X04", Request::ListNamespaces(RangeQuery::all()));
    let query = RangeQuery {
        first: "a".into(),
        first_included: false,
        last: Some(("z".into(), true)),
        reverse: true,
        max: 100,
    };
    v.proxy_request("X05", Request::ListObjects { namespace: demo(), query });
    v.proxy_request("X06", Request::DeleteObject { namespace: demo(), object: obj(), may_not_exist: false });
    v.proxy_request(
        "X07",
        Request::GetObjectInfo {
            namespace: demo(),
            object: obj(),
            consistent_read: true,
            should_cache: true,
        },
    );
    v.proxy_request(
        "X08",
        Request::ReadObjectFs {
            namespace: demo(),
            object: obj(),
            dest_file: "/tmp/o".into(),
            consistent_read: true,
            should_cache: false,
        },
    );
    v.proxy_request(
        "X09",
        Request::WriteObjectFs(WriteObjectFs {
            namespace: demo(),
            object: obj(),
            input_file: "/tmp/i".into(),
            allow_overwrite: false,
            checksum: Some(CRC),
        }),
    );
    let objects = vec![slices("o1", &[(0, 16), (4096, 8)]), slices("o2", &[(1_048_566, 20)])];
    v.proxy_request(
        "X10",
        Request::ReadObjectsSlices2 { namespace: demo(), objects, consistent_read: false },
    );
    v.proxy_request(
        "X11",
        Request::ApplySequence {
            namespace: demo(),
            write_barrier: false,
            asserts: vec![Assert::ObjectDoesNotExist("a".into()), Assert::ObjectHasChecksum("b".into(), CRC)],
            updates: vec![
                Update::UploadObjectFromFile { object: "n1".into(), file: "/tmp/i".into(), checksum: None },
                Update::UploadObject { object: "n2".into(), data: "data!".into(), checksum: Some(CRC) },
                Update::DeleteObject("n3".into()),
            ],
        },
    );
    let wish = (Bytes::from_static(proxy::MANIFEST_SER), Some(Bytes::from_static(&[2])));
    v.proxy_request("X12", Request::UpdateSession(vec![wish]));
    v.proxy_request("X13", Request::Ping { delay: 1.0 });
    v.proxy_request("X14", Request::GetVersion);
    v.proxy_request("X15", Request::OsdInfo2);
    v.proxy_request("X16", Request::HasLocalFragmentCache);
    v.proxy_request("X17", Request::GetFragmentEncryptionKey { alba_id: "alba".into(), namespace_id: 7 });
    v.proxy_request("X18", Request::InvalidateCache(demo()));
    v.proxy_request("X19", Request::DropCache(demo()));
    v.proxy_request("X20", Request::DeleteNamespace(demo()));
    let objects = vec!["a".into(), "b".into()];
    v.proxy_request("X21", Request::MultiExists { namespace: demo(), objects });
    v.proxy_request("S02", Request::ProxyStatistics { clear: true, forget: vec!["a".into()] });
}

/// What X10 asks for.
fn read_data() -> Bytes {
    let up_to = |n: u8| (0..n).collect::<Vec<u8>>();
    [up_to(16), b"ABCDEFGH".to_vec(), up_to(20)].concat().into()
}

fn proxy_answers(v: &mut Vectors) {
    use proxy::{Command, Response};
    v.proxy_answer("Y01", Command::DeleteObject, Ok(Response::Done));
    v.proxy_answer("Y02", Command::GetObjectInfo, Err(ProxyError::of(ErrorCode::ObjectDoesNotExist)));
    v.proxy_answer("Y03", Command::ApplySequence, Err(ProxyError::assert_failed("a")));
    v.proxy_answer("Y04", Command::NamespaceExists, Ok(Response::Flag(true)));
    let names = Page { items: vec!["a".into(), "b".into(), "c".into()], has_more: true };
    v.proxy_answer("Y05", Command::ListObjects, Ok(Response::Names(names)));
    v.proxy_answer("Y06", Command::GetObjectInfo, Ok(Response::Summary { size: 35, checksum: CRC }));
    let agreed = (Bytes::from_static(proxy::MANIFEST_SER), Bytes::from_static(&[2]));
    v.proxy_answer("Y07", Command::UpdateSession, Ok(Response::Session(vec![agreed])));
    v.proxy_answer("Y08", Command::Ping, Ok(Response::Time(1_500_000_000.25)));
    let version = Version { major: 1, minor: 5, patch: 13, revision: "heads/master-0-g1234567".to_owned() };
    v.proxy_answer("Y09", Command::GetVersion, Ok(Response::Version(version)));
    v.bytes("Y10", proxy::version_mismatch(666).unwrap().to_bytes());
    v.proxy_answer("Y11", Command::ReadObjectsSlices, Ok(Response::Data(vec![read_data()])));
    let key = v.get("C01");
    v.proxy_answer("Y12", Command::GetFragmentEncryptionKey, Ok(Response::Key(Some(key))));
    v.proxy_answer("Y19", Command::MultiExists, Ok(Response::Exists(vec![true, false])));
    let missing = Response::ReadObjects(NamespaceId::from_u32(7), vec![None]);
    v.proxy_answer("Y20", Command::ReadObjects, Ok(missing));
    let config = ClientConfig {
        cluster_id: "abm".to_owned(),
        nodes: vec![("n0".to_owned(), vec!["127.0.0.1".to_owned()], 4000)],
    };
    v.proxy_answer("G01", Command::GetClientConfig, Ok(Response::ClientConfig(config)));
}

fn asd_info(ips: &[&str], port: u32, number: u32) -> OsdInfo {
    let ips = ips.iter().map(|ip| (*ip).to_owned()).collect();
    let conn = ConnInfo { ips, port, use_tls: false, use_rdma: false };
    OsdInfo {
        kind: OsdKind::Asd(conn, format!("asd_{number}")),
        node_id: format!("node_{number}"),
        decommissioned: false,
        other: String::new(),
        total: 1_000_000_000_000,
        used: 4096,
        seen: Vec::new(),
        read: vec![1.5],
        write: vec![3.0, 2.0],
        errors: Vec::new(),
        checksum_errors: 0,
        claimed_since: Some(1.0),
    }
}

fn osd_descriptions(v: &mut Vectors) {
    use proxy::{Command, Response};
    let main = asd_info(&["127.0.0.1", "10.0.0.1"], 8000, 0);
    let cache = asd_info(&["127.0.0.1"], 8001, 1);
    v.codec("Z01", main.clone(), |w, x| x.write(w), OsdInfo::read);
    let capabilities = vec![Capability::MultiGet2, Capability::PartialGet];
    v.codec("Z02", capabilities.clone(), |w, x| write_capabilities(w, x), read_capabilities);
    let fetcher = Capability::RoraFetcher2 {
        ips: vec!["10.0.0.1".to_owned()],
        port: 8500,
        transport: "tcp".to_owned(),
    };
    v.codec("Z03", vec![fetcher], |w, x| write_capabilities(w, x), read_capabilities);
    v.codec("Z04", ClaimInfo::ThisAlba(OsdId::from_u32(3)), |w, x| x.write(w), ClaimInfo::read);
    let another = ClaimInfo::AnotherAlba(AlbaId::new("x").unwrap());
    v.codec("Z05", another, |w, x| x.write(w), ClaimInfo::read);
    let behind_proxies = OsdInfo {
        kind: OsdKind::AlbaProxy {
            endpoints: vec!["tcp://h:10000".to_owned()],
            id: "aid".to_owned(),
            prefix: "p".to_owned(),
            preset: "default".to_owned(),
        },
        total: 0,
        used: 0,
        read: Vec::new(),
        write: Vec::new(),
        claimed_since: None,
        ..main.clone()
    };
    v.codec("Z06", behind_proxies, |w, x| x.write(w), OsdInfo::read);
    let entry = |id, info: &OsdInfo| OsdEntry {
        id: OsdId::from_u32(id),
        info: info.clone(),
        capabilities: capabilities.clone(),
    };
    v.proxy_answer("Y13", Command::OsdInfo, Ok(Response::Osds(vec![entry(3, &main)])));
    let levels = vec![("main".into(), vec![entry(3, &main)]), ("cache".into(), vec![entry(0, &cache)])];
    v.proxy_answer("Y14", Command::OsdInfo2, Ok(Response::OsdsByAlba(levels)));
}

fn object_id() -> ObjectId {
    ObjectId::new(std::array::from_fn(|i| u8::try_from(i).unwrap()))
}

const CONTENT: &[u8] = b"I'm a really large object (37 bytes)";

/// The sample object of the vectors, as ser 2 tells it.
fn sample(v: &Vectors) -> WireManifest {
    let ctr = v.get("C06");
    let fragment = |packed: &str, osd: Option<u32>, fnr: Option<&'static [u8]>| WireFragment {
        location: osd.map(OsdId::from_u32),
        version: ObjectVersion(0),
        checksum: ChecksumAlgorithm::Crc32c.of(&v.get(packed)),
        packed_len: 32,
        ctr: Some(ctr.clone()),
        fnr: fnr.map(Bytes::from_static),
    };
    let fragments = vec![
        fragment("M01", Some(3), Some(&[0x2a])),
        fragment("M02", None, None),
        fragment("M03", Some(2_147_483_647), Some(&[0xac, 0x02])),
    ];
    WireManifest {
        name: "large_object".into(),
        object_id: object_id(),
        scheme: WireScheme { k: 2, m: 1, compression: WireCompression::None },
        encryption: encryption(v),
        checksum: ChecksumAlgorithm::Crc32c.of(CONTENT),
        size: 36,
        chunks: vec![WireChunk { size: 64, fragments }],
        version: ObjectVersion(0),
        max_disks_per_node: 2,
        timestamp: 1_500_000_000.25,
    }
}

/// Ser 1 has no room for the ASDs' tokens.
fn without_tokens(mut manifest: WireManifest) -> WireManifest {
    manifest.chunks.iter_mut().flat_map(|chunk| &mut chunk.fragments).for_each(|f| f.fnr = None);
    manifest
}

fn manifests(v: &mut Vectors) {
    use proxy::{Command, Response};
    let v2 = sample(v);
    let v1 = without_tokens(v2.clone());
    for (name, manifest, ser) in [("M04", &v1, ManifestSer::V1), ("M05", &v2, ManifestSer::V2)] {
        assert_eq!(WireManifest::read_body(v.get(name), ser).unwrap(), *manifest, "{name} read");
        v.bytes(name, manifest.write_body(ser).unwrap());
    }
    v.codec("M06", v2.chunks[0].fragments[0].clone(), write_fragment, read_fragment);

    let namespace = NamespaceId::from_u32(7);
    let located = |manifest: &WireManifest| LocatedManifest { manifest: manifest.clone(), namespace };
    for (name, manifest, ser) in [("M07", &v2, ManifestSer::V2), ("M08", &v1, ManifestSer::V1)] {
        let expected = located(manifest);
        let mut r = Reader::new(v.get(name));
        assert_eq!(LocatedManifest::read(&mut r).unwrap(), expected, "{name} read");
        assert_eq!(r.left(), 0, "{name} read to its end");
        let mut w = Writer::new();
        expected.write(&mut w, ser);
        let ours = w.finish().unwrap();
        assert_eq!(ours[0], ser.number());
        assert_eq!(LocatedManifest::read(&mut Reader::new(ours)).unwrap(), expected, "{name} written");
        v.tested.insert(name.to_owned());
    }
    let response = Response::Manifest(Box::new(located(&v2)));
    v.manifest_answer("Y15", Command::WriteObjectFs2, response, ManifestSer::V2);
    let object = |manifest| ObjectInfo {
        name: "large_object".into(),
        alba_id: Bytes::new(),
        manifest: located(manifest),
    };
    let response = Response::Objects(vec![object(&v2)]);
    v.manifest_answer("Y16", Command::ApplySequence, response, ManifestSer::V2);
    v.proxy_answer("Y17", Command::ApplySequence, Ok(Response::Objects(Vec::new())));
    let response = Response::DataAndObjects(vec![read_data()], vec![object(&v1)]);
    v.manifest_answer("Y18", Command::ReadObjectsSlices2, response, ManifestSer::V1);
}

fn asd_messages(v: &mut Vectors) {
    use asd::{Request, Response, Slowness};
    const HIGH: Priority = Priority::High;
    let own = LongId::new("asd_0").unwrap();
    v.bytes("A01", asd::encode_prologue(None).unwrap());
    v.bytes("A02", asd::encode_prologue(Some("asd_0")).unwrap());
    let prologue_answer =
        |v: &Vectors, name| asd::decode_prologue_answer(&mut Reader::new(v.get(name))).unwrap();
    assert_eq!(prologue_answer(v, "A03"), Ok("asd_0".to_owned()));
    v.bytes("A03", asd::encode_prologue_answer(1, &own).unwrap());
    assert!(matches!(prologue_answer(v, "A04"), Err(AsdError::ProtocolVersionMismatch(_))));
    v.bytes("A04", asd::encode_prologue_answer(666, &own).unwrap());

    let slices = vec![ValueSlice { offset: 0, len: 50 }];
    let partial_get = Request::PartialGet { key: "key1".into(), slices, priority: HIGH };
    assert_eq!(Request::decode(v.payload("A05")).unwrap(), partial_get, "as the C++ client sends it");
    v.tested.insert("A05".to_owned());
    v.asd_request("A06", partial_get.clone());
    let data = Bytes::from(vec![7; 50]);
    let found = Response::Slices(Some(vec![data.clone()]));
    let Ok(Decoded::Outside(outside)) = asd::decode_answer(&partial_get, v.payload("A07")) else {
        panic!("A07 promises bytes");
    };
    assert_eq!(outside.len(), 50);
    assert_eq!(outside.complete(data.clone()).unwrap(), found);
    let sent = asd::encode_answer(asd::Command::PartialGet, &Ok(found)).unwrap().to_bytes();
    assert_eq!(sent[sent.len() - 50..], data[..]);
    v.bytes("A07", &sent[..sent.len() - 50]);
    v.asd_answer("A08", &partial_get, Ok(Response::Slices(None)));

    v.asd_request("A09", Request::GetVersion);
    v.asd_request("A10", Request::Slowness(Some(Slowness { fixed: 20.0, variable: 1.0 })));
    v.asd_request("A11", Request::Slowness(None));
    let abc = StoredValue { value: "abc".into(), checksum: ChecksumAlgorithm::Crc32c.of(b"abc") };
    let batch = OsdBatch {
        asserts: vec![OsdAssert::Absent("k0".into()), OsdAssert::Value("k1".into(), "v".into())],
        updates: vec![OsdUpdate::Set("k2".into(), abc), OsdUpdate::Delete("k3".into())],
    };
    let apply = Request::Apply { batch, priority: HIGH };
    v.asd_request("A12", apply.clone());
    let token = Bytes::from_static(&[0xac, 0x02]);
    v.asd_answer("A13", &apply, Ok(Response::Applied(vec![("k2".into(), token)])));
    v.asd_answer("A14", &apply, Err(AsdError::AssertFailed("k1".into())));
    v.asd_answer("A15", &apply, Err(AsdError::Full));
    v.asd_answer("A16", &apply, Err(AsdError::UnknownOperation));
    let range = Request::Range { query: RangeQuery::all(), priority: HIGH };
    v.asd_request("A17", range.clone());
    let page = Page { items: vec!["k1".into(), "k2".into()], has_more: false };
    v.asd_answer("A18", &range, Ok(Response::Keys(page)));

    let keys = vec!["k1".into(), "big".into(), "no".into()];
    let multi_get = Request::MultiGet2 { keys, priority: HIGH };
    v.asd_request("A19", multi_get.clone());
    let big = Bytes::from(vec![9; 20_000]);
    let values = Response::Values(vec![
        Some(StoredValue { value: "v".into(), checksum: Checksum::None }),
        Some(StoredValue { value: big.clone(), checksum: CRC }),
        None,
    ]);
    let Ok(Decoded::Outside(outside)) = asd::decode_answer(&multi_get, v.payload("A20")) else {
        panic!("A20 promises bytes");
    };
    assert_eq!(outside.len(), 20_000);
    assert_eq!(outside.complete(big.clone()).unwrap(), values);
    let sent = asd::encode_answer(asd::Command::MultiGet2, &Ok(values)).unwrap().to_bytes();
    assert_eq!(sent[sent.len() - big.len()..], big[..]);
    v.bytes("A20", &sent[..sent.len() - big.len()]);

    let capabilities = vec![Capability::MultiGet2, Capability::PartialGet];
    v.asd_answer("A21", &Request::Capabilities, Ok(Response::Capabilities(capabilities)));
    let usage = DiskUsage { used: ByteCount(4096), capacity: ByteCount(1_000_000_000_000) };
    v.asd_answer("A22", &Request::GetDiskUsage, Ok(Response::DiskUsage(usage)));
    let exists = Request::MultiExists { keys: vec!["a".into(), "b".into()], priority: Priority::Low };
    v.asd_request("A23", exists.clone());
    v.asd_answer("A24", &exists, Ok(Response::Exists(vec![true, false])));
}

fn keys(v: &mut Vectors) {
    let namespace = NamespaceId::from_u32(7);
    let address = FragmentAddress {
        object_id: object_id(),
        chunk: ChunkIndex(0),
        fragment: FragmentIndex(1),
        version: ObjectVersion(0),
    };
    v.bytes("K01", osd_keys::fragment(namespace, &address));
    v.bytes("K02", osd_keys::recovery_info(namespace, &address));
    v.bytes("K03", osd_keys::gc_tag(namespace, GcEpoch::from_u32(1), &address));
    v.bytes("K04", osd_keys::namespace_marker(namespace));
    v.bytes("K05", osd_keys::namespace_name(namespace));
    v.bytes("K06", osd_keys::next_message());
    v.bytes("K07", osd_keys::instance_log());
    v.bytes("K08", osd_keys::instance_index(&AlbaId::new("abc").unwrap()));
    v.bytes("K09", osd_keys::fragment(NamespaceId::from_u32(2_147_483_647), &address));
    v.bytes("K10", osd_keys::cache_object_name(&object_id(), ChunkIndex(0), FragmentIndex(1)));
}

fn recovery(v: &mut Vectors) {
    let manifest = sample(v);
    let info = RecoveryInfo {
        name: ObjectName::new("large_object").unwrap(),
        chunk_size: 64,
        fragments: manifest.chunks[0].fragments.iter().map(|f| (f.packed_len, f.checksum)).collect(),
        object: Some(RecoveryObject {
            scheme: RecoveryScheme {
                k: 2,
                m: 1,
                matrix: RecoveryMatrix::Jerasure,
                compression: Compression::None,
            },
            size: 36,
            checksum: manifest.checksum,
            timestamp: manifest.timestamp,
        }),
        ctr: Some(v.get("C06")[..].try_into().unwrap()),
    };
    assert_eq!(RecoveryInfo::decode_plain(v.get("R01")).unwrap(), info);
    v.bytes("R01", info.encode_plain().unwrap());
}

/// A manifest that an original installation wrote, field by field.
#[test]
fn a_manifest_of_the_original_is_understood() {
    let mut r = Reader::new(Bytes::from_static(include_bytes!("vectors/sample-manifest-v1.bin")));
    let LocatedManifest { manifest, namespace } = LocatedManifest::read(&mut r).unwrap();
    assert_eq!(r.left(), 0);
    assert_eq!(namespace, NamespaceId::from_u32(5));
    assert_eq!(&manifest.name[..], b"with_manifest");
    assert_eq!(manifest.object_id.as_bytes()[..4], [0xa8, 0x0f, 0x58, 0xf5]);
    assert_eq!(manifest.scheme, WireScheme { k: 5, m: 4, compression: WireCompression::Snappy });
    assert_eq!(manifest.encryption, EncryptInfo::None);
    assert_eq!(manifest.checksum, Checksum::Crc32c(0xdc0a_ba0e));
    assert_eq!(manifest.size, 21_553_400);
    let sizes: Vec<u32> = manifest.chunks.iter().map(|chunk| chunk.size).collect();
    assert_eq!(sizes, [5_242_880, 5_242_880, 5_242_880, 5_242_880, 581_920]);
    for chunk in &manifest.chunks {
        let osds: Vec<_> = chunk.fragments.iter().map(|f| f.location.map(OsdId::get)).collect();
        assert_eq!(osds, [9, 6, 1, 8, 3, 4, 11, 5, 2].map(Some));
        assert!(chunk.fragments.iter().all(|f| f.version == ObjectVersion(0)));
        assert!(chunk.fragments.iter().all(|f| f.ctr.is_none() && f.fnr.is_none()));
    }
    let last = &manifest.chunks[4].fragments[8];
    assert_eq!((last.checksum, last.packed_len), (Checksum::Crc32c(0x186e_1cd2), 116_393));
    assert_eq!((manifest.version, manifest.max_disks_per_node), (ObjectVersion(0), 3));
    assert_eq!(manifest.timestamp.to_bits(), 0x0000_0000_005f_9b67);

    // It has no layout of counter blocks; otherwise we write the same body.
    let body = manifest.write_body(ManifestSer::V1).unwrap();
    let ctrs = 1 + 4 + 5 * (4 + 9);
    assert_eq!(body.len(), 1004 + ctrs);
    assert_eq!(WireManifest::read_body(body.slice(..1004), ManifestSer::V1).unwrap(), manifest);
}
