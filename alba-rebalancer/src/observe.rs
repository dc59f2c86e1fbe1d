//! Fill rates and their classes (features §3.6): low, ok and high by mean ± (0.01 + 1σ).
//!
//! Pure. Rates are in parts per billion, so that comparisons are exact and do not depend on a machine.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{NodeId, OsdId};
use alba_core::units::ByteCount;

/// A fill rate: used of total, in parts per billion. Above 10⁹ when overfull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FillRate(pub u64);

/// One, as a rate.
const WHOLE: u64 = 1_000_000_000;

impl FillRate {
    /// `used` of `total`. Without capacity an OSD counts as full.
    pub fn of(used: u64, total: u64) -> Self {
        let rate = (u128::from(used) * u128::from(WHOLE)).checked_div(u128::from(total));
        Self(rate.map_or(WHOLE, |rate| u64::try_from(rate).unwrap_or(u64::MAX)))
    }

    /// In 0..=1, for people.
    pub fn as_f64(self) -> f64 {
        // Doubles are exact to 2^53, which is nine million times full.
        #[allow(clippy::cast_precision_loss)]
        let rate = self.0 as f64;
        rate / 1e9
    }
}

/// What an OSD takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Gives and takes.
    Member,
    /// Gives at most: it is full, slow or out of use for new fragments.
    Closed,
    /// Gives everything: it is to be emptied.
    Draining,
}

/// What is known of one OSD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsdFill {
    /// The failure domain that policies count.
    pub node: NodeId,
    /// Bytes stored.
    pub used: ByteCount,
    /// Bytes it may hold.
    pub total: ByteCount,
    /// What it takes part in.
    pub role: Role,
}

impl OsdFill {
    /// Used of total.
    pub fn rate(&self) -> FillRate {
        FillRate::of(self.used.get(), self.total.get())
    }
}

/// Where an OSD stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FillClass {
    /// Below mean − step: takes fragments.
    Low,
    /// Between.
    Ok,
    /// At or above mean + step: gives fragments away.
    High,
}

/// The classes' bounds, and where every OSD would stand if the fill were even.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Mean of the fill rates.
    pub mean: FillRate,
    /// 0.01 + one standard deviation.
    pub step: FillRate,
    /// All bytes of all capacity: what every OSD has when the fill is even, whatever their sizes.
    pub even: FillRate,
}

impl Bounds {
    /// The class of a rate.
    pub fn class(&self, rate: FillRate) -> FillClass {
        if rate.0.saturating_add(self.step.0) < self.mean.0 {
            FillClass::Low
        } else if rate.0 >= self.mean.0.saturating_add(self.step.0) {
            FillClass::High
        } else {
            FillClass::Ok
        }
    }
}

/// Smallest distance from the mean that counts, 0.01: without it a nearly even cluster would move fragments for ever.
const HYSTERESIS: u64 = WHOLE / 100;

/// All OSDs, and the bounds that their fill rates give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Every OSD of the backend that takes part.
    pub osds: BTreeMap<OsdId, OsdFill>,
    /// Bounds of the classes. Draining OSDs do not count in them: what they hold will be on the others.
    pub bounds: Bounds,
}

/// Computes the bounds of the classes. Without OSDs they are 0.
pub fn observe(osds: BTreeMap<OsdId, OsdFill>) -> Observation {
    let rates: Vec<u64> =
        osds.values().filter(|osd| osd.role != Role::Draining).map(|osd| osd.rate().0).collect();
    let count = u128::try_from(rates.len().max(1)).unwrap_or(u128::MAX);
    let mean = rates.iter().map(|rate| u128::from(*rate)).sum::<u128>() / count;
    let distance = |rate: &u64| u128::from(*rate).abs_diff(mean);
    let variance = rates.iter().map(distance).map(|d| d.saturating_mul(d) / count).sum::<u128>();
    let deviation = variance.isqrt();
    let narrow = |rate: u128| FillRate(u64::try_from(rate).unwrap_or(u64::MAX));
    let used = osds.values().map(|osd| osd.used.get()).fold(0_u64, u64::saturating_add);
    let members = || osds.values().filter(|osd| osd.role != Role::Draining);
    let total = members().map(|osd| osd.total.get()).fold(0_u64, u64::saturating_add);
    let bounds = Bounds {
        mean: narrow(mean),
        step: narrow(deviation.saturating_add(u128::from(HYSTERESIS))),
        even: if osds.is_empty() { FillRate::default() } else { FillRate::of(used, total) },
    };
    Observation { osds, bounds }
}

