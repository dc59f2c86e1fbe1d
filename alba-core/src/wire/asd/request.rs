//! What a client asks an ASD.

use bytes::Bytes;

use super::Command;
use crate::env::net::{Endpoint, EndpointError};
use crate::env::osd::{
    OsdAssert, OsdBatch, OsdKey, OsdUpdate, PeerSource, Priority, StoredValue, ValueSlice,
};
use crate::ids::LongId;
use crate::range::RangeQuery;
use crate::wire::common::{RangeOrder, RequestError, read_checksum, read_range, write_checksum, write_range};
use crate::wire::llio::{Message, Reader, WireError, Writer};

/// The most keys, asserts, updates or slices of one request. Original clients send some hundreds at most.
pub const ELEMENTS_MAX: usize = 1 << 16;

/// A delay for every later request: a test aid. Seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slowness {
    /// Always.
    pub fixed: f64,
    /// Times a random number in 0..1.
    pub variable: f64,
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Keys of a range.
    Range {
        /// Which.
        query: RangeQuery,
        /// Who is served first.
        priority: Priority,
    },
    /// Values, all inside the frame.
    MultiGet {
        /// Which.
        keys: Vec<OsdKey>,
        /// Who is served first.
        priority: Priority,
    },
    /// A batch.
    Apply {
        /// The batch.
        batch: OsdBatch,
        /// Who is served first.
        priority: Priority,
    },
    /// Keys and values of a range.
    RangeEntries {
        /// Which.
        query: RangeQuery,
        /// Who is served first.
        priority: Priority,
    },
    /// Counts and durations per operation.
    Statistics {
        /// Start anew after the snapshot.
        clear: bool,
    },
    /// Pretend to be full, or stop it.
    SetFull(bool),
    /// Version of the server.
    GetVersion,
    /// Values, large ones behind the frame.
    MultiGet2 {
        /// Which.
        keys: Vec<OsdKey>,
        /// Who is served first.
        priority: Priority,
    },
    /// Presence.
    MultiExists {
        /// Which.
        keys: Vec<OsdKey>,
        /// Who is served first.
        priority: Priority,
    },
    /// Space.
    GetDiskUsage,
    /// Slices of one value, behind the frame.
    PartialGet {
        /// Whose.
        key: OsdKey,
        /// Which, in the order wanted.
        slices: Vec<ValueSlice>,
        /// Who is served first.
        priority: Priority,
    },
    /// What the server can do.
    Capabilities,
    /// Verification of stored values.
    RangeValidate {
        /// Which.
        query: RangeQuery,
        /// Also read the values and compare checksums.
        verify_checksum: bool,
        /// List sound keys too.
        show_all: bool,
        /// Who is served first.
        priority: Priority,
    },
    /// Sets or clears the delay of every later request.
    Slowness(Option<Slowness>),
    /// A slice of one value with its proof, its leaves behind the frame.
    ProvenGet {
        /// Whose.
        key: OsdKey,
        /// Which.
        slice: ValueSlice,
        /// Who is served first.
        priority: Priority,
    },
    /// The OSDs it may copy from: these and no others, from now on.
    SetPeers(Vec<Peer>),
    /// How it feels.
    Health,
}

/// An OSD that others may copy from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub long_id: LongId,
    /// Where it listens; all are tried.
    pub addresses: Vec<Endpoint>,
}

/// The most addresses of one [`Peer`].
pub const PEER_ADDRESSES_MAX: usize = 64;

impl Request {
    /// Which operation it is.
    pub fn command(&self) -> Command {
        match self {
            Self::Range { .. } => Command::Range,
            Self::MultiGet { .. } => Command::MultiGet,
            Self::Apply { .. } => Command::Apply,
            Self::RangeEntries { .. } => Command::RangeEntries,
            Self::Statistics { .. } => Command::Statistics,
            Self::SetFull(_) => Command::SetFull,
            Self::GetVersion => Command::GetVersion,
            Self::MultiGet2 { .. } => Command::MultiGet2,
            Self::MultiExists { .. } => Command::MultiExists,
            Self::GetDiskUsage => Command::GetDiskUsage,
            Self::PartialGet { .. } => Command::PartialGet,
            Self::Capabilities => Command::Capabilities,
            Self::RangeValidate { .. } => Command::RangeValidate,
            Self::Slowness(_) => Command::Slowness,
            Self::ProvenGet { .. } => Command::ProvenGet,
            Self::SetPeers(_) => Command::SetPeers,
            Self::Health => Command::Health,
        }
    }

    /// Its priority; what has none is served as a client's.
    pub fn priority(&self) -> Priority {
        match self {
            Self::Range { priority, .. }
            | Self::MultiGet { priority, .. }
            | Self::Apply { priority, .. }
            | Self::RangeEntries { priority, .. }
            | Self::MultiGet2 { priority, .. }
            | Self::MultiExists { priority, .. }
            | Self::PartialGet { priority, .. }
            | Self::RangeValidate { priority, .. }
            | Self::ProvenGet { priority, .. } => *priority,
            Self::Statistics { .. }
            | Self::SetFull(_)
            | Self::GetVersion
            | Self::GetDiskUsage
            | Self::Capabilities
            | Self::Slowness(_)
            | Self::SetPeers(_)
            | Self::Health => Priority::High,
        }
    }

