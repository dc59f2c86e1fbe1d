//! Golden bytes of everything that has variants: what one build sends or stores, all later ones must read.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A line for each: its kind and number in the list, and its bytes. Reading gives it back, and no variant is left out.
pub(super) fn show<T>(kind: &str, values: &[T], lines: &mut Vec<String>)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut variants = BTreeSet::new();
    for (n, value) in values.iter().enumerate() {
        let bytes = postcard::to_stdvec(value).unwrap();
        assert_eq!(postcard::from_bytes::<T>(&bytes).unwrap(), *value);
        variants.insert(bytes[0]);
        lines.push(format!("{kind} {n} {}", hex::encode(bytes)));
    }
    let count = u8::try_from(variants.len()).unwrap();
    assert_eq!(variants, (0..count).collect(), "{kind}");
    // The one after the last does not exist: a new variant needs a line.
    let beyond: Vec<u8> = std::iter::once(count).chain([0; 400]).collect();
    assert!(postcard::from_bytes::<T>(&beyond).is_err(), "{kind}: {count} variants have no bytes here");
}

/// Compares with a file of such lines, which may be added to and never changed.
pub(super) fn compare(lines: &[String], golden: &str) {
    let golden: Vec<&str> = golden.lines().collect();
    for (line, golden) in lines.iter().zip(&golden) {
        assert_eq!(line, golden);
    }
    let further = lines.get(golden.len()..).unwrap_or_default().join("\n");
    assert_eq!(lines.len(), golden.len(), "from here on:\n{further}\n");
}
