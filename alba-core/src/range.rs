//! A range over an ordered key space, as listings use it (wire-protocol §1.7).

use std::ops::Bound;

use serde::{Deserialize, Serialize};

/// No page is longer (features, appendix A).
pub const PAGE_MAX: usize = 200;

/// Which keys, in which order, how many. `first` is always the lower bound and `last` always the upper one, also
/// when `reverse`; order is bytewise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeQuery {
    /// The lower bound.
    pub first: Vec<u8>,
    /// Is `first` itself included?
    pub first_included: bool,
    /// The upper bound and whether it is included itself; none: to the end of the key space.
    pub last: Option<(Vec<u8>, bool)>,
    /// Descending from `last` instead of ascending from `first`.
    pub reverse: bool,
    /// Wanted number; negative or above [`PAGE_MAX`] means [`PAGE_MAX`].
    pub max: i32,
}

impl RangeQuery {
    /// Everything, ascending, by pages of [`PAGE_MAX`].
    pub fn all() -> Self {
        Self { first: Vec::new(), first_included: true, last: None, reverse: false, max: -1 }
    }

    /// How many items a page may hold.
    pub fn limit(&self) -> usize {
        usize::try_from(self.max).map_or(PAGE_MAX, |max| max.min(PAGE_MAX))
    }

    /// The lower bound as the standard library spells it.
    pub fn lower(&self) -> Bound<&[u8]> {
        if self.first_included { Bound::Included(&self.first) } else { Bound::Excluded(&self.first) }
    }

    /// The upper bound as the standard library spells it.
    pub fn upper(&self) -> Bound<&[u8]> {
        match &self.last {
            None => Bound::Unbounded,
            Some((last, true)) => Bound::Included(last),
            Some((last, false)) => Bound::Excluded(last),
        }
    }

    /// Does the range hold `key`?
    pub fn contains(&self, key: &[u8]) -> bool {
        let above = match self.lower() {
            Bound::Included(first) => key >= first,
            Bound::Excluded(first) => key > first,
            Bound::Unbounded => true,
        };
        let below = match self.upper() {
            Bound::Included(last) => key <= last,
            Bound::Excluded(last) => key < last,
            Bound::Unbounded => true,
        };
        above && below
    }

    /// Can no key be in the range? (`BTreeMap::range` panics on such bounds.)
    pub fn is_empty(&self) -> bool {
        match &self.last {
            None => false,
            Some((last, included)) => {
                self.first > *last || (self.first == *last && !(self.first_included && *included))
            }
        }
    }

    /// The query for the page after one that ended with `key`.
    pub fn after(&self, key: &[u8]) -> Self {
        let mut next = self.clone();
        if self.reverse {
            next.last = Some((key.to_vec(), false));
        } else {
            next.first = key.to_vec();
            next.first_included = false;
        }
        next
    }
}

/// One page of a listing, in the order of iteration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// What was found.
    pub items: Vec<T>,
    /// True exactly when the page is full and the next key is still inside the range.
    pub has_more: bool,
}

/// The exclusive end of all keys that begin with `prefix`: add 1 to the last byte, carrying; none when every
/// byte is 0xff.
pub fn next_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(bumped) = last.checked_add(1) {
            end.push(bumped);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_limit_is_200_whatever_is_asked() {
        let page = |max| RangeQuery { max, ..RangeQuery::all() }.limit();
        assert_eq!((page(-1), page(0), page(7), page(200), page(100_000)), (200, 0, 7, 200, 200));
    }

    #[test]
    fn empty_ranges_are_recognised() {
        let range = |first: &str, fi, last: &str, li| RangeQuery {
            first: first.into(),
            first_included: fi,
            last: Some((last.into(), li)),
            reverse: false,
            max: -1,
        };
        assert!(!range("a", true, "a", true).is_empty());
        assert!(range("a", true, "a", false).is_empty());
        assert!(range("b", true, "a", true).is_empty());
        assert!(!range("a", false, "b", false).is_empty());
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert_eq!(next_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(next_prefix(&[1, 0xff]), Some(vec![2]));
        assert_eq!(next_prefix(&[0xff, 0xff]), None);
    }
}
