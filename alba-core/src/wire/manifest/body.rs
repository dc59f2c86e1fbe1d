//! The body inside the envelope.

use bytes::Bytes;

use super::{ManifestSer, WireChunk, WireCompression, WireFragment, WireManifest, WireScheme};
use crate::checksum::Checksum;
use crate::ids::{ObjectId, ObjectVersion, OsdId};
use crate::manifest::{CipherMode, EncryptInfo};
use crate::wire::common::{read_checksum, write_original_checksum};
use crate::wire::llio::{Reader, WireError, Writer};

fn expect(r: &mut Reader, what: &'static str, wanted: u8) -> Result<(), WireError> {
    match r.int8()? {
        tag if tag == wanted => Ok(()),
        tag => Err(WireError::Tag { what, tag: u32::from(tag) }),
    }
}

/// Reads coding and compression (§3.4).
pub fn read_storage_scheme(r: &mut Reader) -> Result<WireScheme, WireError> {
    expect(r, "storage scheme", 1)?;
    expect(r, "encoding scheme", 1)?;
    let (k, m) = (r.uint32()?, r.uint32()?);
    expect(r, "word size", 1)?;
    let compression = match r.int8()? {
        1 => WireCompression::None,
        2 => WireCompression::Snappy,
        3 => WireCompression::Bzip2,
        4 => WireCompression::Test,
        tag => return Err(WireError::Tag { what: "compression", tag: u32::from(tag) }),
    };
    Ok(WireScheme { k, m, compression })
}

/// Writes coding and compression.
pub fn write_storage_scheme(w: &mut Writer, scheme: &WireScheme) {
    w.raw(&[1, 1]);
    w.uint32(scheme.k);
    w.uint32(scheme.m);
    w.int8(1);
    w.int8(match scheme.compression {
        WireCompression::None => 1,
        WireCompression::Snappy => 2,
        WireCompression::Bzip2 => 3,
        WireCompression::Test => 4,
    });
}

/// Reads how fragments are encrypted (§3.5).
pub fn read_encrypt_info(r: &mut Reader) -> Result<EncryptInfo, WireError> {
    match r.int8()? {
        1 => Ok(EncryptInfo::None),
        2 => {
            expect(r, "cipher", 1)?;
            let mode = match r.int8()? {
                1 => CipherMode::Cbc,
                2 => CipherMode::Ctr,
                tag => return Err(WireError::Tag { what: "cipher mode", tag: u32::from(tag) }),
            };
            expect(r, "key length", 1)?;
            expect(r, "key identification", 1)?;
            Ok(EncryptInfo::Aes256 { mode, key_sha256: r.fixed("key identification")? })
        }
        tag => Err(WireError::Tag { what: "encryption", tag: u32::from(tag) }),
    }
}

/// Writes how fragments are encrypted.
pub fn write_encrypt_info(w: &mut Writer, info: &EncryptInfo) {
    match info {
        EncryptInfo::None => w.int8(1),
        EncryptInfo::Aes256 { mode, key_sha256 } => {
            let mode = match mode {
                CipherMode::Cbc => 1,
                CipherMode::Ctr => 2,
            };
            w.raw(&[2, 1, mode, 1, 1]);
            w.bytes(key_sha256);
        }
    }
}

/// `layout of T`: per chunk, per fragment.
fn read_layout<T>(
    r: &mut Reader,
    min_len: usize,
    mut item: impl FnMut(&mut Reader) -> Result<T, WireError>,
) -> Result<Vec<Vec<T>>, WireError> {
    expect(r, "layout", 1)?;
    r.list(4, |r| r.list(min_len, &mut item))
}

fn write_layout(w: &mut Writer, chunks: &[WireChunk], mut item: impl FnMut(&mut Writer, &WireFragment)) {
    w.int8(1);
    w.list(chunks, |w, chunk| w.list(&chunk.fragments, &mut item));
}

pub(super) fn read(r: &mut Reader, ser: ManifestSer) -> Result<WireManifest, WireError> {
    let name = r.bytes()?;
    let object_id = ObjectId::new(r.fixed("object id")?);
    let sizes = r.list(4, Reader::uint32)?;
    let scheme = read_storage_scheme(r)?;
    let encryption = read_encrypt_info(r)?;
    let checksum = read_checksum(r)?;
    let size = r.size("object size")?;
    let (fragments, layouts) = match ser {
        ManifestSer::V1 => (Vec::new(), Some(LayoutsV1::read(r)?)),
        ManifestSer::V2 => (read_layout(r, 1, read_fragment)?, None),
    };
    let version = ObjectVersion(r.uint32()?);
    let max_disks_per_node = r.uint32()?;
    let timestamp = r.float()?;
    let fragments = match layouts {
        None => fragments,
        // Old writers end here.
        Some(layouts) => layouts.join(r.tail(|r| read_layout(r, 1, |r| r.option(Reader::bytes)))?)?,
    };
    let chunks =
        zip(sizes, fragments)?.into_iter().map(|(size, fragments)| WireChunk { size, fragments }).collect();
    Ok(WireManifest {
        name,
        object_id,
        scheme,
        encryption,
        checksum,
        size,
        chunks,
        version,
        max_disks_per_node,
        timestamp,
    })
}