    /// Decodes the payload of a frame. Keys and values are slices of it.
    pub fn decode(payload: Bytes) -> Result<Self, RequestError> {
        let mut r = Reader::new(payload);
        let code = r.uint32()?;
        let command = Command::from_code(code).ok_or(RequestError::UnknownOperation(code))?;
        Ok(Self::read(command, &mut r)?)
    }

    fn read(command: Command, r: &mut Reader) -> Result<Self, WireError> {
        Ok(match command {
            Command::Range => {
                Self::Range { query: read_range(r, RangeOrder::ReverseFirst)?, priority: tail_priority(r)? }
            }
            Command::RangeEntries => Self::RangeEntries {
                query: read_range(r, RangeOrder::ReverseFirst)?,
                priority: tail_priority(r)?,
            },
            Command::MultiGet => Self::MultiGet { keys: read_keys(r)?, priority: tail_priority(r)? },
            Command::MultiGet2 => Self::MultiGet2 { keys: read_keys(r)?, priority: tail_priority(r)? },
            Command::MultiExists => Self::MultiExists { keys: read_keys(r)?, priority: tail_priority(r)? },
            Command::Apply => Self::Apply {
                batch: OsdBatch {
                    asserts: r.list_up_to(ELEMENTS_MAX, 6, read_assert)?,
                    updates: r.list_up_to(ELEMENTS_MAX, 6, read_update)?,
                },
                priority: tail_priority(r)?,
            },
            Command::Statistics => Self::Statistics { clear: r.bool()? },
            Command::SetFull => Self::SetFull(r.bool()?),
            Command::GetVersion => Self::GetVersion,
            Command::GetDiskUsage => Self::GetDiskUsage,
            Command::Capabilities => Self::Capabilities,
            Command::PartialGet => Self::PartialGet {
                key: r.bytes()?,
                slices: r.list_up_to(ELEMENTS_MAX, 8, |r| {
                    Ok(ValueSlice { offset: r.uint32()?, len: r.uint32()? })
                })?,
                // The C++ client writes four bytes here: the first is the priority, the rest is ignored.
                priority: read_priority(r)?,
            },
            Command::RangeValidate => Self::RangeValidate {
                query: read_range(r, RangeOrder::ReverseFirst)?,
                verify_checksum: r.bool()?,
                show_all: r.bool()?,
                priority: read_priority(r)?,
            },
            Command::Slowness => {
                Self::Slowness(r.option(|r| Ok(Slowness { fixed: r.float()?, variable: r.float()? }))?)
            }
            Command::ProvenGet => Self::ProvenGet {
                key: r.bytes()?,
                slice: ValueSlice { offset: r.uint32()?, len: r.uint32()? },
                priority: read_priority(r)?,
            },
            Command::SetPeers => Self::SetPeers(r.list_up_to(ELEMENTS_MAX, 8, read_peer)?),
            Command::Health => Self::Health,
        })
    }

    /// Where in a payload the first large value of a batch begins, as far as its first bytes (`head`) tell: from `min`
    /// bytes on a value is large. It promises nothing about the rest.
    pub fn large_value_at(head: &[u8], min: u32) -> Option<usize> {
        let mut r = Reader::new(Bytes::copy_from_slice(head));
        if Command::from_code(r.uint32().ok()?) != Some(Command::Apply) {
            return None;
        }
        // What is cut off is an error; the value that cuts it off is the one looked for.
        r.list_up_to(ELEMENTS_MAX, 0, read_assert).ok()?;
        for _ in 0..r.uint32().ok()? {
            let mut update = r.clone();
            if read_set_up_to_value(&mut update).is_ok_and(|len| len.is_some_and(|len| len >= min)) {
                return Some(head.len() - update.left());
            }
            read_update(&mut r).ok()?;
        }
        None
    }

    /// The frame to send. Values of 4 KiB and more are shared, not copied.
    pub fn encode(&self) -> Result<Message, WireError> {
        Writer::frame(|w| {
            w.uint32(self.command().code());
            match self {
                Self::Range { query, priority } | Self::RangeEntries { query, priority } => {
                    write_range(w, query, RangeOrder::ReverseFirst);
                    write_priority(w, *priority);
                }
                Self::MultiGet { keys, priority }
                | Self::MultiGet2 { keys, priority }
                | Self::MultiExists { keys, priority } => {
                    w.list(keys, |w, key| w.bytes(key));
                    write_priority(w, *priority);
                }
                Self::Apply { batch, priority } => {
                    w.list(&batch.asserts, write_assert);
                    w.list(&batch.updates, write_update);
                    write_priority(w, *priority);
                }
                Self::Statistics { clear: flag } | Self::SetFull(flag) => w.bool(*flag),
                Self::GetVersion | Self::GetDiskUsage | Self::Capabilities | Self::Health => {}
                Self::PartialGet { key, slices, priority } => {
                    w.bytes(key);
                    w.list(slices, |w, slice| {
                        w.uint32(slice.offset);
                        w.uint32(slice.len);
                    });
                    write_priority(w, *priority);
                }
                Self::RangeValidate { query, verify_checksum, show_all, priority } => {
                    write_range(w, query, RangeOrder::ReverseFirst);
                    w.bool(*verify_checksum);
                    w.bool(*show_all);
                    write_priority(w, *priority);
                }
                Self::Slowness(slowness) => w.option(slowness.as_ref(), |w, slowness| {
                    w.float(slowness.fixed);
                    w.float(slowness.variable);
                }),
                Self::ProvenGet { key, slice, priority } => {
                    w.bytes(key);
                    w.uint32(slice.offset);
                    w.uint32(slice.len);
                    write_priority(w, *priority);
                }
                Self::SetPeers(peers) => w.list(peers, write_peer),
            }
        })
    }
}

