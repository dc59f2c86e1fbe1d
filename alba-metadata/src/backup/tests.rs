use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Env, files, real};
use alba_core::ids::{GroupId, ObjectId};
use alba_core::kv::{Durability, Entry, FjallKv, Kv, KvRead, MemKv, WriteBatch};
use alba_core::net::rpc::Handler;
use alba_core::wire::rpc::admin::{AdminError, AdminReply, AdminRequest, StreamKind};
use alba_core::wire::rpc::nsm::{NsmCommand, Overwrite};
use alba_core::wire::rpc::{Consistency, Refusal, Reply, Request, RequestId};
use bytes::Bytes;
use proptest::prelude::*;

use super::file::{Draft, load, verify};
use super::format::{BackupError, Reader};
use super::scheduled::Schedule;
use super::*;
use crate::daemon::MetadataConfig;
use crate::nsm::fixtures::{NS, SPREAD, manifest, prepare, put, run, sequence};
use crate::replicator::{LocalLimits, StoreOpener};
use crate::server::{AsdDevices, Node, NodeConfig};

fn group() -> GroupId {
    GroupId::new("nsm-0").unwrap()
}

fn rows(store: &(impl KvRead + ?Sized)) -> Vec<Entry> {
    store.scan(Bound::Unbounded, Bound::Unbounded, false, usize::MAX).unwrap()
}

fn bytes_of(store: &dyn KvRead) -> Vec<u8> {
    let mut bytes = Vec::new();
    make::pieces(store, &group(), 77, &mut |piece| {
        bytes.extend_from_slice(&piece);
        ControlFlow::Continue(())
    })
    .unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<(Description, Vec<Entry>), BackupError> {
    let (mut reader, description) = Reader::new(bytes)?;
    let mut all = Vec::new();
    while let Some(entries) = reader.next_entries()? {
        all.extend(entries);
    }
    Ok((description, all))
}

/// A put of object `n`, whose manifest is some KiB long.
fn object(n: u32) -> NsmCommand {
    let mut manifest = manifest(&format!("object {n}"), 1, &[SPREAD; 60]);
    let mut id = [9; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    manifest.object_id = ObjectId::new(id);
    sequence(vec![put(manifest, Overwrite::NoPrevious)])
}

fn filled(objects: u32) -> Arc<MemKv> {
    let store = Arc::new(MemKv::new());
    prepare(store.as_ref());
    for n in 0..objects {
        run(store.as_ref(), object(n)).unwrap();
    }
    store
}

#[test]
fn a_backup_has_golden_bytes_and_every_damage_is_found() {
    let store = MemKv::new();
    let mut batch = WriteBatch::default();
    batch.put("k", "vv");
    batch.put("l", "w");
    // A replica's own row stays out; here an empty position.
    batch.put(&b"\0raft"[..], [1, 0, 0, 0, 0]);
    store.commit(batch, Durability::Sync).unwrap();
    let bytes = bytes_of(&store);
    let mut expected = b"ALBABKUP\x01\0\0\0\0\0\0\0".to_vec();
    // Group, model, term, index, time; then the rows.
    for (kind, body) in [(0_u8, &b"\x05nsm-0\x01\0\0\x4d"[..]), (1, b"\x01\0k\x02\0\0\0vv\x01\0l\x01\0\0\0w")]
    {
        let checked = [&[kind], body].concat();
        expected.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        expected.extend_from_slice(&crate::raft::crc(&checked).to_le_bytes());
        expected.extend_from_slice(&checked);
    }
    assert_eq!(bytes[..expected.len()], expected);
    let hash = blake3::hash(&expected);
    assert!(bytes.ends_with(hash.as_bytes()));
    assert_eq!(bytes.len(), expected.len() + 9 + 8 + 32);
    let (description, found) = read(&bytes).unwrap();
    assert_eq!(found, rows(&store)[1..]);
    assert_eq!((description.model, description.taken, description.applied), (ModelKind::Nsm, 77, 0));
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(read(&damaged).is_err(), "bit {bit} of byte {at}");
        }
        assert!(read(&bytes[..at]).is_err(), "cut at {at}");
    }
    assert!(read(&[bytes.clone(), vec![0]].concat()).is_err());
    let mut newer = bytes;
    newer[8] = 2;
    assert!(matches!(read(&newer), Err(BackupError::Version(2))));
    assert!(matches!(read(b"something else, longer than a header"), Err(BackupError::NotABackup)));
}

