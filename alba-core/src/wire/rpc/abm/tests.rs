use super::super::golden;
use super::*;
use crate::ids::{ChunkIndex, FragmentIndex, NodeId, ObjectId, ObjectName, ObjectVersion, Place};
use crate::range::{Page, RangeQuery};
use crate::units::ByteCount;

const NS: NamespaceId = NamespaceId::from_u32(7);
const OSD: OsdId = OsdId::from_u32(3);

fn long_id() -> LongId {
    LongId::new("osd").unwrap()
}

fn namespace() -> NamespaceName {
    NamespaceName::new("ns").unwrap()
}

fn preset() -> PresetName {
    PresetName::new("p").unwrap()
}

fn group() -> GroupId {
    GroupId::new("g").unwrap()
}

fn agent() -> AgentId {
    AgentId::new("a").unwrap()
}

fn job() -> JobName {
    JobName::new("j").unwrap()
}

fn task() -> TaskName {
    TaskName::new("t").unwrap()
}

fn object() -> ObjectId {
    ObjectId::new([9; 32])
}

fn destination() -> Destination {
    Destination::Osd(OSD)
}

fn range() -> RangeQuery {
    RangeQuery {
        first: b"a".to_vec(),
        first_included: true,
        last: Some((b"b".to_vec(), false)),
        reverse: true,
        max: 5,
    }
}

fn info() -> OsdInfo {
    OsdInfo {
        long_id: long_id(),
        place: Place::of_node(NodeId::new("node").unwrap()),
        endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()], 8000),
        capacity: ByteCount::mib(1),
        used: ByteCount(5),
    }
}

fn report() -> OsdReport {
    OsdReport {
        seen: vec![1],
        read: vec![2],
        write: vec![3],
        errors: vec![(4, "e".to_owned())],
        checksum_errors: 5,
        usage: Some(Usage { capacity: ByteCount(7), used: ByteCount(6) }),
    }
}

fn leaf() -> LeafProgress {
    LeafProgress {
        count: 1,
        next: Some(object()),
        end: None,
        fragments_detected_missing: 2,
        fragments_osd_unavailable: 3,
        fragments_checksum_mismatch: 4,
    }
}

fn lease() -> LeaseRecord {
    LeaseRecord { task: task(), agent: agent(), token: 1, expires: 2 }
}

fn run_report() -> RunReport {
    RunReport { state: RunState::Failed { reason: "r".to_owned() }, done: 1, total: Some(2), bytes: 3 }
}

fn task_record() -> TaskRecord {
    TaskRecord {
        task: task(),
        agent: agent(),
        token: 1,
        started: 2,
        reported: 3,
        report: run_report(),
        succeeded: Some(4),
        failed: Some((5, "f".to_owned())),
        failures: 6,
    }
}

fn window() -> WindowRecord {
    let target = WindowTarget::Node(NodeId::new("n").unwrap());
    WindowRecord { target, reason: "r".to_owned(), since: 1, until: 2 }
}

fn survey() -> SurveyRecord {
    let counts =
        SurveyCounts { below_policy: 1, repairable: 2, unrepairable: 3, left_alone: 6, least: Some((-1, 4)) };
    SurveyRecord { namespace: NS, at: 5, counts }
}

fn failed() -> FailedRepair {
    FailedRepair { namespace: NS, object: object(), reason: "r".to_owned() }
}

fn unrepaired() -> UnrepairedRecord {
    let FailedRepair { namespace, object, reason } = failed();
    UnrepairedRecord { namespace, object, failures: 1, at: 2, until: 3, reason }
}

fn redis() -> RedisEviction {
    RedisEviction { host: "h".to_owned(), port: 6379, key: "k".to_owned() }
}

fn update() -> MaintenanceUpdate {
    MaintenanceUpdate {
        enable_auto_repair: Some(true),
        auto_repair_timeout_seconds: Some(1),
        add_disabled_nodes: vec![NodeId::new("n").unwrap()],
        remove_disabled_nodes: vec![NodeId::new("m").unwrap()],
        enable_rebalance: Some(false),
        add_cache_eviction: vec![("c".to_owned(), preset())],
        remove_cache_eviction: vec!["d".to_owned()],
        redis_lru_cache_eviction: Some(Some(redis())),
        auto_cleanup_deleted_namespaces_days: Some(2),
    }
}

fn record() -> NamespaceRecord {
    NamespaceRecord {
        id: NS,
        name: namespace(),
        group: group(),
        state: NamespaceState::Trashed { since: 1 },
        preset: preset(),
    }
}

