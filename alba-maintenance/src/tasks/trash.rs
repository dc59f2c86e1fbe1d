//! Deletes namespaces for good that have been in the trash for as long as the backend keeps them.
//!
//! The group drops what it has of them by itself: the ABM tells it. What OSDs hold is the work queue's (features §1.3, §3.7).

use std::time::Duration;

use alba_core::env::MetaError;
use alba_core::failpoint::{Step, reach};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmQuery, NamespaceState};
use async_trait::async_trait;

use crate::backend::Backend;
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task, whole};

/// A day, in microseconds.
const DAY: u64 = 86_400_000_000;

/// The task `trash`.
pub struct Trash;

/// Is what was put into the trash at `since` to go, when it is kept for so many days? With 0 days nothing new comes into the
/// trash, and what is there goes. Clocks that are behind keep it for longer.
pub fn is_over(since: u64, days: u32, now: u64) -> bool {
    now.saturating_sub(since) >= DAY.saturating_mul(days.into())
}

#[async_trait]
impl Task for Trash {
    fn name(&self) -> &'static str {
        "trash"
    }

    fn about(&self) -> &'static str {
        "deletes namespaces for good that have been in the trash for long enough"
    }

    fn usual(&self) -> Timing {
        Timing::every(Duration::from_secs(600))
    }

    async fn parts(&self, _: &Backend) -> Result<Vec<String>, TaskError> {
        Ok(whole())
    }

    async fn run(&self, _: &str, run: &Run) -> Result<(), TaskError> {
        let AbmAnswer::Maintenance(config) = run.backend.ask_abm(AbmQuery::Maintenance).await? else {
            return Err(TaskError::Mismatch("Maintenance"));
        };
        let now = run.backend.env().clock.wall_micros();
        let mut namespaces = run.backend.each_namespace();
        while let Some(namespace) = namespaces.next().await? {
            let NamespaceState::Trashed { since } = namespace.state else { continue };
            if !is_over(since, config.auto_cleanup_deleted_namespaces_days, now) {
                continue;
            }
            run.pace(1, 0).await;
            reach(Step::TrashDeleting);
            // It may have come back since it was listed: the name then means one that is in use.
            let command = AbmCommand::EmptyTrash { namespace: namespace.id };
            let told = run.backend.tell_abm(command).await;
            reach(Step::TrashDeleted);
            match told {
                Ok(_) => {
                    tracing::info!(namespace = %namespace.name, "deleted for good");
                    run.progress.did(1, 0);
                }
                Err(TaskError::Meta(MetaError::Abm(AbmError::NamespaceNotActive(_)))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_is_kept_for_so_many_days() {
        let since = 1_000_000;
        assert!(!is_over(since, 7, since + 7 * DAY - 1));
        assert!(is_over(since, 7, since + 7 * DAY));
        assert!(is_over(since, 0, since));
        assert!(!is_over(since, 1, since - 1), "a clock that is behind");
        assert!(!is_over(0, u32::MAX, u64::MAX / 2));
    }
}
