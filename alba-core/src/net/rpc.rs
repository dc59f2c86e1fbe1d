//! Our RPC over any byte stream.
