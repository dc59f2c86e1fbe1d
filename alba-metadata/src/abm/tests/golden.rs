use super::*;

#[test]
fn records_have_golden_bytes() {
    use alba_core::kv::KvRead;
    let world = World::new();
    world.claim(0);
    world.create("ns");
    let get = |key: &[u8]| world.0.get(key).unwrap().unwrap();
    assert_eq!(get(b"A"), b"\x01\x07backend");
    assert_eq!(get(b"D"), b"\x01\x07default");
    assert_eq!(get(b"o"), [1, 1]);
    assert_eq!(get(b"I\0\0\0\0\0\0\0\0"), b"\x01\x05osd-0");
    assert_eq!(get(b"Gnsm-0"), b"\x01\x01\x0b127.0.0.1:1\0");
    assert_eq!(get(b"gnsm-0"), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(get(b"Nns"), b"\x01\0\x02ns\x05nsm-0\0\x07default");
    assert_eq!(get(b"M\0\0\0\0\0\0\0\0"), b"\x01\x02ns");
    assert_eq!(get(b"U\0\x07default\0\0\0\0\0\0\0\0"), [1]);
    assert_eq!(get(b"L\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), [1, 0]);
    assert_eq!(get(b"K\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), [1]);
    assert_eq!(get(b"Q\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), [1, 1, 0, 0]);
    assert_eq!(get(b"q\x02\0\0\0\0\0\0\0\0"), [1, 2]);
    assert_eq!(get(b"w\x01\0\x05nsm-0"), [1, 0, 0, 0, 0, 0, 0, 0]);
    let osd = get(b"Oosd-0");
    // format, long id, place, one IPv4 address, port 8000, capacity 1 MiB, used 0, id 0, active, claimed at 7
    assert!(
        osd.starts_with(b"\x01\x05osd-0\x06node-0\x01\0\x7f\0\0\x01\xc0\x3e\x80\x80\x40\0\x01\0\x01\x01")
    );
}

#[test]
fn records_of_moves_have_golden_bytes() {
    use alba_core::kv::KvRead;
    let world = World::new();
    world.create("ns");
    world.settle();
    let to = GroupId::new("nsm-1").unwrap();
    world.run(AbmCommand::StartMove { name: namespace("ns"), to }).unwrap();
    let get = |key: &[u8]| world.0.get(key).unwrap().unwrap();
    assert_eq!(get(b"m\0\0\0\0\0\0\0\0"), [1, 1]);
    assert_eq!(get(b"Y\0\0\0\0\0\0\0\0"), b"\x01\x02ns");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tables of work, jobs, leases, letters and walks.
#[test]
fn records_of_upkeep_have_golden_bytes() {
    use alba_core::ids::{AgentId, JobName, TaskName, WorkId};
    use alba_core::wire::rpc::abm::{GroupLoad, JobAction, OsdReport};
    let world = World::new();
    let agent = || AgentId::new("a").unwrap();
    world.claim(0);
    world.create("ns");
    world.settle();
    let start = AbmCommand::StartJob {
        name: JobName::new("j").unwrap(),
        namespace: namespace("ns"),
        action: JobAction::Verify { checksums: true, repair_osd_unavailable: false },
        factor: 2,
    };
    world.1.set(1000);
    world.run(start).unwrap();
    world.run(AbmCommand::ClaimWork { agent: agent(), max: 1, period: 5 }).unwrap();
    let fail = AbmCommand::FailWork { id: WorkId::from_u32(0), token: 1, reason: "no".to_owned() };
    world.run(fail).unwrap();
    let task = TaskName::new("gc").unwrap();
    world.run(AbmCommand::AcquireLease { task, agent: agent(), period: 5 }).unwrap();
    let (role, about) = ("r".to_owned(), "b".to_owned());
    world.run(AbmCommand::RegisterParticipant { agent: agent(), role, about }).unwrap();
    let report = OsdReport { seen: vec![4], errors: vec![(4, "e".to_owned())], ..OsdReport::default() };
    world.run(AbmCommand::ReportOsds(vec![(osd(0).long_id, report)])).unwrap();
    let load = GroupLoad { operations_per_minute: 2, bytes: 3 };
    world.run(AbmCommand::ReportGroupLoad { id: GroupId::new("nsm-0").unwrap(), load }).unwrap();
    world.run(AbmCommand::MarkPeersTold { osd: OsdId::from_u32(0), revision: 1 }).unwrap();
    world.run(AbmCommand::DecommissionOsd { long_id: osd(0).long_id }).unwrap();
    let group = to_group("nsm-0");
    let id = world.queued(&group)[0].0;
    world.run(AbmCommand::MarkRefused { destination: group, id, reason: "no".to_owned() }).unwrap();
    let update = alba_core::wire::rpc::abm::MaintenanceUpdate {
        enable_rebalance: Some(false),
        ..alba_core::wire::rpc::abm::MaintenanceUpdate::default()
    };
    world.run(AbmCommand::UpdateMaintenance(update)).unwrap();
    let walk = crate::abm::walks::Stored {
        walk: crate::abm::walks::Walk::LinkOsd(OsdId::from_u32(7)),
        after: Some(vec![9]),
    };
    assert_eq!(hex(&encode(&walk).unwrap()), "010007010109");
    assert_eq!(hex(&walk.walk.key()), "54010000000000000007");
    let mut shown = String::new();
    for table in "BCEHJSVWXZbefjlprtvxy".bytes() {
        for (key, value) in crate::value::scan_prefix(&world.0, &[table], 10).unwrap() {
            shown.push_str(&format!("{} {}\n", hex(&key), hex(&value)));
        }
    }
    assert_eq!(shown, include_str!("golden.txt"));
}

/// Commands as they stand in logs: a variant is only ever added at the end.
#[test]
fn commands_have_golden_numbers() {
    let long_id = || osd(0).long_id;
    let name = || namespace("n");
    let number = |command: &AbmCommand| postcard::to_stdvec(command).unwrap()[0];
    use AbmCommand as C;
    use alba_core::ids::TaskName;
    let some = [
        (
            C::MarkRefused { destination: to_group("g"), id: MessageId::from_u32(1), reason: String::new() },
            10,
        ),
        (C::CreateGroup { id: GroupId::new("g").unwrap(), servers: vec![] }, 13),
        (C::MarkForeign { long_id: long_id(), owner: String::new() }, 16),
        (C::DecommissionOsd { long_id: long_id() }, 19),
        (C::PurgeOsd { long_id: long_id() }, 20),
        (C::TrashNamespace { name: name() }, 25),
        (C::FinishMove { name: name(), to: GroupId::new("g").unwrap() }, 30),
        (C::AddWork(vec![]), 32),
        (C::MarkWorkCompleted(vec![]), 36),
        (C::MarkPeersTold { osd: OsdId::from_u32(0), revision: 0 }, 46),
        (C::ReportRepairs { task: TaskName::new("t").unwrap(), token: 0, failed: vec![], well: vec![] }, 56),
    ];
    for (command, want) in some {
        assert_eq!(number(&command), want, "{command:?}");
    }
    let purge = postcard::to_stdvec(&C::PurgeOsd { long_id: long_id() }).unwrap();
    assert_eq!(purge, b"\x14\x05osd-0");
    // Members of the version before know the others only.
    let mark = C::MarkTask { task: TaskName::new("t").unwrap(), token: 0, mark: 0 };
    assert_eq!((Abm::format_of(&mark), Abm::format_of(&C::AddWork(vec![]))), (2, 1));
}
