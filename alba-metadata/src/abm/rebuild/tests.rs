use alba_core::ids::{NamespaceName, NodeId, Place};
use alba_core::kv::MemKv;
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmOutcome, AbmQuery, Message, OsdEndpoint, OsdMessage,
};
use alba_core::wire::rpc::nsm::NsmMessage;

use super::*;
use crate::abm::Abm;
use crate::machine::{Input, Output, step};
use crate::model::Model as _;

const NOW: u64 = 1_700_000_000_000_000;

fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

fn preset(name: &str) -> PresetName {
    PresetName::new(name).unwrap()
}

fn osd(id: u32, next_message: Option<u32>, namespaces: &[u32]) -> KnownOsd {
    KnownOsd {
        id: OsdId::from_u32(id),
        info: OsdInfo {
            long_id: LongId::new(format!("osd-{id}")).unwrap(),
            place: Place::of_node(NodeId::new(format!("node-{id}")).unwrap()),
            endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 1),
            capacity: ByteCount(0),
            used: ByteCount(0),
        },
        next_message: next_message.map(MessageId::from_u32),
        namespaces: namespaces.iter().map(|id| NamespaceId::from_u32(*id)).collect(),
        deleted: Vec::new(),
    }
}

fn namespace(id: u32, name: &str, state: NamespaceState, osds: &[(u32, OsdUse)]) -> KnownNamespace {
    KnownNamespace {
        record: NamespaceRecord {
            id: NamespaceId::from_u32(id),
            name: NamespaceName::new(name).unwrap(),
            group: group("nsm-0"),
            state,
            preset: preset("p"),
        },
        last_move: MoveId(4),
        osds: osds.iter().map(|(id, how)| (OsdId::from_u32(*id), *how)).collect(),
    }
}

fn known() -> Known {
    use OsdUse::{Active, Draining, Unlinked};
    let server = vec!["127.0.0.1:4000".to_owned()];
    Known {
        alba_id: AlbaId::new("backend").unwrap(),
        groups: vec![
            KnownGroup {
                id: group("nsm-0"),
                servers: server.clone(),
                lost: false,
                next_message: MessageId::from_u32(70),
            },
            KnownGroup {
                id: group("nsm-1"),
                servers: server,
                lost: true,
                next_message: MessageId::from_u32(0),
            },
        ],
        osds: vec![
            osd(0, Some(9), &[3, 8]),
            osd(1, Some(9), &[3, 8]),
            osd(2, Some(5), &[3]),
            osd(3, None, &[]),
            osd(4, Some(6), &[3, 8]),
        ],
        presets: vec![KnownPreset { name: preset("p"), preset: Preset::built_in(), version: 6 }],
        default_preset: Some(preset("p")),
        namespaces: vec![
            namespace(
                3,
                "a",
                NamespaceState::Active,
                &[(0, Active), (1, Active), (3, Active), (4, Draining)],
            ),
            namespace(
                8,
                "b",
                NamespaceState::Trashed { since: NOW },
                &[(0, Active), (1, Unlinked), (4, Draining)],
            ),
        ],
        maintenance: None,
        next_osd: OsdId::from_u32(12),
        next_namespace: NamespaceId::from_u32(90),
    }
}

fn run(kv: &MemKv, input: &Input<AbmCommand>) -> Output<AbmOutcome, alba_core::wire::rpc::abm::AbmError> {
    let mut txn = KvTxn::new(kv);
    let output = step::<Abm>(&mut txn, NOW + 1, input).unwrap();
    kv.commit(txn.into_batch(), Durability::Sync).unwrap();
    output
}

