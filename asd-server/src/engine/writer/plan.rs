//! Deciding: each batch of a group against the index and all batches before it, in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use alba_core::env::osd::{OsdAssert, OsdError, OsdKey, OsdUpdate};
use tokio::sync::OwnedSemaphorePermit;

use super::super::accounting::allowed_when_full;
use super::super::batch::{self, Change, Encoded};
use super::super::decide::{View, deciding};
use super::super::format::Chain;
use super::super::index::{Entry, Index};
use super::super::reader;
use super::super::relocate::Relocation;
use super::group::{Answer, Planned};
use super::heads::Purpose;
use super::{Waiting, Writer};

impl Writer {
    /// Entries of what a group is about.
    async fn stored(
        &mut self,
        index: &Arc<Index>,
        all: Vec<OsdKey>,
    ) -> Result<BTreeMap<OsdKey, Entry>, OsdError> {
        // What the index has got by now is found there.
        self.overlay.applied(self.applied);
        if all.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (index, asked) = (index.clone(), all.clone());
        match self.blocking(move || index.lookup(&asked)).await {
            Ok(entries) => {
                Ok(all.into_iter().zip(entries).filter_map(|(key, entry)| Some((key, entry?))).collect())
            }
            Err(error) => {
                self.shared.set_index(None);
                Err(error)
            }
        }
    }

    /// Decides a group and begins to write it.
    pub(super) async fn serve(&mut self, group: Vec<Waiting>) {
        let index = match self.index().await {
            Ok(index) => index,
            Err(error) => return refuse(group, &error),
        };
        if let Err(error) = self.settle_failed_head().await {
            return refuse(group, &error);
        }
        let all = group.iter().flat_map(|waiting| deciding(&waiting.asserts, &waiting.updates)).collect();
        let stored = match self.stored(&index, all).await {
            Ok(stored) => stored,
            Err(error) => return refuse(group, &error),
        };
        let mut failure = None;
        for waiting in group {
            let Waiting { asserts, updates, deadline, answer, room, .. } = waiting;
            let room = Some(room);
            let plain: Vec<OsdUpdate> = updates.iter().map(|update| update.update.clone()).collect();
            let small = allowed_when_full(&plain);
            let refusal = if let Some(error) = &failure {
                Some(OsdError::clone(error))
            } else if deadline.left(self.shared.clock.as_ref()).is_zero() {
                // Nobody waits for it any more: as good as never arrived.
                Some(OsdError::Timeout)
            } else if self.shared.space.is_full() && !small {
                Some(OsdError::Full)
            } else {
                self.check(&asserts, &stored).await.err()
            };
            if let Some(error) = refusal {
                self.settle(Err(error), answer, room);
                continue;
            }
            let changes = View { overlay: &self.overlay, stored: &stored }.changes(&updates);
            if changes.is_empty() {
                self.settle(Ok(()), answer, room);
                continue;
            }
            let purpose = if small { Purpose::Deletes } else { Purpose::Data };
            if let Err(error) = self.make_room(batch::encoded_len(&changes), purpose).await {
                drop(answer.send(Err(error.clone())));
                if !matches!(error, OsdError::Full) {
                    failure = Some(error);
                }
                continue;
            }
            self.plan(changes, answer, room);
        }
        self.index_takes_too_early().await;
        self.dispatch();
    }

    /// Moves what of `relocation` is still where it was.
    pub(super) async fn relocate(&mut self, relocation: Relocation, answer: Answer) {
        let index = match self.index().await {
            Ok(index) => index,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let stored = match self.stored(&index, relocation.keys()).await {
            Ok(stored) => stored,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let still = {
            let (overlay, table) = (&self.overlay, self.shared.table());
            relocation.decide(&stored, |key| overlay.touches(key), &table)
        };
        if let Err(error) = self.forget(&index, &still.forgotten_keys, &still.forgotten_ranges).await {
            return drop(answer.send(Err(error)));
        }
        if still.changes.is_empty() {
            return self.settle_and_go_on(answer);
        }
        if let Err(error) = self.make_room(batch::encoded_len(&still.changes), Purpose::Compaction).await {
            return drop(answer.send(Err(error)));
        }
        self.plan(still.changes, answer, None);
        self.dispatch();
    }

    fn settle_and_go_on(&mut self, answer: Answer) {
        self.settle(Ok(()), answer, None);
        self.dispatch();
    }

    async fn check(&self, asserts: &[OsdAssert], stored: &BTreeMap<OsdKey, Entry>) -> Result<(), OsdError> {
        let view = View { overlay: &self.overlay, stored };
        for assert in asserts {
            if let (Some(entry), OsdAssert::Value(key, expected)) = (view.check(assert)?, assert) {
                let found = reader::value(&self.shared, key, entry).await?;
                if found.value != *expected {
                    return Err(OsdError::AssertFailed(key.clone()));
                }
            }
        }
        Ok(())
    }

    /// Answers a batch that changes nothing. When it may have been decided by a batch that is not durable yet, it is
    /// answered after that.
    fn settle(&mut self, outcome: Result<(), OsdError>, answer: Answer, room: Option<OwnedSemaphorePermit>) {
        if self.planned.is_empty() && self.in_flight.is_empty() {
            drop(answer.send(outcome));
            return;
        }
        let encoded = Encoded { parts: Vec::new(), places: Vec::new(), len: 0 };
        let (sequence, at, changes) = (self.next, 0, Vec::new());
        self.planned.push(Planned { outcome, changes, sequence, at, encoded, answer, _room: room });
    }

    /// Gives the batch its number and its place. There is a head with room for it.
    fn plan(&mut self, changes: Vec<Change>, answer: Answer, room: Option<OwnedSemaphorePermit>) {
        let Some(head) = &self.head else {
            drop(answer.send(Err(OsdError::Device("no segment to write to".into()))));
            return;
        };
        let chain = Chain { sequence: self.next, previous: self.planned_last, last_synced: self.last };
        let newest = self.planned.iter().rfind(|planned| planned.encoded.len > 0);
        let at = newest.map_or(head.at, |planned| planned.at + planned.encoded.len);
        match batch::encode(head.segment.seed(), chain, &changes) {
            Ok(encoded) => {
                self.next = self.next.saturating_add(1);
                let sequence = chain.sequence;
                self.planned_last = sequence;
                self.overlay.add(self.group, &changes);
                let outcome = Ok(());
                self.planned.push(Planned { outcome, changes, sequence, at, encoded, answer, _room: room });
            }
            Err(error) => drop(answer.send(Err(OsdError::BadRequest(error.to_string())))),
        }
    }
}

fn refuse(group: Vec<Waiting>, error: &OsdError) {
    group.into_iter().for_each(|waiting| drop(waiting.answer.send(Err(error.clone()))));
}
