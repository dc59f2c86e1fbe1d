//! Items of the work queue about single objects: fragments that somebody found fault with, and objects to be stored anew.

use std::sync::Arc;
use std::time::Duration;

use alba_client::repair::{RepairError, Repaired, Suspect, is_gone};
use alba_core::wire::rpc::abm::WorkItem;
use async_trait::async_trait;

use super::{Surgery, is_served};
use crate::error::TaskError;
use crate::task::Run;
use crate::tasks::work::{Handled, Handler, namespace_by_id};

/// Longest one object takes.
const OBJECT_TIME: Duration = Duration::from_secs(600);

/// Does `RepairBadFragment` and `RewriteObject`.
pub struct Damage {
    surgery: Arc<Surgery>,
}

impl Damage {
    /// With what it shares with the others that repair.
    pub fn new(surgery: Arc<Surgery>) -> Self {
        Self { surgery }
    }
}

#[async_trait]
impl Handler for Damage {
    fn takes(&self, item: &WorkItem) -> bool {
        matches!(item, WorkItem::RepairBadFragment { .. } | WorkItem::RewriteObject { .. })
    }

    async fn handle(&self, item: &WorkItem, run: &Run) -> Result<Handled, TaskError> {
        let (WorkItem::RepairBadFragment { namespace, object, .. }
        | WorkItem::RewriteObject { namespace, object }) = item
        else {
            return Ok(Handled::NotYet("not an item of this handler".to_owned()));
        };
        let Some(record) = namespace_by_id(&run.backend, *namespace).await? else { return Ok(Handled::Done) };
        if !is_served(&record) {
            return Ok(Handled::NotYet(format!("namespace {} cannot be worked on now", record.name)));
        }
        let repairer = self.surgery.repairer(&run.backend);
        let registry = self.surgery.registry(&run.backend).await?;
        let patient = repairer.patient(record);
        let osds = repairer.osds(&patient, &registry).await?;
        let deadline = run.backend.env().deadline_in(OBJECT_TIME);
        let ended = match item {
            WorkItem::RepairBadFragment { chunk, fragment, version, .. } => {
                let suspect = Suspect { fragment: (*chunk, *fragment, *version), lost_if_silent: false };
                repairer.repair(&patient, *object, &osds, &[suspect], deadline).await
            }
            _ => repairer.rewrite(&patient, *object, &osds, deadline).await,
        };
        self.surgery.count();
        match ended {
            Ok(done) => {
                if let Repaired::Updated | Repaired::Rewritten = done {
                    metrics::counter!("alba_repair_objects_total").increment(1);
                }
                Ok(Handled::Done)
            }
            Err(RepairError::Client(error)) if is_gone(&error) => Ok(Handled::Done),
            Err(RepairError::Client(error)) => Err(error.into()),
            // It stays in the queue with the reason, and is tried again after a pause that grows.
            Err(error) => Ok(Handled::NotYet(error.to_string())),
        }
    }
}