proptest! {
    #[test]
    fn what_is_backed_up_comes_back(
        model in proptest::collection::btree_map(
            proptest::collection::vec(1_u8.., 1..40),
            proptest::collection::vec(any::<u8>(), 0..9000),
            0..200,
        ),
    ) {
        let store = MemKv::new();
        let changes: BTreeMap<_, _> = model.clone().into_iter().map(|(key, value)| (key, Some(value))).collect();
        store.commit(WriteBatch(changes), Durability::Sync).unwrap();
        let found = read(&bytes_of(&store)).unwrap().1;
        prop_assert_eq!(found, model.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn bytes_of_anybody_are_no_panic(bytes: Vec<u8>) {
        let with_header = [&b"ALBABKUP\x01\0\0\0\0\0\0\0"[..], &bytes].concat();
        prop_assert!(read(&bytes).is_err() && read(&with_header).is_err());
    }
}

async fn node(env: &Env, store: &Arc<MemKv>) -> Arc<Node> {
    let store = store.clone();
    let open: StoreOpener = Arc::new(move || Ok(store.clone()));
    let config = NodeConfig {
        groups: [(group(), open)].into(),
        advertise: "127.0.0.1:1".to_owned(),
        limits: LocalLimits::default(),
    };
    Node::start(env.clone(), config, Arc::new(AsdDevices::new(env.clone()))).await.unwrap()
}

async fn ask(node: &Node, request: AdminRequest) -> Reply {
    node.handle(Request::Admin(group(), request), None).await.reply
}

async fn open(node: &Node, what: StreamKind) -> u64 {
    match ask(node, AdminRequest::Open { what, consistency: Consistency::Linearizable }).await {
        Reply::Admin(Ok(AdminReply::Opened { stream })) => stream,
        other => panic!("{other:?}"),
    }
}

async fn piece(node: &Node, stream: u64, number: u64) -> (Bytes, bool) {
    loop {
        match ask(node, AdminRequest::Next { stream, number }).await {
            Reply::Admin(Ok(AdminReply::Piece { bytes, last })) => return (bytes, last),
            Reply::Admin(Ok(AdminReply::Wait)) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn pull(node: &Node, stream: u64) -> Vec<u8> {
    let mut all = Vec::new();
    for number in 0.. {
        let (bytes, last) = piece(node, stream, number).await;
        all.extend_from_slice(&bytes);
        if last {
            break;
        }
    }
    all
}

async fn write(env: &Env, node: &Node, numbers: std::ops::Range<u32>) {
    let mut nonce = [0; 16];
    env.rng.fill(&mut nonce);
    let session = match node.handle(Request::OpenSession { group: group(), nonce }, None).await.reply {
        Reply::Session(session) => session,
        other => panic!("{other:?}"),
    };
    for (n, sequence) in numbers.zip(1..) {
        let id = RequestId { session, sequence, lowest_unacknowledged: sequence };
        match node.handle(Request::Nsm(group(), id, object(n)), None).await.reply {
            Reply::Nsm(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_writes_is_one_state() {
    let env = real::env();
    let store = filled(1600);
    let node = node(&env, &store).await;
    let before = rows(store.as_ref());
    let stream = open(&node, StreamKind::Backup).await;
    // More is to be read than may wait: most of the stream is read after these writes.
    write(&env, &node, 1600..1700).await;
    let bytes = pull(&node, stream).await;
    assert!(bytes.len() > 2 << 20, "{}", bytes.len());
    assert!(rows(store.as_ref()) != before);
    assert_eq!(read(&bytes).unwrap().1, before);
    ask(&node, AdminRequest::Close { stream }).await;
    // Begun at any moment between writes: what it holds is consistent in itself.
    let reads = async {
        let mut counts = Vec::new();
        for _ in 0..5 {
            let stream = open(&node, StreamKind::Backup).await;
            let found = read(&pull(&node, stream).await).unwrap().1;
            let close = ask(&node, AdminRequest::Close { stream }).await;
            assert_eq!(close, Reply::Admin(Ok(AdminReply::Done)));
            let copy = MemKv::new();
            let changes = found.into_iter().map(|(key, value)| (key, Some(value)));
            copy.commit(WriteBatch(changes.collect()), Durability::Sync).unwrap();
            assert_eq!(check(ModelKind::Nsm, &copy).unwrap(), Vec::<String>::new());
            counts.push(rows(&copy).len());
        }
        counts
    };
    let (counts, ()) = futures_util::join!(reads, write(&env, &node, 1700..1900));
    assert!(counts.is_sorted() && counts.first() < counts.last(), "no writes between: {counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_few_and_a_piece_can_be_asked_for_again() {
    let env = real::env();
    let node = node(&env, &filled(3)).await;
    let unknown = Reply::Admin(Err(AdminError::StreamUnknown));
    assert_eq!(ask(&node, AdminRequest::Next { stream: 1, number: 0 }).await, unknown);
    let (first, second) = (open(&node, StreamKind::Backup).await, open(&node, StreamKind::Export).await);
    let third = AdminRequest::Open { what: StreamKind::Check, consistency: Consistency::Any };
    assert_eq!(ask(&node, third.clone()).await, Reply::Admin(Err(AdminError::TooManyStreams(2))));
    let bytes = piece(&node, first, 0).await;
    assert_eq!(piece(&node, first, 0).await, bytes);
    let other = piece(&node, first, 1).await;
    assert_ne!(other, bytes);
    assert_eq!(ask(&node, AdminRequest::Next { stream: first, number: 0 }).await, unknown);
    assert_eq!(ask(&node, AdminRequest::Next { stream: first, number: 3 }).await, unknown);
    assert_eq!(ask(&node, AdminRequest::Close { stream: first }).await, Reply::Admin(Ok(AdminReply::Done)));
    assert_eq!(ask(&node, AdminRequest::Next { stream: first, number: 2 }).await, unknown);
    let lines = pull(&node, second).await;
    assert!(String::from_utf8(lines).unwrap().lines().count() > 20);
    // At its end; the last piece can be had again, nothing behind it.
    ask(&node, AdminRequest::Close { stream: second }).await;
    let stream = open(&node, StreamKind::Check).await;
    assert_eq!(pull(&node, stream).await, b"");
    let nobody = Request::Admin(GroupId::new("nsm-9").unwrap(), third);
    assert_eq!(node.handle(nobody, None).await.reply, Reply::Refused(Refusal::UnknownGroup));
}

/// A counter that is wrong.
fn plant(store: &dyn Kv) -> Vec<u8> {
    let counter = [&b"n"[..], &NS.get().to_be_bytes()].concat();
    let (key, value) = rows(store)
        .into_iter()
        .find(|(key, value)| key.starts_with(&counter) && key.len() == 10 && value.len() == 8)
        .expect("a counter of the namespace");
    let mut batch = WriteBatch::default();
    let wrong = u64::from_le_bytes(value.try_into().unwrap()) + 1;
    batch.put(key.clone(), wrong.to_le_bytes());
    store.commit(batch, Durability::Sync).unwrap();
    key
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_finds_a_planted_difference_while_the_group_runs() {
    let env = real::env();
    let store = filled(5);
    let node = node(&env, &store).await;
    let key = plant(store.as_ref());
    let stream = open(&node, StreamKind::Check).await;
    let text = String::from_utf8(pull(&node, stream).await).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!((&lines[0]["key"], &lines[0]["namespace"]), (&hex::encode(key).into(), &7.into()));
    assert_ne!(lines[0]["stored"], lines[0]["expected"]);
}

#[test]
fn an_export_of_either_model_is_json_lines() {
    let collect = |model, store: &dyn KvRead| {
        let mut lines = Vec::new();
        export(model, store, &mut |line| {
            lines.push(serde_json::from_str::<serde_json::Value>(&line).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
        lines
    };
    let store = filled(3);
    assert!(collect(ModelKind::Nsm, store.as_ref()).iter().any(|line| line["name"] == "object 2"));
    let store = MemKv::new();
    let mut txn = crate::txn::KvTxn::new(&store);
    let alba_id = alba_core::ids::AlbaId::new("backend").unwrap();
    let bootstrap = alba_core::wire::rpc::abm::AbmCommand::Bootstrap { alba_id };
    crate::machine::step::<crate::abm::Abm>(&mut txn, 5, &crate::machine::Input::Internal(bootstrap))
        .unwrap();
    store.commit(txn.into_batch(), Durability::Sync).unwrap();
    assert_eq!(check(ModelKind::Abm, &store).unwrap(), Vec::<String>::new());
    let lines = collect(ModelKind::Abm, &store);
    assert_eq!(lines.len(), rows(&store).len());
    assert!(lines.iter().any(|line| line["table"] == "preset" && line["key"] == "default"), "{lines:?}");
}

fn config(data_dir: &Path) -> MetadataConfig {
    serde_json::from_value(serde_json::json!({ "data_dir": data_dir })).unwrap()
}

fn backup_to(path: &Path, store: &dyn KvRead) {
    let mut draft = Draft::create(path).unwrap();
    draft.write(&bytes_of(store)).unwrap();
    draft.finish().unwrap();
}

#[tokio::test]
async fn a_restored_group_is_equal_row_by_row_and_nothing_is_overwritten() {
    let env = real::env();
    let directory = tempfile::tempdir().unwrap();
    let (path, data_dir) = (directory.path().join("b"), directory.path().join("data"));
    let store = filled(20);
    backup_to(&path, store.as_ref());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Draft::create(&path).map(|_| ()).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    let config = config(&data_dir);
    files::create_dir_all(&data_dir.join("nsm-0")).unwrap();
    let verified = restore::restore(&env, &config, &path).await.unwrap();
    assert_eq!(verified, verify(&path).unwrap());
    let names: Vec<_> = std::fs::read_dir(&data_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["nsm-0"]);
    let restored = FjallKv::open(&data_dir.join("nsm-0"), 1 << 20).unwrap();
    assert_eq!(rows(&restored), rows(store.as_ref()));
    assert_eq!(verified.rows, u64::try_from(rows(&restored).len()).unwrap());
    drop(restored);
    let error = restore::restore(&env, &config, &path).await.unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
}

#[tokio::test]
async fn a_damaged_backup_is_refused_with_nothing_written() {
    let env = real::env();
    let directory = tempfile::tempdir().unwrap();
    let (path, data_dir) = (directory.path().join("b"), directory.path().join("data"));
    files::create_dir_all(&data_dir).unwrap();
    let sound = bytes_of(filled(20).as_ref());
    let middle = sound.len() / 2;
    let mut flipped = sound.clone();
    flipped[middle] ^= 1;
    let config = config(&data_dir);
    for bad in [&flipped[..], &sound[..middle], &sound[..sound.len() - 1], b""] {
        files::replace(&path, bad).unwrap();
        restore::restore(&env, &config, &path).await.unwrap_err();
        assert_eq!(std::fs::read_dir(&data_dir).unwrap().count(), 0);
        // Nor does it get its name when it arrives like this.
        let place = directory.path().join("arrived");
        let mut draft = Draft::create(&place).unwrap();
        draft.write(bad).unwrap();
        draft.finish().unwrap_err();
        assert!(!place.exists() && !directory.path().join("arrived.part").exists());
    }
    files::replace(&path, &sound).unwrap();
    load(&path, &MemKv::new()).unwrap();
    // Of a group that is not configured.
    let other = MetadataConfig { groups: vec![GroupId::new("nsm-1").unwrap()], ..config };
    restore::restore(&env, &other, &path).await.unwrap_err();
    assert_eq!(std::fs::read_dir(&data_dir).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_backups_are_made_in_time_and_the_oldest_go() {
    let env = real::env();
    let directory = tempfile::tempdir().unwrap();
    let store = filled(3);
    let node = node(&env, &store).await;
    let place = directory.path().join("backups");
    let mut schedule = Schedule { directory: place.clone(), every: Duration::from_millis(1), keep: 2 };
    let list = || {
        let found = std::fs::read_dir(&place).map(|found| found.map(|e| e.unwrap().path()).collect());
        let mut found: Vec<_> = found.unwrap_or_default();
        found.retain(|path| path.extension().is_some_and(|ext| ext == "backup"));
        found.sort();
        found
    };
    let until = env.deadline_in(Duration::from_secs(60));
    let running = node.backups(&schedule);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 5 {
        seen.extend(list());
        assert!(!until.left(env.clock.as_ref()).is_zero(), "{seen:?}");
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(5))).await;
    }
    drop(running);
    // What was under way ends by itself.
    while list().len() > 2 || std::fs::read_dir(&place).unwrap().count() > 2 {
        assert!(!until.left(env.clock.as_ref()).is_zero());
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(5))).await;
    }
    // One that is young enough is not followed by another, whoever starts. (One that was under way above may still come.)
    schedule.every = Duration::from_secs(3600);
    loop {
        let kept = list();
        for path in &kept {
            let copy = MemKv::new();
            load(path, &copy).unwrap();
            assert_eq!(rows(&copy), rows(store.as_ref()));
        }
        let running = node.backups(&schedule);
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(200))).await;
        drop(running);
        if list() == kept {
            break;
        }
        assert!(!until.left(env.clock.as_ref()).is_zero(), "{kept:?} {:?}", list());
    }
}
