//! What is usual among the OSDs of a chunk: whom not to ask because they are slow, and when an answer is late.

use std::time::Duration;

use alba_core::manifest::Chunk;

use crate::engine::Engine;
use crate::osd_pool::{CallSize, Member};

/// An OSD is slow when its calls take this many times what they take on most others of the chunk…
const SLOW_TIMES: u32 = 3;

/// … and this much longer: a fraction of a millisecond between fast OSDs is not worth reading more elsewhere.
const SLOW_BY: Duration = Duration::from_millis(1);

/// An answer is late after this many times what nearly all answers take. Twice keeps hedges rare where all is well.
const LATE_TIMES: u32 = 2;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    size: CallSize,
    /// The time within which nearly all calls end, on most OSDs of the chunk; none: nothing is known.
    usual: Option<Duration>,
    /// Above it an OSD is slow; none: reads don't go around slow OSDs, or nothing is known.
    slow_above: Option<Duration>,
    least: Duration,
    most: Duration,
}

/// The lower of the two in the middle, so that of two OSDs one can be slow.
fn median(mut values: Vec<Duration>) -> Option<Duration> {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

impl Pace {
    pub(super) fn of(engine: &Engine, chunk: &Chunk, size: CallSize) -> Self {
        let (mut usual, mut middle) = (Vec::new(), Vec::new());
        for osd in chunk.fragments.iter().filter_map(|fragment| fragment.location) {
            let Some(member) = engine.pool.known(osd) else { continue };
            let health = member.health();
            usual.extend(health.usual(size));
            middle.extend(health.middle(size));
        }
        let least = Duration::from_millis(engine.config.hedge_min_ms);
        let most = Duration::from_millis(engine.config.hedge_max_ms).max(least);
        let slow_above = median(middle).filter(|_| engine.hedging.is_enabled());
        Self {
            size,
            usual: median(usual),
            slow_above: slow_above.map(|middle| middle * SLOW_TIMES + SLOW_BY),
            least,
            most,
        }
    }

    pub(super) fn size(&self) -> CallSize {
        self.size
    }

    /// Is it so slow that others are asked in its place?
    pub(super) fn is_slow(&self, member: &Member) -> bool {
        let middle = member.health().middle(self.size);
        self.slow_above.zip(middle).is_some_and(|(above, middle)| middle > above)
    }

    /// After this its answer is late. By its own measure, as long as that is not far from the others'.
    pub(super) fn patience(&self, member: Option<&Member>) -> Duration {
        let Some(usual) = self.usual else { return self.most };
        let own = member.and_then(|member| member.health().usual(self.size)).unwrap_or(usual);
        (own.clamp(usual, usual * 2) * LATE_TIMES).clamp(self.least, self.most)
    }

    /// After this others are asked whatever has been spent on that.
    pub(super) fn longest(&self) -> Duration {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_the_faster_is_the_measure() {
        let millis = |list: &[u64]| list.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        assert_eq!(median(millis(&[])), None);
        assert_eq!(median(millis(&[9, 2])), Some(Duration::from_millis(2)));
        assert_eq!(median(millis(&[9, 2, 3])), Some(Duration::from_millis(3)));
        assert_eq!(median(millis(&[9, 2, 3, 4])), Some(Duration::from_millis(3)));
    }
}
