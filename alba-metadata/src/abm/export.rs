//! The ABM as JSON lines, for humans: one line per row, with the table's name and, where a record says something to
//! people, the record. Keys are shown as text where they are text and as hexadecimal digits elsewhere, so that nothing is left
//! out. Not a backup format: nothing reads it back.

use std::fmt::Debug;
use std::ops::{Bound, ControlFlow};

use alba_core::ids::text_or_hex;
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::abm::{JobRecord, LeaseRecord, NamespaceRecord, OsdRecord, WorkRecord};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::keys;
use super::lifecycle::LinkState;
use crate::value::decode;

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
            if each(row(&key, &value).to_string()).is_break() {
                return Ok(());
            }
            lower = Bound::Excluded(key);
        }
        if !full {
            return Ok(());
        }
    }
}

/// A record as the program shows it to its developers: complete, if not pretty.
fn shown<T: DeserializeOwned + Debug>(value: &[u8]) -> Value {
    match decode::<T>(value) {
        Ok(record) => json!(format!("{record:?}")),
        Err(error) => json!({ "unreadable": error.to_string(), "value": hex::encode(value) }),
    }
}

fn row(key: &[u8], value: &[u8]) -> Value {
    let Some((letter, rest)) = key.split_first() else {
        return json!({ "unknown": "", "value": hex::encode(value) });
    };
    let named =
        |table: &str, record: Value| json!({ "table": table, "key": text_or_hex(rest), "record": record });
    let raw = |table: &str| json!({ "table": table, "key": hex::encode(rest), "value": hex::encode(value) });
    match std::slice::from_ref(letter) {
        keys::OSDS => named("osd", shown::<OsdRecord>(value)),
        keys::NAMESPACES => named("namespace", shown::<NamespaceRecord>(value)),
        keys::JOBS => named("job", shown::<JobRecord>(value)),
        keys::LEASES => named("lease", shown::<LeaseRecord>(value)),
        keys::WORK => {
            json!({ "table": "work", "key": hex::encode(rest), "record": shown::<WorkRecord>(value) })
        }
        keys::LINKS => {
            json!({ "table": "link", "key": hex::encode(rest), "record": shown::<LinkState>(value) })
        }
        // What a preset or a message holds may be secret: its length only.
        keys::PRESETS => json!({ "table": "preset", "key": text_or_hex(rest), "bytes": value.len() }),
        keys::QUEUES => json!({ "table": "message", "key": hex::encode(rest), "bytes": value.len() }),
        keys::LETTERS => json!({ "table": "dead_letter", "key": hex::encode(rest), "bytes": value.len() }),
        keys::GROUPS => json!({ "table": "group", "key": text_or_hex(rest), "value": hex::encode(value) }),
        keys::ALBA_ID => raw("alba_id"),
        keys::DEFAULT_PRESET => raw("default_preset"),
        keys::OSD_IDS => raw("osd_id"),
        keys::NAMESPACE_IDS => raw("namespace_id"),
        keys::HEALTH => raw("health"),
        keys::PARTICIPANTS => raw("participant"),
        // Replies to clients, which may repeat what a preset holds.
        &[1] => json!({ "table": "sessions", "key": hex::encode(rest), "bytes": value.len() }),
        _ => {
            json!({ "table": text_or_hex(&[*letter]), "key": hex::encode(rest), "value": hex::encode(value) })
        }
    }
}
