//! Compares whose each OSD is, as the device itself says, with what the ABM says (features §3.1). The device is right; what
//! differs is reported, for an operator to decide: nothing is written.

use std::time::Duration;

use alba_core::failpoint::{Step, reach};
use alba_core::ids::AlbaId;
use alba_core::osd_keys;
use alba_core::wire::rpc::abm::{OsdFilter, OsdRecord, OsdState};
use async_trait::async_trait;

use crate::backend::Backend;
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task, whole};

/// The task `claims`.
pub struct Claims;

/// What is wrong with the claim of an OSD, when the device says that it belongs to `owner`.
pub fn judge(us: &AlbaId, record: &OsdRecord, owner: Option<&[u8]>) -> Option<String> {
    let long_id = &record.info.long_id;
    let whose = |owner: &[u8]| alba_core::ids::text_or_hex(owner);
    match (record.state.is_claimed(), owner) {
        (true, Some(owner)) if owner == us.as_str().as_bytes() => None,
        (true, Some(owner)) => {
            Some(format!("OSD {long_id} is registered as ours, and says it belongs to {}", whose(owner)))
        }
        (true, None) => Some(format!(
            "OSD {long_id} is registered as ours, and says it belongs to nobody: was it formatted?"
        )),
        (false, Some(owner)) if owner == us.as_str().as_bytes() => Some(format!(
            "OSD {long_id} says it is ours, and is not registered as claimed: `alba claim-osd` takes it in"
        )),
        (false, Some(owner)) if record.state == OsdState::Available => {
            Some(format!("OSD {long_id} is registered as available, and says it belongs to {}", whose(owner)))
        }
        (false, _) => None,
    }
}

#[async_trait]
impl Task for Claims {
    fn name(&self) -> &'static str {
        "claims"
    }

    fn about(&self) -> &'static str {
        "reports OSDs that belong to another backend, or to none, although the ABM says otherwise"
    }

    fn usual(&self) -> Timing {
        Timing::every(Duration::from_secs(3600))
    }

    async fn parts(&self, _: &Backend) -> Result<Vec<String>, TaskError> {
        Ok(whole())
    }

    async fn run(&self, _: &str, run: &Run) -> Result<(), TaskError> {
        let deadline = run.backend.env().deadline_in(Duration::from_secs(20));
        let us = run.backend.client().alba_id(deadline).await?;
        let mut wrong = 0_u32;
        for record in run.backend.osds(OsdFilter::Claimed).await? {
            if record.state == OsdState::Purging {
                continue;
            }
            let Some(id) = record.osd_id else { continue };
            run.pace(1, 0).await;
            // One that is down says nothing, and is reported by others.
            let Ok(owner) = run.backend.osd(id).await?.get(osd_keys::instance_log()).await else { continue };
            reach(Step::ClaimsAsked);
            run.progress.did(1, 0);
            if let Some(problem) = judge(&us, &record, owner.as_deref()) {
                wrong += 1;
                run.progress.problem(problem);
            }
        }
        metrics::gauge!("alba_osd_wrong_claims").set(f64::from(wrong));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alba_core::ids::{LongId, NodeId, OsdId, Place};
    use alba_core::units::ByteCount;
    use alba_core::wire::rpc::abm::{OsdEndpoint, OsdInfo, OsdKind};

    use super::*;

    #[test]
    fn every_claim_that_does_not_fit_is_told() {
        let us = AlbaId::new("us").unwrap();
        let record = |state| OsdRecord {
            info: OsdInfo {
                long_id: LongId::new("osd").unwrap(),
                place: Place::of_node(NodeId::new("node").unwrap()),
                endpoint: OsdEndpoint::over_tcp(vec![], 1),
                capacity: ByteCount(1),
                used: ByteCount(0),
            },
            osd_id: Some(OsdId::from_u32(0)),
            state,
            claimed_since: None,
            kind: OsdKind::Asd,
            owner: None,
        };
        let fits =
            |state, owner: Option<&str>| judge(&us, &record(state), owner.map(str::as_bytes)).is_none();
        assert!(fits(OsdState::Active, Some("us")) && fits(OsdState::Decommissioned, Some("us")));
        assert!(!fits(OsdState::Active, Some("them")) && !fits(OsdState::Active, None));
        assert!(fits(OsdState::Available, None) && fits(OsdState::Foreign, Some("them")));
        assert!(!fits(OsdState::Available, Some("us")) && !fits(OsdState::Available, Some("them")));
        assert!(!fits(OsdState::Foreign, Some("us")));
    }
}
