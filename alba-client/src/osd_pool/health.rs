//! What this process thinks of an OSD: a pure state machine and its latency estimate.
//!
//! ```text
//!            device error                      probe succeeds
//!   Good ───────────────────► Disqualified ─────────────────────► Good
//!     │        Full                ▲            probe succeeds
//!     └──────────────────► Full ───┴─────────────────────────────► Good
//! ```
//!
//! Full is neither slow nor dead: reads and deletes go on. Overload is waited out, not punished. What the caller did
//! wrong, damage of one value and a namespace that the OSD does not have say nothing about the device.

use std::time::Duration;

use alba_core::env::{Moment, OsdError};

/// Whose fault a failed call is (features §2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorClass {
    /// The device's: avoid it until it proves well.
    Device,
    /// It takes no more data.
    Full,
    /// It has too much to do: try others for a moment.
    Overload,
    /// One stored value is damaged.
    Damage,
    /// The caller's, or the state of one namespace or key.
    Caller,
}

impl ErrorClass {
    pub(crate) fn of(error: &OsdError) -> Self {
        match error {
            // One that does not serve us where we reach it is of as little use as one that is gone.
            OsdError::Connection(_)
            | OsdError::Timeout
            | OsdError::Device(_)
            | OsdError::WrongOsd { .. }
            | OsdError::Forbidden(_) => Self::Device,
            OsdError::Full => Self::Full,
            OsdError::Overloaded(_) => Self::Overload,
            OsdError::Damaged(_) => Self::Damage,
            // An operation that an older OSD does not know has a substitute, so the OSD stays of use.
            OsdError::AssertFailed(_)
            | OsdError::BadRequest(_)
            | OsdError::WrongChecksum(_)
            | OsdError::UnknownOperation => Self::Caller,
        }
    }
}

/// How much a call moves: latencies of small and large calls are estimated apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallSize {
    /// Below 128 KiB.
    Small,
    /// The rest.
    Large,
}

impl CallSize {
    pub(crate) fn of(bytes: u64) -> Self {
        if bytes < 128 << 10 { Self::Small } else { Self::Large }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Good,
    Full,
    Disqualified,
}

/// How long an overloaded OSD gets no new fragments.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(1);

/// An estimate without samples for this long is forgotten, so that an OSD that was slow is tried again.
const ESTIMATE_LIFE: Duration = Duration::from_secs(10);

/// Smoothed latency and its deviation, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    mean: u64,
    deviation: u64,
    at: Moment,
}

/// What is known of one OSD.
#[derive(Debug)]
pub(crate) struct Health {
    condition: Condition,
    overloaded_until: Moment,
    probing: bool,
    small: Option<Estimate>,
    large: Option<Estimate>,
    pub(crate) checksum_errors: u64,
    pub(crate) errors: u64,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            condition: Condition::Good,
            overloaded_until: Moment::default(),
            probing: false,
            small: None,
            large: None,
            checksum_errors: 0,
            errors: 0,
        }
    }

    fn estimate(&mut self, size: CallSize) -> &mut Option<Estimate> {
        match size {
            CallSize::Small => &mut self.small,
            CallSize::Large => &mut self.large,
        }
    }

    /// A call took this long. The weights are those of TCP's round trip estimate.
    pub(crate) fn took(&mut self, size: CallSize, latency: Duration, now: Moment) {
        let sample = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX / 16).min(u64::MAX / 16);
        let slot = self.estimate(size);
        *slot = Some(match *slot {
            Some(old) if now.since(old.at) < ESTIMATE_LIFE => Estimate {
                mean: (old.mean * 7 + sample) / 8,
                deviation: (old.deviation * 3 + old.mean.abs_diff(sample)) / 4,
                at: now,
            },
            _ => Estimate { mean: sample, deviation: sample / 2, at: now },
        });
    }

    /// A call was given up after this long: it would have taken at least that.
    pub(crate) fn took_at_least(&mut self, size: CallSize, waited: Duration, now: Moment) {
        if self.usual(size, now).is_none_or(|usual| waited > usual) {
            self.took(size, waited, now);
        }
    }

    /// The time within which nearly all calls end; none when nothing recent is known.
    pub(crate) fn usual(&self, size: CallSize, now: Moment) -> Option<Duration> {
        let estimate = match size {
            CallSize::Small => self.small,
            CallSize::Large => self.large,
        }?;
        (now.since(estimate.at) < ESTIMATE_LIFE)
            .then(|| Duration::from_micros(estimate.mean + 4 * estimate.deviation))
    }

    /// A call failed. Returns whether a probe must be started.
    pub(crate) fn failed(&mut self, class: ErrorClass, now: Moment) -> bool {
        self.errors += 1;
        match class {
            ErrorClass::Caller => return false,
            ErrorClass::Damage => {
                self.checksum_errors += 1;
                return false;
            }
            ErrorClass::Overload => {
                self.overloaded_until = now.plus(OVERLOAD_PAUSE);
                return false;
            }
            ErrorClass::Device => self.condition = Condition::Disqualified,
            ErrorClass::Full if self.condition == Condition::Good => self.condition = Condition::Full,
            ErrorClass::Full => {}
        }
        !std::mem::replace(&mut self.probing, true)
    }

    /// The probe wrote its test value: as good as new.
    pub(crate) fn requalified(&mut self) {
        self.condition = Condition::Good;
        self.probing = false;
    }

    /// Is it worth asking before others are?
    pub(crate) fn answers(&self) -> bool {
        self.condition != Condition::Disqualified
    }

    /// May new fragments go there?
    pub(crate) fn takes_data(&self, now: Moment) -> bool {
        self.condition == Condition::Good && self.overloaded_until <= now
    }
}

