//! The engine as a whole, over a simulated clock and a backend in memory.

mod backend;
mod budget;
mod caching;
mod damage;
mod fairness;
mod files;
mod inspecting;
mod matrix;
mod racing;
mod reading;
mod relocating;
mod repairing;
mod retries;
mod sealed;
mod sequences;
mod slow;
mod spares;
mod stale;
mod untagging;
mod watching;
mod writing;

use std::time::Duration;

use alba_core::ids::{NamespaceName, ObjectName, OsdId};
use bytes::Bytes;

use crate::{BytesSource, Client, ClientError, Consistency, MemorySink, StoredObject, UploadOptions};
use backend::Fixture;

fn ns() -> NamespaceName {
    NamespaceName::new("ns").unwrap()
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn osd(id: u32) -> OsdId {
    OsdId::from_u32(id)
}

/// Bytes that tell their place.
fn data(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

async fn put(fixture: &Fixture, object: &str, bytes: &Bytes) -> Result<StoredObject, ClientError> {
    put_with(fixture, object, bytes, UploadOptions::default()).await
}

async fn put_with(
    fixture: &Fixture,
    object: &str,
    bytes: &Bytes,
    options: UploadOptions,
) -> Result<StoredObject, ClientError> {
    let mut source = BytesSource::new(bytes.clone());
    fixture.client.upload(&ns(), &name(object), &mut source, options, fixture.deadline()).await
}

async fn get_by(
    fixture: &Fixture,
    client: &Client,
    object: &str,
    consistency: Consistency,
) -> Result<Bytes, ClientError> {
    let mut sink = MemorySink::new();
    client.download(&ns(), &name(object), consistency, &mut sink, fixture.deadline()).await?;
    Ok(sink.into_bytes())
}

async fn get(fixture: &Fixture, object: &str) -> Result<Bytes, ClientError> {
    get_by(fixture, &fixture.client, object, Consistency::Consistent).await
}

/// Waits until nothing is left to do in the background.
async fn settle(fixture: &Fixture) {
    fixture.client.settle(fixture.node.env().deadline_in(Duration::from_secs(120))).await.unwrap();
}
