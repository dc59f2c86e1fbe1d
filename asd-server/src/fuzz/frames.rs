//! The ASD protocol's decoders: garbage, valid messages and such with some damage. None of them may panic, and what was
//! understood is understood the same when it is sent on.

use alba_core::checksum::Checksum;
use alba_core::env::osd::{
    DiskUsage, OsdAssert, OsdBatch, OsdUpdate, PeerSource, Priority, ProvenSlice, StoredValue, ValueSlice,
};
use alba_core::ids::LongId;
use alba_core::range::{Page, RangeQuery};
use alba_core::units::ByteCount;
use alba_core::wire::asd::{
    AsdError, AsdStatistics, Decoded, KeyCheck, Peer, Request, Response, Slowness, StoredEntry,
    decode_answer, decode_prologue_answer, encode_answer,
};
use alba_core::wire::common::{Stat, Version};
use alba_core::wire::llio::{Message, Reader};
use alba_core::wire::osd_info::Capability;
use arbitrary::{Result, Unstructured};
use bytes::Bytes;

type Input<'a, 'b> = &'a mut Unstructured<'b>;

fn bytes(u: Input<'_, '_>) -> Result<Bytes> {
    let len = u.int_in_range(0..=24)?.min(u.len());
    Ok(Bytes::copy_from_slice(u.bytes(len)?))
}

fn list<T>(u: Input<'_, '_>, mut item: impl FnMut(Input<'_, '_>) -> Result<T>) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=4)?).map(|_| item(u)).collect()
}

fn option<T>(u: Input<'_, '_>, item: impl FnOnce(Input<'_, '_>) -> Result<T>) -> Result<Option<T>> {
    if u.arbitrary()? { item(u).map(Some) } else { Ok(None) }
}

fn text(u: Input<'_, '_>) -> Result<String> {
    Ok(String::from_utf8_lossy(&bytes(u)?).into_owned())
}

fn long_id(u: Input<'_, '_>) -> Result<LongId> {
    LongId::new(format!("osd{}", u.arbitrary::<u16>()?)).map_err(|_| arbitrary::Error::IncorrectFormat)
}

fn checksum(u: Input<'_, '_>) -> Result<Checksum> {
    Ok(match u.int_in_range(0..=3)? {
        0 => Checksum::None,
        1 => Checksum::Sha1(u.arbitrary()?),
        2 => Checksum::Crc32c(u.arbitrary()?),
        _ => Checksum::Blake3(u.arbitrary()?),
    })
}

fn stored(u: Input<'_, '_>) -> Result<StoredValue> {
    // Some are too large to travel inside the frame of MultiGet2.
    let value =
        if u.ratio(1, 8)? { Bytes::from(vec![5; u.int_in_range(16_380..=16_390)?]) } else { bytes(u)? };
    Ok(StoredValue { value, checksum: checksum(u)? })
}

fn priority(u: Input<'_, '_>) -> Result<Priority> {
    Ok(if u.arbitrary()? { Priority::High } else { Priority::Low })
}

fn slice(u: Input<'_, '_>) -> Result<ValueSlice> {
    // Short ones: whoever reads an answer bounds what follows it.
    Ok(ValueSlice { offset: u.arbitrary()?, len: u.int_in_range(0..=5000)? })
}

fn query(u: Input<'_, '_>) -> Result<RangeQuery> {
    Ok(RangeQuery {
        first: bytes(u)?.to_vec(),
        first_included: u.arbitrary()?,
        last: option(u, |u| Ok((bytes(u)?.to_vec(), u.arbitrary()?)))?,
        reverse: u.arbitrary()?,
        max: u.arbitrary()?,
    })
}

fn batch(u: Input<'_, '_>) -> Result<OsdBatch> {
    let asserts = list(u, |u| {
        Ok(if u.arbitrary()? { OsdAssert::Absent(bytes(u)?) } else { OsdAssert::Value(bytes(u)?, bytes(u)?) })
    })?;
    let updates = list(u, |u| {
        Ok(match u.int_in_range(0..=3)? {
            0 => OsdUpdate::Delete(bytes(u)?),
            1 => OsdUpdate::Set(bytes(u)?, stored(u)?),
            2 => OsdUpdate::DeleteRange(bytes(u)?, bytes(u)?),
            _ => {
                let source = PeerSource { peer: long_id(u)?, key: bytes(u)?, checksum: checksum(u)? };
                OsdUpdate::SetFromPeer(bytes(u)?, source)
            }
        })
    })?;
    Ok(OsdBatch { asserts, updates })
}