fn osd_record() -> OsdRecord {
    OsdRecord {
        info: info(),
        osd_id: Some(OSD),
        state: OsdState::Active,
        claimed_since: Some(1),
        kind: OsdKind::Asd,
        owner: Some("o".to_owned()),
    }
}

fn preset_record() -> PresetRecord {
    PresetRecord { name: preset(), preset: Preset::built_in(), version: 1, is_default: true, in_use: false }
}

fn work() -> WorkRecord {
    WorkRecord {
        id: WorkId::from_u32(1),
        item: WorkItem::WaitUntilDecommissioned { osd: OSD },
        claim: Some((agent(), 2)),
        not_before: 3,
        failures: 4,
        last_failure: Some("f".to_owned()),
    }
}

fn letter() -> DeadLetter {
    DeadLetter { id: MessageId::from_u32(1), message: Message::Skip, reason: "r".to_owned(), since: 2 }
}

fn page<T>(item: T) -> Page<T> {
    Page { items: vec![item], has_more: true }
}

fn commands() -> Vec<AbmCommand> {
    use AbmCommand as C;
    let (long_id, name, to) = (long_id(), namespace(), group());
    let servers = vec!["s".to_owned()];
    let id = MessageId::from_u32(4);
    vec![
        C::Bootstrap { alba_id: AlbaId::new("b").unwrap() },
        C::AddGroup { id: group(), servers: servers.clone() },
        C::AddOsd(info()),
        C::UpdateOsd(info()),
        C::MarkClaimed { long_id: long_id.clone() },
        C::CreatePreset { name: preset(), preset: Box::new(Preset::built_in()) },
        C::SetDefaultPreset { name: preset() },
        C::CreateNamespace { name: name.clone(), preset: Some(preset()), group: Some(group()) },
        C::DeleteNamespace { name: name.clone() },
        C::MarkDelivered { destination: destination(), upto: id },
        C::MarkRefused { destination: Destination::Group(group()), id, reason: "r".to_owned() },
        C::RetryDeadLetter { destination: destination(), id },
        C::DropDeadLetter { destination: destination(), id, as_delivered: true },
        C::CreateGroup { id: group(), servers: servers.clone() },
        C::UpdateGroup { id: group(), servers: Some(servers), lost: true },
        C::ReportGroupLoad { id: group(), load: GroupLoad { operations_per_minute: 1, bytes: 2 } },
        C::MarkForeign { long_id: long_id.clone(), owner: "o".to_owned() },
        C::DrainOsd { long_id: long_id.clone() },
        C::UndrainOsd { long_id: long_id.clone() },
        C::DecommissionOsd { long_id: long_id.clone() },
        C::PurgeOsd { long_id: long_id.clone() },
        C::ReportOsds(vec![(long_id, report())]),
        C::UpdatePreset {
            name: preset(),
            policies: Some(vec![Policy::new(2, 1, 3, 1).unwrap()]),
            fragment_size: Some(4096),
        },
        C::AddOsdsToPreset { name: preset(), osds: vec![OSD] },
        C::DeletePreset { name: preset() },
        C::TrashNamespace { name: name.clone() },
        C::UndeleteNamespace { name: name.clone() },
        C::RecoverNamespace { name: name.clone(), group: group() },
        C::FinishRecovery { name: name.clone() },
        C::StartMove { name: name.clone(), to: to.clone() },
        C::FinishMove { name: name.clone(), to: to.clone() },
        C::AbortMove { name: name.clone(), to },
        C::AddWork(work_items()),
        C::ClaimWork { agent: agent(), max: 1, period: 2 },
        C::RenewWork { ids: vec![WorkId::from_u32(1)], token: 2, period: 3 },
        C::FailWork { id: WorkId::from_u32(1), token: 2, reason: "r".to_owned() },
        C::MarkWorkCompleted(vec![WorkId::from_u32(1)]),
        C::StartJob { name: job(), namespace: name, action: JobAction::Rewrite, factor: 2 },
        C::UpdateJobProgress {
            name: job(),
            leaf: 1,
            expected: leaf(),
            progress: LeafProgress { next: None, end: Some(object()), ..leaf() },
        },
        C::ClearJob { name: job() },
        C::AcquireLease { task: task(), agent: agent(), period: 1 },
        C::RenewLease { task: task(), token: 1, period: 2 },
        C::ReleaseLease { task: task(), token: 1 },
        C::RegisterParticipant { agent: agent(), role: "r".to_owned(), about: "b".to_owned() },
        C::RemoveParticipant { agent: agent() },
        C::UpdateMaintenance(update()),
        C::MarkPeersTold { osd: OSD, revision: 1 },
        C::ReportTask { task: task(), token: 1, report: run_report() },
        C::ForgetTask { task: task() },
        C::PauseTask { task: task(), paused: true },
        C::EmptyTrash { namespace: NS },
        C::DiscardNamespace { name: namespace() },
        C::MarkTask { task: task(), token: 1, mark: 2 },
        C::OpenWindow { target: window().target, period: 1, reason: "r".to_owned() },
        C::CloseWindow { target: WindowTarget::Osd(self::long_id()) },
        C::ReportSurveys { task: task(), token: 1, surveys: vec![(NS, survey().counts)] },
        C::ReportRepairs { task: task(), token: 1, failed: vec![failed()], well: vec![(NS, object())] },
        C::WakeUnrepaired { task: task(), token: 1 },
    ]
}

