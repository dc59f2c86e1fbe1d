//! What an ASD answers.

use std::collections::VecDeque;

use bytes::Bytes;
use thiserror::Error;

use super::{Command, INLINE_BELOW, Request, RequestError};
use crate::blake3_tree::LeafTable;
use crate::checksum::Checksum;
use crate::env::osd::{DiskUsage, OsdError, OsdKey, ProvenSlice, StoredValue, ValueSlice};
use crate::range::Page;
use crate::units::ByteCount;
use crate::wire::common::{Stat, Version, read_checksum, read_page, write_checksum, write_page};
use crate::wire::llio::{Message, Reader, WireError, Writer};
use crate::wire::osd_info::{Capability, read_capabilities, write_capabilities};

/// An error an ASD answers with. Codes from 100 on are our own; original clients read them as "unknown" with a text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AsdError {
    /// 1: anything else.
    #[error("{0}")]
    Unknown(String),
    /// 2: this key's assert failed.
    #[error("assert failed on key {}", crate::ids::text_or_hex(.0))]
    AssertFailed(OsdKey),
    /// 4.
    #[error("unknown operation")]
    UnknownOperation,
    /// 6.
    #[error("full")]
    Full,
    /// 7: only in the prologue.
    #[error("{0}")]
    ProtocolVersionMismatch(String),
    /// 101: stored bytes are damaged.
    #[error("damaged: {0}")]
    Damaged(String),
    /// 102: the request cannot be served as it is.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// 103: too much in flight.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// 104: this key's value is not what its checksum says.
    #[error("wrong checksum of key {}", crate::ids::text_or_hex(.0))]
    WrongChecksum(OsdKey),
    /// 105: not served on this listener.
    #[error("not allowed: {0}")]
    Forbidden(String),
}

impl AsdError {
    const UNKNOWN: u32 = 1;
    const ASSERT_FAILED: u32 = 2;
    const UNKNOWN_OPERATION: u32 = 4;
    const FULL: u32 = 6;
    pub(super) const PROTOCOL_VERSION_MISMATCH: u32 = 7;
    const DAMAGED: u32 = 101;
    const BAD_REQUEST: u32 = 102;
    const OVERLOADED: u32 = 103;
    const WRONG_CHECKSUM: u32 = 104;
    const FORBIDDEN: u32 = 105;

    /// Reads what follows a status other than 0.
    pub(super) fn read(status: u32, r: &mut Reader) -> Result<Self, WireError> {
        Ok(match status {
            Self::ASSERT_FAILED => Self::AssertFailed(r.bytes()?),
            Self::UNKNOWN_OPERATION => Self::UnknownOperation,
            Self::FULL => Self::Full,
            Self::PROTOCOL_VERSION_MISMATCH => Self::ProtocolVersionMismatch(r.text_lossy()?),
            Self::DAMAGED => Self::Damaged(r.text_lossy()?),
            Self::BAD_REQUEST => Self::BadRequest(r.text_lossy()?),
            Self::OVERLOADED => Self::Overloaded(r.text_lossy()?),
            Self::WRONG_CHECKSUM => Self::WrongChecksum(r.bytes()?),
            Self::FORBIDDEN => Self::Forbidden(r.text_lossy()?),
            _ => Self::Unknown(r.text_lossy()?),
        })
    }

    fn write(&self, w: &mut Writer) {
        let (status, data): (u32, Option<&[u8]>) = match self {
            Self::Unknown(text) => (Self::UNKNOWN, Some(text.as_bytes())),
            Self::AssertFailed(key) => (Self::ASSERT_FAILED, Some(key)),
            Self::UnknownOperation => (Self::UNKNOWN_OPERATION, None),
            Self::Full => (Self::FULL, None),
            Self::ProtocolVersionMismatch(text) => (Self::PROTOCOL_VERSION_MISMATCH, Some(text.as_bytes())),
            Self::Damaged(text) => (Self::DAMAGED, Some(text.as_bytes())),
            Self::BadRequest(text) => (Self::BAD_REQUEST, Some(text.as_bytes())),
            Self::Overloaded(text) => (Self::OVERLOADED, Some(text.as_bytes())),
            Self::WrongChecksum(key) => (Self::WRONG_CHECKSUM, Some(key)),
            Self::Forbidden(text) => (Self::FORBIDDEN, Some(text.as_bytes())),
        };
        w.uint32(status);
        if let Some(data) = data {
            w.bytes(data);
        }
    }
}

