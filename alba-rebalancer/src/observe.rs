//! Fill rates and their classes (features §3.6): low, ok and high by mean ± (0.01 + 1σ).

use std::collections::BTreeMap;

use alba_core::ids::{NodeId, OsdId};
use alba_core::units::ByteCount;

/// What is known of one OSD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsdFill {
    /// The failure domain that policies count.
    pub node: NodeId,
    /// Bytes stored.
    pub used: ByteCount,
    /// Bytes it may hold.
    pub total: ByteCount,
}

impl OsdFill {
    /// Used of total, in 0..=1 and above 1 when overfull. An OSD without capacity counts as full.
    pub fn rate(&self) -> f64 {
        // Doubles are exact to 2^53 bytes; a rate needs no more.
        #[allow(clippy::cast_precision_loss)]
        let (used, total) = (self.used.get() as f64, self.total.get() as f64);
        if total > 0.0 { used / total } else { 1.0 }
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

/// All OSDs with their classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Fill and class of each.
    pub osds: BTreeMap<OsdId, (OsdFill, FillClass)>,
    /// Mean fill rate.
    pub mean: f64,
    /// Population standard deviation of the fill rates.
    pub deviation: f64,
}

/// Smallest distance from the mean that counts: without it a nearly even cluster would move fragments for ever.
const HYSTERESIS: f64 = 0.01;

/// Classifies the OSDs. Without OSDs the mean and deviation are 0.
pub fn observe(fills: BTreeMap<OsdId, OsdFill>) -> Observation {
    // There are fewer OSDs than doubles can count.
    #[allow(clippy::cast_precision_loss)]
    let count = fills.len().max(1) as f64;
    let mean = fills.values().map(OsdFill::rate).sum::<f64>() / count;
    let variance = fills.values().map(|fill| (fill.rate() - mean).powi(2)).sum::<f64>() / count;
    let deviation = variance.sqrt();
    let step = HYSTERESIS + deviation;
    let class = |rate: f64| {
        if rate < mean - step {
            FillClass::Low
        } else if rate >= mean + step {
            FillClass::High
        } else {
            FillClass::Ok
        }
    };
    let osds = fills
        .into_iter()
        .map(|(osd, fill)| {
            let class = class(fill.rate());
            (osd, (fill, class))
        })
        .collect();
    Observation { osds, mean, deviation }
}

impl Observation {
    /// Nothing to do: no OSD is low or high.
    pub fn is_even(&self) -> bool {
        self.osds.values().all(|(_, class)| *class == FillClass::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn fills(rates: &[u64]) -> BTreeMap<OsdId, OsdFill> {
        (0..)
            .zip(rates)
            .map(|(i, percent)| {
                let fill = OsdFill {
                    node: NodeId::new(format!("node-{}", i % 4)).unwrap(),
                    used: ByteCount(*percent),
                    total: ByteCount(100),
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
        assert_eq!(observation.osds[&OsdId::from_u32(6)].1, FillClass::Low);
        assert_eq!(observation.osds[&OsdId::from_u32(0)].1, FillClass::Ok);
    }

    #[test]
    fn an_outlier_above_is_high() {
        let observation = observe(fills(&[10, 10, 10, 10, 10, 90]));
        assert_eq!(observation.osds[&OsdId::from_u32(5)].1, FillClass::High);
        assert!(!observation.is_even());
    }

    #[test]
    fn a_disk_without_capacity_counts_as_full() {
        let fill = OsdFill { node: NodeId::new("n").unwrap(), used: ByteCount(0), total: ByteCount(0) };
        assert!((fill.rate() - 1.0).abs() < f64::EPSILON);
    }
}
