//! Our own client against our own server, over loopback.

use std::net::SocketAddr;
use std::time::Duration;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::daemon::{Context, Stopper};
use alba_core::env::{Deadline, Env, real};
use alba_core::ids::{NamespaceName, ObjectName, PresetName};
use alba_core::range::RangeQuery;
use alba_proxy::client::{Assert, CallError, ManifestSer, ProxyClient, Update};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, hex};

async fn listening(harness: &Harness) -> (SocketAddr, Env, Stopper) {
    let env = real::env();
    let listener = env.net.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let (context, stopper) = Context::new(env.clone());
    let server = harness.server.clone();
    tokio::spawn(async move { server.run(listener, context.stop).await.unwrap() });
    (at, env, stopper)
}

fn soon(env: &Env) -> Deadline {
    env.deadline_in(Duration::from_secs(10))
}

#[tokio::test]
async fn every_command_comes_back() {
    let harness = Harness::new();
    let (at, env, _stopper) = listening(&harness).await;
    let mut client = ProxyClient::connect(&env, at, soon(&env)).await.unwrap();
    let by = soon(&env);
    let (ns, obj) = (NamespaceName::new("ns").unwrap(), ObjectName::new("obj").unwrap());
    let rora = PresetName::new("preset_rora").unwrap();
    client.create_namespace(&ns, Some(&rora), by).await.unwrap();
    assert!(client.namespace_exists(&ns, by).await.unwrap());
    let all = RangeQuery::all();
    assert_eq!(client.list_namespaces(&all, by).await.unwrap().items.len(), 2);
    let page = client.list_namespaces_with_presets(&all, by).await.unwrap();
    assert_eq!(page.items[1], (ns.clone(), rora));

    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("i"), directory.path().join("o"));
    std::fs::write(&input, "some bytes").unwrap();
    let sum = ChecksumAlgorithm::Crc32c.of(b"some bytes");
    client.upload_object(&ns, &obj, &input, false, Some(sum), by).await.unwrap();
    let error = client.upload_object(&ns, &obj, &input, false, None, by).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(refused) if refused.code == 2), "{error}");
    assert_eq!(client.list_objects(&ns, &all, by).await.unwrap().items, std::slice::from_ref(&obj));
    let info = client.object_info(&ns, &obj, true, by).await.unwrap();
    assert_eq!((info.size, info.checksum), (10, sum));
    client.download_object(&ns, &obj, &output, true, by).await.unwrap();
    assert_eq!(std::fs::read(&output).unwrap(), b"some bytes");
    let slices = [(obj.clone(), vec![(5, 5), (0, 1)])];
    assert_eq!(client.read_slices(&ns, &slices, true, by).await.unwrap(), "bytess");
    let (data, objects) = client.read_slices_with_manifests(&ns, &slices, true, by).await.unwrap();
    assert_eq!((data.as_ref(), objects[0].name.as_ref()), (b"bytess".as_slice(), b"obj".as_slice()));
    assert_eq!(client.use_manifests(ManifestSer::V2, by).await.unwrap(), ManifestSer::V2);
    let stored = client.upload_object_with_manifest(&ns, &obj, &input, true, None, by).await.unwrap();
    assert_eq!((stored.manifest.size, stored.namespace.get()), (10, 8));
    let asserts = vec![Assert::ObjectExists("obj".into())];
    let updates = vec![Update::UploadObject { object: "two".into(), data: "2".into(), checksum: None }];
    let uploaded = client.apply_sequence(&ns, asserts, updates, by).await.unwrap();
    assert_eq!((uploaded.len(), uploaded[0].name.as_ref()), (1, b"two".as_slice()));
    client.delete_object(&ns, &ObjectName::new("two").unwrap(), false, by).await.unwrap();
    let wrong = Some(Checksum::Crc32c(0));
    let error = client.upload_object(&ns, &obj, &input, true, wrong, by).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(refused) if refused.code == 7), "{error}");

    let names = [ObjectName::new("no").unwrap(), obj.clone()];
    assert_eq!(client.multi_exists(&ns, &names, by).await.unwrap(), [false, true]);
    client.invalidate_cache(&ns, by).await.unwrap();
    client.drop_cache(&ns, by).await.unwrap();
    client.delete_object(&ns, &obj, false, by).await.unwrap();
    client.delete_namespace(&ns, by).await.unwrap();
    assert!(!client.namespace_exists(&ns, by).await.unwrap());
    assert_eq!(client.alba_id(by).await.unwrap().as_str(), "the-backend");
    assert!(client.version(by).await.unwrap().number.0 >= 0);
    assert!(client.ping(0.01, by).await.unwrap() > 1e9);
}

#[tokio::test]
async fn a_call_that_was_cut_off_leaves_the_connection_unusable() {
    let harness = Harness::new();
    let (at, env, _stopper) = listening(&harness).await;
    let mut client = ProxyClient::connect(&env, at, soon(&env)).await.unwrap();
    let short = env.deadline_in(Duration::from_millis(20));
    assert!(matches!(client.ping(10.0, short).await, Err(CallError::Deadline)));
    assert!(matches!(client.alba_id(soon(&env)).await, Err(CallError::Connection(_))));
}

#[tokio::test]
async fn nobody_there_is_said() {
    let env = real::env();
    let listener = env.net.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    assert!(matches!(ProxyClient::connect(&env, at, soon(&env)).await, Err(CallError::Connection(_))));
}

/// Closing a socket with unread bytes resets it, and a reset destroys what was sent last.
#[tokio::test]
async fn the_last_word_arrives_over_tcp_too() {
    let harness = Harness::new();
    let (at, env, _stopper) = listening(&harness).await;
    for (begin, expected) in [("1bde794401000000ffffff7f", 1_u32), ("1bde79449a020000", 17)] {
        let mut stream = env.net.connect(at, soon(&env)).await.unwrap();
        stream.write_all(&[hex(begin), vec![0; 300_000]].concat()).await.unwrap();
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[4..], expected.to_le_bytes());
    }
}
