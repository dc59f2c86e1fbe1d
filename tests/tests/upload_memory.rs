//! Many large uploads at once: the proxy's memory keeps to its bound, and all of them succeed.
//!
//! `just upload-memory` runs the full form: 64 objects of 256 MiB, with the default configuration (30 GiB of disk).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alba_core::env::{Deadline, real};
use alba_core::ids::{NamespaceName, ObjectName};
use alba_core::wire::proxy::Update;
use alba_proxy::client::ProxyClient;
use alba_tests::cluster::{Cluster, Options};
use alba_tests::{content, process};
use bytes::Bytes;

const MIB: u64 = 1 << 20;

/// Everything but the bound is the same.
struct Form {
    uploads: usize,
    size: u64,
    /// What the proxy may have in flight, where that is not the default.
    in_flight: Option<u64>,
    /// Most memory that the proxy may ever have.
    bound: u64,
    /// Sequences with the bytes in the request, at once, and their size.
    sequences: (usize, u64),
}

/// The full form.
const LONG: Form =
    Form { uploads: 64, size: 256 * MIB, in_flight: None, bound: 512 * MIB, sequences: (16, 64 * MIB) };

/// What a proxy needs beside its buffers: its program, threads' stacks and connections (24 MiB when idle), and what its allocator
/// may keep of what is free (64 MiB, and what is freed between two looks).
const BESIDE: u64 = 104 * MIB;

/// In flight, frames of requests included, in the short form.
const SHORT_IN_FLIGHT: u64 = 24 * MIB;

const SHORT_FRAMES: u64 = 48 * MIB;

/// The form for every day: less of everything. What is uploaded is several times what may be in memory.
const SHORT: Form = Form {
    uploads: 16,
    size: 64 * MIB,
    in_flight: Some(SHORT_IN_FLIGHT),
    bound: SHORT_IN_FLIGHT + SHORT_FRAMES + BESIDE,
    sequences: (8, 24 * MIB),
};

const CONTENT: &str = "what is uploaded";

async fn connect(proxy: SocketAddr) -> (ProxyClient, Deadline) {
    let env = real::env();
    // Memory is what is measured: on a busy machine it may take its time.
    let deadline = env.deadline_in(Duration::from_secs(3600));
    (ProxyClient::connect(&env, proxy, deadline).await.unwrap(), deadline)
}

fn namespace() -> NamespaceName {
    NamespaceName::new("demo").unwrap()
}

fn object(kind: &str, number: usize) -> ObjectName {
    ObjectName::new(format!("{kind} {number}")).unwrap()
}

async fn upload_files(proxy: SocketAddr, count: usize, file: PathBuf) {
    let uploads: Vec<_> = (0..count)
        .map(|number| {
            let (file, namespace) = (file.clone(), namespace());
            tokio::spawn(async move {
                let (mut client, deadline) = connect(proxy).await;
                let name = object("file", number);
                let uploaded = client.upload_object(&namespace, &name, &file, true, None, deadline);
                uploaded.await.unwrap_or_else(|error| panic!("upload {number}: {error}"));
            })
        })
        .collect();
    for upload in uploads {
        upload.await.unwrap();
    }
}

async fn upload_bytes(proxy: SocketAddr, count: usize, bytes: Bytes) {
    let uploads: Vec<_> = (0..count)
        .map(|number| {
            let (data, namespace) = (bytes.clone(), namespace());
            tokio::spawn(async move {
                let (mut client, deadline) = connect(proxy).await;
                let name = Bytes::copy_from_slice(object("bytes", number).as_bytes());
                let update = Update::UploadObject { object: name, data, checksum: None };
                let applied = client.apply_sequence(&namespace, vec![], vec![update], deadline).await;
                assert_eq!(applied.unwrap_or_else(|error| panic!("sequence {number}: {error}")).len(), 1);
            })
        })
        .collect();
    for upload in uploads {
        upload.await.unwrap();
    }
}

async fn check(proxy: SocketAddr, name: &ObjectName, size: u64, file: &Path) {
    let (mut client, deadline) = connect(proxy).await;
    client.download_object(&namespace(), name, file, true, deadline).await.unwrap();
    content::check_file(file, CONTENT, size).unwrap();
    std::fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_uploads_at_once_keep_to_the_bound_of_memory_and_succeed() {
    let long = std::env::var_os("ALBA_LONG_TESTS").is_some();
    let form = if long { &LONG } else { &SHORT };
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    let mut set = |key: &str, value: u64| options.env.push((key.to_owned(), value.to_string()));
    // They wait for each other: the last one as long as all together take.
    set("ALBA_PROXY__REQUEST_TIMEOUT_MS", 3_600_000);
    if let Some(bytes) = form.in_flight {
        set("ALBA_PROXY__CLIENT__MAX_BYTES_IN_FLIGHT", bytes);
        set("ALBA_PROXY__MAX_FRAME_BYTES", SHORT_FRAMES);
        set("ALBA_PROXY__MAX_REQUEST_BYTES_IN_FLIGHT", SHORT_FRAMES);
    }
    let cluster = Cluster::start("upload-memory", options);
    let proxy = cluster.proxy();
    let memory = |what: &str| {
        let memory = process::memory(cluster.pid("proxy-0"));
        println!("{what}: {} MiB now, {} MiB at most", memory.now / MIB, memory.peak / MIB);
        memory
    };
    let source = cluster.scratch().join("source");
    content::write_file(&source, CONTENT, form.size).unwrap();
    memory("idle");

    upload_files(proxy, form.uploads, source).await;
    memory("after the uploads from files");
    let (count, size) = form.sequences;
    let bytes = content::bytes(CONTENT, usize::try_from(size).unwrap());
    upload_bytes(proxy, count, bytes.into()).await;
    let peak = memory("after the uploads by value").peak;
    assert!(peak <= form.bound, "the proxy had {} MiB, more than {} MiB", peak / MIB, form.bound / MIB);

    let back = cluster.scratch().join("back");
    for number in [0, form.uploads - 1] {
        check(proxy, &object("file", number), form.size, &back).await;
    }
    check(proxy, &object("bytes", count - 1), size, &back).await;
}
