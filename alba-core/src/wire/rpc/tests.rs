use super::admin::{GroupMember, GroupStatus, StreamKind};
use super::watch::{Lineage, Seen, Topic};
use super::*;
use crate::ids::NamespaceId;

fn group() -> GroupId {
    GroupId::new("g").unwrap()
}

fn request_id() -> RequestId {
    RequestId { session: SessionId(1), sequence: 2, lowest_unacknowledged: 3 }
}

fn requests() -> Vec<Request> {
    let ns = NamespaceId::from_u32(7);
    vec![
        Request::Hello,
        Request::OpenSession { group: group(), nonce: [9; 16] },
        Request::Abm(request_id(), AbmCommand::MarkWorkCompleted(Vec::new())),
        Request::AbmQuery(Consistency::Linearizable, AbmQuery::AlbaId),
        Request::Nsm(group(), request_id(), NsmCommand::Deliver(Vec::new())),
        Request::NsmQuery(group(), Consistency::AtLeast(300), NsmQuery::Namespace(ns)),
        Request::ClaimOsd(LongId::new("osd").unwrap()),
        Request::Replicate(group(), Bytes::from_static(b"xyz")),
        Request::Admin(group(), AdminRequest::Status),
        Request::Watch(WatchRequest { known: seen(), wait_ms: 4 }),
    ]
}

fn replies() -> Vec<Reply> {
    vec![
        Reply::Hello {
            alba_id: AlbaId::new("b").unwrap(),
            groups: vec![group()],
            version: "1.2.3".to_owned(),
        },
        Reply::Session(SessionId(1)),
        Reply::Abm(Ok(AbmOutcome::Done)),
        Reply::AbmAnswer(Err(AbmError::NoGroup)),
        Reply::Nsm(Err(NsmError::ObjectNotFound)),
        Reply::NsmAnswer(Ok(NsmAnswer::Exist(vec![true]))),
        Reply::Replicate(Bytes::from_static(b"xyz")),
        Reply::Refused(Refusal::Overloaded),
        Reply::Admin(Ok(AdminReply::Done)),
        Reply::Watch(WatchReply::News(seen())),
    ]
}

fn seen() -> Seen {
    Seen { lineage: Lineage(1), revisions: vec![(Topic::NAMESPACES, 3)] }
}

fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::SessionUnknown,
        Refusal::UnknownGroup,
        Refusal::NotLeader { leader: Some("a".to_owned()) },
        Refusal::Behind,
        Refusal::BadRequest("r".to_owned()),
        Refusal::Storage("r".to_owned()),
        Refusal::Overloaded,
    ]
}

fn admin_requests() -> Vec<AdminRequest> {
    vec![
        AdminRequest::Status,
        AdminRequest::AddReplica { address: "a".to_owned() },
        AdminRequest::RemoveReplica { replica: 1 },
        AdminRequest::Snapshot,
        AdminRequest::Open { what: StreamKind::Backup, consistency: Consistency::Any },
        AdminRequest::Next { stream: 1, number: 2 },
        AdminRequest::Close { stream: 1 },
    ]
}

fn admin_replies() -> Vec<AdminReply> {
    let member = GroupMember { replica: 1, address: "a".to_owned(), voter: true, lag: Some(2) };
    let status = GroupStatus {
        replica: 1,
        leader: Some(2),
        term: 3,
        applied: 4,
        last: 5,
        snapshot: 6,
        cut: 7,
        format: 8,
        members: vec![member],
        trouble: Some("t".to_owned()),
    };
    vec![
        AdminReply::Status(status),
        AdminReply::Added { replica: 1 },
        AdminReply::Done,
        AdminReply::Opened { stream: 1 },
        AdminReply::Piece { bytes: Bytes::from_static(b"xyz"), last: true },
        AdminReply::Wait,
    ]
}

fn admin_errors() -> Vec<AdminError> {
    vec![
        AdminError::NotReplicated,
        AdminError::Unreachable { address: "a".to_owned(), reason: "r".to_owned() },
        AdminError::Busy,
        AdminError::UnknownReplica(1),
        AdminError::LastReplica,
        AdminError::Failed("r".to_owned()),
        AdminError::StreamUnknown,
        AdminError::TooManyStreams(1),
    ]
}

#[test]
fn everything_has_golden_bytes() {
    let mut lines = vec![format!("format {FORMAT}")];
    golden::show("request", &requests(), &mut lines);
    golden::show("reply", &replies(), &mut lines);
    golden::show("refusal", &refusals(), &mut lines);
    golden::show(
        "consistency",
        &[Consistency::Linearizable, Consistency::AtLeast(1), Consistency::Any],
        &mut lines,
    );
    golden::show("admin_request", &admin_requests(), &mut lines);
    golden::show("admin_reply", &admin_replies(), &mut lines);
    golden::show("admin_error", &admin_errors(), &mut lines);
    golden::show("stream", &[StreamKind::Backup, StreamKind::Check, StreamKind::Export], &mut lines);
    golden::compare(&lines, include_str!("golden.txt"));
}
