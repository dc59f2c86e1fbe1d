//! The ASD protocol (wire-protocol §4 and what we add to it), in both directions.
//!
//! A frame of a stranger becomes a [`Request`] or an error that has an answer; values are slices of the frame, never
//! copies. What may follow a frame outside its length is [`Outside`].

mod answer;
mod command;
mod request;
#[cfg(test)]
mod tests;

pub use super::common::RequestError;
pub use answer::{
    AsdError, AsdStatistics, Decoded, KeyCheck, Outside, Response, StoredEntry, decode_answer, encode_answer,
};
pub use command::Command;
pub use request::{ELEMENTS_MAX, PEER_ADDRESSES_MAX, Peer, Request, Slowness};

use bytes::Bytes;

use super::llio::{Reader, WireError, Writer};
use crate::ids::LongId;

/// Begins each connection.
pub const MAGIC: [u8; 4] = *b"aLbA";

/// The only version of the protocol.
pub const VERSION: i32 = 1;

/// Values below this size travel inside the frame of MultiGet2, larger ones behind it.
pub const INLINE_BELOW: usize = 16384;

/// The longest id a client may ask for; longer ones cannot be ours.
pub const EXPECTED_ID_MAX: usize = 4096;

/// In the object that answers Health: what clients have read and written since the daemon began, look-ups excepted.
pub const CLIENT_OPERATIONS: &str = "client_operations";

/// What a client sends first, unframed; `expected` none: any ASD will do.
pub fn encode_prologue(expected: Option<&str>) -> Result<Bytes, WireError> {
    let mut w = Writer::new();
    w.raw(&MAGIC);
    w.int32(VERSION);
    w.option(expected, |w, id| w.bytes(id));
    w.finish()
}

/// What the server answers to a client's prologue, unframed. A version it does not speak gets error 7.
pub fn encode_prologue_answer(client_version: i32, own: &LongId) -> Result<Bytes, WireError> {
    let mut w = Writer::new();
    if client_version == VERSION {
        w.uint32(0);
        w.bytes(own.as_str());
    } else {
        w.uint32(AsdError::PROTOCOL_VERSION_MISMATCH);
        w.bytes(format!("asd_protocol version: (server) {VERSION} <> {client_version} (client)"));
    }
    w.finish()
}

/// The ASD's answer to a prologue: its long id, or why it will not talk. The bytes must be complete.
pub fn decode_prologue_answer(r: &mut Reader) -> Result<Result<String, AsdError>, WireError> {
    match r.uint32()? {
        0 => Ok(Ok(r.text("long id")?)),
        status => Ok(Err(AsdError::read(status, r)?)),
    }
}
