//! Steps at which a test can have a process die as if by SIGKILL, or stop as if by SIGSTOP until it gets SIGCONT: so that "an end
//! anywhere is harmless" and "a lost lease is harmless" are shown step by step.
//!
//! All steps are listed here, and nowhere else: tests go through [`Step::ALL`], and fail when one is never reached. In a release
//! build [`reach`] does nothing.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// Name the step, `NAME` or `NAME:N` for the N-th time that it is reached (1 is the first); only with debug assertions.
const SWITCHES: [(&str, Signal); 2] =
    [("ALBA_TEST_DIES_AT", Signal::KILL), ("ALBA_TEST_STOPS_AT", Signal::STOP)];

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:literal,)*) => {
        /// A step of an agent's work. The names begin with the piece of work that it belongs to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Step {
            $($(#[$doc])* $step,)*
        }

        impl Step {
            /// All of them, in the order in which work comes to them.
            pub const ALL: &[Self] = &[$(Self::$step),*];

            /// What it is called in [`SWITCHES`].
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)*
                }
            }
        }
    };
}

steps! {
    /// An agent has the lease of a part.
    AgentLeased = "agent.leased",
    /// The part is done, and not reported yet.
    AgentRan = "agent.ran",
    /// It is reported, and the lease not given back yet.
    AgentReported = "agent.reported",

    /// Garbage collection is about to close epochs.
    GcClosing = "gc.closing",
    /// They are closed.
    GcClosed = "gc.closed",
    /// A tag was judged.
    GcJudged = "gc.judged",
    /// What follows was done.
    GcDeleted = "gc.deleted",
    /// The next epoch is open.
    GcOpened = "gc.opened",

    /// A page of a delete queue was read.
    CleanupTaken = "cleanup.taken",
    /// Its fragments are deleted.
    CleanupDeleted = "cleanup.deleted",
    /// The queue does not have them any more.
    CleanupForgotten = "cleanup.forgotten",
    /// The group was told to forget the keys of an OSD that is gone.
    CleanupDropped = "cleanup.dropped",

    /// OSDs that nobody told of were tried, and nobody is told of it.
    RepairTried = "repair.tried",
    /// It is known what is below its policy.
    RepairSurveyed = "repair.surveyed",
    /// An object is about to be repaired.
    RepairObject = "repair.object",
    /// It is repaired.
    RepairDone = "repair.done",
    /// It could not be.
    RepairFailed = "repair.failed",

    /// An update of an object's fragments is about to begin: of repair, or of a move.
    UpdatePlanned = "update.planned",
    /// Fragments were read to compute others from.
    UpdateRead = "update.read",
    /// The new fragments of a chunk are in memory, or known where to be copied from.
    UpdateMade = "update.made",
    /// One of them is about to be stored.
    UpdateStoring = "update.storing",
    /// It is stored.
    UpdateStored = "update.stored",
    /// All are stored, and the group is about to be told.
    UpdateCommitting = "update.committing",
    /// The group has taken the update.
    UpdateCommitted = "update.committed",
    /// The tags are gone from one of the OSDs.
    UpdateUntagged = "update.untagged",

    /// A chunk of an object that is stored anew was read.
    RewriteRead = "rewrite.read",
    /// It is stored anew.
    RewriteDone = "rewrite.done",

    /// One fragment of an upload is stored.
    UploadStored = "upload.stored",
    /// Each chunk has enough, and the group is about to be told.
    UploadCommitting = "upload.committing",
    /// The group has the manifest.
    UploadCommitted = "upload.committed",
    /// Tags are gone from one of the OSDs.
    UploadUntagged = "upload.untagged",

    /// An item of the work queue was claimed.
    WorkClaimed = "work.claimed",
    /// It is done, and not reported yet.
    WorkHandled = "work.handled",
    /// It is reported.
    WorkReported = "work.reported",
    /// The marker of a namespace is gone from an OSD that lets go of it.
    WorkUnmarked = "work.unmarked",
    /// Some of what the OSD had of it is gone.
    WorkCleaned = "work.cleaned",

    /// A job has done one object.
    JobObject = "job.object",
    /// It has done a page of objects, and its progress is not recorded yet.
    JobPage = "job.page",
    /// It is recorded.
    JobAdvanced = "job.advanced",

    /// Scrub has found something wrong with an object.
    ScrubFound = "scrub.found",
    /// It is repaired, or was tried to be.
    ScrubRepaired = "scrub.repaired",
    /// It is recorded how far scrub is.
    ScrubMarked = "scrub.marked",

    /// An OSD was asked whose it is.
    ClaimsAsked = "claims.asked",
    /// A namespace is about to be deleted for good.
    TrashDeleting = "trash.deleting",
    /// The ABM has been told.
    TrashDeleted = "trash.deleted",
    /// A group was asked for its version of a preset.
    PresetsAsked = "presets.asked",

    /// The rebalancer has planned moves of some objects.
    RebalancePlanned = "rebalance.planned",
    /// A move is about to begin.
    RebalanceMoving = "rebalance.moving",
    /// It was made.
    RebalanceMoved = "rebalance.moved",
}

/// A step, and which time that it is reached.
fn asked(text: &str) -> Result<(Step, u32), String> {
    let (name, time) = match text.split_once(':') {
        Some((name, time)) => (name, time.parse().map_err(|error| format!("{text}: {error}"))?),
        None => (text, 1),
    };
    let step = Step::ALL.iter().find(|step| step.name() == name);
    Ok((*step.ok_or_else(|| format!("there is no step {name}"))?, time))
}

/// What a test asked for.
struct Asked {
    step: Step,
    time: u32,
    signal: Signal,
    reached: AtomicU32,
}

/// Says that a run is at a step. Does nothing, unless a test asked this process to end or to stop there.
pub fn reach(step: Step) {
    if cfg!(debug_assertions) {
        end_or_stop(step);
    }
}

fn end_or_stop(step: Step) {
    static ASKED: OnceLock<Vec<Asked>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| {
        let of = |(switch, signal): (&str, Signal)| match asked(&std::env::var(switch).ok()?) {
            Ok((step, time)) => Some(Asked { step, time, signal, reached: AtomicU32::new(0) }),
            Err(error) => {
                // A test that waits for a step that there is not would wait for long.
                tracing::error!(switch, error, "not understood");
                std::process::abort()
            }
        };
        SWITCHES.into_iter().filter_map(of).collect()
    });
    for asked in asked.iter().filter(|asked| asked.step == step) {
        if asked.reached.fetch_add(1, Ordering::Relaxed).saturating_add(1) == asked.time {
            tracing::warn!(step = step.name(), signal = ?asked.signal, "as a test asked");
            // A signal to oneself is delivered before the call returns; there is always somebody to get it.
            let _ = kill_process(getpid(), asked.signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn steps_have_names_of_their_own_and_are_found_by_them() {
        let names: BTreeSet<&str> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
        for name in names {
            assert!(asked(name).is_ok_and(|(step, time)| (step.name(), time) == (name, 1)));
        }
        assert_eq!(asked("gc.closed:3"), Ok((Step::GcClosed, 3)));
        assert!(asked("gc.nowhere").is_err() && asked("gc.closed:x").is_err());
    }
}
