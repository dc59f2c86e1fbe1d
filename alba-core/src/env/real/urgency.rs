//! Which threads go first when there are more of them than processors.
//!
//! The kernel shares processors fairly, some milliseconds at a time, and that is how long a request that needs a tenth of a millisecond
//! waits behind uploads that want everything: once for each of the six threads it passes. Threads for small requests ask for little at
//! a time, and so are given it at once when they wake up (`sched_attr.sched_runtime`, Linux 6.12; before that it says nothing).
//! That alone does not help: who has just run owes the others their share. So threads for bulk also have a smaller one (`nice`).
//!
//! What maintenance does has threads of its own ([`stand_aside`]) with a smaller share still: they ask for much at a time and never interrupt
//! anybody when they wake up (`SCHED_BATCH`), so that an upload's threads, which ask for less, are given a processor as soon as they
//! wake up. As bulk among bulk it made an upload, which wakes up some forty threads one after another, take twice as long where only
//! processors were short. They are not idle ones (`SCHED_IDLE`), which would be as good: those have a thirtieth of bulk's share, and a machine
//! whose clients are never still must be repaired, too. None of this needs a privilege.
//!
//! Even so a thread that wakes up waits now and then until the one that has the processor has had its milliseconds: one slice of a hundred took
//! four times as long beside uploads. Where the system allows it ([`go_before_all`]) threads for small requests therefore have the
//! lowest real-time priority: then slices took little longer than alone, and uploads no longer than before. The kernel leaves a twentieth
//! of each processor to all others, however much they do (`sched_rt_runtime_us`, or the fair server of Linux 6.12), and whatever such a
//! thread starts does not inherit it. So whatever moves or computes much must be on threads that give way: large frames and answers,
//! copies between OSDs, what QUIC encrypts, memory that is given back. And none of them may spin on what an ordinary thread holds: that
//! may not run before they wait for something.
//!
//! It must never stop anything: what gives way still has a ninth of the share of one that does not, also beside strangers, and maintenance a
//! third of that. Where the kernel refuses, everything is as it was.

use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::env::spawn::{Here, Urgency};

/// The shortest the kernel takes.
const SHORT: Duration = Duration::from_micros(100);

/// The longest it takes.
const LONG: Duration = Duration::from_millis(100);

/// Threads take much less than this to start.
const SOON: Duration = Duration::from_secs(5);

/// So much nicer is bulk. The kernel gives it a weight of 110, and 1024 to threads for small requests (`sched_prio_to_weight`). With 5 slices took
/// twice as long beside uploads, with 15 hardly less.
const NICE: i32 = 10;

/// So much nicer is maintenance: a weight of 36. With 10 uploads took 1.26 and 1.27 times as long
/// beside repair (p50), with 15 1.20, 1.20 and 1.27 times, and repair as long: most of it is the long slices.
const NICE_ASIDE: i32 = 15;

thread_local! {
    static HERE: Cell<Here> = const { Cell::new(Here::Shared) };
}

/// What the calling thread may do.
pub(super) fn here() -> Here {
    HERE.get()
}

/// How the process was started, which a thread does not inherit from a real-time one: that has none of its own.
#[derive(Debug, Clone, Copy)]
struct AtStart {
    nice: i32,
    io_priority: i32,
}

/// There while threads for small requests of this process go before everything else.
static BEFORE_ALL: RwLock<Option<AtStart>> = RwLock::new(None);

fn before_all() -> Option<AtStart> {
    *BEFORE_ALL.read().unwrap_or_else(PoisonError::into_inner)
}

fn set_before_all(at_start: Option<AtStart>) {
    *BEFORE_ALL.write().unwrap_or_else(PoisonError::into_inner) = at_start;
}

/// From now on threads of this process that begin to [`go_first`] go before everything else on this machine. False where the kernel
/// does not let them: then nothing changes. For daemons, and for programs with a few threads that wait for small answers only.
pub fn go_before_all() -> bool {
    let may = std::thread::spawn(linux::real_time).join().unwrap_or(false);
    set_before_all(may.then(linux::at_start));
    may
}

/// Do they?
#[cfg(feature = "quic")]
pub(super) fn goes_before_all() -> bool {
    before_all().is_some()
}

/// The calling thread is for small requests from now on: it goes before all others where it may ([`go_before_all`]), else as soon as it
/// can. It must never move or compute much.
pub fn go_first() {
    if !(before_all().is_some() && linux::real_time()) {
        go_soon();
    }
}

/// The same for one that may block, or take long: it never goes before everything else.
pub(crate) fn go_soon() {
    linux::schedule(linux::NORMAL, 0, SHORT);
}

