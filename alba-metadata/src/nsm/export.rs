//! A group as JSON lines, for humans: one line per row, keys taken apart, values decoded. What this version does not know or
//! cannot decode is shown as hexadecimal digits, so that nothing is left out. Not a backup format: nothing reads it back.

use std::ops::{Bound, ControlFlow};

use alba_core::ids::text_or_hex;
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::{EncryptInfo, Manifest};
use alba_core::wire::rpc::abm::OsdInfo;
use alba_core::wire::rpc::nsm::{Finding, InlineValue};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::access::State;
use super::epochs::Epochs;
use super::indexes::{self, ObjectRecord};
use super::keys::{self, Table};
use super::{Header, inline};
use crate::value::{damaged, decode, get_long, last_number};

/// Rows read at a time.
const STEP: usize = 256;

/// Gives every row as a line without its line feed, in the order of the keys, until `each` breaks. `store` should be
/// a snapshot: then the lines are of one state.
pub fn lines(store: &dyn KvRead, each: &mut dyn FnMut(String) -> ControlFlow<()>) -> Result<(), KvError> {
    let mut lower: Bound<Vec<u8>> = Bound::Unbounded;
    loop {
        let from = lower.as_ref().map(Vec::as_slice);
        let found = store.scan(from, Bound::Unbounded, false, STEP)?;
        let full = found.len() == STEP;
        for (key, value) in found {
            let line = match row(store, &key, &value) {
                Ok(None) => None,
                Ok(Some(line)) => Some(line),
                Err(error) => Some(json!({
                    "unreadable": error.to_string(), "key": hex::encode(&key), "value": hex::encode(&value),
                })),
            };
            if let Some(line) = line
                && each(line.to_string()).is_break()
            {
                return Ok(());
            }
            lower = Bound::Excluded(key);
        }
        if !full {
            return Ok(());
        }
    }
}

/// A row; none for a further piece of a value that was shown with its first.
fn row(store: &dyn KvRead, key: &[u8], value: &[u8]) -> Result<Option<Value>, KvError> {
    let unknown = || Ok(Some(json!({ "unknown": hex::encode(key), "value": hex::encode(value) })));
    let Some((&letter, rest)) = key.split_first() else { return unknown() };
    let line = match (letter, rest) {
        (b'd', []) => json!({ "table": "next_message", "id": decode_as::<u64>(value)? }),
        (b'l', b"o") => json!({ "table": "operations", "count": count(value)? }),
        (b'l', b"w") => json!({ "table": "written", "bytes": count(value)? }),
        (b'h', namespace) => header(number(namespace)?, decode(value)?),
        (b'v', namespace) => state(number(namespace)?, &decode(value)?),
        (b'g', namespace) => json!({ "table": "dropped", "namespace": number(namespace)? }),
        (b'f', namespace) => json!({ "table": "forgotten", "namespace": number(namespace)? }),
        (b'r', rest) => {
            let (namespace, osd) = rest.split_at_checked(8).ok_or_else(|| damaged("a short key"))?;
            json!({ "table": "reindexed", "namespace": number(namespace)?, "osd": number(osd)? })
        }
        (b'n', rest) => {
            let (namespace, rest) = rest.split_at_checked(8).ok_or_else(|| damaged("a short key"))?;
            let namespace = number(namespace)?;
            let Some((&letter, rest)) = rest.split_first() else { return unknown() };
            let Some(table) = Table::of_letter(letter) else { return unknown() };
            let Some(mut fields) = inside(store, key, table, rest, value)? else { return Ok(None) };
            fields.insert("namespace".to_owned(), json!(namespace));
            Value::Object(fields)
        }
        (1, rest) => match of_sessions(rest, value)? {
            Some(line) => line,
            None => return unknown(),
        },
        _ => return unknown(),
    };
    Ok(Some(line))
}

fn decode_as<T: DeserializeOwned>(value: &[u8]) -> Result<T, KvError> {
    decode(value)
}

fn number(bytes: &[u8]) -> Result<u64, KvError> {
    if bytes.len() == 8 { last_number(bytes) } else { Err(damaged("a number of another length")) }
}

fn count(value: &[u8]) -> Result<u64, KvError> {
    <[u8; 8]>::try_from(value).map(u64::from_le_bytes).map_err(damaged)
}

