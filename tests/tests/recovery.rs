//! A metadata group is lost for good, and comes back from a backup that is older and from what OSDs hold.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

#[path = "recovery/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use alba_client::Consistency;
use alba_core::env::osd::{OsdBatch, OsdUpdate, Priority};
use alba_core::ids::{GcEpoch, GroupId, NamespaceName, OsdId};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::NamespaceState;
use alba_core::wire::rpc::nsm::{NsmCommand, ObjectUpdate, Overwrite};
use alba_tests::metadata_nodes::MetadataNodes;
use alba_tests::wait;
use serde_json::Value;

use world::*;

/// Objects of the one namespace that has many.
const MANY: usize = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_group_comes_back_and_nothing_deleted_or_replaced_with_it() {
    let _turn = TURN.lock().await;
    let mut world = World::start("recovery");
    let client = world.client().await;
    let (many, many_id) = world.namespace(&client, "many", "[1, 1, 2, 1]").await;
    let (coded, _) = world.namespace(&client, "coded", "[2, 1, 3, 1]").await;
    let osds = all_osds(&world, &client).await;
    let ids: Vec<OsdId> = osds.keys().copied().collect();
    let group = GroupId::new("nsm-0").unwrap();

    // Many objects, written by hand in batches.
    let mut in_many = Truth::new();
    let names_of_many: Vec<String> = (0..MANY).map(|n| format!("many {n:05}")).collect();
    for (at, some) in names_of_many.chunks(250).enumerate() {
        let objects: Vec<ByHand> =
            some.iter().enumerate().map(|(n, name)| ByHand::new(name, &ids, at * 250 + n)).collect();
        write_by_hand(&world, &osds, many_id, &objects, false).await;
        let put = |object: &ByHand| ObjectUpdate::Put {
            manifest: Box::new(object.manifest.clone()),
            overwrite: Overwrite::NoPrevious,
        };
        let command = NsmCommand::Sequence {
            namespace: many_id,
            asserts: Vec::new(),
            updates: objects.iter().map(put).collect(),
            epoch: GcEpoch::from_u32(0),
        };
        client.namespace_store().command(&group, command, world.deadline()).await.unwrap();
        in_many.extend(some.iter().zip(&objects).map(|(name, object)| (name.clone(), object.bytes.clone())));
    }

    // Fewer, by the engine, with a life of their own.
    let mut in_coded = Truth::new();
    for n in 0..60 {
        let name = format!("coded {n:02}");
        in_coded.insert(name.clone(), put(&world, &client, &coded, &name, 0).await);
    }
    for n in 0..10 {
        let name = format!("coded {n:02}");
        delete(&world, &client, &coded, &name).await;
        in_coded.remove(&name);
        let name = format!("coded {:02}", 10 + n);
        in_coded.insert(name.clone(), put(&world, &client, &coded, &name, 1).await);
    }
    let backup = world.backup("nsm-0", "older.backup");

    // What happens after the backup.
    let numbers = |range: std::ops::Range<u32>| range.map(|n| format!("coded {n:02}"));
    for name in numbers(20..30) {
        in_coded.insert(name.clone(), put(&world, &client, &coded, &name, 1).await);
    }
    let cleaned: Vec<String> = numbers(30..33).collect();
    let mut doomed = Vec::new();
    for name in &cleaned {
        let found = client.manifest(&coded, &object(name), Consistency::Consistent, world.deadline()).await;
        doomed.push(found.unwrap().unwrap());
    }
    for name in numbers(30..40) {
        delete(&world, &client, &coded, &name).await;
        in_coded.remove(&name);
    }
    for n in 60..70 {
        let name = format!("coded {n:02}");
        in_coded.insert(name.clone(), put(&world, &client, &coded, &name, 0).await);
    }
    for n in 70..75 {
        let name = format!("coded {n:02}");
        put(&world, &client, &coded, &name, 0).await;
        delete(&world, &client, &coded, &name).await;
    }
    for name in names_of_many.iter().step_by(100) {
        delete(&world, &client, &many, name).await;
        in_many.remove(name);
    }
    // Of some the clean-up has done its work already.
    for gone in &doomed {
        for (chunk, fragment, entry) in gone.manifest.fragments() {
            let Some(osd) = entry.location else { continue };
            let object_id = gone.manifest.object_id;
            let address = FragmentAddress { object_id, chunk, fragment, version: entry.version };
            let updates = vec![
                OsdUpdate::Delete(osd_keys::fragment(gone.namespace, &address)),
                OsdUpdate::Delete(osd_keys::recovery_info(gone.namespace, &address)),
            ];
            let batch = OsdBatch { asserts: Vec::new(), updates };
            osds[&osd].apply(batch, Priority::High, world.deadline()).await.unwrap();
        }
    }
    // Uploads that nobody heard the end of, because there was none.
    let never: Vec<String> = (0..7).map(|n| format!("never {n}")).collect();
    let objects: Vec<ByHand> = never.iter().enumerate().map(|(n, name)| ByHand::new(name, &ids, n)).collect();
    write_by_hand(&world, &osds, many_id, &objects, true).await;
    // Tags go in the background.
    wait::until_async("uploads are finished", PATIENCE, || async {
        for osd in osds.values() {
            let prefix =
                osd_keys::gc_tags(client.namespace(&coded, world.deadline()).await.unwrap().unwrap().id);
            let last = alba_core::range::next_prefix(&prefix).map(|end| (end, false));
            let range = RangeQuery { first: prefix.to_vec(), last, ..RangeQuery::all() };
            let page = osd.range(range, Priority::Low, world.deadline()).await.unwrap();
            if !page.items.is_empty() {
                return Err(format!("{} tags", page.items.len()));
            }
        }
        Ok(())
    })
    .await;
    drop(client);

    world.lose_group("nsm-0");
    let backup = backup.to_string_lossy().into_owned();
    let work = world.cluster.scratch().join("work").to_string_lossy().into_owned();
    let recover = ["recover-nsm", "nsm-0", "--to", "nsm-1", "--backup", &backup, "--work-dir", &work];
    wait::until("metadata answers", PATIENCE, || {
        let (code, answer) = world.alba(&["list-nsm-hosts"]);
        if code == 0 { Ok(()) } else { Err(answer.to_string()) }
    });
    let (code, refused) = world.alba(&recover);
    assert!(
        code == 1 && refused.to_string().contains("--lost"),
        "only of a group that was given up: {refused}"
    );
    world.well(&["update-nsm-host", "nsm-0", "--lost"]);

    // Killed in the middle.
    let mut command = world.cluster.command();
    command.args(recover).arg("--config").arg(&world.cluster.ready.config);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let progress = PathBuf::from(&work).join("progress.json");
    let under_way = wait::until("the recovery is under way", PATIENCE, || {
        let text = std::fs::read_to_string(&progress).map_err(|error| error.to_string())?;
        let value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let of_many = value["namespaces"][many_id.get().to_string()].clone();
        if of_many["after"].is_string() { Ok(of_many) } else { Err(text) }
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(under_way["scanned"], false, "killed in the middle, not at the end");

    let (code, answer) = world.alba(&recover);
    assert_eq!(code, 3, "something is left to decide: {answer}");
    let result = answer["result"].clone();
    assert_eq!(result["absent_osds"], serde_json::json!([]));
    // Listed: what was deleted and may still be there; both of what was replaced; what was never completed.
    let replaced = set(numbers(20..30));
    let listed = reported(&result, "coded", "apart");
    let deleted = set(numbers(33..40).chain(numbers(70..75)));
    assert!(listed.is_superset(&deleted), "{listed:?}");
    assert!(listed.is_superset(&replaced), "{listed:?}");
    assert_eq!(listed.difference(&deleted).cloned().collect::<BTreeSet<_>>(), replaced);
    assert_eq!(reported(&result, "coded", "gone"), set(cleaned));
    assert_eq!(count(&result, "coded", "deleted"), 20, "before the backup: 10 deleted, 10 replaced");
    let listed = reported(&result, "many", "apart");
    let deleted = set(names_of_many.iter().step_by(100).cloned());
    assert_eq!(listed, deleted.union(&set(never)).cloned().collect());
    assert_eq!(count(&result, "many", "seen"), u64::try_from(MANY + 7).unwrap());
    let findings = world.well(&["list-recovery-findings", "coded"]);
    assert_eq!(findings.as_array().unwrap().len(), 12 + 2 * 10);

    // Nobody is served before it is decided.
    let client = world.client().await;
    let unserved =
        client.list_objects(&many, RangeQuery::all(), world.env.deadline_in(Duration::from_secs(5))).await;
    assert!(unserved.is_err());
    for namespace in ["many", "coded"] {
        world.well(&["resolve-recovery-findings", namespace, "--all", "possibly-deleted", "--discard"]);
    }
    world.well(&["resolve-recovery-findings", "coded", "--all", "conflict", "--newest"]);
    let result = world.well(&recover);
    assert_eq!(result["whole"], true, "{result}");

    assert_eq!(names(&world, &client, &many).await, set(in_many.keys().cloned()));
    assert_eq!(names(&world, &client, &coded).await, set(in_coded.keys().cloned()));
    for (name, bytes) in &in_coded {
        assert_eq!(read(&world, &client, &coded, name).await, *bytes, "{name}");
    }
    for (name, bytes) in in_many.iter().step_by(97) {
        assert_eq!(read(&world, &client, &many, name).await, *bytes, "{name}");
    }
    // And life goes on.
    let bytes = put(&world, &client, &coded, "afterwards", 0).await;
    assert_eq!(read(&world, &client, &coded, "afterwards").await, bytes);
    let mut fsck = world.cluster.command();
    fsck.args(["metadata", "fsck", "--online", "--group", "nsm-1", "--config"])
        .arg(world.config("metadata-0"));
    let output = alba_tests::cluster::output_within(fsck, PATIENCE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_osd_that_is_down_is_told_and_so_are_the_objects_that_need_it() {
    let _turn = TURN.lock().await;
    let mut world = World::start("recovery-down");
    let client = world.client().await;
    let (striped, _) = world.namespace(&client, "striped", "[2, 0, 2, 1]").await;
    let mut truth = Truth::new();
    for n in 0..24 {
        let name = format!("striped {n:02}");
        truth.insert(name.clone(), put(&world, &client, &striped, &name, 0).await);
    }
    let (sealed, _) = world.sealed(&client, "sealed", "[2, 1, 3, 1]").await;
    let mut in_sealed = Truth::new();
    for n in 0..8 {
        let name = format!("sealed {n}");
        in_sealed.insert(name.clone(), put(&world, &client, &sealed, &name, 0).await);
    }
    let asd = &world.cluster.ready.osds[0];
    let (down, long_id) = ("asd-0", asd.long_id.clone());
    let record = world.well(&["list-osds"]);
    let osds = record.as_array().unwrap();
    let id = osds.iter().find(|osd| osd["long_id"] == *long_id).unwrap()["id"].as_u64().unwrap();
    let mut need = BTreeSet::new();
    for name in truth.keys() {
        let found = client.manifest(&striped, &object(name), Consistency::Consistent, world.deadline()).await;
        let manifest = found.unwrap().unwrap().manifest;
        if manifest.fragments().any(|(_, _, fragment)| fragment.location.map(OsdId::get) == Some(id)) {
            need.insert(name.clone());
        }
    }
    assert!(!need.is_empty() && need.len() < truth.len());
    drop(client);
    world.kill(down);
    world.lose_group("nsm-0");
    wait::until("the group is given up", PATIENCE, || {
        let (code, answer) = world.alba(&["update-nsm-host", "nsm-0", "--lost"]);
        if code == 0 { Ok(()) } else { Err(answer.to_string()) }
    });
    let work = world.cluster.scratch().join("work").to_string_lossy().into_owned();
    let recover = ["recover-nsm", "nsm-0", "--to", "nsm-1", "--work-dir", &work];
    let (code, answer) = world.alba(&recover);
    assert_eq!(code, 3, "{answer}");
    let result = &answer["result"];
    assert_eq!(result["absent_osds"], serde_json::json!([long_id]));
    assert_eq!(reported(result, "striped", "incomplete"), need);
    assert_eq!(count(result, "striped", "restored"), u64::try_from(truth.len() - need.len()).unwrap());
    let finished = |result: &Value, name: &str| {
        let namespaces = result["namespaces"].as_array().unwrap();
        namespaces.iter().find(|one| one["namespace"] == name).map(|one| one["finished"] == true)
    };
    assert_eq!(finished(result, "striped"), Some(false), "it waits for the OSD");

    world.start_daemon("asd-server", down);
    let result = wait::until("the OSD is asked", PATIENCE, || {
        let (_, answer) = world.alba(&recover);
        let result = answer["result"].clone();
        if result["absent_osds"] == serde_json::json!([]) { Ok(result) } else { Err(answer.to_string()) }
    });
    assert_eq!(finished(&result, "striped"), Some(true), "{result}");
    // The cluster has stored and deleted an object in its demo. Where that was cleaned up in time, nothing is to be decided.
    if finished(&result, "demo") == Some(false) {
        world.well(&["resolve-recovery-findings", "demo", "--all", "possibly-deleted", "--discard"]);
    }
    assert_eq!(world.well(&recover)["whole"], true);
    let client = world.client().await;
    for (name, bytes) in &in_sealed {
        let found = client.manifest(&sealed, &object(name), Consistency::Consistent, world.deadline()).await;
        let manifest = found.unwrap().unwrap().manifest;
        let holes = manifest.fragments().filter(|(_, _, fragment)| fragment.location.is_none()).count();
        assert_eq!(holes, 0, "what the OSD has is known again: {name}");
        assert_eq!(read(&world, &client, &sealed, name).await, *bytes, "{name}");
    }
    assert_eq!(names(&world, &client, &striped).await, set(truth.keys().cloned()));
    for (name, bytes) in &truth {
        assert_eq!(read(&world, &client, &striped, name).await, *bytes, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_abm_is_put_together_from_groups_osds_and_an_old_backup() {
    let _turn = TURN.lock().await;
    let mut world = World::start("recovery-abm");
    let client = world.client().await;
    let (before, before_id) = world.namespace(&client, "before", "[1, 1, 2, 1]").await;
    let (doomed, doomed_id) = world.namespace(&client, "doomed", "[2, 1, 3, 1]").await;
    let bytes = put(&world, &client, &before, "kept", 0).await;
    let backup = world.backup("abm", "abm.backup").to_string_lossy().into_owned();
    // A backup as an object of another group, and the group made of it elsewhere.
    world.namespace_in(&client, "nsm-1", "backups", "[1, 1, 2, 1]", r#"["none"]"#).await;
    let (code, refused) = world.alba(&["backup-metadata", "nsm-0", "before", "monday"]);
    assert!(code == 2 && refused.to_string().contains("lost with it"), "{refused}");
    let rows = world.well(&["backup-metadata", "nsm-0", "backups", "monday"])["rows"].clone();
    let elsewhere = world.cluster.scratch().join("elsewhere");
    let copy = format!("data_dir = {elsewhere:?}\ngroups = [\"nsm-0\"]\n");
    std::fs::write(world.config("elsewhere"), copy).unwrap();
    let config = world.config("elsewhere").to_string_lossy().into_owned();
    let restore = ["restore-metadata", "nsm-0", "backups", "monday", "--metadata-config", &config];
    assert_eq!(world.well(&restore)["rows"], rows);
    assert_eq!(world.alba(&restore).0, 1, "never over a group that is there");
    let mut fsck = world.cluster.command();
    fsck.args(["metadata", "fsck", "--config", &config]);
    assert!(alba_tests::cluster::output_within(fsck, PATIENCE).status.success());
    let (since, since_id) = world.namespace(&client, "since", "[1, 2, 3, 1]").await;
    let mut in_trash = Vec::new();
    let other = put(&world, &client, &since, "new", 0).await;
    // One name, given three times: two are in the trash, and the last is in use.
    let mut given: Vec<NamespaceName> = Vec::new();
    for round in 0..3_u8 {
        let twice = if round == 0 {
            world.namespace(&client, "twice", "[1, 1, 2, 1]").await.0
        } else {
            world.well(&["create-namespace", "twice", "twice"]);
            given[0].clone()
        };
        given.push(twice.clone());
        let fresh = world.client().await;
        let id = fresh.namespace(&twice, world.deadline()).await.unwrap().unwrap().id;
        in_trash.push((id, put(&world, &fresh, &twice, "object", u32::from(round)).await));
        if round < 2 {
            world.well(&["delete-namespace", "twice"]);
        }
    }
    client.delete_namespace(&doomed, world.deadline()).await.unwrap();
    wait::until("a namespace is gone", PATIENCE, || {
        let (_, answer) = world.alba(&["show-namespace", "doomed"]);
        if answer["success"] == false { Ok(()) } else { Err(answer.to_string()) }
    });
    world.well(&["deliver-messages", "--timeout", "60"]);
    let alba_id = world.well(&["get-alba-id"]);
    let osds = world.well(&["list-osds"]);
    drop(client);

    // The ABM is gone; its server comes up with the other groups only.
    world.kill("metadata-0");
    std::fs::remove_dir_all(world.cluster.data_dir().join("data/metadata-0/abm")).unwrap();
    let config = std::fs::read_to_string(world.config("metadata-0")).unwrap();
    let without = config.replace("\"abm\", ", "");
    assert_ne!(config, without);
    std::fs::write(world.config("metadata-0-without"), without).unwrap();
    world.start_daemon("metadata", "metadata-0-without");

    let file = |name: &str| world.cluster.scratch().join(name).to_string_lossy().into_owned();
    let (recovered, bare) = (file("abm.recovered"), file("abm.bare"));
    let groups = ["recover-abm", "--nsm-host", "nsm-0", "--nsm-host", "nsm-1"];
    let forgotten = world.alba(&["recover-abm", "--nsm-host", "nsm-1", "--backup", &backup, &recovered]);
    assert!(forgotten.0 == 1 && forgotten.1.to_string().contains("nsm-0"), "{forgotten:?}");
    let result = wait::until("an ABM is put together", PATIENCE, || {
        let (code, answer) = world.alba(&[&groups[..], &["--backup", &backup, &recovered]].concat());
        if code == 0 { Ok(answer["result"].clone()) } else { Err(answer.to_string()) }
    });
    // The demo's namespace, the two, that of the backups, and the three of one name.
    assert_eq!((&result["namespaces"], &result["osds"]), (&Value::from(7), &Value::from(4)), "{result}");
    let aside = |n: usize| format!("twice~{}", in_trash[n].0);
    let renamed: Vec<&str> =
        result["renamed"].as_array().unwrap().iter().map(|one| one["is"].as_str().unwrap()).collect();
    assert_eq!(renamed, [aside(0), aside(1)], "{result}");
    let bare_result = world.well(&[&groups[..], &[&bare]].concat());
    assert_eq!(bare_result["namespaces"], 7, "also without a backup: {bare_result}");

    world.kill("metadata-0-without");
    let restore = |file: &str| {
        let mut command = world.cluster.command();
        command
            .args(["metadata", "restore", "--group", "abm", "--config"])
            .arg(world.config("metadata-0"))
            .arg(file);
        alba_tests::cluster::output_within(command, PATIENCE)
    };
    let output = restore(&recovered);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!restore(&bare).status.success(), "never over a group that is there");
    world.start_daemon("metadata", "metadata-0");

    let client = world.client().await;
    assert_eq!(world.well(&["get-alba-id"]), alba_id);
    let ids = |osds: &Value| {
        let osds = osds.as_array().unwrap().iter();
        osds.map(|osd| (osd["long_id"].clone(), osd["id"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(ids(&world.well(&["list-osds"])), ids(&osds));
    for (namespace, id) in [(&before, before_id), (&since, since_id)] {
        let found = client.namespace(namespace, world.deadline()).await.unwrap().unwrap();
        assert_eq!((found.id, found.state), (id, NamespaceState::Active));
    }
    assert!(client.namespace(&doomed, world.deadline()).await.unwrap().is_none());
    assert_eq!(read(&world, &client, &before, "kept").await, bytes);
    assert_eq!(read(&world, &client, &since, "new").await, other);
    world.well(&["deliver-messages", "--timeout", "60"]);
    let bytes = put(&world, &client, &since, "afterwards", 1).await;
    assert_eq!(read(&world, &client, &since, "afterwards").await, bytes);
    // All of one name are there with all they have.
    for n in 0..2 {
        world.well(&["undelete-namespace", &aside(n)]);
    }
    world.well(&["deliver-messages", "--timeout", "60"]);
    let names = [aside(0), aside(1), "twice".to_owned()];
    for (name, (id, bytes)) in names.iter().zip(&in_trash) {
        let name = NamespaceName::new(name.as_str()).unwrap();
        let found = client.namespace(&name, world.deadline()).await.unwrap().unwrap();
        assert_eq!((found.id, found.state), (*id, NamespaceState::Active), "{name}");
        assert_eq!(read(&world, &client, &name, "object").await, *bytes, "{name}");
    }
    // No id is given again.
    let (fresh, fresh_id) = world.namespace(&client, "fresh", "[1, 1, 2, 1]").await;
    assert!(fresh_id > since_id && fresh_id > doomed_id, "{fresh_id:?}");
    let bytes = put(&world, &client, &fresh, "first", 0).await;
    assert_eq!(read(&world, &client, &fresh, "first").await, bytes);
    for group in ["abm", "nsm-0", "nsm-1"] {
        let mut fsck = world.cluster.command();
        fsck.args(["metadata", "fsck", "--online", "--group", group, "--config"])
            .arg(world.config("metadata-0"));
        let output = alba_tests::cluster::output_within(fsck, PATIENCE);
        assert!(output.status.success(), "{group}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn init_and_join_look_before_a_server_is_started() {
    let _turn = TURN.lock().await;
    let program = env!("CARGO_BIN_EXE_alba-under-test");
    let nodes = MetadataNodes::start("begin", alba_tests::metadata_nodes::Options::new(program)).await;
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let config = directory.path().join("metadata.toml");
    let members = nodes.fronts().iter().map(|front| format!("\"{front}\"")).collect::<Vec<_>>().join(", ");
    let write = |text: String| std::fs::write(&config, format!("data_dir = {data:?}\n{text}")).unwrap();
    let run = |command: &str| {
        let mut process = std::process::Command::new(program);
        process.args(["metadata", command, "--config"]).arg(&config);
        let output = alba_tests::cluster::output_within(process, PATIENCE);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
    };
    let check = |command: &str, code: i32, words: &str| {
        let (found, text) = run(command);
        assert!(found == code && text.contains(words), "{command}: {found} {text}");
    };
    // One that is added, and one that takes the place of a member that lost its disk.
    write(format!("listen = \"127.0.0.1:1\"\nnodes = [{members}]\n"));
    check("init", 1, "knows group abm already: use `join`");
    assert!(!data.exists(), "nothing is made of a mistake");
    check("join", 0, "alba add-metadata-node 127.0.0.1:1");
    assert!(data.is_dir());
    let front = nodes.fronts()[0];
    write(format!("listen = \"127.0.0.1:1\"\nadvertise = \"{front}\"\nnodes = [{members}]\n"));
    check("join", 0, "takes the place of the member");
    // A first one.
    write("listen = \"127.0.0.1:1\"\nnodes = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n".to_owned());
    check("join", 1, "no server of `nodes` knows group");
    check("init", 0, "The groups form when all 2 servers");
    write("listen = \"127.0.0.1:1\"\n".to_owned());
    check("join", 1, "nodes is empty");
    check("init", 0, "backups are its only safety");
    std::fs::create_dir_all(data.join("nsm-0/replica")).unwrap();
    check("init", 1, "is not empty");
    write("listen = \"10.0.0.1:1\"\n".to_owned());
    check("init", 1, "insecure_listen");
}