/// Pauses between probes: 1 s, growing by half up to 60 s, give or take a tenth so that the probes of many clients
/// spread out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProbePause(Duration);

impl ProbePause {
    pub(crate) fn first() -> Self {
        Self(Duration::from_secs(1))
    }

    /// This pause, varied by `random`, and the one after it.
    pub(crate) fn next(self, random: u64) -> (Duration, Self) {
        let permille = 900 + u32::try_from(random % 201).unwrap_or(0);
        (self.0 * permille / 1000, Self((self.0 * 3 / 2).min(Duration::from_secs(60))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn a_device_error_disqualifies_once_and_a_probe_requalifies() {
        let mut health = Health::new();
        assert!(health.takes_data(at(0)) && health.answers());
        assert!(health.failed(ErrorClass::Device, at(1)));
        assert!(!health.failed(ErrorClass::Device, at(2)), "one probe is enough");
        assert!(!health.takes_data(at(3)) && !health.answers());
        health.requalified();
        assert!(health.takes_data(at(4)) && health.answers());
        assert!(health.failed(ErrorClass::Device, at(5)));
    }

    #[test]
    fn full_is_not_dead_and_overload_passes() {
        let mut health = Health::new();
        assert!(health.failed(ErrorClass::Full, at(0)));
        assert!(health.answers() && !health.takes_data(at(0)));
        health.requalified();
        assert!(!health.failed(ErrorClass::Overload, at(10)));
        assert!(health.answers() && !health.takes_data(at(500)) && health.takes_data(at(1010)));
    }

    #[test]
    fn a_dead_device_is_not_merely_full() {
        let mut health = Health::new();
        assert!(health.failed(ErrorClass::Device, at(0)));
        assert!(!health.failed(ErrorClass::Full, at(1)));
        assert!(!health.answers());
    }

    #[test]
    fn damage_and_callers_mistakes_do_not_disqualify() {
        let mut health = Health::new();
        assert!(!health.failed(ErrorClass::Damage, at(0)) && !health.failed(ErrorClass::Caller, at(0)));
        assert!(health.takes_data(at(0)));
        assert_eq!((health.checksum_errors, health.errors), (1, 2));
    }

    #[test]
    fn every_error_has_its_class() {
        for (error, class) in [
            (OsdError::Timeout, ErrorClass::Device),
            (OsdError::Connection("reset".into()), ErrorClass::Device),
            (OsdError::Device("EIO".into()), ErrorClass::Device),
            (OsdError::Full, ErrorClass::Full),
            (OsdError::Overloaded("queue".into()), ErrorClass::Overload),
            (OsdError::Damaged("crc".into()), ErrorClass::Damage),
            (OsdError::AssertFailed("k".into()), ErrorClass::Caller),
            (OsdError::BadRequest("k".into()), ErrorClass::Caller),
            (OsdError::UnknownOperation, ErrorClass::Caller),
        ] {
            assert_eq!(ErrorClass::of(&error), class, "{error}");
        }
    }

    #[test]
    fn latencies_are_learned_and_forgotten() {
        let mut health = Health::new();
        assert_eq!(health.usual(CallSize::Small, at(0)), None);
        for i in 0..50 {
            health.took(CallSize::Small, Duration::from_millis(2), at(i));
        }
        let usual = health.usual(CallSize::Small, at(50)).unwrap();
        assert!(usual >= Duration::from_millis(2) && usual < Duration::from_millis(3), "{usual:?}");
        assert_eq!(health.usual(CallSize::Large, at(50)), None);
        health.took_at_least(CallSize::Small, Duration::from_millis(1), at(51));
        assert_eq!(health.usual(CallSize::Small, at(51)), Some(usual), "shorter than usual says nothing");
        health.took_at_least(CallSize::Small, Duration::from_secs(1), at(52));
        assert!(health.usual(CallSize::Small, at(52)).unwrap() > Duration::from_millis(100));
        assert_eq!(health.usual(CallSize::Small, at(20_000)), None);
    }

    #[test]
    fn probes_come_less_and_less_often() {
        let mut pause = ProbePause::first();
        let mut total = Duration::ZERO;
        for random in 0..30 {
            let (wait, next) = pause.next(random * 1_000_003);
            assert!(wait >= Duration::from_millis(900) && wait <= Duration::from_secs(66));
            total += wait;
            pause = next;
        }
        assert!(pause.next(100).0 == Duration::from_secs(60) && total > Duration::from_secs(600));
    }
}