/// Sessions are every group's; replies are shown by their length.
fn of_sessions(rest: &[u8], value: &[u8]) -> Result<Option<Value>, KvError> {
    Ok(Some(match rest.split_first() {
        Some((b't', [])) => json!({ "table": "time", "micros": decode_as::<u64>(value)? }),
        Some((b'c', [])) => json!({ "table": "sessions", "count": count(value)? }),
        Some((b'B', [])) => json!({ "table": "reply_bytes", "bytes": count(value)? }),
        Some((b's', session)) => json!({ "table": "session", "session": number(session)? }),
        Some((b'r', rest)) if rest.len() == 18 => {
            let (session, rest) = rest.split_at(8);
            let (sequence, piece) = rest.split_at(8);
            json!({
                "table": "reply", "session": number(session)?, "sequence": number(sequence)?,
                "piece": piece.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)),
                "bytes": value.len(),
            })
        }
        _ => return Ok(None),
    }))
}

fn header(namespace: u64, header: Header) -> Value {
    json!({
        "table": "namespace", "namespace": namespace, "name": text_or_hex(header.name.as_bytes()),
        // The form for operators: it shows no keys.
        "preset": header.preset.to_json(), "preset_version": header.preset_version,
    })
}

fn state(namespace: u64, state: &State) -> Value {
    json!({
        "table": "state", "namespace": namespace, "lifecycle": format!("{:?}", state.lifecycle),
        "trashed": state.trashed, "floor": state.floor.0,
        "ended_move": state.ended.0, "moving": state.moving.as_ref().map(|moving| format!("{moving:?}")),
    })
}

fn object_id(bytes: &[u8]) -> Result<String, KvError> {
    if bytes.len() == 32 { Ok(hex::encode(bytes)) } else { Err(damaged("an object id of another length")) }
}

