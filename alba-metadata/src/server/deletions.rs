//! Clients' sequences that delete: the client hears of a deletion after OSDs have a note of it ([`super::notes`]).
//!
//! What a sequence will delete is only known when it is applied: a put that comes before it changes what has the name. So what
//! has the names now is noted while the sequence is agreed on, which costs no time, and what else turns out to have been deleted
//! is noted before the answer. The outcome is remembered with the session: after a crash in between, the next server that
//! answers a retry notes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alba_core::env::Deadline;
use alba_core::ids::{NamespaceId, ObjectId, ObjectName};
use alba_core::net::rpc::Answer;
use alba_core::wire::rpc::nsm::{NsmCommand, NsmOutcome, ObjectUpdate};
use alba_core::wire::rpc::{Consistency, Reply, RequestId};

use super::notes::{CALL, Doomed};
use super::{Node, done, refused};
use crate::machine::{Input, OutputOf};
use crate::nsm::Nsm;
use crate::replicator::{ReplicationError, Replicator};

/// The deletions of a sequence.
pub(super) struct Deletions {
    namespace: NamespaceId,
    /// By the position of the update.
    names: BTreeMap<u32, ObjectName>,
}

impl Deletions {
    /// None when the command has none.
    pub(super) fn of(command: &NsmCommand) -> Option<Self> {
        let NsmCommand::Sequence { namespace, updates, .. } = command else { return None };
        let deleted = |(position, update): (usize, &ObjectUpdate)| match update {
            ObjectUpdate::Delete { name, .. } => Some((u32::try_from(position).ok()?, name.clone())),
            ObjectUpdate::Put { .. } | ObjectUpdate::PutInline { .. } => None,
        };
        let names: BTreeMap<_, _> = updates.iter().enumerate().filter_map(deleted).collect();
        (!names.is_empty()).then_some(Self { namespace: *namespace, names })
    }

    fn names(&self) -> BTreeSet<ObjectName> {
        self.names.values().cloned().collect()
    }
}

/// The same sequence, of the kind that says what it deleted.
fn telling(command: &NsmCommand) -> NsmCommand {
    match command.clone() {
        NsmCommand::Sequence { namespace, asserts, updates, epoch } => {
            NsmCommand::DeletingSequence { namespace, asserts, updates, epoch }
        }
        other => other,
    }
}

impl Node {
    /// Has the group agree on a sequence with deletions.
    pub(super) async fn delete(
        &self,
        nsm: &Arc<dyn Replicator<Nsm>>,
        id: RequestId,
        command: NsmCommand,
        deletions: &Deletions,
        deadline: Deadline,
    ) -> Answer {
        let namespace = deletions.namespace;
        // Nothing is deleted through a replica that does not lead. What this one has applied is nearly always all there is.
        let leads = *nsm.leadership().borrow();
        let find = self.notes.doomed(nsm.as_ref(), namespace, deletions.names(), Consistency::Any, deadline);
        let doomed = if leads { find.await } else { None };
        let noted: BTreeSet<ObjectId> = doomed.as_ref().map(Doomed::ids).unwrap_or_default();
        let propose = nsm.propose(Input::Command(id, telling(&command)), deadline);
        let (proposed, ()) = tokio::join!(propose, self.notes.write(doomed, deadline));
        match proposed {
            Ok((output, index)) => {
                let reply = self.told(nsm.as_ref(), deletions, &noted, output, index, deadline).await;
                Answer { reply, index }
            }
            Err(ReplicationError::NotAgreed { .. }) => {
                self.delete_unheard(nsm, id, command, deletions, deadline).await
            }
            Err(error) => refused(&error).into(),
        }
    }

    /// What the client hears, after what was deleted and not noted is.
    async fn told(
        &self,
        nsm: &dyn Replicator<Nsm>,
        deletions: &Deletions,
        noted: &BTreeSet<ObjectId>,
        output: OutputOf<Nsm>,
        index: u64,
        deadline: Deadline,
    ) -> Reply {
        match done::<Nsm>(output) {
            Ok(Ok(NsmOutcome::StoredAndDeleted { stored, deleted })) => {
                let named = |(position, object)| Some((object, deletions.names.get(&position)?.clone()));
                let missed = deleted.into_iter().filter(|(_, object)| !noted.contains(object));
                let missed: Vec<_> = missed.filter_map(named).collect();
                self.note(nsm, deletions.namespace, missed, index, deadline).await;
                Reply::Nsm(Ok(NsmOutcome::Stored(stored)))
            }
            Ok(result) => Reply::Nsm(result),
            Err(refusal) => Reply::Refused(refusal),
        }
    }

    /// The same while a member of the group may not know the kind of sequence that says what it deleted: what a put between
    /// the look and the sequence stores, and the sequence deletes, has no note.
    async fn delete_unheard(
        &self,
        nsm: &Arc<dyn Replicator<Nsm>>,
        id: RequestId,
        command: NsmCommand,
        deletions: &Deletions,
        deadline: Deadline,
    ) -> Answer {
        let (namespace, newest) = (deletions.namespace, Consistency::Linearizable);
        let doomed = self.notes.doomed(nsm.as_ref(), namespace, deletions.names(), newest, deadline).await;
        let noted = doomed.as_ref().map(Doomed::ids).unwrap_or_default();
        let propose = nsm.propose(Input::Command(id, command), deadline);
        let (proposed, ()) = tokio::join!(propose, self.notes.write(doomed, deadline));
        match proposed {
            Ok((output, index)) => {
                // One that was agreed on as the other kind before, and is retried, tells all the same.
                let reply = self.told(nsm.as_ref(), deletions, &noted, output, index, deadline).await;
                Answer { reply, index }
            }
            Err(error) => refused(&error).into(),
        }
    }

    /// Notes what was deleted at `index` and has no note yet.
    async fn note(
        &self,
        nsm: &dyn Replicator<Nsm>,
        namespace: NamespaceId,
        objects: Vec<(ObjectId, ObjectName)>,
        index: u64,
        deadline: Deadline,
    ) {
        if objects.is_empty() {
            return;
        }
        // However little time the client has left: the deletion has happened.
        let clock = self.env.clock.as_ref();
        let deadline = self.env.deadline_in(deadline.left(clock).max(CALL));
        let doomed = self.notes.deleted(nsm, namespace, objects, Consistency::AtLeast(index), deadline).await;
        self.notes.write(doomed, deadline).await;
    }
}
