//! The erasure code.