impl From<RequestError> for AsdError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::UnknownOperation(_) => Self::UnknownOperation,
            RequestError::Malformed(error) => Self::BadRequest(error.to_string()),
        }
    }
}

impl From<AsdError> for OsdError {
    fn from(error: AsdError) -> Self {
        match error {
            AsdError::Unknown(text) | AsdError::ProtocolVersionMismatch(text) => Self::Device(text),
            AsdError::AssertFailed(key) => Self::AssertFailed(key),
            AsdError::UnknownOperation => Self::UnknownOperation,
            AsdError::Full => Self::Full,
            AsdError::Damaged(text) => Self::Damaged(text),
            AsdError::BadRequest(text) => Self::BadRequest(text),
            AsdError::Overloaded(text) => Self::Overloaded(text),
            AsdError::WrongChecksum(key) => Self::WrongChecksum(key),
            AsdError::Forbidden(text) => Self::Forbidden(text),
        }
    }
}

impl From<OsdError> for AsdError {
    fn from(error: OsdError) -> Self {
        match error {
            OsdError::AssertFailed(key) => Self::AssertFailed(key),
            OsdError::Full => Self::Full,
            OsdError::Damaged(text) => Self::Damaged(text),
            OsdError::UnknownOperation => Self::UnknownOperation,
            OsdError::Overloaded(text) => Self::Overloaded(text),
            OsdError::BadRequest(text) => Self::BadRequest(text),
            OsdError::WrongChecksum(key) => Self::WrongChecksum(key),
            OsdError::Forbidden(text) => Self::Forbidden(text),
            OsdError::Timeout => Self::Overloaded("not served in time".to_owned()),
            OsdError::Connection(text) | OsdError::Device(text) => Self::Unknown(text),
            other @ OsdError::WrongOsd { .. } => Self::Unknown(other.to_string()),
        }
    }
}

/// Counts and durations per operation.
#[derive(Debug, Clone, PartialEq)]
pub struct AsdStatistics {
    /// Since when, Unix seconds.
    pub creation: f64,
    /// For how long, seconds.
    pub period: f64,
    /// Durations in seconds by operation code.
    pub operations: Vec<(u32, Stat)>,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// The key.
    pub key: OsdKey,
    /// The value.
    pub value: StoredValue,
}

/// What RangeValidate found on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCheck {
    /// The key.
    pub key: OsdKey,
    /// Name of each check and whether it passed.
    pub checks: Vec<(String, bool)>,
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// To Range.
    Keys(Page<OsdKey>),
    /// To MultiGet and MultiGet2.
    Values(Vec<Option<StoredValue>>),
    /// To Apply: keys whose values went to files of their own, with a token for them; may be empty.
    Applied(Vec<(OsdKey, Bytes)>),
    /// To RangeEntries.
    Entries(Page<StoredEntry>),
    /// To Statistics.
    Statistics(AsdStatistics),
    /// To SetFull, Slowness and SetPeers.
    Done,
    /// To GetVersion.
    Version(Version),
    /// To MultiExists.
    Exists(Vec<bool>),
    /// To GetDiskUsage.
    DiskUsage(DiskUsage),
    /// To PartialGet: the slices in the order asked; none when the key is absent.
    Slices(Option<Vec<Bytes>>),
    /// To Capabilities.
    Capabilities(Vec<Capability>),
    /// To RangeValidate: what was found, and the last key looked at if there is more.
    Checked(Vec<KeyCheck>, Option<OsdKey>),
    /// To ProvenGet: none when the key is absent.
    Proven(Option<ProvenSlice>),
    /// To Health: a JSON object.
    Health(String),
}