fn peer(u: Input<'_, '_>) -> Result<Peer> {
    let addresses = list(u, |u| {
        let (scheme, port) = (if u.arbitrary()? { "tcp" } else { "quic" }, u.arbitrary::<u16>()?);
        let text = format!("{scheme}://10.0.0.1:{port}");
        text.parse().map_err(|_| arbitrary::Error::IncorrectFormat)
    })?;
    Ok(Peer { long_id: long_id(u)?, addresses })
}

fn request(u: Input<'_, '_>) -> Result<Request> {
    Ok(match u.int_in_range(0..=16)? {
        0 => Request::Range { query: query(u)?, priority: priority(u)? },
        1 => Request::MultiGet { keys: list(u, bytes)?, priority: priority(u)? },
        2 => Request::Apply { batch: batch(u)?, priority: priority(u)? },
        3 => Request::RangeEntries { query: query(u)?, priority: priority(u)? },
        4 => Request::Statistics { clear: u.arbitrary()? },
        5 => Request::SetFull(u.arbitrary()?),
        6 => Request::GetVersion,
        7 => Request::MultiGet2 { keys: list(u, bytes)?, priority: priority(u)? },
        8 => Request::MultiExists { keys: list(u, bytes)?, priority: priority(u)? },
        9 => Request::GetDiskUsage,
        10 => Request::PartialGet { key: bytes(u)?, slices: list(u, slice)?, priority: priority(u)? },
        11 => Request::Capabilities,
        12 => Request::RangeValidate {
            query: query(u)?,
            verify_checksum: u.arbitrary()?,
            show_all: u.arbitrary()?,
            priority: priority(u)?,
        },
        13 => Request::Slowness(option(u, |u| {
            Ok(Slowness { fixed: u.arbitrary()?, variable: u.arbitrary()? })
        })?),
        14 => Request::ProvenGet { key: bytes(u)?, slice: slice(u)?, priority: priority(u)? },
        15 => Request::SetPeers(list(u, peer)?),
        _ => Request::Health,
    })
}

fn error(u: Input<'_, '_>) -> Result<AsdError> {
    Ok(match u.int_in_range(0..=9)? {
        0 => AsdError::Unknown(text(u)?),
        1 => AsdError::AssertFailed(bytes(u)?),
        2 => AsdError::UnknownOperation,
        3 => AsdError::Full,
        4 => AsdError::ProtocolVersionMismatch(text(u)?),
        5 => AsdError::Damaged(text(u)?),
        6 => AsdError::BadRequest(text(u)?),
        7 => AsdError::Overloaded(text(u)?),
        8 => AsdError::WrongChecksum(bytes(u)?),
        _ => AsdError::Forbidden(text(u)?),
    })
}

/// An answer that fits to `request`.
fn response(u: Input<'_, '_>, request: &Request) -> Result<Response> {
    Ok(match request {
        Request::Range { .. } => Response::Keys(Page { items: list(u, bytes)?, has_more: u.arbitrary()? }),
        Request::MultiGet { keys, .. } | Request::MultiGet2 { keys, .. } => {
            Response::Values(keys.iter().map(|_| option(u, stored)).collect::<Result<_>>()?)
        }
        Request::Apply { .. } => Response::Applied(list(u, |u| Ok((bytes(u)?, bytes(u)?)))?),
        Request::RangeEntries { .. } => {
            let items = list(u, |u| Ok(StoredEntry { key: bytes(u)?, value: stored(u)? }))?;
            Response::Entries(Page { items, has_more: u.arbitrary()? })
        }
        Request::Statistics { .. } => Response::Statistics(AsdStatistics {
            creation: u.arbitrary()?,
            period: u.arbitrary()?,
            operations: list(u, |u| Ok((u.arbitrary()?, Stat { n: u.arbitrary()?, ..Stat::default() })))?,
        }),
        Request::SetFull(_) | Request::Slowness(_) | Request::SetPeers(_) => Response::Done,
        Request::GetVersion => {
            let [major, minor, patch] = u.arbitrary()?;
            Response::Version(Version { major, minor, patch, revision: text(u)? })
        }
        Request::MultiExists { keys, .. } => {
            Response::Exists(keys.iter().map(|_| u.arbitrary()).collect::<Result<_>>()?)
        }
        Request::GetDiskUsage => Response::DiskUsage(DiskUsage {
            used: ByteCount(u.arbitrary::<u32>()?.into()),
            capacity: ByteCount(u.arbitrary::<u32>()?.into()),
        }),
        Request::PartialGet { slices, .. } => {
            let filled = |slice: &ValueSlice| Bytes::from(vec![7; usize::try_from(slice.len).unwrap()]);
            Response::Slices(option(u, |_| Ok(slices.iter().map(filled).collect()))?)
        }
        Request::Capabilities => Response::Capabilities(list(u, |u| {
            Ok(match u.int_in_range(0..=3)? {
                0 => Capability::MultiGet2,
                1 => Capability::PartialGet,
                2 => Capability::RoraFetcher { port: u.arbitrary()? },
                _ => Capability::ProvenGet,
            })
        })?),
        Request::RangeValidate { .. } => {
            let check = |u: Input<'_, '_>| {
                Ok(KeyCheck { key: bytes(u)?, checks: list(u, |u| Ok((text(u)?, u.arbitrary()?)))? })
            };
            Response::Checked(list(u, check)?, option(u, bytes)?)
        }
        // Whether the leaves are as many as asked for is looked at by who receives them.
        Request::ProvenGet { .. } => Response::Proven(option(u, |u| {
            Ok(ProvenSlice { value_len: u.arbitrary()?, leaves: bytes(u)?, proof: bytes(u)? })
        })?),
        Request::Health => Response::Health(text(u)?),
    })
}

