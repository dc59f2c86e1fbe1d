//! The typed RPC client of the metadata groups.
