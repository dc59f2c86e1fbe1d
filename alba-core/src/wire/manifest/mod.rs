//! Manifests as the original's clients and servers write them (wire-protocol §3): ser 1 and ser 2.
//!
//! Only a translation of [`crate::manifest::Manifest`]: what old clients do not know is told as something they do
//! (blake3 as no checksum, lz4 and zstd as snappy). It must never be the stored form.

mod body;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;

use super::llio::{Reader, WireError, Writer};
use crate::checksum::Checksum;
use crate::ids::{NamespaceId, ObjectId, ObjectName, ObjectVersion, OsdId};
use crate::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use crate::policy::CodeShape;
use crate::preset::Compression;

pub use body::{
    read_encrypt_info, read_fragment, read_storage_scheme, write_encrypt_info, write_fragment,
    write_storage_scheme,
};

/// The two forms of the body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ManifestSer {
    /// What a connection gets unless it asks for more.
    #[default]
    V1,
    /// With the counter blocks where the C++ client finds them.
    V2,
}

impl ManifestSer {
    /// As the wire carries it.
    pub fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    fn from_number(number: u8) -> Result<Self, WireError> {
        match number {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            tag => Err(WireError::Tag { what: "manifest version", tag: u32::from(tag) }),
        }
    }
}

/// Compression by the wire's tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireCompression {
    /// As is.
    None,
    /// A raw snappy block, or something an old client never decompresses itself.
    Snappy,
    /// See wire-protocol §6.5.
    Bzip2,
    /// See wire-protocol §6.5.
    Test,
}

/// Coding and compression as the wire tells them. It does not tell the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireScheme {
    /// Data fragments.
    pub k: u32,
    /// Parity fragments.
    pub m: u32,
    /// Per fragment.
    pub compression: WireCompression,
}

/// One fragment's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireFragment {
    /// None: a hole.
    pub location: Option<OsdId>,
    /// When it was placed.
    pub version: ObjectVersion,
    /// Of the packed bytes.
    pub checksum: Checksum,
    /// Length of the packed bytes.
    pub packed_len: u32,
    /// Initial counter block.
    pub ctr: Option<Bytes>,
    /// The original ASD's token for the file; only in ser 2.
    pub fnr: Option<Bytes>,
}

/// One chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireChunk {
    /// Plain bytes, padding included.
    pub size: u32,
    /// Data, then parity.
    pub fragments: Vec<WireFragment>,
}

/// A manifest as the wire carries it.
#[derive(Debug, Clone, PartialEq)]
pub struct WireManifest {
    /// The object's name: any bytes.
    pub name: Bytes,
    /// Its identity.
    pub object_id: ObjectId,
    /// Coding and compression.
    pub scheme: WireScheme,
    /// Encryption.
    pub encryption: EncryptInfo,
    /// Of the object.
    pub checksum: Checksum,
    /// Bytes of the object, without padding.
    pub size: u64,
    /// In order.
    pub chunks: Vec<WireChunk>,
    /// Of the object.
    pub version: ObjectVersion,
    /// x of the policy used.
    pub max_disks_per_node: u32,
    /// Unix seconds.
    pub timestamp: f64,
}

/// The uncompressed body may be this many times as long as the compressed one: a snappy element of 3 bytes gives 64
/// at most. What claims more is refused before memory is reserved.
const SNAPPY_MAX_RATIO: usize = 24;

impl WireManifest {
    /// Writes the envelope: version and compressed body.
    pub fn write(&self, w: &mut Writer, ser: ManifestSer) {
        let mut body = Writer::new();
        body::write(&mut body, self, ser);
        let compressed = body.finish().and_then(|body| {
            snap::raw::Encoder::new()
                .compress_vec(&body)
                .map_err(|error| WireError::invalid("manifest", error))
        });
        match compressed {
            Ok(compressed) => {
                w.int8(ser.number());
                w.value(&compressed.into());
            }
            Err(error) => w.fail(error),
        }
    }

    /// Reads an envelope.
    pub fn read(r: &mut Reader) -> Result<Self, WireError> {
        let ser = ManifestSer::from_number(r.int8()?)?;
        Self::read_body(decompress(&r.bytes()?)?, ser)
    }

    /// Decodes an uncompressed body.
    pub fn read_body(body: impl Into<Bytes>, ser: ManifestSer) -> Result<Self, WireError> {
        body::read(&mut Reader::new(body), ser)
    }

    /// The uncompressed body.
    pub fn write_body(&self, ser: ManifestSer) -> Result<Bytes, WireError> {
        let mut w = Writer::new();
        body::write(&mut w, self, ser);
        w.finish()
    }
}

/// Decompresses a raw snappy block. Memory is bounded by the input's length.
fn decompress(compressed: &[u8]) -> Result<Vec<u8>, WireError> {
    let wrong = |error: snap::Error| WireError::invalid("snappy block", error);
    let len = snap::raw::decompress_len(compressed).map_err(wrong)?;
    if len > compressed.len().saturating_mul(SNAPPY_MAX_RATIO) {
        return Err(WireError::invalid("snappy block", format!("it cannot hold the {len} bytes it claims")));
    }
    snap::raw::Decoder::new().decompress_vec(compressed).map_err(wrong)
}

/// A manifest and the namespace it is in.
#[derive(Debug, Clone, PartialEq)]
pub struct LocatedManifest {
    /// The manifest.
    pub manifest: WireManifest,
    /// Where.
    pub namespace: NamespaceId,
}

