//! An operator's questions and wishes about replicated groups.

use alba_core::ids::GroupId;
use alba_core::wire::rpc::admin::{AdminError, AdminReply, AdminRequest};
use alba_core::wire::rpc::{Refusal, Reply};

use super::{ABM, Node, refused};
use crate::raft::MembershipError;

impl Node {
    pub(super) async fn admin(&self, group: &GroupId, request: AdminRequest) -> Reply {
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
            MembershipError::NotLeader | MembershipError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}
