//! Are the ABM and the NSM groups of one age? A group that was restored from an old backup is older than its peers.
//!
//! Messages have numbers, and both sides keep them: what a group expects next is never below what was marked delivered, and never
//! beyond what was sent. Where it is, nothing is delivered any more. An older ABM would give numbers again, which the group takes
//! for repetitions, and ids of namespaces again, which are others'. An older group lacks messages that nobody has any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::env::{Deadline, Env};
use alba_core::ids::{GroupId, MessageId};
use alba_core::wire::rpc::Consistency;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, Destination};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};

use super::Groups;
use super::reach::Reach;
use crate::abm::{Abm, message_numbers};
use crate::replicator::{Replicator, read_with};

/// How often all groups are looked at.
const EVERY: Duration = Duration::from_secs(30);

/// For one group.
const TIME: Duration = Duration::from_secs(10);

/// Why groups are not of one age.
pub(super) type Misfits = Arc<Mutex<BTreeMap<GroupId, String>>>;

/// What is wrong between the numbers of the ABM (the oldest message not marked delivered, the next to be sent) and what
/// the destination expects. Pure.
pub(super) fn misfit(
    destination: &str,
    waiting: MessageId,
    next: MessageId,
    expected: MessageId,
) -> Option<String> {
    if expected > next {
        return Some(format!(
            "the ABM is older than {destination}: it has sent messages up to {next}, and {expected} is expected. It was restored \
             from an old backup, or begun anew: stop it, and put a new one together with `alba recover-abm`"
        ));
    }
    if expected < waiting {
        return Some(format!(
            "{destination} is older than the ABM: it expects message {expected}, and those up to {waiting} were delivered. It was \
             restored from an old backup: give it up (`alba update-nsm-host GROUP --lost`) and recover its namespaces elsewhere \
             with `alba recover-nsm`"
        ));
    }
    None
}

/// Compares one group with the ABM; what is wrong, if anything.
pub(super) async fn compare(
    env: &Env,
    abm: &Arc<dyn Replicator<Abm>>,
    groups: &Arc<Groups>,
    group: &GroupId,
    deadline: Deadline,
) -> Result<Option<String>, String> {
    let destination = Destination::Group(group.clone());
    let numbers = || {
        let destination = destination.clone();
        read_with(abm.as_ref(), deadline, move |store| message_numbers(store, &destination))
    };
    // In this order: messages may be sent, delivered and marked meanwhile.
    let (waiting, _) = numbers().await.map_err(|error| error.to_string())?;
    let asked = Reach::new(env, abm, groups, group).ask(NsmQuery::NextMessage, deadline).await;
    let expected = match asked.map_err(|error| error.to_string())? {
        NsmAnswer::NextMessage(expected) => expected,
        other => return Err(format!("an unexpected answer: {other:?}")),
    };
    let (_, next) = numbers().await.map_err(|error| error.to_string())?;
    Ok(misfit(&format!("group {group}"), waiting, next, expected))
}

/// Compares all groups again and again, as long as the ABM is led from here.
pub(super) async fn run(env: Env, abm: Arc<dyn Replicator<Abm>>, groups: Arc<Groups>, misfits: Misfits) {
    let _clear = Clear(misfits.clone());
    loop {
        let deadline = env.deadline_in(TIME);
        let known = match abm.query(AbmQuery::Groups, Consistency::Linearizable, deadline).await {
            Ok((Ok(AbmAnswer::Groups(known)), _)) => known,
            _ => Vec::new(),
        };
        let known: Vec<_> = known.into_iter().filter(|record| !record.lost).collect();
        {
            // Nothing is expected of one that was given up.
            let mut misfits = misfits.lock().unwrap_or_else(PoisonError::into_inner);
            misfits.retain(|group, _| known.iter().any(|record| record.id == *group));
        }
        for record in known {
            let found = compare(&env, &abm, &groups, &record.id, env.deadline_in(TIME)).await;
            let mut misfits = misfits.lock().unwrap_or_else(PoisonError::into_inner);
            match found {
                Ok(Some(what)) => {
                    if misfits.insert(record.id.clone(), what.clone()).as_ref() != Some(&what) {
                        tracing::error!(group = %record.id, what, "groups are not of one age");
                    }
                }
                Ok(None) => drop(misfits.remove(&record.id)),
                // Not reached: nothing is known.
                Err(_) => {}
            }
        }
        env.clock.sleep_until(env.clock.now().plus(EVERY)).await;
    }
}

/// Who does not lead any more has nothing to say.
struct Clear(Misfits);

impl Drop for Clear {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_between_what_was_delivered_and_what_was_sent() {
        let id = MessageId::from_u32;
        let fits = |expected| misfit("group a", id(5), id(8), id(expected)).is_none();
        assert_eq!((4..10).map(fits).collect::<Vec<_>>(), [false, true, true, true, true, false]);
        assert!(misfit("group a", id(5), id(8), id(9)).unwrap().contains("alba recover-abm"));
        assert!(misfit("group a", id(5), id(8), id(4)).unwrap().contains("alba recover-nsm"));
    }
}
