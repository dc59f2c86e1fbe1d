//! Our own RPC, as clients and metadata servers speak it: frames, one multiplexed connection per peer, a server loop.
//!
//! The messages are [`crate::wire::rpc`]; what they mean is none of this module's business. It must never allocate by a
//! length it was only told, never let one peer hold another up, and never wait without a deadline. Number
//! [`ABOUT_CONNECTION`] belongs to no request: an answer with it says why the connection is being closed.

mod client;
mod frame;
mod server;
#[cfg(test)]
mod tests;

use crate::wire::rpc::Reply;

/// An answer with its note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The answer itself.
    pub reply: Reply,
    /// The last applied index of the state it was given from; 0: none.
    pub index: u64,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, index: 0 }
    }
}

pub use client::{RpcConnection, RpcError};
pub use frame::{ABOUT_CONNECTION, Frame, FrameError, FrameReader, decode_body, encode_frame, encode_traced};
pub use server::{Handler, ServerLimits, serve};
