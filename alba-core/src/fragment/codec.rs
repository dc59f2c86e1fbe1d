//! The compression formats of packed fragments.
//!
//! | codec | bytes |
//! |---|---|
//! | none | as is |
//! | snappy | raw snappy block |
//! | lz4 | plain length (u32, little endian) ‖ lz4 block |
//! | zstd | one zstd frame |
//! | bz2 | plain length (i32, little endian) ‖ bzip2 stream of block size 9 |
//! | test | time of writing (double, Unix seconds) ‖ as bz2 |

use bytes::{Bytes, BytesMut};

use super::{PackError, UnpackError};
use crate::manifest::Timestamp;
use crate::preset::Compression;
use crate::wire::recovery::{compress_bzip2, decompress_bzip2};

/// Fast; more effort gains little on data that is striped over k fragments.
const ZSTD_LEVEL: i32 = 1;

/// Bytes of the time in front of `test`; nobody reads it.
const STAMP: usize = 8;

/// `now` is what `test` begins with; the others make the same bytes of the same bytes.
pub(super) fn compress(plain: &Bytes, compression: Compression, now: Timestamp) -> Result<Bytes, PackError> {
    let failed = |reason: String| PackError::Codec { codec: compression.name(), reason };
    match compression {
        Compression::None => Ok(plain.clone()),
        Compression::Snappy => snap::raw::Encoder::new()
            .compress_vec(plain)
            .map(Bytes::from)
            .map_err(|error| failed(error.to_string())),
        Compression::Lz4 => {
            // The length has 32 bits in this format.
            u32::try_from(plain.len()).map_err(|_| PackError::TooLong(plain.len()))?;
            Ok(lz4_flex::block::compress_prepend_size(plain).into())
        }
        Compression::Zstd => zstd::bulk::compress(plain, ZSTD_LEVEL)
            .map(Bytes::from)
            .map_err(|error| failed(error.to_string())),
        Compression::Bzip2 => compress_bzip2(plain).map_err(|error| failed(error.to_string())),
        Compression::Test => {
            let stream = compress_bzip2(plain).map_err(|error| failed(error.to_string()))?;
            let mut packed = BytesMut::with_capacity(STAMP + stream.len());
            packed.extend_from_slice(&now.to_seconds().to_le_bytes());
            packed.extend_from_slice(&stream);
            Ok(packed.freeze())
        }
    }
}

/// Allocates `plain_len` bytes at most, whatever the packed bytes announce.
pub(super) fn decompress(
    packed: &Bytes,
    compression: Compression,
    plain_len: usize,
) -> Result<Bytes, UnpackError> {
    let failed = |reason: String| UnpackError::Codec { codec: compression.name(), reason };
    let expect = |found: usize| {
        if found == plain_len { Ok(()) } else { Err(UnpackError::Length { expected: plain_len, found }) }
    };
    let mut plain;
    let found = match compression {
        Compression::None => {
            expect(packed.len())?;
            return Ok(packed.clone());
        }
        Compression::Snappy => {
            expect(snap::raw::decompress_len(packed).map_err(|error| failed(error.to_string()))?)?;
            plain = vec![0; plain_len];
            snap::raw::Decoder::new()
                .decompress(packed, &mut plain)
                .map_err(|error| failed(error.to_string()))?
        }
        Compression::Lz4 => {
            let (announced, block) =
                lz4_flex::block::uncompressed_size(packed).map_err(|error| failed(error.to_string()))?;
            expect(announced)?;
            plain = vec![0; plain_len];
            lz4_flex::block::decompress_into(block, &mut plain).map_err(|error| failed(error.to_string()))?
        }
        Compression::Zstd => {
            plain = vec![0; plain_len];
            zstd::bulk::decompress_to_buffer(packed, plain.as_mut_slice())
                .map_err(|error| failed(error.to_string()))?
        }
        Compression::Bzip2 => {
            plain = decompress_bzip2(packed, plain_len).map_err(|error| failed(error.to_string()))?;
            plain.len()
        }
        Compression::Test => {
            if packed.len() < STAMP {
                return Err(failed("shorter than its time stamp".to_owned()));
            }
            plain = decompress_bzip2(&packed.slice(STAMP..), plain_len)
                .map_err(|error| failed(error.to_string()))?;
            plain.len()
        }
    };
    expect(found)?;
    Ok(plain.into())
}