/// The layouts of ser 1, which say one thing each of every fragment.
struct LayoutsV1 {
    locations: Vec<Vec<(Option<OsdId>, ObjectVersion)>>,
    checksums: Vec<Vec<Checksum>>,
    packed_lens: Vec<Vec<u32>>,
}

impl LayoutsV1 {
    fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            locations: read_layout(r, 5, |r| {
                Ok((r.option(|r| r.x_id("osd id"))?, ObjectVersion(r.uint32()?)))
            })?,
            checksums: read_layout(r, 1, read_checksum)?,
            packed_lens: read_layout(r, 4, Reader::uint32)?,
        })
    }

    fn join(self, ctrs: Option<Vec<Vec<Option<Bytes>>>>) -> Result<Vec<Vec<WireFragment>>, WireError> {
        let none = || self.locations.iter().map(|chunk| vec![None; chunk.len()]).collect();
        let ctrs = ctrs.unwrap_or_else(none);
        let chunks = zip(zip(self.locations, self.checksums)?, zip(self.packed_lens, ctrs)?)?;
        let chunk = |((locations, checksums), (packed_lens, ctrs))| {
            let fragments = zip(zip(locations, checksums)?, zip(packed_lens, ctrs)?)?;
            let fragment = |(((location, version), checksum), (packed_len, ctr))| WireFragment {
                location,
                version,
                checksum,
                packed_len,
                ctr,
                fnr: None,
            };
            Ok(fragments.into_iter().map(fragment).collect())
        };
        chunks.into_iter().map(chunk).collect()
    }
}

fn uneven() -> WireError {
    WireError::invalid("manifest", "its layouts have different shapes")
}

/// Pairs of two lists that must be equally long.
fn zip<A, B>(a: Vec<A>, b: Vec<B>) -> Result<Vec<(A, B)>, WireError> {
    if a.len() == b.len() { Ok(a.into_iter().zip(b).collect()) } else { Err(uneven()) }
}

/// Reads a fragment's entry of ser 2, its length included.
pub fn read_fragment(r: &mut Reader) -> Result<WireFragment, WireError> {
    let r = &mut Reader::new(r.small_bytes()?);
    expect(r, "fragment", 1)?;
    Ok(WireFragment {
        location: r.option(|r| r.x_id("osd id"))?,
        version: ObjectVersion(r.uint32()?),
        checksum: read_checksum(r)?,
        packed_len: r.uint32()?,
        ctr: r.tail(|r| r.option(Reader::small_bytes))?.flatten(),
        fnr: r.tail(|r| r.option(Reader::small_bytes))?.flatten(),
    })
}

/// Writes a fragment's entry of ser 2, its length included.
pub fn write_fragment(w: &mut Writer, fragment: &WireFragment) {
    w.small_nested(|w| {
        w.int8(1);
        write_location(w, fragment);
        write_original_checksum(w, &fragment.checksum);
        w.uint32(fragment.packed_len);
        w.option(fragment.ctr.as_ref(), |w, ctr| w.small_bytes(ctr));
        w.option(fragment.fnr.as_ref(), |w, fnr| w.small_bytes(fnr));
    });
}

fn write_location(w: &mut Writer, fragment: &WireFragment) {
    w.option(fragment.location, |w, osd| w.x_int64(osd.get()));
    w.uint32(fragment.version.0);
}

pub(super) fn write(w: &mut Writer, manifest: &WireManifest, ser: ManifestSer) {
    let chunks = &manifest.chunks;
    w.bytes(&manifest.name);
    w.bytes(manifest.object_id.as_bytes());
    w.list(chunks, |w, chunk| w.uint32(chunk.size));
    write_storage_scheme(w, &manifest.scheme);
    write_encrypt_info(w, &manifest.encryption);
    write_original_checksum(w, &manifest.checksum);
    w.size(manifest.size);
    match ser {
        ManifestSer::V1 => {
            write_layout(w, chunks, write_location);
            write_layout(w, chunks, |w, fragment| write_original_checksum(w, &fragment.checksum));
            write_layout(w, chunks, |w, fragment| w.uint32(fragment.packed_len));
        }
        ManifestSer::V2 => write_layout(w, chunks, write_fragment),
    }
    w.uint32(manifest.version.0);
    w.uint32(manifest.max_disks_per_node);
    w.float(manifest.timestamp);
    if ser == ManifestSer::V1 {
        write_layout(w, chunks, |w, fragment| w.option(fragment.ctr.as_ref(), |w, ctr| w.bytes(ctr)));
    }
}