/// What threads of an executor for small requests do when they start: the first ones, its workers, [`go_first`]; those for blocking work,
/// which are started later, [`go_soon`]. Nothing may be given to the executor before its workers [have started](Started::wait).
pub(crate) fn starting(workers: usize) -> (Started, impl Fn() + Send + Sync + 'static) {
    let started = Started { threads: Arc::new((Mutex::new(0), Condvar::new())), workers };
    let threads = started.threads.clone();
    let start = move || {
        let (count, more) = &*threads;
        let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let is_worker = *count < workers;
        *count += 1;
        more.notify_all();
        drop(count);
        if is_worker { go_first() } else { go_soon() }
    };
    (started, start)
}

/// How many threads of an executor there have been.
pub(crate) struct Started {
    threads: Arc<(Mutex<usize>, Condvar)>,
    workers: usize,
}

impl Started {
    /// Waits until all workers have started, which they do at once. False where they did not: then some other thread may go first in
    /// their place.
    #[must_use]
    pub(crate) fn wait(&self) -> bool {
        let (count, more) = &*self.threads;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |count: &mut usize| *count < self.workers;
        let (_count, waited) =
            more.wait_timeout_while(count, SOON, missing).unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

/// The calling thread is for bulk of clients from now on.
pub(crate) fn give_way() {
    HERE.set(Here::Bulk);
    linux::schedule(linux::NORMAL, NICE, Duration::ZERO);
}

/// The calling thread is for maintenance from now on, and gives way to bulk of clients, too.
pub(crate) fn stand_aside() {
    HERE.set(Here::Bulk);
    linux::schedule(linux::BATCH, NICE_ASIDE, LONG);
}

/// The calling thread is for work that small requests and bulk wait for: it gives way, but not to bulk.
pub(super) fn serve_both() {
    linux::schedule(linux::NORMAL, NICE, Duration::ZERO);
}

/// The calling thread is one task's own, which may block.
pub(super) fn own(urgency: Urgency) {
    HERE.set(Here::Own);
    match urgency {
        // It may block.
        Urgency::First => go_soon(),
        Urgency::Both => serve_both(),
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::time::Duration;

    use super::{AtStart, before_all};

    pub(super) const NORMAL: u32 = 0;
    pub(super) const BATCH: u32 = 3;
    const ROUND_ROBIN: u32 = 2;

    /// `IOPRIO_WHO_PROCESS` of linux/ioprio.h: a thread.
    const WHO_PROCESS: libc::c_int = 1;

    /// The class of everybody (`IOPRIO_CLASS_BE`), and in it the first level.
    const IO_FIRST_OF_EQUALS: libc::c_int = 2 << 13;

    /// Threads that it starts are scheduled as usual.
    const RESET_ON_FORK: u64 = 1;

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
        let at_start = before_all();
        if let Some(at_start) = at_start {
            io_priority(at_start.io_priority);
        }
        let nice = at_start.map_or(nice, |at_start| nice.max(at_start.nice)).saturating_add(nicer);
        set(&Attributes {
            size: SIZE,
            policy,
            flags: 0,
            nice: nice.min(19),
            priority: 0,
            runtime: u64::try_from(at_a_time.as_nanos()).unwrap_or(u64::MAX),
            deadline: 0,
            period: 0,
        })
    }

    /// Gives the calling thread the lowest real-time priority; false where the kernel does not let it. As above, who has another policy
    /// already keeps it.
    pub(super) fn real_time() -> bool {
        // Before it: the disk would serve a real-time thread before all others, and there nothing is left to these.
        found().0 == NORMAL
            && io_priority(IO_FIRST_OF_EQUALS)
            && set(&Attributes {
                size: SIZE,
                policy: ROUND_ROBIN,
                flags: RESET_ON_FORK,
                nice: 0,
                priority: 1,
                runtime: 0,
                deadline: 0,
                period: 0,
            })
    }

    /// Sets what the calling thread's reads and writes are to the disk's scheduler; false where the kernel does not let it.
    fn io_priority(priority: libc::c_int) -> bool {
        // SAFETY: it takes numbers; 0 is the calling thread, and no other is changed.
        unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) == 0 }
    }

