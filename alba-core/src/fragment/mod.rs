//! Fragments: packed, verified, unpacked.
