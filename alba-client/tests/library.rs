//! The public API as a program of somebody else uses it, over a backend in memory.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::time::Duration;

use alba_client::memory::MemoryBackend;
use alba_client::{
    BytesSource, Client, ClientConfig, ClientError, Consistency, MemorySink, SequenceUpdate, Slice,
    UploadOptions,
};
use alba_core::env::{Deadline, real};
use alba_core::ids::{NamespaceName, ObjectName, OsdId};
use alba_core::range::RangeQuery;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

async fn get(client: &Client, object: &str, deadline: Deadline) -> Result<Vec<u8>, ClientError> {
    let mut sink = MemorySink::new();
    let demo = NamespaceName::new("demo").unwrap();
    client.download(&demo, &name(object), Consistency::Consistent, &mut sink, deadline).await?;
    Ok(sink.into_bytes().to_vec())
}

#[tokio::test]
async fn objects_are_stored_read_sliced_listed_and_deleted() {
    let env = real::env();
    let backend = MemoryBackend::new(env.clone()).unwrap();
    let client = backend.client(ClientConfig::default());
    let deadline = env.deadline_in(Duration::from_secs(60));
    let demo = NamespaceName::new("demo").unwrap();
    client.create_namespace(&demo, None, deadline).await.unwrap();

    let mut source = BytesSource::new("hello, disks");
    client.upload(&demo, &name("a"), &mut source, UploadOptions::default(), deadline).await.unwrap();
    let update = |object: &str, content: &'static str| SequenceUpdate::Upload {
        name: name(object),
        source: Box::new(BytesSource::new(content)),
        checksum: None,
    };
    let updates =
        vec![update("b", "second"), update("c", "third"), SequenceUpdate::Delete { name: name("a") }];
    assert_eq!(client.apply_sequence(&demo, Vec::new(), updates, deadline).await.unwrap().len(), 2);

    assert!(matches!(get(&client, "a", deadline).await, Err(ClientError::ObjectUnknown(_))));
    assert_eq!(get(&client, "b", deadline).await.unwrap(), b"second");
    let wanted = vec![(name("c"), vec![Slice { offset: 1, length: 3 }])];
    let read = client.read_slices(&demo, wanted, Consistency::Cached, deadline).await.unwrap();
    assert_eq!(read.data.concat(), b"hir");
    let page = client.list_objects(&demo, RangeQuery::all(), deadline).await.unwrap();
    assert_eq!((page.items, page.has_more), (vec![name("b"), name("c")], false));

    client.delete_object(&demo, &name("b"), true, deadline).await.unwrap();
    let gone = client.delete_object(&demo, &name("b"), true, deadline).await;
    assert!(matches!(gone, Err(ClientError::ObjectUnknown(_))));
    client.settle(deadline).await.unwrap();
}

#[tokio::test]
async fn damage_is_read_around_until_too_little_is_left() {
    let env = real::env();
    let backend = MemoryBackend::new(env.clone()).unwrap();
    let client = backend.client(ClientConfig::default());
    let deadline = env.deadline_in(Duration::from_secs(60));
    let demo = NamespaceName::new("demo").unwrap();
    client.create_namespace(&demo, None, deadline).await.unwrap();
    let mut source = BytesSource::new("hello, disks");
    let stored =
        client.upload(&demo, &name("a"), &mut source, UploadOptions::default(), deadline).await.unwrap();
    client.settle(deadline).await.unwrap();
    let (shape, chunk) = (stored.manifest.scheme.shape, &stored.manifest.chunks[0]);
    let osds: Vec<OsdId> = chunk.fragments.iter().filter_map(|fragment| fragment.location).collect();
    for (damaged, osd) in osds.iter().enumerate() {
        let enough = osds.len() - damaged >= shape.k();
        match get(&client, "a", deadline).await {
            Ok(bytes) => assert!(enough && bytes == b"hello, disks", "{damaged} are damaged"),
            Err(error) => assert!(!enough, "{damaged} are damaged: {error}"),
        }
        backend.damage(*osd);
    }
}