    fn set(attributes: &Attributes) -> bool {
        // SAFETY: the kernel reads `size` bytes of the structure, which has as many and lives until the call is over. 0 is the calling
        // thread; no other is changed, and no memory of this process is written.
        let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attributes), 0) };
        done == 0
    }

    /// Of the calling thread.
    pub(super) fn at_start() -> AtStart {
        // SAFETY: it takes numbers and gives one back; 0 is the calling thread.
        let io_priority = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) };
        // 0 is that of nobody in particular: it follows from the niceness.
        AtStart { nice: found().1, io_priority: i32::try_from(io_priority).unwrap_or(0).max(0) }
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
        use std::sync::MutexGuard;

        use super::super::*;
        use super::*;

        /// What a process asks for is for all its threads: one test at a time.
        static ALONE: Mutex<()> = Mutex::new(());

        fn alone() -> MutexGuard<'static, ()> {
            ALONE.lock().unwrap_or_else(PoisonError::into_inner)
        }

        #[test]
        fn a_thread_is_scheduled_as_it_asked_and_no_other_is() {
            let _alone = alone();
            let before = found();
            assert_eq!(before.0, NORMAL, "as tests are run");
            let nicer = (before.1 + NICE).min(19);
            let nicest = (before.1 + NICE_ASIDE).min(19);
            std::thread::spawn(move || {
                give_way();
                assert_eq!((found(), here()), ((NORMAL, nicer), Here::Bulk));
            })
            .join()
            .unwrap();
            std::thread::spawn(move || {
                stand_aside();
                assert_eq!((found(), here()), ((BATCH, nicest), Here::Bulk));
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

        #[test]
        fn workers_go_before_all_where_they_may_and_what_they_start_does_not() {
            // What the kernel shows of a thread that has it and hands it on to none.
            const SHOWN: u32 = ROUND_ROBIN | 0x4000_0000;
            let _alone = alone();
            let before = found();
            // What the daemons do: the executor's worker has started before anything else can.
            let (started, at_start) = starting(1);
            let worker = std::thread::spawn(at_start);
            assert!(started.wait(), "it did not see it");
            worker.join().unwrap();
            let policies = |may: bool| {
                let (_, at_start) = starting(1);
                std::thread::spawn(move || {
                    at_start();
                    let worker = found().0;
                    let started = std::thread::spawn(|| found().0).join().unwrap();
                    let blocking = std::thread::spawn(move || {
                        at_start();
                        found().0
                    });
                    let own = std::thread::spawn(move || {
                        own(Urgency::First);
                        assert_eq!(found().1, before.1, "as nice as the process");
                        found().0
                    });
                    let expected = if may { SHOWN } else { NORMAL };
                    assert_eq!(worker, expected);
                    assert_eq!([started, blocking.join().unwrap(), own.join().unwrap()], [NORMAL; 3]);
                })
                .join()
                .unwrap();
            };
            policies(false);
            let may = go_before_all();
            policies(may);
            set_before_all(None);
            policies(false);
            assert_eq!(found(), before, "the caller is as it was");
            // Not asked for another time by those that have a policy of their own.
            std::thread::spawn(move || {
                stand_aside();
                assert!(!real_time());
            })
            .join()
            .unwrap();
            assert!(may || !has_the_privilege(), "it was not given what it may have");
        }

        #[test]
        fn the_disk_is_shared_with_all() {
            let _alone = alone();
            let here = || at_start().io_priority;
            let of = |start: fn()| {
                let there = move || {
                    start();
                    at_start().io_priority
                };
                std::thread::spawn(there).join().unwrap()
            };
            let usual = here();
            // As by `ionice -c 3`: whoever started the process knows better.
            const IDLE: i32 = 3 << 13;
            for given in [usual, IDLE] {
                let seen = std::thread::spawn(move || {
                    assert!(io_priority(given));
                    let before = [of(give_way), of(go_soon), of(go_first)];
                    let may = go_before_all();
                    go_first();
                    let first = here();
                    let after = [of(give_way), of(go_soon)];
                    set_before_all(None);
                    (before, may, first, after)
                });
                let (before, may, first, after) = seen.join().unwrap();
                assert_eq!(before, [given; 3], "nothing is changed that nobody asked for");
                assert_eq!(first, if may { IO_FIRST_OF_EQUALS } else { given });
                assert_eq!(after, [given; 2], "inherited");
                assert!(may || !has_the_privilege());
            }
            assert_eq!(here(), usual);
        }

        /// CAP_SYS_NICE, bit 23 of the effective capabilities, and not just of a user namespace.
        fn has_the_privilege() -> bool {
            let ids = std::fs::read_to_string("/proc/self/uid_map").unwrap();
            let of_the_host = ids.split_whitespace().eq(["0", "0", "4294967295"]);
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap() & (1 << 23) != 0 && of_the_host
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

    pub(super) fn real_time() -> bool {
        false
    }

    pub(super) fn at_start() -> super::AtStart {
        super::AtStart { nice: 0, io_priority: 0 }
    }
}
