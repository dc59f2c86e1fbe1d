//! How much each OSD has to bear: moves at once, and bytes per second, as source and as target alike.
//!
//! Pure. A move takes a place on both of its OSDs; the rate is kept as the moment at which the next one may begin (the
//! generic cell rate algorithm, ITU-T I.371, without bursts).

use std::collections::BTreeMap;
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::ids::OsdId;

/// What one OSD has to bear at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OsdLimits {
    /// Bytes per second, at least 1.
    pub bytes_per_second: u64,
    /// Moves side by side, at least 1.
    pub moves_at_once: usize,
}

/// May a move begin?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// Yes.
    Now,
    /// Not before.
    At(Moment),
    /// When another one has ended.
    Busy,
}

#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    running: usize,
    /// When the rate allows the next one.
    free: Moment,
}

/// What the OSDs bear now.
#[derive(Debug)]
pub struct Lanes {
    limits: OsdLimits,
    osds: BTreeMap<OsdId, Lane>,
}

/// Longest that one move keeps an OSD from the next, however large it is.
const LONGEST: Duration = Duration::from_secs(60);

impl Lanes {
    /// With nothing under way.
    pub fn new(limits: OsdLimits) -> Self {
        let (bytes_per_second, moves_at_once) = (limits.bytes_per_second.max(1), limits.moves_at_once.max(1));
        Self { limits: OsdLimits { bytes_per_second, moves_at_once }, osds: BTreeMap::new() }
    }

    fn lane(&self, osd: OsdId) -> Lane {
        self.osds.get(&osd).copied().unwrap_or_default()
    }

    /// May a move between these begin?
    pub fn ready(&self, source: OsdId, target: OsdId, now: Moment) -> Ready {
        let lanes = [self.lane(source), self.lane(target)];
        if lanes.iter().any(|lane| lane.running >= self.limits.moves_at_once) {
            return Ready::Busy;
        }
        let free = lanes.map(|lane| lane.free).into_iter().max().unwrap_or_default();
        if free > now { Ready::At(free) } else { Ready::Now }
    }

    /// A move of so many bytes begins.
    pub fn begin(&mut self, source: OsdId, target: OsdId, bytes: u64, now: Moment) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.limits.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(LONGEST);
        for osd in [source, target] {
            let lane = self.osds.entry(osd).or_default();
            lane.running += 1;
            lane.free = lane.free.max(now).plus(cost);
        }
    }

    /// It has ended.
    pub fn end(&mut self, source: OsdId, target: OsdId) {
        for osd in [source, target] {
            if let Some(lane) = self.osds.get_mut(&osd) {
                lane.running = lane.running.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OSDS: [OsdId; 3] = [OsdId::from_u32(0), OsdId::from_u32(1), OsdId::from_u32(2)];

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn an_osd_has_so_many_moves_at_once_whether_it_gives_or_takes() {
        let mut lanes = Lanes::new(OsdLimits { bytes_per_second: u64::MAX, moves_at_once: 2 });
        lanes.begin(OSDS[0], OSDS[1], 1, at(0));
        assert_eq!(lanes.ready(OSDS[2], OSDS[0], at(1)), Ready::Now);
        lanes.begin(OSDS[2], OSDS[0], 1, at(1));
        assert_eq!(lanes.ready(OSDS[0], OSDS[1], at(2)), Ready::Busy);
        assert_eq!(lanes.ready(OSDS[1], OSDS[2], at(2)), Ready::Now, "these two have one each");
        lanes.end(OSDS[0], OSDS[1]);
        assert_eq!(lanes.ready(OSDS[0], OSDS[1], at(2)), Ready::Now);
    }

    #[test]
    fn no_osd_moves_more_than_its_rate() {
        let mut lanes = Lanes::new(OsdLimits { bytes_per_second: 1000, moves_at_once: 9 });
        let (mut now, mut moved) = (at(1000), 0);
        while now < at(11_000) {
            match lanes.ready(OSDS[0], OSDS[1], now) {
                Ready::Now => {
                    lanes.begin(OSDS[0], OSDS[1], 50, now);
                    lanes.end(OSDS[0], OSDS[1]);
                    moved += 50;
                }
                Ready::At(next) => now = next,
                Ready::Busy => panic!("all have ended"),
            }
        }
        assert_eq!(moved, 10_000);
        assert_eq!(lanes.ready(OSDS[2], OSDS[2], now), Ready::Now, "the others are not held up");
    }

    #[test]
    fn limits_of_nothing_hold_nothing_up_for_ever() {
        let mut lanes = Lanes::new(OsdLimits { bytes_per_second: 0, moves_at_once: 0 });
        assert_eq!(lanes.ready(OSDS[0], OSDS[1], at(0)), Ready::Now);
        lanes.begin(OSDS[0], OSDS[1], u64::MAX, at(0));
        lanes.end(OSDS[0], OSDS[1]);
        assert_eq!(lanes.ready(OSDS[0], OSDS[1], at(60_000)), Ready::Now);
    }
}