/// A row of a namespace.
fn inside(
    store: &dyn KvRead,
    key: &[u8],
    table: Table,
    rest: &[u8],
    value: &[u8],
) -> Result<Option<Map<String, Value>>, KvError> {
    let osd_and = |name: &str, rest: &[u8]| -> Result<(Value, Vec<u8>), KvError> {
        let (osd, rest) = rest.split_at_checked(8).ok_or_else(|| damaged("a short key"))?;
        Ok((json!({ "table": name, "osd": number(osd)? }), rest.to_vec()))
    };
    let counter = |name: &str| Ok::<_, KvError>(json!({ "table": name, "count": count(value)? }));
    let mut line = match table {
        Table::Epochs => {
            let epochs: Epochs = decode(value)?;
            json!({ "table": "epochs", "min": epochs.min.get(), "newest": epochs.newest.get() })
        }
        Table::ActiveOsds => osd_and("active_osd", rest)?.0,
        Table::DrainingOsds => osd_and("draining_osd", rest)?.0,
        Table::OsdInfos => {
            let mut line = osd_and("osd", rest)?.0;
            let info: OsdInfo = decode(value)?;
            if let Some(fields) = line.as_object_mut() {
                fields.insert("long_id".to_owned(), json!(info.long_id.as_str()));
                fields.insert("node".to_owned(), json!(info.place.node().as_str()));
            }
            line
        }
        Table::OsdBytes => {
            let mut line = osd_and("osd_bytes", rest)?.0;
            if let Some(fields) = line.as_object_mut() {
                fields.insert("bytes".to_owned(), json!(count(value)?));
            }
            line
        }
        Table::Names => json!({
            "table": "name", "name": text_or_hex(rest),
            "object": indexes::parse_name_value(value)?.to_string(),
        }),
        Table::Objects | Table::Findings => {
            let (id, piece) = rest.split_at_checked(32).ok_or_else(|| damaged("a short key"))?;
            let whole = key.len().checked_sub(2).and_then(|len| key.get(..len)).unwrap_or_default();
            let bytes = get_long(store, whole)?.ok_or_else(|| damaged("the first piece is missing"))?;
            if piece != [0, 0] {
                return Ok(None);
            }
            if table == Table::Objects {
                let record: ObjectRecord = decode(&bytes)?;
                json!({
                    "table": "object", "object": object_id(id)?, "inline": inline::is_inline(&record.manifest),
                    "fragments": record.bucket.fragments, "max_per_node": record.bucket.max_per_node,
                    "manifest": manifest(&record.manifest),
                })
            } else {
                let finding: Finding = decode(&bytes)?;
                json!({
                    "table": "finding", "object": object_id(id)?, "reason": format!("{:?}", finding.reason),
                    "manifest": manifest(&finding.manifest),
                })
            }
        }
        Table::FindingNames => {
            let at = rest.len().checked_sub(32).ok_or_else(|| damaged("a short key"))?;
            let (name, id) = rest.split_at(at);
            let name = name.get(2..).unwrap_or_default();
            json!({ "table": "finding_name", "name": text_or_hex(name), "object": object_id(id)? })
        }
        Table::ObjectsOnOsd => {
            let (mut line, id) = osd_and("object_on_osd", rest)?;
            if let Some(fields) = line.as_object_mut() {
                fields.insert("object".to_owned(), json!(object_id(&id)?));
            }
            line
        }
        Table::Buckets | Table::BucketCounts => {
            let (bucket, id) = rest.split_at_checked(10).ok_or_else(|| damaged("a short key"))?;
            let bucket = keys::parse_bucket(bucket)?;
            let (k, m) = bucket.shape.as_u8();
            let mut line = json!({
                "k": k, "m": m, "fragments": bucket.fragments, "max_per_node": bucket.max_per_node,
            });
            if let Some(fields) = line.as_object_mut() {
                if table == Table::Buckets {
                    fields.insert("table".to_owned(), json!("object_in_bucket"));
                    fields.insert("object".to_owned(), json!(object_id(id)?));
                } else {
                    fields.insert("table".to_owned(), json!("bucket"));
                    fields.insert("count".to_owned(), json!(count(value)?));
                }
            }
            line
        }
        Table::ObjectCount => counter("objects")?,
        Table::LogicalBytes => counter("logical_bytes")?,
        Table::StorageBytes => counter("storage_bytes")?,
        Table::InlineBytes => counter("inline_bytes")?,
        Table::FindingCount => counter("findings")?,
        Table::DeleteQueue => {
            let (mut line, rest) = osd_and("to_delete", rest)?;
            let fragment = keys::parse_to_delete(&rest)?;
            if let Some(fields) = line.as_object_mut() {
                fields.insert("object".to_owned(), json!(fragment.object.to_string()));
                fields.insert("chunk".to_owned(), json!(fragment.chunk.0));
                fields.insert("fragment".to_owned(), json!(fragment.fragment.0));
                fields.insert("version".to_owned(), json!(fragment.version.0));
            }
            line
        }
        Table::Queued => json!({
            "table": "queued", "object": object_id(rest)?, "count": count(value)?,
        }),
        Table::InlineValues => {
            let value: InlineValue = decode(value)?;
            json!({
                "table": "inline_value", "object": object_id(rest)?, "bytes": value.packed.len(),
                "checksum": value.checksum.to_string(),
            })
        }
        Table::Changes => json!({
            "table": "change", "number": number(rest)?,
            "key": hex::encode(value.get(1..).unwrap_or_default()),
        }),
        Table::ChangedKeys => json!({
            "table": "changed_key", "key": hex::encode(rest), "number": last_number(value)?,
        }),
    };
    Ok(line.as_object_mut().map(std::mem::take))
}

fn manifest(manifest: &Manifest) -> Value {
    let (k, m) = manifest.scheme.shape.as_u8();
    let encryption = match &manifest.encryption {
        EncryptInfo::None => json!(null),
        EncryptInfo::Aes256 { mode, key_sha256 } => {
            json!({ "mode": format!("{mode:?}"), "key_sha256": hex::encode(key_sha256) })
        }
    };
    let chunks = manifest.chunks.iter().map(|chunk| {
        let fragments = chunk.fragments.iter().map(|fragment| {
            json!({
                "osd": fragment.location.map(|osd| osd.get()), "version": fragment.version.0,
                "bytes": fragment.packed_len, "checksum": fragment.checksum.to_string(),
            })
        });
        json!({ "size": chunk.size, "fragments": fragments.collect::<Vec<_>>() })
    });
    json!({
        "name": text_or_hex(manifest.name.as_bytes()), "size": manifest.size,
        "checksum": manifest.checksum.to_string(), "k": k, "m": m,
        "compression": manifest.scheme.compression.name(), "encryption": encryption,
        "version": manifest.version.0, "max_disks_per_node": manifest.max_disks_per_node,
        "timestamp": manifest.timestamp.0, "chunks": chunks.collect::<Vec<_>>(),
    })
}