fn work_items() -> Vec<WorkItem> {
    vec![
        WorkItem::WaitUntilRepaired { osd: OSD, namespace: NS },
        WorkItem::WaitUntilDecommissioned { osd: OSD },
        WorkItem::CleanupNamespaceOsd { namespace: NS, osd: OSD },
        WorkItem::CleanupOsdNamespace { osd: OSD, namespace: NS },
        WorkItem::RepairBadFragment {
            namespace: NS,
            object: object(),
            name: ObjectName::new("ab").unwrap(),
            chunk: ChunkIndex(1),
            fragment: FragmentIndex(2),
            version: ObjectVersion(3),
        },
        WorkItem::RewriteObject { namespace: NS, object: object() },
        WorkItem::IterateLeaf { job: job(), leaf: 1 },
    ]
}

fn outcomes() -> Vec<AbmOutcome> {
    vec![
        AbmOutcome::Done,
        AbmOutcome::AlbaId(AlbaId::new("b").unwrap()),
        AbmOutcome::OsdId(OSD),
        AbmOutcome::Namespace(record()),
        AbmOutcome::Work { token: 1, items: vec![work()] },
        AbmOutcome::Lease(lease()),
    ]
}

fn filters() -> Vec<OsdFilter> {
    use OsdFilter as F;
    vec![F::All, F::Claimed, F::Available, F::Decommissioning, F::Purging, F::Draining]
}

fn queries() -> Vec<AbmQuery> {
    use AbmQuery as Q;
    let after = Some(NS);
    vec![
        Q::AlbaId,
        Q::Osds { filter: OsdFilter::Claimed, range: range() },
        Q::Osd(long_id()),
        Q::Presets(range()),
        Q::Preset(preset()),
        Q::Namespaces(range()),
        Q::Namespace(namespace()),
        Q::Groups,
        Q::NamespaceOsds(NS),
        Q::Messages { destination: destination(), max: 1 },
        Q::Queues,
        Q::DeadLetterCounts,
        Q::DeadLetters { destination: destination(), after: Some(MessageId::from_u32(1)), max: 2 },
        Q::OsdHealth(range()),
        Q::OsdNamespaces { osd: OSD, after, max: 1 },
        Q::PresetsPropagation,
        Q::WorkCount,
        Q::Work { after: Some(WorkId::from_u32(1)), max: 2 },
        Q::Jobs(range()),
        Q::JobProgress(job()),
        Q::Lease(task()),
        Q::Participants,
        Q::Maintenance,
        Q::Revisions,
        Q::Tasks(range()),
        Q::PausedTasks,
        Q::TaskMark(task()),
        Q::Windows,
        Q::Surveys { after: Some(NS), max: 1 },
        Q::Unrepaired { after: Some((NS, object())), max: 1 },
    ]
}

