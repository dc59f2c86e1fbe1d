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
use alba_core::wire::rpc::abm::OsdReport;

use super::latency::Latency;
use super::report::{CallKind, Log};

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

/// How often an OSD that readers go around is looked at. Three good looks end that, and until then each read of what it has costs k
/// others: an OSD that was slow for want of a processor is used again within a second.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// How long parts are not asked for with their proof after an OSD did not know that operation: it may be updated.
const NO_PROOFS: Duration = Duration::from_secs(60);

/// What is known of one OSD.
#[derive(Debug)]
pub(crate) struct Health {
    condition: Condition,
    overloaded_until: Moment,
    probing: bool,
    small: Option<Latency>,
    large: Option<Latency>,
    looked_at: Option<Moment>,
    looking: bool,
    without_proofs: Option<Moment>,
    log: Log,
    /// Damaged values met since this process began; what the log counts is gone with each report.
    pub(crate) checksum_errors: u64,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            checksum_errors: 0,
            condition: Condition::Good,
            overloaded_until: Moment::default(),
            probing: false,
            small: None,
            large: None,
            looked_at: None,
            looking: false,
            without_proofs: None,
            log: Log::default(),
        }
    }

    fn latency(&self, size: CallSize) -> Option<&Latency> {
        match size {
            CallSize::Small => self.small.as_ref(),
            CallSize::Large => self.large.as_ref(),
        }
    }

    /// A call worked, and took this long.
    pub(crate) fn worked(&mut self, kind: CallKind, size: CallSize, latency: Duration, now: Moment) {
        self.took(size, latency);
        self.log.worked(kind, now);
    }

    fn took(&mut self, size: CallSize, latency: Duration) {
        let slot = match size {
            CallSize::Small => &mut self.small,
            CallSize::Large => &mut self.large,
        };
        *slot = Some(slot.map_or_else(|| Latency::first(latency), |known| known.and(latency)));
    }

    /// A call was given up after this long: it would have taken at least that.
    pub(crate) fn took_at_least(&mut self, size: CallSize, waited: Duration) {
        if self.latency(size).and_then(Latency::middle).is_none_or(|middle| waited > middle) {
            self.took(size, waited);
        }
    }

    /// The time within which nearly all calls end; none when nothing is known.
    pub(crate) fn usual(&self, size: CallSize) -> Option<Duration> {
        self.latency(size).map(Latency::usual)
    }

    /// What calls take just now; none when too little is known.
    pub(crate) fn middle(&self, size: CallSize) -> Option<Duration> {
        self.latency(size).and_then(Latency::middle)
    }

    /// Readers went around this OSD: shall it be looked at in the background now? If so, [`Self::looked`] must follow.
    pub(crate) fn look(&mut self, now: Moment) -> bool {
        let due = self.looked_at.is_none_or(|last| now.since(last) >= LOOK_PAUSE);
        if self.looking || !due {
            return false;
        }
        self.looking = true;
        self.looked_at = Some(now);
        true
    }

    /// It has been looked at.
    pub(crate) fn looked(&mut self) {
        self.looking = false;
    }

    /// Can it prove parts of values, as far as is known?
    pub(crate) fn proves(&self, now: Moment) -> bool {
        self.without_proofs.is_none_or(|since| now.since(since) >= NO_PROOFS)
    }

    /// It does not know the operation.
    pub(crate) fn proves_nothing(&mut self, now: Moment) {
        self.without_proofs = Some(now);
    }

    /// A write worked that says nothing about latency.
    pub(crate) fn wrote(&mut self, now: Moment) {
        self.log.worked(CallKind::Write, now);
    }

    /// What is to be told to the ABM since the last time.
    pub(crate) fn take_report(&mut self, now: Moment) -> Option<OsdReport> {
        self.log.take(now)
    }

    /// The report that was taken at `taken` could not be told.
    pub(crate) fn restore_report(&mut self, taken: Moment, report: OsdReport) {
        self.log.restore(taken, report);
    }

    /// A call failed. Returns whether a probe must be started.
    pub(crate) fn failed(&mut self, class: ErrorClass, error: &OsdError, now: Moment) -> bool {
        match class {
            ErrorClass::Caller => return false,
            ErrorClass::Damage => {
                self.checksum_errors = self.checksum_errors.saturating_add(1);
                self.log.damaged();
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
        if class == ErrorClass::Device {
            self.log.failed(error, now);
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

    /// Does it take no new fragments for want of space?
    pub(crate) fn is_full(&self) -> bool {
        self.condition == Condition::Full
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

    fn failed(health: &mut Health, class: ErrorClass, now: Moment) -> bool {
        health.failed(class, &OsdError::Timeout, now)
    }

    #[test]
    fn a_device_error_disqualifies_once_and_a_probe_requalifies() {
        let mut health = Health::new();
        assert!(health.takes_data(at(0)) && health.answers());
        assert!(failed(&mut health, ErrorClass::Device, at(1)));
        assert!(!failed(&mut health, ErrorClass::Device, at(2)), "one probe is enough");
        assert!(!health.takes_data(at(3)) && !health.answers());
        health.requalified();
        assert!(health.takes_data(at(4)) && health.answers());
        assert!(failed(&mut health, ErrorClass::Device, at(5)));
    }

    #[test]
    fn full_is_not_dead_and_overload_passes() {
        let mut health = Health::new();
        assert!(failed(&mut health, ErrorClass::Full, at(0)));
        assert!(health.answers() && !health.takes_data(at(0)));
        health.requalified();
        assert!(!failed(&mut health, ErrorClass::Overload, at(10)));
        assert!(health.answers() && !health.takes_data(at(500)) && health.takes_data(at(1010)));
    }

    #[test]
    fn a_dead_device_is_not_merely_full() {
        let mut health = Health::new();
        assert!(failed(&mut health, ErrorClass::Device, at(0)));
        assert!(!failed(&mut health, ErrorClass::Full, at(1)));
        assert!(!health.answers());
    }

    #[test]
    fn damage_and_callers_mistakes_do_not_disqualify() {
        let mut health = Health::new();
        assert!(
            !failed(&mut health, ErrorClass::Damage, at(0))
                && !failed(&mut health, ErrorClass::Caller, at(0))
        );
        assert!(health.takes_data(at(0)));
        let report = health.take_report(at(1)).unwrap();
        assert_eq!((report.checksum_errors, report.errors), (1, vec![]));
        assert!(failed(&mut health, ErrorClass::Device, at(2)));
        assert_eq!(health.take_report(at(3)).unwrap().errors.len(), 1);
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
    fn what_was_given_up_counts_only_when_it_was_unusual() {
        let mut health = Health::new();
        assert_eq!((health.usual(CallSize::Small), health.middle(CallSize::Small)), (None, None));
        for i in 0..50 {
            health.worked(CallKind::Read, CallSize::Small, Duration::from_millis(2), at(i));
        }
        let usual = health.usual(CallSize::Small);
        assert_eq!(health.middle(CallSize::Small), Some(Duration::from_millis(2)));
        assert_eq!(health.usual(CallSize::Large), None);
        health.took_at_least(CallSize::Small, Duration::from_millis(1));
        assert_eq!(health.usual(CallSize::Small), usual, "shorter than usual says nothing");
        for _ in 0..3 {
            health.took_at_least(CallSize::Small, Duration::from_secs(1));
        }
        assert!(health.usual(CallSize::Small).unwrap() > Duration::from_millis(100));
        assert_eq!(health.middle(CallSize::Small), Some(Duration::from_secs(1)));
    }

    #[test]
    fn one_look_at_a_time_and_four_a_second() {
        let mut health = Health::new();
        assert!(health.look(at(0)) && !health.look(at(5000)));
        health.looked();
        assert!(health.look(at(5000)));
        health.looked();
        assert!(!health.look(at(5249)) && health.look(at(5250)));
    }

    #[test]
    fn an_osd_without_proofs_is_asked_again_after_a_while() {
        let mut health = Health::new();
        assert!(health.proves(at(0)));
        health.proves_nothing(at(0));
        assert!(!health.proves(at(59_000)) && health.proves(at(60_000)));
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
