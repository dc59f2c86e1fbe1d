//! Pieces that several of the original's messages share: checksums, ranges, versions, statistics.

use thiserror::Error;

use super::llio::{Reader, WireError, Writer};
use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::range::{Page, RangeQuery};

/// Reads a checksum (§1.6); tag 4 is our own blake3.
pub fn read_checksum(r: &mut Reader) -> Result<Checksum, WireError> {
    match r.int8()? {
        1 => Ok(Checksum::None),
        2 => r.fixed("sha-1 digest").map(Checksum::Sha1),
        3 => r.uint32().map(Checksum::Crc32c),
        4 => r.fixed("blake3 root").map(Checksum::Blake3),
        tag => Err(WireError::Tag { what: "checksum", tag: u32::from(tag) }),
    }
}

/// Writes a checksum as our own processes know it.
pub fn write_checksum(w: &mut Writer, checksum: &Checksum) {
    match checksum {
        Checksum::None => w.int8(1),
        Checksum::Sha1(digest) => {
            w.int8(2);
            w.bytes(digest);
        }
        Checksum::Crc32c(crc) => {
            w.int8(3);
            w.uint32(*crc);
        }
        Checksum::Blake3(root) => {
            w.int8(4);
            w.bytes(root);
        }
    }
}

/// Writes a checksum for a client of the original protocol: one it does not know goes out as none.
pub fn write_original_checksum(w: &mut Writer, checksum: &Checksum) {
    match checksum.algorithm() {
        ChecksumAlgorithm::Blake3 => write_checksum(w, &Checksum::None),
        ChecksumAlgorithm::None | ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Crc32c => {
            write_checksum(w, checksum);
        }
    }
}

/// The two field orders of `RangeQueryArgs` (§1.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeOrder {
    /// Proxy: max, then reverse.
    MaxFirst,
    /// ASD: reverse, then max.
    ReverseFirst,
}

/// Reads a range.
pub fn read_range(r: &mut Reader, order: RangeOrder) -> Result<RangeQuery, WireError> {
    let first = r.bytes()?.to_vec();
    let first_included = r.bool()?;
    let last = r.option(|r| Ok((r.bytes()?.to_vec(), r.bool()?)))?;
    let (max, reverse) = match order {
        RangeOrder::MaxFirst => {
            let max = r.int32()?;
            (max, r.bool()?)
        }
        RangeOrder::ReverseFirst => {
            let reverse = r.bool()?;
            (r.int32()?, reverse)
        }
    };
    Ok(RangeQuery { first, first_included, last, reverse, max })
}

/// Writes a range.
pub fn write_range(w: &mut Writer, query: &RangeQuery, order: RangeOrder) {
    w.bytes(&query.first);
    w.bool(query.first_included);
    w.option(query.last.as_ref(), |w, (last, included)| {
        w.bytes(last);
        w.bool(*included);
    });
    match order {
        RangeOrder::MaxFirst => {
            w.int32(query.max);
            w.bool(query.reverse);
        }
        RangeOrder::ReverseFirst => {
            w.bool(query.reverse);
            w.int32(query.max);
        }
    }
}

/// Reads a `counted_list_more`.
pub fn read_page<T>(
    r: &mut Reader,
    min_len: usize,
    item: impl FnMut(&mut Reader) -> Result<T, WireError>,
) -> Result<Page<T>, WireError> {
    Ok(Page { items: r.list(min_len, item)?, has_more: r.bool()? })
}

/// Writes a `counted_list_more`.
pub fn write_page<T>(w: &mut Writer, page: &Page<T>, item: impl FnMut(&mut Writer, &T)) {
    w.list(&page.items, item);
    w.bool(page.has_more);
}

/// What GetVersion answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// -1 in all three when built without a tag.
    pub major: i32,
    /// See `major`.
    pub minor: i32,
    /// See `major`.
    pub patch: i32,
    /// Revision of the source.
    pub revision: String,
}

impl Version {
    /// Reads it.
    pub fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self { major: r.int32()?, minor: r.int32()?, patch: r.int32()?, revision: r.text_lossy()? })
    }

    /// Writes it.
    pub fn write(&self, w: &mut Writer) {
        w.int32(self.major);
        w.int32(self.minor);
        w.int32(self.patch);
        w.bytes(&self.revision);
    }
}

/// Running statistics of one quantity (§2.3, command 15): 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stat {
    /// Number of samples.
    pub n: i64,
    /// Average.
    pub avg: f64,
    /// Average with exponential decay.
    pub exp_avg: f64,
    /// Sum of squared deviations.
    pub m2: f64,
    /// Variance.
    pub var: f64,
    /// Smallest sample.
    pub min: f64,
    /// Largest sample.
    pub max: f64,
    /// Weight of the past in `exp_avg`.
    pub alpha: f64,
}

impl Default for Stat {
    fn default() -> Self {
        Self {
            n: 0,
            avg: 0.0,
            exp_avg: 0.0,
            m2: 0.0,
            var: 0.0,
            min: f64::MAX,
            max: f64::MIN_POSITIVE,
            alpha: 0.9,
        }
    }
}

impl Stat {
    /// Bytes it takes.
    pub const LEN: usize = 64;

    /// Adds a sample, as the original does it.
    pub fn add(&mut self, sample: f64) {
        // Exact up to 2^53 samples.
        #[allow(clippy::cast_precision_loss)]
        let before = self.n as f64;
        let delta = sample - self.avg;
        self.n = self.n.saturating_add(1);
        self.avg += delta / (before + 1.0);
        self.m2 += delta * (sample - self.avg);
        self.var = if self.n < 2 { 0.0 } else { self.m2 / before };
        self.exp_avg = self.exp_avg * self.alpha + sample * (1.0 - self.alpha);
        self.min = self.min.min(sample);
        self.max = self.max.max(sample);
    }

    /// Reads it.
    pub fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            n: r.int64()?,
            avg: r.float()?,
            exp_avg: r.float()?,
            m2: r.float()?,
            var: r.float()?,
            min: r.float()?,
            max: r.float()?,
            alpha: r.float()?,
        })
    }

    /// Writes it.
    pub fn write(&self, w: &mut Writer) {
        w.int64(self.n);
        for value in [self.avg, self.exp_avg, self.m2, self.var, self.min, self.max, self.alpha] {
            w.float(value);
        }
    }
}

/// Why a frame is no request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The operation does not exist.
    #[error("unknown operation {0}")]
    UnknownOperation(u32),
    /// Its arguments make no sense.
    #[error("malformed request: {0}")]
    Malformed(#[from] WireError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_follow_the_recurrence() {
        let mut stat = Stat::default();
        for sample in [2.0, 4.0, 6.0] {
            stat.add(sample);
        }
        assert_eq!((stat.n, stat.avg, stat.var), (3, 4.0, 4.0));
        assert_eq!((stat.min, stat.max), (2.0, 6.0));
        assert!((stat.exp_avg - (0.2 * 0.81 + 0.4 * 0.9 + 0.6)).abs() < 1e-12);
    }

    #[test]
    fn old_clients_get_no_checksum_they_do_not_know() {
        let mut w = Writer::new();
        write_original_checksum(&mut w, &Checksum::Blake3([7; 32]));
        write_original_checksum(&mut w, &Checksum::Crc32c(0xE306_9283));
        assert_eq!(&w.finish().unwrap()[..], [1, 3, 0x83, 0x92, 0x06, 0xe3]);
    }
}
