//! Recovery info: what lies beside each fragment, so that manifests can be rebuilt when a namespace manager is lost
//! (wire-protocol §6.7).
//!
//! Only our own processes read it, so it tells the truth where the old wire cannot: blake3 checksums, our coding
//! matrix, lz4 and zstd have tags of their own. It is the same for all fragments of a chunk that have no counter
//! block: encode it once per chunk, compressing is not free.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use super::common::{read_checksum, write_checksum};
use super::llio::{Reader, WireError, Writer};
use super::manifest::{read_encrypt_info, write_encrypt_info};
use crate::checksum::Checksum;
use crate::encryption::{CounterBlock, FragmentKey};
use crate::ids::ObjectName;
use crate::manifest::{CipherMode, CodingMatrix, EncryptInfo};
use crate::preset::Compression;

/// The longest plain recovery info that is believed: a name of 4 KiB and 255 fragments take a quarter of it.
const PLAIN_MAX: usize = 64 << 10;

/// Why recovery info cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecoveryError {
    /// Its bytes make no sense.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// It needs a key.
    #[error("recovery info is encrypted")]
    Encrypted(EncryptInfo),
}

/// The generator matrix behind the parity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMatrix {
    /// The original's ("RSVM", wire-protocol §6.4): its parity cannot be read with ours.
    Jerasure,
    /// One of ours.
    Ours(CodingMatrix),
}

/// Coding and compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryScheme {
    /// Data fragments.
    pub k: u32,
    /// Parity fragments.
    pub m: u32,
    /// The generator matrix.
    pub matrix: RecoveryMatrix,
    /// Per fragment.
    pub compression: Compression,
}

/// What is told of the whole object, with its last chunk only.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveryObject {
    /// Coding and compression.
    pub scheme: RecoveryScheme,
    /// Bytes, without padding.
    pub size: u64,
    /// Of the object.
    pub checksum: Checksum,
    /// Unix seconds: of several objects of one name the latest counts.
    pub timestamp: f64,
}

/// Recovery info of one fragment. Object id, chunk, fragment and version are in its key.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveryInfo {
    /// Name of the object.
    pub name: ObjectName,
    /// Plain bytes of the chunk, padding included.
    pub chunk_size: u32,
    /// Of all fragments of the chunk: packed length and checksum.
    pub fragments: Vec<(u32, Checksum)>,
    /// With the last chunk: the object.
    pub object: Option<RecoveryObject>,
    /// Counter block of this fragment.
    pub ctr: Option<[u8; 16]>,
}

impl RecoveryInfo {
    /// The value to store, unencrypted.
    pub fn encode(&self) -> Result<Bytes, WireError> {
        let mut w = Writer::new();
        w.int8(1);
        write_encrypt_info(&mut w, &EncryptInfo::None);
        w.bytes(&compress_bzip2(&self.encode_plain()?)?);
        w.option(None::<&[u8]>, |w, ctr| w.bytes(ctr));
        w.finish()
    }