impl LocatedManifest {
    /// Reads the envelope and the id behind it.
    pub fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self { manifest: WireManifest::read(r)?, namespace: r.x_id("namespace id")? })
    }

    /// Writes the envelope and the id behind it.
    pub fn write(&self, w: &mut Writer, ser: ManifestSer) {
        self.manifest.write(w, ser);
        w.x_int64(self.namespace.get());
    }
}

impl From<&Scheme> for WireScheme {
    fn from(scheme: &Scheme) -> Self {
        let (k, m) = scheme.shape.as_u8();
        let compression = match scheme.compression {
            Compression::None => WireCompression::None,
            Compression::Snappy | Compression::Lz4 | Compression::Zstd => WireCompression::Snappy,
            Compression::Bzip2 => WireCompression::Bzip2,
            Compression::Test => WireCompression::Test,
        };
        Self { k: k.into(), m: m.into(), compression }
    }
}

impl From<&Manifest> for WireManifest {
    fn from(manifest: &Manifest) -> Self {
        let fragment = |fragment: &Fragment| WireFragment {
            location: fragment.location,
            version: fragment.version,
            checksum: fragment.checksum,
            packed_len: fragment.packed_len,
            ctr: fragment.ctr.map(|ctr| Bytes::copy_from_slice(&ctr)),
            fnr: None,
        };
        let chunk = |chunk: &Chunk| WireChunk {
            size: chunk.size,
            fragments: chunk.fragments.iter().map(fragment).collect(),
        };
        let mut chunks: Vec<WireChunk> = manifest.chunks.iter().map(chunk).collect();
        if chunks.is_empty() {
            // It lives in the metadata, which the original knows nothing of: one chunk, stored nowhere, makes clients ask
            // the proxy for it.
            let len = u32::try_from(manifest.size).unwrap_or(u32::MAX);
            let hole = Fragment {
                location: None,
                version: manifest.version,
                checksum: Checksum::None,
                packed_len: len,
                ctr: None,
            };
            chunks.push(WireChunk { size: len, fragments: vec![fragment(&hole)] });
        }
        Self {
            name: Bytes::copy_from_slice(manifest.name.as_bytes()),
            object_id: manifest.object_id,
            scheme: WireScheme::from(&manifest.scheme),
            encryption: manifest.encryption.clone(),
            checksum: manifest.checksum,
            size: manifest.size,
            chunks,
            version: manifest.version,
            max_disks_per_node: manifest.max_disks_per_node,
            timestamp: manifest.timestamp.to_seconds(),
        }
    }
}

impl TryFrom<&WireManifest> for Manifest {
    type Error = WireError;

    /// What our own types can say of it. The wire tells neither the matrix nor which of our compressions "snappy"
    /// stands for: good for showing an object, not for decoding its fragments.
    fn try_from(wire: &WireManifest) -> Result<Self, WireError> {
        let scheme = &wire.scheme;
        let too_wide = || WireError::invalid("storage scheme", format!("({}, {})", scheme.k, scheme.m));
        let (k, m) = (u8::try_from(scheme.k), u8::try_from(scheme.m));
        let (Ok(k), Ok(m)) = (k, m) else { return Err(too_wide()) };
        let compression = match scheme.compression {
            WireCompression::None => Compression::None,
            WireCompression::Snappy => Compression::Snappy,
            WireCompression::Bzip2 => Compression::Bzip2,
            WireCompression::Test => Compression::Test,
        };
        let fragment = |fragment: &WireFragment| {
            let ctr = fragment.ctr.as_ref().map(|ctr| <[u8; 16]>::try_from(&ctr[..])).transpose();
            Ok(Fragment {
                location: fragment.location,
                version: fragment.version,
                checksum: fragment.checksum,
                packed_len: fragment.packed_len,
                ctr: ctr.map_err(|_| WireError::invalid("counter block", "not of 16 bytes"))?,
            })
        };
        let chunk = |chunk: &WireChunk| {
            let fragments = chunk.fragments.iter().map(fragment).collect::<Result<_, WireError>>()?;
            Ok(Chunk { size: chunk.size, fragments })
        };
        Ok(Self {
            name: ObjectName::new(wire.name.to_vec()).map_err(|e| WireError::invalid("object name", e))?,
            object_id: wire.object_id,
            size: wire.size,
            checksum: wire.checksum,
            scheme: Scheme {
                shape: CodeShape::new(k, m).map_err(|_| too_wide())?,
                matrix: CodingMatrix::VandermondeSystematic,
                compression,
            },
            encryption: wire.encryption.clone(),
            chunks: wire.chunks.iter().map(chunk).collect::<Result<_, WireError>>()?,
            version: wire.version,
            max_disks_per_node: wire.max_disks_per_node,
            timestamp: from_seconds(wire.timestamp),
        })
    }
}

/// Microseconds of Unix seconds; what is no time at all is zero. (Old writers left something else in the field.)
fn from_seconds(seconds: f64) -> Timestamp {
    Duration::try_from_secs_f64(seconds)
        .ok()
        // To the nearest: a double of seconds is off by less than half a microsecond until the year 2106.
        .and_then(|since| u64::try_from(since.saturating_add(Duration::from_nanos(500)).as_micros()).ok())
        .map_or(Timestamp::default(), Timestamp)
}
