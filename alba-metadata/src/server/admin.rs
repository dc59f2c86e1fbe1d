//! An operator's questions and wishes about groups.

use alba_core::env::Deadline;
use alba_core::ids::GroupId;
use alba_core::wire::rpc::admin::{AdminError, AdminReply, AdminRequest};
use alba_core::wire::rpc::{Refusal, Reply};

use super::{ABM, Node, refused};
use crate::raft::MembershipError;

impl Node {
    pub(super) async fn admin(&self, group: &GroupId, request: AdminRequest, deadline: Deadline) -> Reply {
        match request {
            AdminRequest::Open { what, consistency } => {
                return self.open_stream(group, what, consistency, deadline).await;
            }
            AdminRequest::Next { stream, number } => {
                return self.next_piece(group, stream, number, deadline).await;
            }
            AdminRequest::Close { stream } => return self.close_stream(stream),
            AdminRequest::Status
            | AdminRequest::AddReplica { .. }
            | AdminRequest::RemoveReplica { .. }
            | AdminRequest::Snapshot => {}
        }
        let Some(raft) = self.rafts.get(group) else {
            let hosted =
                self.groups.nsm.contains_key(group) || (group.as_str() == ABM && self.groups.abm.is_some());
            return if hosted {
                Reply::Admin(Err(AdminError::NotReplicated))
            } else {
                Reply::Refused(Refusal::UnknownGroup)
            };
        };
        let changed = |result: Result<AdminReply, MembershipError>| match result {
            Ok(reply) => Reply::Admin(Ok(reply)),
            Err(MembershipError::NotLeader) => {
                Reply::Refused(Refusal::NotLeader { leader: raft.leader_address() })
            }
            Err(error) => Reply::Admin(Err(error.into())),
        };
        match request {
            AdminRequest::Status => match raft.status() {
                Ok(status) => Reply::Admin(Ok(AdminReply::Status(status))),
                Err(error) => refused(&error),
            },
            AdminRequest::AddReplica { address } => {
                changed(raft.add_replica(&address).await.map(|replica| AdminReply::Added { replica }))
            }
            AdminRequest::RemoveReplica { replica } => {
                changed(raft.remove_replica(replica).await.map(|()| AdminReply::Done))
            }
            AdminRequest::Snapshot => match raft.snapshot_now().await {
                Ok(()) => Reply::Admin(Ok(AdminReply::Done)),
                Err(error) => refused(&error),
            },
            // Answered above, for every group.
            AdminRequest::Open { .. } | AdminRequest::Next { .. } | AdminRequest::Close { .. } => {
                Reply::Admin(Err(AdminError::StreamUnknown))
            }
        }
    }
}

impl From<MembershipError> for AdminError {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::Unreachable { address, reason } => Self::Unreachable { address, reason },
            MembershipError::Busy => Self::Busy,
            MembershipError::Unknown(id) => Self::UnknownReplica(id),
            MembershipError::Last => Self::LastReplica,
            MembershipError::NotLeader | MembershipError::Outdated { .. } | MembershipError::Failed(_) => {
                Self::Failed(error.to_string())
            }
        }
    }
}