    /// The value to store, encrypted like the fragment that it is of, from a counter block of its own.
    pub fn encode_encrypted(&self, key: &FragmentKey, counter: CounterBlock) -> Result<Bytes, WireError> {
        let mut payload = compress_bzip2(&self.encode_plain()?)?.to_vec();
        key.apply(&counter, 0, &mut payload);
        let mut w = Writer::new();
        w.int8(1);
        write_encrypt_info(&mut w, &EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256: key.sha256() });
        w.bytes(&payload);
        w.option(Some(counter), |w, ctr| w.bytes(ctr));
        w.finish()
    }

    /// Reads a stored value that is not encrypted.
    pub fn decode(value: impl Into<Bytes>) -> Result<Self, RecoveryError> {
        Self::decode_with(value, |_| None)
    }

    /// Reads a stored value. `key_of` finds the key that has this SHA-256.
    pub fn decode_with(
        value: impl Into<Bytes>,
        key_of: impl FnOnce(&[u8; 32]) -> Option<FragmentKey>,
    ) -> Result<Self, RecoveryError> {
        let mut r = Reader::new(value);
        match r.int8().map_err(RecoveryError::from)? {
            1 => {}
            tag => return Err(WireError::Tag { what: "recovery info version", tag: u32::from(tag) }.into()),
        }
        let encryption = read_encrypt_info(&mut r)?;
        let mut payload = r.bytes()?;
        match &encryption {
            EncryptInfo::None => {}
            EncryptInfo::Aes256 { mode, key_sha256 } => {
                let Some(key) = key_of(key_sha256).filter(|_| *mode == CipherMode::Ctr) else {
                    return Err(RecoveryError::Encrypted(encryption));
                };
                let counter = r.option(Reader::bytes)?.and_then(|ctr| CounterBlock::try_from(&ctr[..]).ok());
                let counter =
                    counter.ok_or_else(|| WireError::invalid("recovery info", "no counter block"))?;
                let mut plain = BytesMut::from(&payload[..]);
                key.apply(&counter, 0, &mut plain);
                payload = plain.freeze();
            }
        }
        let plain = decompress_bzip2(&payload, PLAIN_MAX)?;
        Ok(Self::decode_plain(plain)?)
    }

    /// What is compressed and encrypted.
    pub fn encode_plain(&self) -> Result<Bytes, WireError> {
        let mut w = Writer::new();
        w.bytes(self.name.as_bytes());
        w.uint32(self.chunk_size);
        w.list(&self.fragments, |w, (packed_len, _)| w.uint32(*packed_len));
        w.list(&self.fragments, |w, (_, checksum)| write_checksum(w, checksum));
        w.option(self.object.as_ref(), |w, object| {
            w.int8(1);
            object.scheme.write(w);
            w.size(object.size);
            write_checksum(w, &object.checksum);
            w.float(object.timestamp);
        });
        w.option(self.ctr, |w, ctr| w.bytes(ctr));
        w.finish()
    }

    /// Reads what [`Self::encode_plain`] wrote, or the original's writer.
    pub fn decode_plain(plain: impl Into<Bytes>) -> Result<Self, WireError> {
        let mut r = Reader::new(plain);
        let name = r.bytes_id("object name")?;
        let chunk_size = r.uint32()?;
        let packed_lens = r.list(4, Reader::uint32)?;
        let checksums = r.list(1, read_checksum)?;
        if packed_lens.len() != checksums.len() {
            return Err(WireError::invalid("recovery info", "not as many lengths as checksums"));
        }
        let object = r.option(|r| {
            match r.int8()? {
                1 => {}
                tag => return Err(WireError::Tag { what: "object info", tag: u32::from(tag) }),
            }
            Ok(RecoveryObject {
                scheme: RecoveryScheme::read(r)?,
                size: r.size("object size")?,
                checksum: read_checksum(r)?,
                timestamp: r.float()?,
            })
        })?;
        let ctr = r.tail(|r| r.option(|r| r.fixed("counter block")))?.flatten();
        let fragments = packed_lens.into_iter().zip(checksums).collect();
        Ok(Self { name, chunk_size, fragments, object, ctr })
    }
}

impl RecoveryScheme {
    /// As [`super::manifest`] has it, with tags of our own: encoding scheme 2 is our matrix, compression 5 lz4, 6 zstd.
    fn write(&self, w: &mut Writer) {
        w.int8(1);
        w.int8(match self.matrix {
            RecoveryMatrix::Jerasure => 1,
            RecoveryMatrix::Ours(CodingMatrix::VandermondeSystematic) => 2,
        });
        w.uint32(self.k);
        w.uint32(self.m);
        w.int8(1);
        w.int8(match self.compression {
            Compression::None => 1,
            Compression::Snappy => 2,
            Compression::Bzip2 => 3,
            Compression::Test => 4,
            Compression::Lz4 => 5,
            Compression::Zstd => 6,
        });
    }

    fn read(r: &mut Reader) -> Result<Self, WireError> {
        let undefined = |what: &'static str, tag: u8| WireError::Tag { what, tag: u32::from(tag) };
        match r.int8()? {
            1 => {}
            tag => return Err(undefined("storage scheme", tag)),
        }
        let matrix = match r.int8()? {
            1 => RecoveryMatrix::Jerasure,
            2 => RecoveryMatrix::Ours(CodingMatrix::VandermondeSystematic),
            tag => return Err(undefined("encoding scheme", tag)),
        };
        let (k, m) = (r.uint32()?, r.uint32()?);
        match r.int8()? {
            1 => {}
            tag => return Err(undefined("word size", tag)),
        }
        let compression = match r.int8()? {
            1 => Compression::None,
            2 => Compression::Snappy,
            3 => Compression::Bzip2,
            4 => Compression::Test,
            5 => Compression::Lz4,
            6 => Compression::Zstd,
            tag => return Err(undefined("compression", tag)),
        };
        Ok(Self { k, m, matrix, compression })
    }
}

/// Plain bytes that certainly are one block of bzip2 at any level: its run lengths can make them longer by a quarter, and the smallest
/// block has 100 000 bytes less 19.
const ONE_BLOCK: usize = 64 << 10;

/// Where a stream says of which level it is, and what it says at the highest.
const LEVEL_AT: usize = 3;
const HIGHEST_LEVEL: u8 = b'9';

