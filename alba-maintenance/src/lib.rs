//! Maintenance: clean up what nothing refers to, and later repair what lost redundancy.
//!
//! The decisions come first and are pure: [`gc`] says what becomes of a tagged fragment, [`obsolete`] turns a page of a
//! delete queue into one batch for the OSD. The agent that runs them on a schedule is not part of this crate yet, so
//! there is no daemon: nothing here touches a disk or a socket.
//!
//! A fragment that a manifest names must never be deleted (invariant 3 of the design: "GC never deletes what can still
//! be referenced").

pub mod gc;
pub mod obsolete;
