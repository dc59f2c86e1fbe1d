//! What is told to the ABM of an OSD (features §2.5): when it was last seen, read and written, and what failed. Other
//! clients' reports are merged with it there; failure detection and people go by the whole.

use std::collections::VecDeque;
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::wire::rpc::abm::{ERROR_TEXT_MAX, OsdReport, STAMPS_MAX};

/// Successes closer together than this say no more than one of them.
const APART: Duration = Duration::from_secs(1);

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// It read.
    Read,
    /// It wrote.
    Write,
}

/// What happened since the last report; at most [`STAMPS_MAX`] of each kind.
#[derive(Debug, Default)]
pub(super) struct Log {
    read: VecDeque<Moment>,
    write: VecDeque<Moment>,
    errors: VecDeque<(Moment, String)>,
    checksum_errors: u64,
}

fn keep<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() >= STAMPS_MAX {
        list.pop_front();
    }
    list.push_back(item);
}

impl Log {
    pub(super) fn worked(&mut self, kind: CallKind, now: Moment) {
        let list = match kind {
            CallKind::Read => &mut self.read,
            CallKind::Write => &mut self.write,
        };
        if list.back().is_none_or(|last| now.since(*last) >= APART) {
            keep(list, now);
        }
    }

    pub(super) fn failed(&mut self, error: &dyn std::fmt::Display, now: Moment) {
        let mut text = error.to_string();
        let mut end = text.len().min(ERROR_TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        keep(&mut self.errors, (now, text));
    }

    pub(super) fn damaged(&mut self) {
        self.checksum_errors = self.checksum_errors.saturating_add(1);
    }

    /// What is to be told, and begins anew; none when nothing happened.
    pub(super) fn take(&mut self, now: Moment) -> Option<OsdReport> {
        let log = std::mem::take(self);
        if log.read.is_empty() && log.write.is_empty() && log.errors.is_empty() && log.checksum_errors == 0 {
            return None;
        }
        let ago = |at: &Moment| u64::try_from(now.since(*at).as_micros()).unwrap_or(u64::MAX);
        let last = log.read.back().max(log.write.back());
        Some(OsdReport {
            seen: last.map(ago).into_iter().collect(),
            read: log.read.iter().map(ago).collect(),
            write: log.write.iter().map(ago).collect(),
            errors: log.errors.iter().map(|(at, text)| (ago(at), text.clone())).collect(),
            checksum_errors: log.checksum_errors,
            usage: None,
        })
    }

    /// Takes back what could not be told, as if it had never been taken. `taken` is when.
    pub(super) fn restore(&mut self, taken: Moment, report: OsdReport) {
        let at = |ago: u64| Moment(taken.0.saturating_sub(Duration::from_micros(ago)));
        let stamps = |old: Vec<u64>, new: &mut VecDeque<Moment>| {
            let mut all: VecDeque<Moment> = old.into_iter().map(at).collect();
            for moment in std::mem::take(new) {
                keep(&mut all, moment);
            }
            *new = all;
        };
        stamps(report.read, &mut self.read);
        stamps(report.write, &mut self.write);
        let mut errors: VecDeque<_> = report.errors.into_iter().map(|(ago, text)| (at(ago), text)).collect();
        for error in std::mem::take(&mut self.errors) {
            keep(&mut errors, error);
        }
        self.errors = errors;
        self.checksum_errors = self.checksum_errors.saturating_add(report.checksum_errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn the_newest_of_each_kind_are_told_once() {
        let mut log = Log::default();
        assert_eq!(log.take(at(0)), None);
        for second in 0..30 {
            log.worked(CallKind::Read, at(second * 1000));
            log.worked(CallKind::Read, at(second * 1000 + 10));
            log.failed(&format!("error {second}"), at(second * 1000));
        }
        log.worked(CallKind::Write, at(29_500));
        log.damaged();
        let report = log.take(at(30_000)).unwrap();
        assert_eq!(report.seen, [500_000]);
        assert_eq!(report.write, [500_000]);
        assert_eq!(report.read.len(), STAMPS_MAX);
        assert_eq!((report.read.first(), report.read.last()), (Some(&10_000_000), Some(&1_000_000)));
        assert_eq!(report.errors.last(), Some(&(1_000_000, "error 29".to_owned())));
        assert_eq!((report.errors.len(), report.checksum_errors), (STAMPS_MAX, 1));
        assert_eq!(log.take(at(30_000)), None);
    }

    #[test]
    fn what_could_not_be_told_is_told_next_time() {
        let mut log = Log::default();
        log.worked(CallKind::Read, at(1000));
        log.damaged();
        let report = log.take(at(2000)).unwrap();
        log.worked(CallKind::Read, at(3000));
        log.damaged();
        log.restore(at(2000), report);
        let report = log.take(at(4000)).unwrap();
        assert_eq!((report.read, report.checksum_errors), (vec![3_000_000, 1_000_000], 2));
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        let mut log = Log::default();
        log.failed(&format!("{}é", "x".repeat(ERROR_TEXT_MAX - 1)), at(0));
        assert_eq!(log.take(at(0)).unwrap().errors, [(0, "x".repeat(ERROR_TEXT_MAX - 1))]);
    }
}