/// The answer to a request of kind `command`, with what follows the frame. A response that does not belong to the
/// command is a programming error and is refused.
pub fn encode_answer(command: Command, answer: &Result<Response, AsdError>) -> Result<Message, WireError> {
    let mut message = Writer::frame(|w| match answer {
        Err(error) => error.write(w),
        Ok(response) => {
            w.uint32(0);
            response.write(command, w);
        }
    })?;
    match (command, answer) {
        (Command::PartialGet, Ok(Response::Slices(Some(slices)))) => {
            slices.iter().for_each(|slice| message.push_outside(slice.clone()));
        }
        (Command::MultiGet2, Ok(Response::Values(values))) => values
            .iter()
            .flatten()
            .filter(|stored| stored.value.len() >= INLINE_BELOW)
            .for_each(|stored| message.push_outside(stored.value.clone())),
        (Command::ProvenGet, Ok(Response::Proven(Some(proven)))) => {
            message.push_outside(proven.leaves.clone());
        }
        _ => {}
    }
    Ok(message)
}

impl Response {
    fn write(&self, command: Command, w: &mut Writer) {
        match (command, self) {
            (Command::Range, Self::Keys(page)) => write_page(w, page, |w, key| w.bytes(key)),
            (Command::MultiGet, Self::Values(values)) => w.list(values, |w, stored| {
                w.option(stored.as_ref(), |w, stored| {
                    w.value(&stored.value);
                    write_checksum(w, &stored.checksum);
                });
            }),
            (Command::MultiGet2, Self::Values(values)) => w.list(values, |w, stored| {
                w.option(stored.as_ref(), write_value2);
            }),
            (Command::Apply, Self::Applied(blobs)) => w.list(blobs, |w, (key, token)| {
                w.bytes(key);
                w.bytes(token);
            }),
            (Command::RangeEntries, Self::Entries(page)) => write_page(w, page, |w, entry| {
                w.bytes(&entry.key);
                w.value(&entry.value.value);
                write_checksum(w, &entry.value.checksum);
            }),
            (Command::Statistics, Self::Statistics(statistics)) => statistics.write(w),
            (Command::SetFull | Command::Slowness | Command::SetPeers, Self::Done) => {}
            (Command::GetVersion, Self::Version(version)) => version.write(w),
            (Command::MultiExists, Self::Exists(flags)) => w.list(flags, |w, flag| w.bool(*flag)),
            (Command::GetDiskUsage, Self::DiskUsage(usage)) => {
                w.size(usage.used.get());
                w.size(usage.capacity.get());
            }
            (Command::PartialGet, Self::Slices(slices)) => w.bool(slices.is_some()),
            (Command::Capabilities, Self::Capabilities(capabilities)) => write_capabilities(w, capabilities),
            (Command::RangeValidate, Self::Checked(checks, continued)) => {
                w.list(checks, |w, check| {
                    w.bytes(&check.key);
                    w.list(&check.checks, |w, (name, passed)| {
                        w.bytes(name);
                        w.bool(*passed);
                    });
                });
                w.option(continued.as_ref(), |w, key| w.bytes(key));
            }
            (Command::ProvenGet, Self::Proven(proven)) => w.option(proven.as_ref(), |w, proven| {
                w.uint32(proven.value_len);
                w.bytes(&proven.proof);
            }),
            (Command::Health, Self::Health(json)) => w.bytes(json),
            _ => w.fail(WireError::invalid("answer", "it is of another operation")),
        }
    }
}

fn write_value2(w: &mut Writer, stored: &StoredValue) {
    match i32::try_from(stored.value.len()) {
        Ok(len) if stored.value.len() >= INLINE_BELOW => {
            w.int8(2);
            w.int32(len);
        }
        _ => {
            w.int8(1);
            w.value(&stored.value);
        }
    }
    write_checksum(w, &stored.checksum);
}

