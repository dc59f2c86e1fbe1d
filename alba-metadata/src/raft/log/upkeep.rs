//! The task that keeps segments ready: makes new ones ahead of need, takes dead ones up again, removes what is too many,
//! and tells when there is no space.

use std::sync::Arc;

use alba_core::env::{Deadline, within};

use super::LogError;
use super::segments::{self, Segment, file_name};
use super::shared::Shared;

/// What to do next.
enum Step {
    /// A dead segment may be used again.
    Renew(Segment),
    /// A dead segment is one too many.
    Remove(Segment),
    /// A new one is needed.
    Create(u64),
    Nothing,
    End,
}

fn decide(shared: &Shared) -> Step {
    let mut state = shared.state();
    if state.failed.is_some() || state.closed {
        return Step::End;
    }
    let wanted = Shared::spares_wanted(&state);
    if let Some(segment) = state.retired.pop() {
        let keep = shared.limits.spare_segments.max(wanted);
        let of_use = segment.len == shared.limits.segment_bytes && state.spares.len() < keep;
        return if of_use { Step::Renew(segment) } else { Step::Remove(segment) };
    }
    if state.spares.len() < wanted {
        let number = state.next_number;
        state.next_number += 1;
        return Step::Create(number);
    }
    Step::Nothing
}

/// Works until the log is closed or has failed.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let (done, removed) = match decide(&shared) {
            Step::End => return,
            Step::Nothing => {
                set_no_space(&shared, None);
                shared.upkeep.notified().await;
                continue;
            }
            Step::Renew(segment) => {
                let number = segment.number;
                let renewed = shared.io("renewing a segment", segments::renew(shared.store, segment)).await;
                if let Err(error) = &renewed {
                    // It is not touched again: after a failed sync nothing is known of its blocks.
                    tracing::warn!(%error, segment = file_name(number), "cannot renew a segment");
                    let removal = async { shared.disk.remove(&file_name(number)).await };
                    drop(shared.io("removing a segment", removal).await);
                }
                (renewed.map(Some), true)
            }
            Step::Remove(segment) => {
                let removal = async {
                    shared.disk.remove(&file_name(segment.number)).await?;
                    shared.disk.sync_directory().await
                };
                (shared.io("removing a segment", removal).await.map(|()| None), true)
            }
            Step::Create(number) => (create(&shared, number).await.map(Some), false),
        };
        match done {
            Ok(Some(spare)) => {
                {
                    let mut state = shared.state();
                    state.spares.push_back(spare);
                    state.plan.spares += 1;
                    if state.spares.len() >= Shared::spares_wanted(&state) {
                        state.no_space = None;
                    }
                }
                shared.told_health();
                shared.space.send_modify(|count| *count += 1);
            }
            Ok(None) => {}
            // What a removal or renewal did not do is done by the next opening.
            Err(error) if removed => tracing::warn!(%error, "a dead segment is left"),
            Err(error) => {
                set_no_space(&shared, Some(error.to_string()));
                let clock = shared.env.clock.as_ref();
                let again = Deadline::after(clock, shared.limits.retry_after);
                // Until then, or until a segment is dead.
                let _ = within(clock, again, shared.upkeep.notified()).await;
            }
        }
    }
}

async fn create(shared: &Shared, number: u64) -> Result<Segment, LogError> {
    let len = shared.limits.segment_bytes;
    let (free, _) = shared.io("asking for space", shared.disk.space()).await?;
    if free < len.saturating_add(shared.limits.min_free_bytes) {
        return Err(LogError::NoSpace);
    }
    let made = segments::create(shared.disk.as_ref(), shared.store, number, len);
    shared.io("making a segment", made).await
}

fn set_no_space(shared: &Shared, reason: Option<String>) {
    {
        let mut state = shared.state();
        if state.no_space == reason {
            return;
        }
        if let Some(reason) = &reason {
            tracing::warn!(reason, "no more segments for the Raft log");
        }
        state.no_space = reason;
    }
    shared.told_health();
    // Who waits for space is told that there is none.
    shared.space.send_modify(|count| *count += 1);
}
