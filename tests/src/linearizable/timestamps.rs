//! Times that a group gives to what it stores: later commands get later ones, whoever leads and whatever its clock says.

use std::collections::BTreeMap;

use super::object::Value;

/// An acknowledged put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// What it stored.
    pub value: Value,
    /// The time it was given.
    pub time: u64,
    /// When it was asked for, nanoseconds of the test.
    pub invoked: u64,
    /// When its answer was there.
    pub returned: u64,
}

/// Two puts of which the second began after the first had ended and was not given a later time.
pub fn out_of_order(stamps: &[Stamp]) -> Option<(Stamp, Stamp)> {
    let mut begun: Vec<Stamp> = stamps.to_vec();
    begun.sort_by_key(|stamp| stamp.invoked);
    let mut ended = begun.clone();
    ended.sort_by_key(|stamp| stamp.returned);
    let mut ended = ended.into_iter().peekable();
    let mut latest: Option<Stamp> = None;
    for stamp in begun {
        while let Some(before) = ended.next_if(|before| before.returned < stamp.invoked) {
            if latest.is_none_or(|latest| latest.time < before.time) {
                latest = Some(before);
            }
        }
        if let Some(before) = latest.filter(|before| before.time >= stamp.time) {
            return Some((before, stamp));
        }
    }
    None
}

/// A value that was seen with two times.
pub fn changed(seen: impl IntoIterator<Item = (Value, u64)>) -> Option<(Value, u64, u64)> {
    let mut known = BTreeMap::new();
    seen.into_iter().find_map(|(value, time)| {
        let first = *known.entry(value).or_insert(time);
        (first != time).then_some((value, first, time))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(value: u64, time: u64, invoked: u64, returned: u64) -> Stamp {
        Stamp { value: Value(value), time, invoked, returned }
    }

    #[test]
    fn only_puts_one_after_the_other_are_compared() {
        let (first, second) = (stamp(1, 20, 0, 10), stamp(2, 10, 5, 15));
        assert_eq!(out_of_order(&[second, first]), None, "they overlap");
        let third = stamp(3, 20, 16, 17);
        assert_eq!(out_of_order(&[third, first, second]), Some((first, third)));
        assert_eq!(out_of_order(&[first, second, stamp(3, 21, 16, 17)]), None);
    }

    #[test]
    fn one_value_has_one_time() {
        assert_eq!(changed([(Value(1), 5), (Value(2), 6), (Value(1), 5)]), None);
        assert_eq!(changed([(Value(1), 5), (Value(1), 6)]), Some((Value(1), 5, 6)));
    }
}