fn messages(kv: &MemKv, destination: Destination) -> Vec<(u64, Message)> {
    match Abm::query(kv, &AbmQuery::Messages { destination, max: 200 }).unwrap() {
        AbmAnswer::Messages(found) => found.into_iter().map(|(id, message)| (id.get(), message)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rebuilt_abm_goes_on_where_everybody_is() {
    let kv = MemKv::new();
    rebuild(&kv, &known(), NOW).unwrap();
    assert_eq!(crate::abm::recount(&kv).unwrap(), []);
    // Each device gets what it lacks, behind what it has.
    let to_two = messages(&kv, Destination::Osd(OsdId::from_u32(2)));
    let [(5, Message::Osd(OsdMessage::AddNamespace { id, .. }))] = to_two.as_slice() else {
        panic!("{to_two:?}")
    };
    assert_eq!(*id, NamespaceId::from_u32(8));
    assert_eq!(messages(&kv, Destination::Osd(OsdId::from_u32(0))), []);
    // The group is told of its links again, of one that is gone for good and of one that drains, too.
    let told = messages(&kv, Destination::Group(group("nsm-0")));
    assert_eq!(told.first().map(|(id, _)| *id), Some(70));
    let links = |n: u32, o: u32| {
        told.iter().any(|(_, message)| {
            matches!(message, Message::Nsm(NsmMessage::LinkOsd { namespace, osd, .. })
                if *namespace == NamespaceId::from_u32(n) && *osd == OsdId::from_u32(o))
        })
    };
    assert!(links(3, 0) && links(3, 1) && links(3, 2) && links(8, 0) && links(8, 1));
    let gone = NsmMessage::UnlinkOsd { namespace: NamespaceId::from_u32(3), osd: OsdId::from_u32(3) };
    assert!(told.iter().any(|(_, message)| *message == Message::Nsm(gone.clone())));
    let drains = NsmMessage::SetOsdUse {
        namespace: NamespaceId::from_u32(8),
        osd: OsdId::from_u32(4),
        how: OsdUse::Draining,
    };
    assert!(told.iter().any(|(_, message)| *message == Message::Nsm(drains.clone())));
    // Ids go on behind all that were seen.
    let name = NamespaceName::new("new").unwrap();
    let create = AbmCommand::CreateNamespace { name, preset: None, group: None };
    let Output::Done(Ok(AbmOutcome::Namespace(record))) = run(&kv, &Input::Internal(create)) else {
        panic!()
    };
    assert_eq!(record.id, NamespaceId::from_u32(90));
    assert_eq!(record.group, group("nsm-0"), "the other one is lost");
    let info = osd(50, None, &[]).info;
    run(&kv, &Input::Internal(AbmCommand::AddOsd(info.clone())));
    let claimed = run(&kv, &Input::Internal(AbmCommand::MarkClaimed { long_id: info.long_id }));
    assert_eq!(claimed, Output::Done(Ok(AbmOutcome::OsdId(OsdId::from_u32(12)))));
    while run(&kv, &Input::Tidy) == Output::Tidied(true) {}
    assert_eq!(crate::abm::recount(&kv).unwrap(), []);
}

#[test]
fn what_was_left_of_deleted_namespaces_is_work_again() {
    let kv = MemKv::new();
    let mut known = known();
    // OSD 3 does not answer and is purged.
    for osd in [0, 3, 4] {
        known.osds[osd].deleted = vec![NamespaceId::from_u32(5)];
    }
    rebuild(&kv, &known, NOW).unwrap();
    assert_eq!(crate::abm::recount(&kv).unwrap(), []);
    let AbmAnswer::Work(page) = Abm::query(&kv, &AbmQuery::Work { after: None, max: 100 }).unwrap() else {
        panic!()
    };
    let cleaned: Vec<u64> = page
        .items
        .into_iter()
        .filter_map(|record| match record.item {
            WorkItem::CleanupOsdNamespace { osd, namespace } if namespace.get() == 5 => Some(osd.get()),
            _ => None,
        })
        .collect();
    assert_eq!(cleaned, [0, 4]);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let wrong: [fn(&mut Known); 7] = [
        |known| known.osds[0].deleted = vec![NamespaceId::from_u32(3)],
        |known| known.next_namespace = NamespaceId::from_u32(8),
        |known| known.next_osd = OsdId::from_u32(4),
        |known| known.osds.push(osd(2, None, &[])),
        |known| known.groups.clear(),
        |known| known.presets.clear(),
        |known| known.namespaces.push(namespace(5, "a", NamespaceState::Active, &[])),
    ];
    for (at, change) in wrong.iter().enumerate() {
        let mut known = known();
        change(&mut known);
        let refused = rebuild(&MemKv::new(), &known, NOW);
        assert!(matches!(refused, Err(RebuildError::Contradiction(_))), "{at}: {refused:?}");
    }
}
