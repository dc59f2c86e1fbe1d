//! Which threads go first when there are more of them than processors.
//!
//! The kernel shares processors fairly, some milliseconds at a time, and that is how long a request that needs a tenth of a millisecond
//! waits behind uploads that want everything: once for each of the six threads it passes. Threads for small requests ask for little at
//! a time, and so are given it at once when they wake up (`sched_attr.sched_runtime`, Linux 6.12; before that it says nothing).
//! That alone does not help: who has just run owes the others their share. So threads for bulk also have a smaller one (`nice`),
//! and never interrupt anybody when they wake up (`SCHED_BATCH`). None of this needs a privilege.
//!
//! It must never stop anything: what gives way still has a ninth of the share of one that does not, also beside strangers. Where the kernel
//! refuses, everything is as it was.

use std::cell::Cell;
use std::time::Duration;

use crate::env::spawn::{Here, Urgency};

/// The shortest the kernel takes.
const SHORT: Duration = Duration::from_micros(100);

/// So much nicer is bulk. The kernel gives it a weight of 110, and 1024 to threads for small requests (`sched_prio_to_weight`). With 5 slices took
/// twice as long beside uploads, with 15 hardly less.
const NICE: i32 = 10;

thread_local! {
    static HERE: Cell<Here> = const { Cell::new(Here::Shared) };
}

/// What the calling thread may do.
pub(super) fn here() -> Here {
    HERE.get()
}

/// The calling thread is for small requests from now on.
pub(crate) fn go_first() {
    linux::schedule(linux::NORMAL, 0, SHORT);
}

/// The calling thread is for bulk from now on.
pub(crate) fn give_way() {
    HERE.set(Here::Bulk);
    linux::schedule(linux::BATCH, NICE, Duration::ZERO);
}

/// The calling thread is for work that small requests and bulk wait for: it gives way, but not to bulk.
pub(super) fn serve_both() {
    linux::schedule(linux::NORMAL, NICE, Duration::ZERO);
}

/// The calling thread is one task's own, which may block.
pub(super) fn own(urgency: Urgency) {
    HERE.set(Here::Own);
    match urgency {
        Urgency::First => go_first(),
        Urgency::Both => serve_both(),
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::time::Duration;

    pub(super) const NORMAL: u32 = 0;
    pub(super) const BATCH: u32 = 3;

    /// `struct sched_attr` of linux/sched/types.h, in its first version: 48 bytes.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }

    const SIZE: u32 = 48;

    // What the kernel reads is what there is.
    const _: () = assert!(size_of::<Attributes>() == 48);

    /// Sets how the calling thread is scheduled, so much nicer than it is; false where the kernel does not let it. With no time at a
    /// time: what is usual. Whoever started it with another policy (as real-time, say) knows better: then nothing happens.
    pub(super) fn schedule(policy: u32, nicer: i32, at_a_time: Duration) -> bool {
        let (found, nice) = found();
        if found != NORMAL {
            return false;
        }
        let nice = nice.saturating_add(nicer);
        let attributes = Attributes {
            size: SIZE,
            policy,
            flags: 0,
            nice: nice.min(19),
            priority: 0,
            runtime: u64::try_from(at_a_time.as_nanos()).unwrap_or(u64::MAX),
            deadline: 0,
            period: 0,
        };
        // SAFETY: the kernel reads `size` bytes of the structure, which has as many and lives until the call is over. 0 is the calling
        // thread; no other is changed, and no memory of this process is written.
        let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        done == 0
    }

    /// Policy and niceness of the calling thread.
    fn found() -> (u32, i32) {
        // SAFETY: both take numbers and give one back; 0 is the calling thread.
        let (policy, nice) =
            unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
        // A negative one is an error: as a policy that nothing is known of.
        (u32::try_from(policy).unwrap_or(u32::MAX), nice)
    }

    #[cfg(test)]
    mod tests {
        use super::super::*;
        use super::*;

        #[test]
        fn a_thread_is_scheduled_as_it_asked_and_no_other_is() {
            let before = found();
            assert_eq!(before.0, NORMAL, "as tests are run");
            let nicer = (before.1 + NICE).min(19);
            std::thread::spawn(move || {
                give_way();
                assert_eq!((found(), here()), ((BATCH, nicer), Here::Bulk));
                assert!(!schedule(NORMAL, 0, SHORT), "it has another policy already");
            })
            .join()
            .unwrap();
            std::thread::spawn(move || {
                own(Urgency::Both);
                assert_eq!((found(), here()), ((NORMAL, nicer), Here::Own));
            })
            .join()
            .unwrap();
            std::thread::spawn(move || {
                own(Urgency::First);
                assert_eq!((found(), here()), (before, Here::Own));
            })
            .join()
            .unwrap();
            std::thread::spawn(move || {
                go_first();
                assert_eq!((found(), here()), (before, Here::Shared));
            })
            .join()
            .unwrap();
            assert_eq!((found(), here()), (before, Here::Shared));
            assert!(!schedule(77, 0, Duration::ZERO), "there is no such policy");
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod linux {
    use std::time::Duration;

    pub(super) const NORMAL: u32 = 0;
    pub(super) const BATCH: u32 = 3;

    pub(super) fn schedule(_policy: u32, _nicer: i32, _at_a_time: Duration) -> bool {
        false
    }
}
