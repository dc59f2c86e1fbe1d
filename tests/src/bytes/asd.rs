//! Reading fragments from storage daemons directly, as the C++ client does it ("RORA", wire-protocol §6.8): by nothing but a
//! manifest, OsdInfo2 and, when they are encrypted, the key.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use aes::Aes256;
use aes::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use sha2::{Digest, Sha256};

use super::manifest::{Fragment, Manifest};
use super::{Connection, Reply, request};

/// An OSD as OsdInfo2 tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Osd {
    /// The first address and the port: what the C++ client takes.
    pub at: SocketAddr,
    /// Asked for in the prologue.
    pub long_id: String,
    /// Where it stands.
    pub node_id: String,
    /// Is it being emptied?
    pub decommissioned: bool,
}

/// Reads an entry of OsdInfo: int32 length, version 3, and inside what the C++ client looks at.
fn osd(r: &mut Reply) -> (i64, Osd) {
    let id = r.x_int64();
    let mut info = Reply::new(r.str());
    assert_eq!(info.byte(), 3, "the C++ client accepts version 3 only");
    let mut inner = Reply::new(info.str());
    info.end();
    assert_eq!(inner.byte(), 1, "kind ASD");
    let ip: IpAddr = inner.list(Reply::text)[0].parse().expect("a numeric address");
    let port = u16::try_from(inner.u32()).unwrap();
    assert!(!inner.bool() && !inner.bool(), "neither TLS nor RDMA");
    let (long_id, node_id, decommissioned) = (inner.text(), inner.text(), inner.bool());
    // MultiGet2 and PartialGet, both in version 1.
    assert_eq!(r.list(|r| (r.byte(), r.byte())), [(1, 1), (1, 2)]);
    (id, Osd { at: SocketAddr::new(ip, port), long_id, node_id, decommissioned })
}

/// 22.
pub fn osd_info(proxy: &mut Connection) -> BTreeMap<i64, Osd> {
    let mut reply = proxy.ok(request(22));
    let osds = reply.list(osd).into_iter().collect();
    reply.end();
    osds
}

/// 28: the levels.
pub fn osd_info_2(proxy: &mut Connection) -> Vec<(String, BTreeMap<i64, Osd>)> {
    let mut reply = proxy.ok(request(28));
    let levels = reply.list(|r| (r.text(), r.list(osd).into_iter().collect()));
    reply.end();
    levels
}

/// The key under which a storage daemon has a fragment (wire-protocol §5.2).
fn fragment_key(namespace: i64, object_id: &[u8], chunk: usize, fragment: usize, version: i32) -> Vec<u8> {
    let small = |number: usize| i32::try_from(number).unwrap();
    let mut key = [b"p\0\0\0\0n".as_slice(), &i32::try_from(namespace).unwrap().to_be_bytes(), b"o"].concat();
    key.extend(small(object_id.len()).to_le_bytes());
    key.extend(object_id);
    for number in [small(chunk), small(fragment), version] {
        key.extend(number.to_le_bytes());
    }
    key
}

/// One PartialGet of one slice over a connection of its own; none when there is no such key.
pub fn partial_get(osd: &Osd, key: &[u8], offset: i32, length: usize) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(osd.at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let hello = super::Request(b"aLbA".to_vec()).i32(1).byte(1).str(&osd.long_id);
    stream.write_all(&hello.0).unwrap();
    let mut read = |len: usize| {
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(read(4), [0; 4], "prologue");
    let len = u32::from_le_bytes(read(4).try_into().unwrap());
    assert_eq!(read(usize::try_from(len).unwrap()), osd.long_id.as_bytes());
    // The C++ client sends the priority as an int32.
    let get = request(11).str(key).i32(1).i32(offset).i32(i32::try_from(length).unwrap()).i32(1);
    stream.write_all(&get.frame()).unwrap();
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..8], [5, 0, 0, 0, 0, 0, 0, 0]);
    if answer[8] == 0 {
        return None;
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    Some(bytes)
}

/// A direct reader of one backend.
pub struct Reader<'a> {
    proxy: &'a mut Connection,
    alba_id: String,
    osds: BTreeMap<i64, Osd>,
    /// By namespace.
    keys: BTreeMap<i64, Vec<u8>>,
}

impl<'a> Reader<'a> {
    /// Asks the proxy for what direct readers need first.
    pub fn new(proxy: &'a mut Connection) -> Self {
        let (alba_id, osds) = osd_info_2(proxy).pop().expect("a level");
        Self { proxy, alba_id, osds, keys: BTreeMap::new() }
    }

    /// The proxy, for other requests.
    pub fn proxy(&mut self) -> &mut Connection {
        self.proxy
    }

    /// The key of a namespace, which must be the one that the manifest was written with.
    fn key(&mut self, namespace: i64, key_sha256: &[u8]) -> Vec<u8> {
        let (proxy, alba_id) = (&mut *self.proxy, &self.alba_id);
        let fetch = || {
            let mut reply = proxy.ok(request(33).str(alba_id).i64(namespace));
            let key = reply.option(Reply::str).expect("a key");
            reply.end();
            key
        };
        let key = self.keys.entry(namespace).or_insert_with(fetch).clone();
        assert_eq!(Sha256::digest(&key)[..], *key_sha256);
        key
    }

    /// Stored bytes of a fragment, as they are.
    pub fn stored(
        &self,
        manifest: &Manifest,
        namespace: i64,
        (chunk, index): (usize, usize),
        offset: usize,
        length: usize,
    ) -> Vec<u8> {
        let fragment = &manifest.fragments[chunk][index];
        let osd = &self.osds[&fragment.osd.expect("a location")];
        let key = fragment_key(namespace, &manifest.object_id, chunk, index, fragment.version);
        partial_get(osd, &key, i32::try_from(offset).unwrap(), length).expect("the fragment")
    }

    /// A part of an object, from the storage daemons.
    pub fn read(&mut self, manifest: &Manifest, namespace: i64, offset: usize, length: usize) -> Vec<u8> {
        assert_eq!(manifest.compression, 1, "what is compressed is not read directly");
        let k = usize::try_from(manifest.k_m.0).unwrap();
        let mut bytes = Vec::new();
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let (mut chunk, mut begin) = (0, 0);
            let size = |chunk: usize| usize::try_from(manifest.chunk_sizes[chunk]).unwrap();
            while begin + size(chunk) <= at {
                begin += size(chunk);
                chunk += 1;
            }
            let fragment_size = size(chunk) / k;
            let (index, from) = ((at - begin) / fragment_size, (at - begin) % fragment_size);
            let part = (fragment_size - from).min(end - at);
            let mut stored = self.stored(manifest, namespace, (chunk, index), from, part);
            self.decrypt(manifest, namespace, &manifest.fragments[chunk][index], from, &mut stored);
            bytes.extend(stored);
            at += part;
        }
        bytes
    }

    fn decrypt(&mut self, of: &Manifest, namespace: i64, fragment: &Fragment, from: usize, bytes: &mut [u8]) {
        let Some(key_sha256) = &of.key_sha256 else { return };
        let key = self.key(namespace, key_sha256);
        let ctr = fragment.ctr.as_ref().expect("a counter block");
        let mut cipher = ctr::Ctr128BE::<Aes256>::new_from_slices(&key, ctr).unwrap();
        cipher.seek(u64::try_from(from).unwrap());
        cipher.apply_keystream(bytes);
    }
}
