//! How often keys were wanted lately, about, in fixed memory: a count-min sketch (Cormode and Muthukrishnan 2005) whose
//! counters are halved from time to time, as TinyLFU does (Einziger, Friedman and Manes 2017).
//!
//! It decides what is worth a place on the SSD, or fetching whole. It may say too much, never too little since the last
//! halving; nothing but speed depends on it.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

const ROWS: usize = 4;

/// Counters in a row: 128 KiB in all.
const WIDTH: usize = 1 << 15;

/// After so many touches all counters are halved: what was hot long ago must not stay so.
const LIFE: u32 = 8 << 15;

/// See the module.
pub(crate) struct Sketch {
    counters: Box<[AtomicU8]>,
    touches: AtomicU32,
}

/// A place in each row. The hash is spread anew for each: odd multipliers, the upper bits taken (multiply-shift hashing).
fn places(hash: u64) -> [usize; ROWS] {
    const ODD: [u64; ROWS] =
        [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    let mut row = 0;
    ODD.map(|odd| {
        let place = usize::try_from(hash.wrapping_mul(odd) >> 49).unwrap_or(0) % WIDTH;
        row += 1;
        (row - 1) * WIDTH + place
    })
}

impl Sketch {
    pub(crate) fn new() -> Self {
        let counters = (0..ROWS * WIDTH).map(|_| AtomicU8::new(0)).collect();
        Self { counters, touches: AtomicU32::new(0) }
    }

    fn counters(&self, hash: u64) -> impl Iterator<Item = &AtomicU8> {
        places(hash).into_iter().filter_map(|place| self.counters.get(place))
    }

    /// Counts one more, and says how often it was wanted by now.
    pub(crate) fn touch(&self, hash: u64) -> u8 {
        // Counts that are lost in a race are worth nothing.
        for counter in self.counters(hash) {
            let count = counter.load(Ordering::Relaxed);
            counter.store(count.saturating_add(1), Ordering::Relaxed);
        }
        let touches = self.touches.fetch_add(1, Ordering::Relaxed);
        if touches >= LIFE && self.touches.swap(0, Ordering::Relaxed) >= LIFE {
            for counter in &self.counters {
                counter.store(counter.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
            }
        }
        self.estimate(hash)
    }

    /// How often it was wanted.
    pub(crate) fn estimate(&self, hash: u64) -> u8 {
        self.counters(hash).map(|counter| counter.load(Ordering::Relaxed)).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_about_right_and_fade() {
        let sketch = Sketch::new();
        let spread = |key: u64| key.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (key << 29);
        for _ in 0..5 {
            sketch.touch(spread(1));
        }
        assert_eq!(sketch.estimate(spread(1)), 5);
        let wrong = (100..2100).filter(|key| sketch.touch(spread(*key)) > 1).count();
        assert!(wrong < 20, "{wrong} of 2000 cold keys look warm");
        for _ in 0..=LIFE {
            sketch.touch(spread(2));
        }
        assert!(sketch.estimate(spread(1)) < 5);
    }
}
