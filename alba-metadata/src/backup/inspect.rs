//! Checks and exports of a state, whatever it was read from.

use std::ops::{Bound, ControlFlow};

use alba_core::kv::{Entry, KvError, KvRead};
use serde_json::{Value, json};

use super::format::ModelKind;
use crate::nsm::{self, Difference};
use crate::{abm, session};

/// Makes every counter and index again and gives one JSON line for each that differs: `what`, `key`, `stored`, `expected`
/// (hexadecimal), and the `namespace` it is about. Needs memory for the keys of the largest namespace.
pub fn check(model: ModelKind, view: &dyn KvRead) -> Result<Vec<String>, KvError> {
    let mut lines = Vec::new();
    match model {
        ModelKind::Nsm => {
            for (namespace, difference) in nsm::recount_group(view)? {
                lines.push(line(namespace.map(|id| id.get()), &difference));
            }
        }
        ModelKind::Abm => {
            for (key, stored, expected) in session::recount(view)? {
                let difference = Difference {
                    what: "a counter of sessions".to_owned(),
                    key,
                    stored: Some(stored.to_le_bytes().to_vec()),
                    expected: Some(expected.to_le_bytes().to_vec()),
                };
                lines.push(line(None, &difference));
            }
            lines.extend(abm::recount(view)?.iter().map(|difference| line(None, difference)));
        }
    }
    Ok(lines)
}

fn line(namespace: Option<u64>, difference: &Difference) -> String {
    let hex = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(hex::encode);
    let mut line = json!({
        "what": difference.what, "key": hex::encode(&difference.key),
        "stored": hex(&difference.stored), "expected": hex(&difference.expected),
    });
    if let (Some(namespace), Value::Object(fields)) = (namespace, &mut line) {
        fields.insert("namespace".to_owned(), json!(namespace));
    }
    line.to_string()
}

/// Gives every row as a JSON line, until `each` breaks.
pub fn export(
    model: ModelKind,
    view: &dyn KvRead,
    each: &mut dyn FnMut(String) -> ControlFlow<()>,
) -> Result<(), KvError> {
    match model {
        ModelKind::Nsm => nsm::export::lines(view, each),
        ModelKind::Abm => abm::export::lines(view, each),
    }
}

/// A state that is readable as long as somebody waits for what is made of it: a check cannot be stopped otherwise.
pub(crate) struct WhileWanted<'a> {
    pub(crate) view: &'a dyn KvRead,
    pub(crate) wanted: &'a dyn Fn() -> bool,
}

impl WhileWanted<'_> {
    fn ask(&self) -> Result<(), KvError> {
        if (self.wanted)() { Ok(()) } else { Err(KvError::Io("nobody waits for it any more".to_owned())) }
    }
}

impl KvRead for WhileWanted<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.ask()?;
        self.view.get(key)
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError> {
        self.ask()?;
        self.view.scan(lower, upper, reverse, limit)
    }
}
