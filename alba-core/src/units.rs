//! Sizes and rates as types. A size is always in bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// `n` × 1024.
    pub const fn kib(n: u64) -> Self {
        Self(n * 1024)
    }

    /// `n` × 1024².
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as a length in memory; `None` where it does not fit.
    pub fn as_len(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }
}

impl From<usize> for ByteCount {
    fn from(len: usize) -> Self {
        // `usize` has at most 64 bits on every platform we build for.
        Self(u64::try_from(len).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for ByteCount {
    /// With a binary unit, one decimal: `1.5 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut whole = self.0;
        let mut rest = 0;
        let mut unit = "B";
        for name in UNITS {
            if whole < 1024 {
                break;
            }
            rest = whole % 1024;
            whole /= 1024;
            unit = name;
        }
        write!(f, "{whole}.{} {unit}", rest * 10 / 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(ByteCount(1023).to_string(), "1023 B");
        assert_eq!(ByteCount::kib(1536).to_string(), "1.5 MiB");
        assert_eq!(ByteCount::mib(1024).to_string(), "1.0 GiB");
    }
}