impl Observation {
    /// The class of an OSD by its fill now; none of one that does not take part.
    pub fn class(&self, osd: OsdId) -> Option<FillClass> {
        self.osds.get(&osd).map(|osd| self.bounds.class(osd.rate()))
    }

    /// Nothing to do for the fill: no OSD is low or high, none is to be emptied.
    pub fn is_even(&self) -> bool {
        self.osds
            .values()
            .all(|osd| osd.role != Role::Draining && self.bounds.class(osd.rate()) == FillClass::Ok)
    }

    /// Those that are to be emptied.
    pub fn draining(&self) -> BTreeSet<OsdId> {
        self.osds.iter().filter(|(_, osd)| osd.role == Role::Draining).map(|(id, _)| *id).collect()
    }

    /// Bytes that have to move at least before the fill is even: those above the even rate, and all of the draining OSDs.
    pub fn least_bytes(&self) -> u64 {
        let surplus = |osd: &OsdFill| match osd.role {
            Role::Draining => osd.used.get(),
            Role::Member | Role::Closed => {
                let share = u128::from(self.bounds.even.0) * u128::from(osd.total.get()) / u128::from(WHOLE);
                osd.used.get().saturating_sub(u64::try_from(share).unwrap_or(u64::MAX))
            }
        };
        self.osds.values().map(surplus).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fills(rates: &[u64]) -> BTreeMap<OsdId, OsdFill> {
        (0..)
            .zip(rates)
            .map(|(i, percent)| {
                let fill = OsdFill {
                    node: NodeId::new(format!("node-{}", i % 4)).unwrap(),
                    used: ByteCount(*percent),
                    total: ByteCount(100),
                    role: Role::Member,
                };
                (OsdId::from_u32(i), fill)
            })
            .collect()
    }

    #[test]
    fn equal_disks_are_all_ok() {
        assert!(observe(fills(&[60; 12])).is_even());
        assert!(observe(BTreeMap::new()).is_even());
    }

    #[test]
    fn an_empty_disk_among_full_ones_is_low() {
        let observation = observe(fills(&[60, 60, 60, 60, 60, 60, 0]));
        assert_eq!(observation.class(OsdId::from_u32(6)), Some(FillClass::Low));
        assert_eq!(observation.class(OsdId::from_u32(0)), Some(FillClass::Ok));
        assert_eq!(observation.class(OsdId::from_u32(9)), None);
    }

    #[test]
    fn an_outlier_above_is_high() {
        let observation = observe(fills(&[10, 10, 10, 10, 10, 90]));
        assert_eq!(observation.class(OsdId::from_u32(5)), Some(FillClass::High));
        assert!(!observation.is_even());
    }

    #[test]
    fn the_bounds_are_mean_and_deviation() {
        // Mean 0.3, deviation 0.2.
        let bounds = observe(fills(&[10, 50])).bounds;
        assert_eq!(bounds.mean, FillRate(WHOLE * 3 / 10));
        assert_eq!(bounds.step, FillRate(WHOLE * 21 / 100));
    }

    #[test]
    fn a_disk_without_capacity_counts_as_full() {
        assert_eq!(FillRate::of(0, 0), FillRate(WHOLE));
        assert_eq!(FillRate::of(u64::MAX, 1), FillRate(u64::MAX));
    }

    #[test]
    fn unequal_disks_have_one_even_rate_and_what_is_above_it_must_move() {
        let mut osds = fills(&[60, 60, 0]);
        osds.get_mut(&OsdId::from_u32(2)).unwrap().total = ByteCount(200);
        let observation = observe(osds);
        assert_eq!(observation.bounds.even, FillRate(WHOLE * 3 / 10));
        assert_eq!(observation.least_bytes(), 60);
    }

    #[test]
    fn a_draining_disk_is_uneven_whatever_it_holds_and_counts_in_no_bound() {
        let mut osds = fills(&[50, 50, 0]);
        osds.get_mut(&OsdId::from_u32(2)).unwrap().role = Role::Draining;
        let observation = observe(osds);
        assert!(!observation.is_even());
        assert_eq!(observation.bounds.mean, FillRate(WHOLE / 2));
        assert_eq!(observation.draining(), BTreeSet::from([OsdId::from_u32(2)]));
    }
}