impl AsdStatistics {
    fn write(&self, w: &mut Writer) {
        w.int8(2);
        w.float(self.creation);
        w.float(self.period);
        w.forward_list(&self.operations, |w, (code, stat)| {
            w.uint32(*code);
            stat.write(w);
        });
    }

    fn read(r: &mut Reader) -> Result<Self, WireError> {
        let version = r.int8()?;
        let (creation, period) = (r.float()?, r.float()?);
        let operations = match version {
            1 => [Command::MultiGet, Command::Range, Command::RangeEntries, Command::Apply]
                .into_iter()
                .map(|command| Ok((command.code(), Stat::read(r)?)))
                .collect::<Result<_, _>>()?,
            2 => r.forward_list(4 + Stat::LEN, |r| Ok((r.uint32()?, Stat::read(r)?)))?,
            other => return Err(WireError::Tag { what: "statistics version", tag: u32::from(other) }),
        };
        Ok(Self { creation, period, operations })
    }
}

/// A decoded frame: the answer, or the promise of bytes behind the frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// All of it.
    Complete(Result<Response, AsdError>),
    /// [`Outside::len`] bytes follow.
    Outside(Outside),
}

/// An answer that lacks the bytes behind its frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Outside(Pending);

#[derive(Debug, Clone, PartialEq)]
enum Pending {
    Slices(VecDeque<usize>),
    Values(Vec<Option<Value2>>),
    Leaves { value_len: u32, len: u32, proof: Bytes },
}

#[derive(Debug, Clone, PartialEq)]
enum Value2 {
    Inline(StoredValue),
    Later(usize, Checksum),
}

impl Outside {
    /// How many bytes follow the frame. The number comes from the other side: bound it before reading.
    pub fn len(&self) -> u64 {
        let lens: Vec<usize> = match &self.0 {
            Pending::Leaves { len, .. } => return u64::from(*len),
            Pending::Slices(lens) => lens.iter().copied().collect(),
            Pending::Values(values) => values
                .iter()
                .flatten()
                .filter_map(|v| if let Value2::Later(len, _) = v { Some(*len) } else { None })
                .collect(),
        };
        lens.into_iter().fold(0, |sum, len| sum.saturating_add(u64::try_from(len).unwrap_or(u64::MAX)))
    }

    /// Does nothing follow?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Completes the answer with the bytes that followed.
    pub fn complete(self, bytes: Bytes) -> Result<Response, WireError> {
        let mut r = Reader::new(bytes);
        Ok(match self.0 {
            Pending::Leaves { value_len, len, proof } => {
                let leaves = r.raw(usize::try_from(len).unwrap_or(usize::MAX))?;
                Response::Proven(Some(ProvenSlice { value_len, leaves, proof }))
            }
            Pending::Slices(lens) => {
                Response::Slices(Some(lens.into_iter().map(|len| r.raw(len)).collect::<Result<_, _>>()?))
            }
            Pending::Values(values) => {
                let fill = |value: Option<Value2>| match value {
                    None => Ok(None),
                    Some(Value2::Inline(stored)) => Ok(Some(stored)),
                    Some(Value2::Later(len, checksum)) => {
                        Ok(Some(StoredValue { value: r.raw(len)?, checksum }))
                    }
                };
                Response::Values(values.into_iter().map(fill).collect::<Result<_, WireError>>()?)
            }
        })
    }
}

