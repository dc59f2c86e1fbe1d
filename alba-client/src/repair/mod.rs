//! Repair: back to the best policy with the least work.
//!
//! [`plan`](mod@plan) decides about one object from its manifest and how the OSDs stand; [`Repairer`] carries that out: new
//! fragments first, under the next version of the object; then one update of the manifest, which the group takes only
//! at the version the plan was made for; then the gc tags go. Whoever loses a race changes nothing, and leaves tagged
//! fragments that garbage collection finds. Nothing here deletes anything but tags.

mod compute;
mod counters;
mod kept;
pub mod order;
pub mod plan;
mod read;
mod relocate;
mod repairer;
mod rewrite;
pub mod safety;
pub mod standing;
mod store;
pub mod survey;
mod transfers;
mod update;

use std::time::Duration;

pub use counters::RepairStatistics;
pub use order::{Waiting, Weakest};
pub use plan::{Bad, Plan, Situation, Unrepairable};
pub use relocate::{Relocated, Relocation};
pub use repairer::{Checked, Patient, RepairError, Repaired, Repairer, Suspect, is_gone};
pub use safety::{Safety, SafetyRow};
pub use standing::{OsdView, Osds, Silence, Standing};
pub use survey::{Registry, Survey};
pub use transfers::{MOST_TRANSFERS, Transfers};

/// How old what is known of a namespace's preset and gc epoch may be: when it is too old the group refuses, and it is asked anew.
const SETTINGS_AGE: Duration = Duration::from_secs(30);
