//! Where the steps of a kernel begin, so that they touch as few cache lines as they can.
//!
//! Steps of 64 bytes that begin in the middle of a line touch two lines of every buffer, and with k + m buffers at one
//! distance (slices of an object, parity in one allocation) the second half is often pushed out of the L1 cache before the
//! next step comes for it. Aligned steps measured 1.3 to 1.6 times as fast at 8+4 and 5+4 with fragments of 1 MiB.

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Bytes from the front to the first line boundary of most of the buffers: the offset at which aligned steps begin, less
/// than [`LINE`]. Buffers of one object are usually all alike; where they are not, the most frequent alignment wins.
pub(super) fn lead<'a>(buffers: impl Iterator<Item = &'a [u8]>) -> usize {
    // At most 255 + 255 buffers.
    let mut votes = [0_u16; LINE];
    for buffer in buffers {
        votes[to_boundary(buffer)] += 1;
    }
    (0..LINE).rev().max_by_key(|lead| votes[*lead]).unwrap_or(0)
}

/// Bytes from the front to the first line boundary, less than [`LINE`].
pub(super) fn to_boundary(buffer: &[u8]) -> usize {
    buffer.as_ptr().addr().wrapping_neg() % LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_buffers_begin_a_line_there() {
        let bytes = [0; 512];
        let aligned = &bytes[to_boundary(&bytes)..];
        assert_eq!(to_boundary(aligned), 0);
        assert_eq!(to_boundary(&aligned[1..]), 63);
        let lead_of = |offsets: &[usize]| lead(offsets.iter().map(|offset| &aligned[*offset..]));
        assert_eq!(lead_of(&[]), 0);
        assert_eq!(lead_of(&[64, 0, 5]), 0);
        assert_eq!(lead_of(&[0, 16, 80, 144, 1, 65]), 48);
        assert_eq!(lead_of(&[16, 0]), 0, "of two as frequent ones the nearer");
    }
}