/// Decodes the payload of the frame that answers `request`. Lists that should be as long as the request's are.
pub fn decode_answer(request: &Request, payload: Bytes) -> Result<Decoded, WireError> {
    let mut r = Reader::new(payload);
    let r = &mut r;
    let status = r.uint32()?;
    if status != 0 {
        return Ok(Decoded::Complete(Err(AsdError::read(status, r)?)));
    }
    let response = match request {
        Request::Range { .. } => Response::Keys(read_page(r, 4, Reader::bytes)?),
        Request::MultiGet { keys, .. } => Response::Values(as_many(keys, r, read_stored)?),
        Request::MultiGet2 { keys, .. } => {
            let values = as_many(keys, r, |r| r.option(read_value2))?;
            return Ok(Decoded::Outside(Outside(Pending::Values(values))));
        }
        Request::Apply { .. } => {
            Response::Applied(r.tail(|r| r.list(8, |r| Ok((r.bytes()?, r.bytes()?))))?.unwrap_or_default())
        }
        Request::RangeEntries { .. } => Response::Entries(read_page(r, 9, |r| {
            let key = r.bytes()?;
            Ok(StoredEntry { key, value: StoredValue { value: r.bytes()?, checksum: read_checksum(r)? } })
        })?),
        Request::Statistics { .. } => Response::Statistics(AsdStatistics::read(r)?),
        Request::SetFull(_) | Request::Slowness(_) | Request::SetPeers(_) => Response::Done,
        Request::GetVersion => Response::Version(Version::read(r)?),
        Request::MultiExists { keys, .. } => Response::Exists(as_many(keys, r, Reader::bool)?),
        Request::GetDiskUsage => Response::DiskUsage(DiskUsage {
            used: ByteCount(r.size("used")?),
            capacity: ByteCount(r.size("capacity")?),
        }),
        Request::PartialGet { slices, .. } => {
            if r.bool()? {
                let lens = slices.iter().map(|slice| usize::try_from(slice.len).unwrap_or(usize::MAX));
                return Ok(Decoded::Outside(Outside(Pending::Slices(lens.collect()))));
            }
            Response::Slices(None)
        }
        Request::Capabilities => Response::Capabilities(read_capabilities(r)?),
        Request::RangeValidate { .. } => {
            let checks = r.list(8, |r| {
                let key = r.bytes()?;
                Ok(KeyCheck { key, checks: r.list(5, |r| Ok((r.text_lossy()?, r.bool()?)))? })
            })?;
            Response::Checked(checks, r.option(Reader::bytes)?)
        }
        Request::ProvenGet { slice, .. } => match r.option(|r| read_proven(r, *slice))? {
            Some(leaves) => return Ok(Decoded::Outside(Outside(leaves))),
            None => Response::Proven(None),
        },
        Request::Health => Response::Health(r.text("health")?),
    };
    Ok(Decoded::Complete(Ok(response)))
}

/// An answer per key, no more and no less.
fn as_many<T>(
    keys: &[OsdKey],
    r: &mut Reader,
    item: impl FnMut(&mut Reader) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let answers = r.list_up_to(keys.len(), 1, item)?;
    if answers.len() == keys.len() {
        Ok(answers)
    } else {
        let reason = format!("{} for {} keys", answers.len(), keys.len());
        Err(WireError::invalid("number of answers", reason))
    }
}

/// How many leaves follow is told by the slice asked for and the length of the value: at most two leaves more than the
/// slice, whatever length is claimed.
fn read_proven(r: &mut Reader, slice: ValueSlice) -> Result<Pending, WireError> {
    let value_len = r.uint32()?;
    let proof = r.bytes()?;
    let covering =
        LeafTable::covering(value_len, slice).map_err(|error| WireError::invalid("proven slice", error))?;
    Ok(Pending::Leaves { value_len, len: covering.end - covering.start, proof })
}

fn read_stored(r: &mut Reader) -> Result<Option<StoredValue>, WireError> {
    r.option(|r| Ok(StoredValue { value: r.bytes()?, checksum: read_checksum(r)? }))
}

fn read_value2(r: &mut Reader) -> Result<Value2, WireError> {
    match r.int8()? {
        1 => Ok(Value2::Inline(StoredValue { value: r.bytes()?, checksum: read_checksum(r)? })),
        2 => {
            let len = r.int32()?;
            let len = usize::try_from(len).map_err(|_| WireError::invalid("value length", len))?;
            Ok(Value2::Later(len, read_checksum(r)?))
        }
        tag => Err(WireError::Tag { what: "value", tag: u32::from(tag) }),
    }
}
