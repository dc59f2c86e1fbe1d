//! Pages of an ordered table (wire-protocol §1.7).

use std::ops::Bound;

use alba_core::kv::{KvError, KvRead};
use alba_core::range::{Page, RangeQuery, next_prefix};

/// The page of `query` over the keys behind `prefix`; `item` makes an item of the rest of a key and its value, or
/// leaves it out.
pub(crate) fn page<T>(
    store: &(impl KvRead + ?Sized),
    prefix: &[u8],
    query: &RangeQuery,
    mut item: impl FnMut(&[u8], &[u8]) -> Result<Option<T>, KvError>,
) -> Result<Page<T>, KvError> {
    let with = |key: &[u8]| [prefix, key].concat();
    let mut lower = match query.lower() {
        Bound::Excluded(first) => Bound::Excluded(with(first)),
        Bound::Included(first) => Bound::Included(with(first)),
        Bound::Unbounded => Bound::Included(prefix.to_vec()),
    };
    let mut upper = match query.upper() {
        Bound::Included(last) => Bound::Included(with(last)),
        Bound::Excluded(last) => Bound::Excluded(with(last)),
        Bound::Unbounded => next_prefix(prefix).map_or(Bound::Unbounded, Bound::Excluded),
    };
    let limit = query.limit();
    let mut items = Vec::new();
    // One more than wanted tells whether there is more; what `item` leaves out makes further rounds necessary.
    loop {
        let wanted = limit + 1 - items.len();
        let entries = store.scan(as_ref(&lower), as_ref(&upper), query.reverse, wanted)?;
        for (key, value) in &entries {
            if let Some(item) = item(key.get(prefix.len()..).unwrap_or_default(), value)? {
                items.push(item);
            }
        }
        match entries.into_iter().last() {
            Some((last, _)) if items.len() <= limit => {
                if query.reverse {
                    upper = Bound::Excluded(last);
                } else {
                    lower = Bound::Excluded(last);
                }
            }
            _ => break,
        }
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    Ok(Page { items, has_more })
}

fn as_ref(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use alba_core::kv::MemKv;
    use alba_core::kv::{Durability, Kv, WriteBatch};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Exactly what §1.7 says, computed the plain way.
        #[test]
        fn a_page_is_what_the_protocol_says(
            keys in proptest::collection::btree_set(proptest::collection::vec(0_u8..3, 0..3), 0..13),
            first in proptest::collection::vec(0_u8..3, 0..3), first_included: bool,
            last in proptest::option::of((proptest::collection::vec(0_u8..3, 0..3), any::<bool>())),
            reverse: bool, max in -1_i32..5, skip in 0_u8..4,
        ) {
            let store = MemKv::new();
            let mut batch = WriteBatch::default();
            for key in &keys {
                batch.put([b"p", key.as_slice()].concat(), "v");
            }
            batch.put("o", "before");
            batch.put("q", "after");
            store.commit(batch, Durability::Sync).unwrap();
            let query = RangeQuery { first, first_included, last, reverse, max };
            let wanted = |key: &[u8]| key.first() != Some(&skip);
            let mut inside: Vec<_> =
                keys.into_iter().filter(|key| query.contains(key) && wanted(key)).collect();
            if reverse {
                inside.reverse();
            }
            let has_more = inside.len() > query.limit();
            inside.truncate(query.limit());
            let page = page(&store, b"p", &query, |key, _| Ok(wanted(key).then(|| key.to_vec()))).unwrap();
            prop_assert_eq!(page, Page { items: inside, has_more });
        }
    }
}