fn answers() -> Vec<AbmAnswer> {
    use AbmAnswer as A;
    let health = OsdHealth {
        seen: vec![1],
        read: vec![2],
        write: vec![3],
        errors: vec![(4, "e".to_owned())],
        checksum_errors: 5,
    };
    let mut maintenance = MaintenanceConfig::default();
    maintenance.merge(&update());
    let job_record = JobRecord {
        name: job(),
        namespace: NS,
        action: JobAction::Verify { checksums: true, repair_osd_unavailable: false },
        leaves: 2,
        since: 3,
    };
    let load = GroupLoad { operations_per_minute: 1, bytes: 2 };
    let group_record =
        GroupRecord { id: group(), servers: vec!["s".to_owned()], namespaces: 3, lost: true, load };
    let seen = ParticipantRecord { agent: agent(), role: "r".to_owned(), about: "b".to_owned(), seen: 1 };
    vec![
        A::AlbaId(AlbaId::new("b").unwrap()),
        A::Osds(page(osd_record())),
        A::Osd(Some(osd_record())),
        A::Presets(page(preset_record())),
        A::Preset(Some(preset_record())),
        A::Namespaces(page(record())),
        A::Namespace(Some(record())),
        A::Groups(vec![group_record]),
        A::OsdIds(vec![OSD]),
        A::Messages(vec![(MessageId::from_u32(1), Message::Skip)]),
        A::Queues(vec![(destination(), 1)]),
        A::DeadLetters(page(letter())),
        A::OsdHealth(page((long_id(), health))),
        A::NamespaceIds(page(NS)),
        A::PresetsPropagation(vec![PresetPropagation { preset: preset(), version: 1, pending: 2 }]),
        A::WorkCount(1),
        A::Work(page(work())),
        A::Jobs(page(job_record)),
        A::JobProgress(Some(vec![leaf()])),
        A::Lease(Some(lease())),
        A::Participants(vec![seen]),
        A::Maintenance(Box::new(maintenance)),
        A::Revisions(Revisions { osds: 1, presets: 2, namespaces: 3, groups: 4, maintenance: 5 }),
        A::Tasks(Page { items: vec![task_record()], has_more: false }),
        A::PausedTasks(vec![task()]),
        A::TaskMark(Some(1)),
        A::Windows { now: 9, windows: vec![window()] },
        A::Surveys { now: 9, page: page(survey()) },
        A::Unrepaired { now: 9, page: page(unrepaired()) },
    ]
}

fn errors() -> Vec<AbmError> {
    use AbmError as E;
    let text = || "a".to_owned();
    vec![
        E::NoGroup,
        E::NamespaceExists(namespace()),
        E::NamespaceUnknown(namespace()),
        E::NamespaceNotActive(namespace()),
        E::OsdExists(long_id()),
        E::OsdUnknown(long_id()),
        E::OsdClaimed { long_id: long_id(), owner: text() },
        E::OsdUnreachable { long_id: long_id(), reason: text() },
        E::PresetUnknown(preset()),
        E::PresetExists(preset()),
        E::PresetInvalid(text()),
        E::BadArgument(text()),
        E::Unknown(text()),
        E::GroupExists(group()),
        E::GroupUnknown(group()),
        E::OsdDecommissioned(long_id()),
        E::OsdInfoMismatch { long_id: long_id(), reason: text() },
        E::PresetInUse(preset()),
        E::LeaseMismatch { task: task(), holder: text() },
        E::JobUnknown(job()),
        E::ProgressMoved { name: job(), found: Box::new(leaf()) },
    ]
}

fn messages() -> Vec<Message> {
    vec![
        Message::Nsm(NsmMessage::DeleteNamespace { id: NS }),
        Message::Osd(OsdMessage::Identify { osd_id: OSD }),
        Message::Skip,
    ]
}

fn osd_messages() -> Vec<OsdMessage> {
    let add = OsdMessage::AddNamespace {
        id: NS,
        name: namespace(),
        preset_name: preset(),
        preset: Box::new(Preset::built_in()),
    };
    vec![OsdMessage::Identify { osd_id: OSD }, add, OsdMessage::RemoveNamespace { id: NS }]
}

fn osd_states() -> Vec<OsdState> {
    use OsdState as S;
    vec![S::Available, S::Active, S::Decommissioning, S::Draining, S::Purging, S::Decommissioned, S::Foreign]
}

fn namespace_states() -> Vec<NamespaceState> {
    use NamespaceState as S;
    let moving = S::Moving { to: group() };
    vec![S::Creating, S::Active, S::Removing, S::Recovering, S::Trashed { since: 1 }, moving]
}

#[test]
fn everything_has_golden_bytes() {
    let mut lines = Vec::new();
    golden::show("command", &commands(), &mut lines);
    golden::show("outcome", &outcomes(), &mut lines);
    golden::show("query", &queries(), &mut lines);
    golden::show("answer", &answers(), &mut lines);
    golden::show("error", &errors(), &mut lines);
    golden::show("message", &messages(), &mut lines);
    golden::show("osd_message", &osd_messages(), &mut lines);
    golden::show("destination", &[Destination::Group(group()), destination()], &mut lines);
    golden::show("filter", &filters(), &mut lines);
    golden::show("osd_state", &osd_states(), &mut lines);
    golden::show("osd_kind", &[OsdKind::Asd], &mut lines);
    golden::show("namespace_state", &namespace_states(), &mut lines);
    golden::show("work", &work_items(), &mut lines);
    let verify = JobAction::Verify { checksums: true, repair_osd_unavailable: false };
    golden::show("action", &[JobAction::Rewrite, verify], &mut lines);
    golden::compare(&lines, include_str!("golden.txt"));
}
