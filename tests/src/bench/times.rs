//! How long requests took.

use std::time::Duration;

/// In milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Of requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How many.
    pub count: usize,
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of 100.
    pub p99: Duration,
}

impl Times {
    /// None of none.
    pub fn of(mut took: Vec<Duration>) -> Option<Self> {
        took.sort_unstable();
        let at = |percent: usize| took.get(took.len().saturating_sub(1) * percent / 100).copied();
        Some(Self { count: took.len(), p50: at(50)?, p99: at(99)? })
    }
}
