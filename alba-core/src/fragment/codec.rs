//! The compression formats of packed fragments.
//!
//! | codec | bytes |
//! |---|---|
//! | none | as is |
//! | snappy | raw snappy block |
//! | lz4 | plain length (u32, little endian) ‖ lz4 block |
//! | zstd | one zstd frame |

use bytes::Bytes;

use super::{PackError, UnpackError};
use crate::preset::Compression;

/// Fast; more effort gains little on data that is striped over k fragments.
const ZSTD_LEVEL: i32 = 1;

pub(super) fn compress(plain: &Bytes, compression: Compression) -> Result<Bytes, PackError> {
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
    };
    expect(found)?;
    Ok(plain.into())
}