/// A message in its two parts: what its length counts, and what follows.
fn parts(message: &Message) -> (Bytes, Bytes) {
    let mut r = Reader::new(message.to_bytes());
    let len = usize::try_from(r.uint32().unwrap()).unwrap();
    (r.raw(len).unwrap(), r.rest())
}

/// Some bytes changed, inserted, removed, or cut off.
fn damaged(u: Input<'_, '_>, frame: &[u8]) -> Result<Bytes> {
    let mut frame = frame.to_vec();
    for _ in 0..u.int_in_range(1..=4)? {
        if frame.is_empty() {
            break;
        }
        let at = u.choose_index(frame.len())?;
        match u.int_in_range(0..=4)? {
            0 => frame[at] = u.arbitrary()?,
            1 => frame[at] ^= 1 << u.int_in_range(0..=7)?,
            2 => frame.insert(at, u.arbitrary()?),
            3 => drop(frame.remove(at)),
            _ => frame.truncate(at),
        }
    }
    Ok(frame.into())
}

/// Decodes a request; what is understood is understood the same when it is sent on.
fn take_request(frame: Bytes) {
    let Ok(request) = Request::decode(frame) else { return };
    let (again, outside) = parts(&request.encode().expect("what was read can be written"));
    assert!(outside.is_empty(), "requests have nothing behind their frame");
    let second = Request::decode(again.clone()).expect("what we write can be read");
    // Compared as bytes: a float that is no number is not even equal to itself.
    assert_eq!(parts(&second.encode().unwrap()).0, again, "{request:?}");
}

/// Decodes an answer to `request`, and sends on what is understood of it.
fn take_answer(request: &Request, frame: Bytes, behind: Bytes) {
    let answer = match decode_answer(request, frame) {
        Ok(Decoded::Complete(answer)) => answer,
        // Whoever reads from a connection bounds that number before.
        Ok(Decoded::Outside(outside)) => match outside.complete(behind) {
            Ok(response) => Ok(response),
            Err(_) => return,
        },
        Err(_) => return,
    };
    let message = encode_answer(request.command(), &answer).expect("what was read can be written");
    let (frame, behind) = parts(&message);
    let second = match decode_answer(request, frame).expect("what we write can be read") {
        Decoded::Complete(answer) => answer,
        Decoded::Outside(outside) => {
            assert_eq!(outside.len(), u64::try_from(behind.len()).unwrap(), "{answer:?}");
            Ok(outside.complete(behind).expect("all of it is there"))
        }
    };
    let second = encode_answer(request.command(), &second).unwrap();
    assert!(second.to_bytes() == message.to_bytes(), "{answer:?}");
}

/// The target.
pub fn asd_frames(input: &[u8]) {
    let all = Bytes::copy_from_slice(input);
    take_request(all.clone());
    drop(decode_prologue_answer(&mut Reader::new(all.clone())));
    // Out of input: nothing to try.
    let _ = generated(&mut Unstructured::new(input), &all);
}

fn generated(u: Input<'_, '_>, garbage: &Bytes) -> Result<()> {
    let request = request(u)?;
    let (frame, _) = parts(&request.encode().unwrap());
    let read = Request::decode(frame.clone()).expect("a valid request");
    assert_eq!(parts(&read.encode().unwrap()).0, frame, "{request:?}");
    // Garbage as the answer to it, as a success and as any error.
    take_answer(&request, garbage.clone(), garbage.clone());
    take_answer(&request, [&[0; 4][..], garbage].concat().into(), garbage.clone());

    let answer = if u.ratio(1, 4)? { Err(error(u)?) } else { Ok(response(u, &request)?) };
    let (answered, behind) = parts(&encode_answer(request.command(), &answer).unwrap());
    take_answer(&request, answered.clone(), behind.clone());
    take_answer(&request, damaged(u, &answered)?, behind);
    take_request(damaged(u, &frame)?);
    Ok(())
}
