//! Manifests as the original's clients read them (wire-protocol §3).

use super::Reply;

/// A checksum: its tag and its bytes.
pub type Checksum = (u8, Vec<u8>);

/// Reads a checksum.
pub fn checksum(r: &mut Reply) -> Checksum {
    match r.byte() {
        1 => (1, Vec::new()),
        2 => (2, r.str()),
        3 => (3, r.u32().to_le_bytes().to_vec()),
        tag => panic!("checksum {tag}"),
    }
}

/// A fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Where; none: nowhere.
    pub osd: Option<i64>,
    /// Part of its key.
    pub version: i32,
    /// Of the stored bytes.
    pub checksum: Checksum,
    /// Length of the stored bytes.
    pub packed_len: i32,
    /// First counter block, if it is encrypted.
    pub ctr: Option<Vec<u8>>,
}

/// A manifest and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// 1 or 2.
    pub ser: u8,
    /// Of the object.
    pub name: String,
    /// 32 bytes.
    pub object_id: Vec<u8>,
    /// With padding.
    pub chunk_sizes: Vec<i32>,
    /// Data and parity fragments of each chunk.
    pub k_m: (i32, i32),
    /// 1 none, 2 snappy, 3 bzip2.
    pub compression: u8,
    /// SHA-256 of the AES key in CTR mode, if it is encrypted.
    pub key_sha256: Option<Vec<u8>>,
    /// Of the object.
    pub checksum: Checksum,
    /// Without padding.
    pub size: i64,
    /// Per chunk.
    pub fragments: Vec<Vec<Fragment>>,
    /// 0 at the upload.
    pub version: i32,
    /// Of the policy.
    pub max_disks_per_node: i32,
    /// Unix seconds.
    pub timestamp: f64,
}

fn expect(r: &mut Reply, bytes: &[u8]) {
    for byte in bytes {
        assert_eq!(r.byte(), *byte);
    }
}

fn layout<T>(r: &mut Reply, item: impl Fn(&mut Reply) -> T) -> Vec<Vec<T>> {
    expect(r, &[1]);
    r.list(|r| r.list(&item))
}

fn fragment_2(r: &mut Reply) -> Fragment {
    let mut r = Reply::new(r.small_bytes());
    expect(&mut r, &[1]);
    let fragment = Fragment {
        osd: r.option(Reply::x_int64),
        version: r.i32(),
        checksum: checksum(&mut r),
        packed_len: r.i32(),
        ctr: r.option(Reply::small_bytes),
    };
    drop(r.option(Reply::small_bytes));
    r.end();
    fragment
}

/// The four layouts of ser 1, the last of which the C++ client ignores, and what is between.
fn fragments_1(r: &mut Reply) -> (Vec<Vec<Fragment>>, (i32, i32, f64)) {
    let places = layout(r, |r| (r.option(Reply::x_int64), r.i32()));
    let checksums = layout(r, checksum);
    let lens = layout(r, Reply::i32);
    let numbers = (r.i32(), r.i32(), r.f64());
    let ctrs = layout(r, |r| r.option(Reply::str));
    let mut chunks = Vec::new();
    for (chunk, places) in places.iter().enumerate() {
        let shape = places.len();
        assert_eq!((checksums[chunk].len(), lens[chunk].len(), ctrs[chunk].len()), (shape, shape, shape));
        let fragment = |index: usize| Fragment {
            osd: places[index].0,
            version: places[index].1,
            checksum: checksums[chunk][index].clone(),
            packed_len: lens[chunk][index],
            ctr: ctrs[chunk][index].clone(),
        };
        chunks.push((0..shape).map(fragment).collect());
    }
    (chunks, numbers)
}

impl Manifest {
    /// Reads an envelope without the namespace id behind it.
    pub fn read(r: &mut Reply) -> Self {
        let ser = r.byte();
        let body = snap::raw::Decoder::new().decompress_vec(&r.str()).unwrap();
        let mut r = Reply::new(body);
        let (name, object_id, chunk_sizes) = (r.text(), r.str(), r.list(Reply::i32));
        expect(&mut r, &[1, 1]);
        let k_m = (r.i32(), r.i32());
        expect(&mut r, &[1]);
        let compression = r.byte();
        let key_sha256 = match r.byte() {
            1 => None,
            _ => {
                // AES, CTR, 256 bits, identified by its hash.
                expect(&mut r, &[1, 2, 1, 1]);
                Some(r.str())
            }
        };
        let (checksum, size) = (checksum(&mut r), r.i64());
        let (fragments, (version, max_disks_per_node, timestamp)) = match ser {
            1 => fragments_1(&mut r),
            2 => {
                let fragments = layout(&mut r, fragment_2);
                (fragments, (r.i32(), r.i32(), r.f64()))
            }
            other => panic!("manifest of version {other}"),
        };
        r.end();
        Self {
            ser,
            name,
            object_id,
            chunk_sizes,
            k_m,
            compression,
            key_sha256,
            checksum,
            size,
            fragments,
            version,
            max_disks_per_node,
            timestamp,
        }
    }

    /// Reads an envelope and the namespace id behind it.
    pub fn located(r: &mut Reply) -> (Self, i64) {
        (Self::read(r), r.x_int64())
    }

    /// `object_info`: name, whose it is, manifest with namespace id.
    pub fn object_info(r: &mut Reply) -> (String, String, Self, i64) {
        let (name, alba_id) = (r.text(), r.text());
        let (manifest, namespace) = Self::located(r);
        assert_eq!(name, manifest.name, "the C++ client insists on it");
        (name, alba_id, manifest, namespace)
    }
}