fn read_keys(r: &mut Reader) -> Result<Vec<OsdKey>, WireError> {
    r.list_up_to(ELEMENTS_MAX, 4, Reader::bytes)
}

fn read_priority(r: &mut Reader) -> Result<Priority, WireError> {
    match r.int8()? {
        1 => Ok(Priority::High),
        2 => Ok(Priority::Low),
        tag => Err(WireError::Tag { what: "priority", tag: u32::from(tag) }),
    }
}

fn tail_priority(r: &mut Reader) -> Result<Priority, WireError> {
    Ok(r.tail(read_priority)?.unwrap_or(Priority::High))
}

fn write_priority(w: &mut Writer, priority: Priority) {
    w.int8(match priority {
        Priority::High => 1,
        Priority::Low => 2,
    });
}

fn read_peer(r: &mut Reader) -> Result<Peer, WireError> {
    let long_id = r.text_id("long id")?;
    let address = |r: &mut Reader| {
        r.text("address")?.parse().map_err(|error: EndpointError| WireError::invalid("address", error))
    };
    Ok(Peer { long_id, addresses: r.list_up_to(PEER_ADDRESSES_MAX, 4, address)? })
}

fn write_peer(w: &mut Writer, peer: &Peer) {
    w.bytes(peer.long_id.as_str());
    w.list(&peer.addresses, |w, address| w.bytes(address.to_string()));
}

fn expect_tag(r: &mut Reader, what: &'static str) -> Result<(), WireError> {
    match r.int8()? {
        1 => Ok(()),
        tag => Err(WireError::Tag { what, tag: u32::from(tag) }),
    }
}

fn read_assert(r: &mut Reader) -> Result<OsdAssert, WireError> {
    expect_tag(r, "assert")?;
    let key = r.bytes()?;
    Ok(match r.option(Reader::bytes)? {
        None => OsdAssert::Absent(key),
        Some(value) => OsdAssert::Value(key, value),
    })
}

fn write_assert(w: &mut Writer, assert: &OsdAssert) {
    w.int8(1);
    w.bytes(assert.key());
    let value = match assert {
        OsdAssert::Absent(_) => None,
        OsdAssert::Value(_, value) => Some(value),
    };
    w.option(value, Writer::value);
}

fn read_update(r: &mut Reader) -> Result<OsdUpdate, WireError> {
    match r.int8()? {
        1 => {}
        2 => return Ok(OsdUpdate::DeleteRange(r.bytes()?, r.bytes()?)),
        3 => {
            let key = r.bytes()?;
            let source =
                PeerSource { peer: r.text_id("long id")?, key: r.bytes()?, checksum: read_checksum(r)? };
            return Ok(OsdUpdate::SetFromPeer(key, source));
        }
        tag => return Err(WireError::Tag { what: "update", tag: u32::from(tag) }),
    }
    let key = r.bytes()?;
    let set = r.option(|r| {
        let value = StoredValue { value: r.bytes()?, checksum: read_checksum(r)? };
        // `assertable`: a hint that means nothing to an ASD.
        r.bool()?;
        Ok(value)
    })?;
    Ok(match set {
        None => OsdUpdate::Delete(key),
        Some(value) => OsdUpdate::Set(key, value),
    })
}

/// Reads an update that sets a value, up to that value: its length. None when it is another kind of update.
fn read_set_up_to_value(r: &mut Reader) -> Result<Option<u32>, WireError> {
    if r.int8()? != 1 {
        return Ok(None);
    }
    r.bytes()?;
    r.option(Reader::uint32)
}

fn write_update(w: &mut Writer, update: &OsdUpdate) {
    let (key, set) = match update {
        OsdUpdate::Set(key, value) => (key, Some(value)),
        OsdUpdate::Delete(key) => (key, None),
        OsdUpdate::DeleteRange(from, to) => {
            w.int8(2);
            w.bytes(from);
            w.bytes(to);
            return;
        }
        OsdUpdate::SetFromPeer(key, source) => {
            w.int8(3);
            w.bytes(key);
            w.bytes(source.peer.as_str());
            w.bytes(&source.key);
            write_checksum(w, &source.checksum);
            return;
        }
    };
    w.int8(1);
    w.bytes(key);
    w.option(set, |w, value| {
        w.value(&value.value);
        write_checksum(w, &value.checksum);
        w.bool(true);
    });
}
