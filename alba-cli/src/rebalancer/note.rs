//! What a rebalancer tells of itself where agents say that they are there, and `alba status` reads.

use std::fmt;
use std::str::FromStr;

use alba_rebalancer::observe::Observation;

/// OSDs by tenths of their capacity that are used.
pub(crate) type Tenths = [u64; 10];

/// Which tenth of its capacity is used; overfull ones are in the last.
pub(crate) fn tenth(used: u64, capacity: u64) -> usize {
    let tenth = (u128::from(used) * 10).checked_div(u128::from(capacity)).unwrap_or(9);
    usize::try_from(tenth).unwrap_or(9).min(9)
}

/// Counts OSDs, given as used and capacity.
pub(crate) fn tenths(osds: impl Iterator<Item = (u64, u64)>) -> Tenths {
    let mut tenths = [0; 10];
    for (used, capacity) in osds {
        if let Some(count) = tenths.get_mut(tenth(used, capacity)) {
            *count += 1;
        }
    }
    tenths
}

/// Of the run in which something moved last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note {
    /// The fill when it began.
    pub(crate) before: Tenths,
    /// Moves that it has made.
    pub(crate) moves: u64,
}

impl Note {
    /// Nothing has moved yet.
    pub(crate) fn of(before: &Observation) -> Self {
        let osds = before.osds.values().map(|fill| (fill.used.get(), fill.total.get()));
        Self { before: tenths(osds), moves: 0 }
    }
}

const BEFORE: &str = "fill-before=";
const MOVES: &str = "moves=";

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.before.map(|count| count.to_string());
        write!(f, "{BEFORE}{} {MOVES}{}", counts.join(","), self.moves)
    }
}

/// There is no note in this text, or one of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoNote;

impl FromStr for Note {
    type Err = NoNote;

    /// From anywhere in what an agent says.
    fn from_str(text: &str) -> Result<Self, NoNote> {
        let value = |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key)).ok_or(NoNote);
        let number = |text: &str| text.parse::<u64>().map_err(|_| NoNote);
        let counts = value(BEFORE)?.split(',').map(number).collect::<Result<Vec<u64>, _>>()?;
        Ok(Self { before: counts.try_into().map_err(|_| NoNote)?, moves: number(value(MOVES)?)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is_one() {
        let note = Note { before: [3, 0, 0, 0, 0, 0, 12, 0, 0, 0], moves: 412 };
        let text = format!("alba-maintenance 0.1.0; {note}");
        assert_eq!(text, "alba-maintenance 0.1.0; fill-before=3,0,0,0,0,0,12,0,0,0 moves=412");
        assert_eq!(text.parse(), Ok(note));
        for other in ["alba-maintenance 0.1.0", "fill-before=1,2 moves=3", "fill-before=x moves=3", ""] {
            assert_eq!(other.parse::<Note>(), Err(NoNote), "{other}");
        }
        let most = Note { before: [u64::MAX; 10], moves: u64::MAX };
        assert!(most.to_string().len() < 256, "as much as an agent may say of itself");
    }

    #[test]
    fn tenths_are_of_the_capacity() {
        assert_eq!(
            [tenth(0, 100), tenth(9, 100), tenth(10, 100), tenth(100, 100), tenth(7, 0)],
            [0, 0, 1, 9, 9]
        );
        assert_eq!(tenths([(0, 10), (6, 10), (6, 10)].into_iter()), [1, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    }
}