/// The bzip2 form of §6.5: plain length, then the stream.
pub fn compress_bzip2(plain: &[u8]) -> Result<Bytes, WireError> {
    // The level is the size of blocks, and nothing else. What is one block at any level is packed at the lowest, whose tables are a
    // megabyte to clear instead of eight, and is given the highest's name.
    let one_block = plain.len() <= ONE_BLOCK;
    let level = if one_block { bzip2::Compression::fast() } else { bzip2::Compression::best() };
    let mut stream = Vec::new();
    bzip2::read::BzEncoder::new(plain, level)
        .read_to_end(&mut stream)
        .map_err(|error| WireError::invalid("bzip2", error))?;
    if let Some(level) = stream.get_mut(LEVEL_AT) {
        *level = HIGHEST_LEVEL;
    }
    let len = i32::try_from(plain.len()).map_err(|_| WireError::TooLong { len: plain.len() })?;
    let mut w = Writer::new();
    w.int32(len);
    w.raw(&stream);
    w.finish()
}

/// Reads the bzip2 form. More than `max` plain bytes are refused before they are made.
pub fn decompress_bzip2(packed: &Bytes, max: usize) -> Result<Vec<u8>, WireError> {
    let mut r = Reader::new(packed.clone());
    let claimed = r.uint32()?;
    let len = usize::try_from(claimed).ok().filter(|len| *len <= max);
    let Some(len) = len else {
        return Err(WireError::invalid(
            "bzip2",
            format!("{claimed} plain bytes; at most {max} are accepted"),
        ));
    };
    let rest = r.rest();
    let mut plain = Vec::new();
    // One byte more than claimed tells a stream that holds more.
    bzip2::read::BzDecoder::new(&rest[..])
        .take(u64::from(claimed).saturating_add(1))
        .read_to_end(&mut plain)
        .map_err(|error| WireError::invalid("bzip2", error))?;
    if plain.len() == len {
        Ok(plain)
    } else {
        Err(WireError::invalid("bzip2", format!("not the {len} plain bytes it claims")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// The stream as the highest level makes it.
    fn at_the_highest_level(plain: &[u8]) -> Vec<u8> {
        let mut stream = Vec::new();
        bzip2::read::BzEncoder::new(plain, bzip2::Compression::best()).read_to_end(&mut stream).unwrap();
        stream
    }

    #[test]
    fn one_block_is_the_same_stream_at_any_level() {
        let mut noise = StdRng::seed_from_u64(1);
        let mut noise = |len: usize| (0..len).map(|_| noise.random()).collect::<Vec<u8>>();
        // Runs of four are what run lengths make five of.
        let runs = |len: usize| (0..len).map(|at| u8::from(at / 4 % 2 == 0)).collect::<Vec<u8>>();
        for len in [0, 1, 3, 4, 255, 4096, ONE_BLOCK - 1, ONE_BLOCK, ONE_BLOCK + 1, 200_000] {
            for plain in [noise(len), runs(len), vec![7; len]] {
                assert_eq!(compress_bzip2(&plain).unwrap()[4..], at_the_highest_level(&plain), "{len}");
            }
        }
    }

    fn checksum() -> impl Strategy<Value = Checksum> {
        prop_oneof![
            Just(Checksum::None),
            any::<[u8; 20]>().prop_map(Checksum::Sha1),
            any::<u32>().prop_map(Checksum::Crc32c),
            any::<[u8; 32]>().prop_map(Checksum::Blake3),
        ]
    }

    fn scheme() -> impl Strategy<Value = RecoveryScheme> {
        let matrix = prop_oneof![
            Just(RecoveryMatrix::Jerasure),
            Just(RecoveryMatrix::Ours(CodingMatrix::VandermondeSystematic)),
        ];
        let compression = prop_oneof![
            Just(Compression::None),
            Just(Compression::Snappy),
            Just(Compression::Lz4),
            Just(Compression::Zstd),
            Just(Compression::Bzip2),
            Just(Compression::Test),
        ];
        (1..50_u32, 0..20_u32, matrix, compression).prop_map(|(k, m, matrix, compression)| RecoveryScheme {
            k,
            m,
            matrix,
            compression,
        })
    }

    fn info() -> impl Strategy<Value = RecoveryInfo> {
        let object = (scheme(), 0..=i64::MAX.unsigned_abs(), checksum(), 0.0..1e12).prop_map(
            |(scheme, size, checksum, timestamp)| RecoveryObject { scheme, size, checksum, timestamp },
        );
        (
            prop::collection::vec(any::<u8>(), 0..100),
            any::<u32>(),
            prop::collection::vec((any::<u32>(), checksum()), 0..20),
            prop::option::of(object),
            prop::option::of(any::<[u8; 16]>()),
        )
            .prop_map(|(name, chunk_size, fragments, object, ctr)| RecoveryInfo {
                name: ObjectName::new(name).unwrap(),
                chunk_size,
                fragments,
                object,
                ctr,
            })
    }

    #[test]
    fn our_own_form_has_its_golden_bytes() {
        let info = RecoveryInfo {
            name: ObjectName::new("o").unwrap(),
            chunk_size: 32,
            fragments: vec![(16, Checksum::Blake3([1; 32])), (16, Checksum::None)],
            object: Some(RecoveryObject {
                scheme: RecoveryScheme {
                    k: 1,
                    m: 1,
                    matrix: RecoveryMatrix::Ours(CodingMatrix::VandermondeSystematic),
                    compression: Compression::Zstd,
                },
                size: 20,
                checksum: Checksum::Crc32c(0xE306_9283),
                timestamp: 1.0,
            }),
            ctr: None,
        };
        let golden = concat!(
            "010000006f",
            "20000000",
            "020000001000000010000000",
            "0200000001",
            "04200000000101010101010101010101010101010101010101010101010101010101010101",
            "01010102010000000100000001061400000000000000",
            "03839206e3000000000000f03f",
            "00",
        );
        assert_eq!(hex::encode(info.encode_plain().unwrap()), golden);
        assert_eq!(RecoveryInfo::decode_plain(hex::decode(golden).unwrap()).unwrap(), info);
        let value = info.encode().unwrap();
        assert_eq!(value[..2], [1, 1], "version 1, not encrypted");
        assert_eq!(value[value.len() - 1], 0, "no counter block of its own");
    }

    #[test]
    fn a_length_that_is_not_true_is_refused() {
        let packed = compress_bzip2(&[7; 1000]).unwrap();
        assert_eq!(decompress_bzip2(&packed, 1000).unwrap(), [7; 1000]);
        assert!(decompress_bzip2(&packed, 999).is_err());
        for claimed in [0_u32, 999, 1001, 60_000, u32::MAX] {
            let lie = [&claimed.to_le_bytes()[..], &packed[4..]].concat();
            assert!(decompress_bzip2(&lie.into(), PLAIN_MAX).is_err(), "{claimed}");
        }
    }

    #[test]
    fn the_largest_info_there_can_be_fits() {
        let info = RecoveryInfo {
            name: ObjectName::new(vec![1; ObjectName::MAX_LEN]).unwrap(),
            chunk_size: u32::MAX,
            fragments: vec![(u32::MAX, Checksum::Blake3([9; 32])); 255],
            object: None,
            ctr: Some([1; 16]),
        };
        assert!(info.encode_plain().unwrap().len() < PLAIN_MAX / 2);
        assert_eq!(RecoveryInfo::decode(info.encode().unwrap()).unwrap(), info);
    }

    #[test]
    fn encrypted_info_says_so() {
        let encryption = EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256: [3; 32] };
        let mut w = Writer::new();
        w.int8(1);
        write_encrypt_info(&mut w, &encryption);
        w.bytes(b"secret");
        assert_eq!(RecoveryInfo::decode(w.finish().unwrap()), Err(RecoveryError::Encrypted(encryption)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_written_is_read(info in info()) {
            prop_assert_eq!(RecoveryInfo::decode(info.encode().unwrap()), Ok(info));
        }

        #[test]
        fn what_was_encrypted_is_read_with_its_key_only(info in info(), counter: [u8; 16]) {
            let key = FragmentKey::new([8; 32]);
            let value = info.encode_encrypted(&key, counter).unwrap();
            prop_assert!(!value.windows(4).any(|bytes| bytes == b"BZh9"), "compressed data in the clear");
            prop_assert!(matches!(RecoveryInfo::decode(value.clone()), Err(RecoveryError::Encrypted(_))));
            let with = |key: &FragmentKey| {
                RecoveryInfo::decode_with(value.clone(), |hash| (*hash == key.sha256()).then(|| key.clone()))
            };
            prop_assert!(matches!(with(&FragmentKey::new([9; 32])), Err(RecoveryError::Encrypted(_))));
            prop_assert_eq!(with(&key), Ok(info));
        }

        #[test]
        fn damage_never_panics(info in info(), at: prop::sample::Index, bit in 0..8_u32, cut: prop::sample::Index) {
            let value = info.encode().unwrap();
            let mut damaged = value.to_vec();
            damaged[at.index(value.len())] ^= 1 << bit;
            let _ = RecoveryInfo::decode(damaged);
            prop_assert!(RecoveryInfo::decode(value.slice(..cut.index(value.len()))).is_err() || cut.index(value.len()) + 1 == value.len());
            let plain = info.encode_plain().unwrap();
            let mut damaged = plain.to_vec();
            damaged[at.index(plain.len())] ^= 1 << bit;
            let _ = RecoveryInfo::decode_plain(damaged);
        }

        #[test]
        fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RecoveryInfo::decode(garbage.clone());
            let _ = RecoveryInfo::decode([&[1, 1][..], &garbage].concat());
            let _ = RecoveryInfo::decode_plain(garbage.clone());
            let _ = decompress_bzip2(&garbage.into(), PLAIN_MAX);
        }
    }
}
