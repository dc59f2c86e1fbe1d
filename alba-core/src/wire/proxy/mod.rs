//! The proxy protocol (wire-protocol §2), in both directions: what volume drivers' client libraries speak.
//!
//! Names are any bytes here: which of them can exist, and which error says that one does not, is the proxy's to decide.

mod answer;
mod error;
mod osd_view;
mod request;
mod session;
mod statistics;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use super::llio::{Message, WireError, Writer};

pub use super::common::RequestError;
pub use answer::{ClientConfig, ObjectInfo, OsdEntry, ReadObject, Response, decode_answer, encode_answer};
pub use error::{ErrorCode, ProxyError};
pub use osd_view::{OSD_STAMPS_MAX, OsdState, OsdView};
pub use request::{Assert, Command, ObjectSlices, Request, SliceRequest, Update, WriteObjectFs};
pub use session::{MANIFEST_SER, Session};
pub use statistics::{NamespaceStatistics, ProxyStatistics};

/// First four bytes of a connection, as an `int32`.
pub const MAGIC: u32 = 1_148_837_403;

/// The only version of the protocol.
pub const VERSION: i32 = 1;

/// What a client sends first, unframed: magic and version.
pub fn encode_prologue() -> Bytes {
    Bytes::from([MAGIC.to_le_bytes(), VERSION.to_le_bytes()].concat())
}

/// What a client of another version is told before its connection is closed.
pub fn version_mismatch(client: i32) -> Result<Message, WireError> {
    let text = format!("protocol version: (server) {VERSION} <> {client} (client)");
    let error = ProxyError { code: ErrorCode::ProtocolVersionMismatch, payload: text.into() };
    Writer::frame(|w| error.write(w))
}
