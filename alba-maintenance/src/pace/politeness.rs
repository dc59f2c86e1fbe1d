//! How much of its rates maintenance uses, by how much slower the OSDs answer than when they are idle.
//!
//! The measure is what clients feel: a small request of a client's priority, timed from here. Where that takes no longer than
//! on an idle OSD, maintenance disturbs nobody and goes at full rate; the more it takes, the less it does. It never stops
//! altogether, since what it does makes data safe.

use std::collections::BTreeMap;
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::ids::OsdId;

/// All of a rate.
pub const FULL: u16 = 1000;

/// Least of a rate: a twentieth.
const LEAST: u16 = 50;

/// Below this every answer counts as fast: it is noise of the network and of this process.
const FAST: Duration = Duration::from_micros(400);

/// So many percent of the idle latency are what an idle disk shows, too, now and then. With twice the latency slices of clients
/// took 3.6 times as long in the bench `repair`: what they wait for is more than one such answer.
const EASY_PERCENT: u128 = 150;

/// A baseline older than this is raised to what is seen: a disk that was exchanged for a slower one is no busy disk.
const BASELINE_LIFE: Duration = Duration::from_secs(600);

/// The share of the rates at this latency, of [`FULL`]: all up to one and a half times the idle latency, then falling with its
/// square (three times: a quarter), and never below [`LEAST`].
pub fn share_of(observed: Duration, idle: Duration) -> u16 {
    let (observed, easy) = (observed.as_micros(), idle.max(FAST).as_micros() * EASY_PERCENT / 100);
    if observed <= easy {
        return FULL;
    }
    let share = u128::from(FULL) * easy * easy / (observed * observed).max(1);
    u16::try_from(share).unwrap_or(FULL).clamp(LEAST, FULL)
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Smoothed, as TCP does it.
    now: Duration,
    /// The shortest of late.
    idle: Duration,
    idle_at: Moment,
}

/// What is known of the OSDs' latency.
#[derive(Debug, Default)]
pub struct Politeness {
    osds: BTreeMap<OsdId, Seen>,
}

impl Politeness {
    /// A small request of a client's priority took so long. One without an answer took at least as long as it was waited for.
    pub fn observe(&mut self, osd: OsdId, latency: Duration, now: Moment) {
        let seen = self.osds.entry(osd).or_insert(Seen { now: latency, idle: latency, idle_at: now });
        seen.now = (seen.now * 3 + latency) / 4;
        if latency <= seen.idle {
            (seen.idle, seen.idle_at) = (latency, now);
        } else if now.since(seen.idle_at) > BASELINE_LIFE {
            (seen.idle, seen.idle_at) = (seen.idle + (seen.now - seen.idle.min(seen.now)) / 4, now);
        }
    }

    /// It is no member any more, or gives no answers: clients go around it.
    pub fn forget(&mut self, osd: OsdId) {
        self.osds.remove(&osd);
    }

    /// The share of the rates that disturbs clients little, of [`FULL`]: by the OSD at the upper quartile, since one slow disk
    /// is no busy cluster.
    pub fn share(&self) -> u16 {
        let mut shares: Vec<u16> = self.osds.values().map(|seen| share_of(seen.now, seen.idle)).collect();
        shares.sort_unstable();
        shares.get(shares.len() / 4).copied().unwrap_or(FULL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn full_speed_when_idle_and_polite_when_not() {
        let shares = [1, 2, 3, 6, 8, 1000].map(|observed| share_of(ms(observed), ms(1)));
        assert_eq!(shares, [FULL, 562, FULL / 4, 62, LEAST, LEAST]);
        assert_eq!(share_of(Duration::from_micros(1500), ms(1)), FULL, "an idle disk shows that, too");
        assert_eq!(share_of(Duration::from_micros(600), Duration::ZERO), FULL, "noise is no load");
        for observed in 1..200 {
            assert!(share_of(ms(observed + 1), ms(1)) <= share_of(ms(observed), ms(1)));
        }
    }

    #[test]
    fn load_is_noticed_within_a_few_answers_and_forgotten_as_fast() {
        let mut politeness = Politeness::default();
        let mut observe = |millis, at: u64| {
            for osd in 0..8 {
                politeness.observe(OsdId::from_u32(osd), ms(millis), Moment(Duration::from_secs(at)));
            }
            politeness.share()
        };
        assert_eq!(observe(1, 0), FULL);
        let loaded: Vec<u16> = (1..8).map(|at| observe(10, at)).collect();
        assert!(loaded[6] < FULL / 10 && loaded.is_sorted_by(|a, b| a >= b), "{loaded:?}");
        let idle: Vec<u16> = (8..24).map(|at| observe(1, at)).collect();
        assert_eq!(idle[15], FULL, "{idle:?}");
    }

    #[test]
    fn one_slow_disk_is_no_busy_cluster_and_slow_for_long_is_no_load() {
        let mut politeness = Politeness::default();
        let at = |seconds| Moment(Duration::from_secs(seconds));
        for osd in 0..8 {
            politeness.observe(OsdId::from_u32(osd), ms(1), at(0));
        }
        (1..20).for_each(|second| politeness.observe(OsdId::from_u32(0), ms(500), at(second)));
        assert_eq!(politeness.share(), FULL);
        let mut alone = Politeness::default();
        alone.observe(OsdId::from_u32(0), ms(1), at(0));
        (1..100_u64).for_each(|minute| alone.observe(OsdId::from_u32(0), ms(8), at(minute * 60)));
        assert_eq!(alone.share(), FULL, "eight milliseconds are what this disk takes");
        alone.forget(OsdId::from_u32(0));
        assert_eq!(alone.share(), FULL);
    }
}
