//! Whether clients are there: by what the OSDs count of their reads and writes. And how much goes on at once beside them.

use std::collections::BTreeMap;
use std::time::Duration;

use alba_client::repair::MOST_TRANSFERS;
use alba_core::env::Moment;
use alba_core::ids::OsdId;

/// Clients that asked for nothing for so long are gone. Longer than two rounds of questions to the OSDs.
const GONE: Duration = Duration::from_secs(2);

/// Beside clients one fragment is on its way for so many OSDs, or a part of them, where lost data is stored again: what is lost may not wait
/// long. That is also for OSDs that share a disk: there they take turns, and only some of these fragments are read or written, the others
/// on the network or computed. In the bench `repair` with nine OSDs on one disk and two cores slices took 4.5 times as long (p99) beside
/// repair that takes all it can get, 0.9 to 1.2 times beside five fragments and turns; see docs/performance.md.
pub const OSDS_PER_REPAIR: usize = 2;

/// The same where data moves that is safe where it is.
pub const OSDS_PER_MOVE: usize = 8;

/// What the OSDs said of clients.
#[derive(Debug)]
pub struct Company {
    counts: BTreeMap<OsdId, u64>,
    /// When clients were there last, as far as is known.
    last: Moment,
}

impl Company {
    /// Until the contrary is known, clients are there.
    pub fn new(now: Moment) -> Self {
        Self { counts: BTreeMap::new(), last: now }
    }

    /// An OSD has counted so many requests of clients; none: it does not count.
    pub fn counted(&mut self, osd: OsdId, count: Option<u64>, now: Moment) {
        let before = count.and_then(|count| self.counts.insert(osd, count));
        // Of one that is asked for the first time, or that began anew, it is not known since when.
        if count.is_none() || before.is_some_and(|before| Some(before) != count) {
            self.last = now;
        }
    }

    /// Of `asked` OSDs so many have said something. Where most are silent nothing is known: perhaps it is clients that keep them busy.
    pub fn answered(&mut self, answered: usize, asked: usize, now: Moment) {
        if answered * 2 < asked {
            self.last = now;
        }
    }

    /// Forgets all OSDs but these.
    pub fn keep(&mut self, osds: &[OsdId]) {
        self.counts.retain(|osd, _| osds.contains(osd));
    }

    /// Are clients there?
    pub fn is_there(&self, now: Moment) -> bool {
        now.since(self.last) < GONE
    }
}

/// How many fragments are on their way at once, of `osds` OSDs: all that there is to do where no client waits for it, or where the
/// next loss would cost data.
pub fn transfers(osds: usize, osds_per_transfer: usize, clients: bool, urgent: bool) -> u16 {
    if urgent || !clients {
        return MOST_TRANSFERS;
    }
    u16::try_from(osds.div_ceil(osds_per_transfer.max(1))).unwrap_or(MOST_TRANSFERS).clamp(1, MOST_TRANSFERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn clients_are_there_until_nothing_is_counted_for_a_while() {
        let osd = OsdId::from_u32;
        let mut company = Company::new(at(0));
        assert!(company.is_there(at(1999)), "nothing is known yet");
        assert!(!company.is_there(at(2000)));
        company.counted(osd(1), Some(10), at(2500));
        company.counted(osd(2), Some(0), at(2500));
        assert!(!company.is_there(at(2500)), "they may have come long ago");
        company.counted(osd(1), Some(10), at(3000));
        assert!(!company.is_there(at(3000)));
        company.counted(osd(2), Some(1), at(3500));
        assert!(company.is_there(at(5499)) && !company.is_there(at(5500)));
        // It began anew.
        company.counted(osd(1), Some(2), at(6000));
        assert!(company.is_there(at(6000)));
        company.counted(osd(3), None, at(9000));
        assert!(company.is_there(at(9000)), "one that does not count");
        company.answered(5, 12, at(15_000));
        assert!(company.is_there(at(16_999)) && !company.is_there(at(17_000)), "most of them say nothing");
        company.answered(6, 12, at(18_000));
        assert!(!company.is_there(at(18_000)), "some of them are dead");
        company.keep(&[osd(2)]);
        company.counted(osd(1), Some(7), at(20_000));
        assert!(!company.is_there(at(20_000)));
    }

    #[test]
    fn few_fragments_move_beside_clients_unless_data_is_at_stake() {
        let beside = [0, 1, 8, 9, 24, 1000, 1_000_000].map(|osds| transfers(osds, 8, true, false));
        assert_eq!(beside, [1, 1, 1, 2, 3, 125, MOST_TRANSFERS]);
        assert_eq!([transfers(12, 8, false, false), transfers(12, 8, true, true)], [MOST_TRANSFERS; 2]);
    }
}
