//! Debian's etcd with transactions like our puts: the rows of a put that are its own (the counters that all puts share are
//! left out), behind the condition that the name is not there. Speaks gRPC by hand: a few messages, and no generated code
//! whose cost would count as etcd's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use alba_core::kv::{Kv, MemKv, WriteBatch};
use alba_core::wire::rpc::RequestId;
use alba_metadata::machine::Input;
use bytes::Bytes;
use h2::client::SendRequest;

use crate::group::Load;
use crate::{Bench, limits, objects};

/// Transactions made before the clock runs; the measurement ends with them, if not before.
const MADE: u32 = 60_000;

/// Connections that the clients share.
const CONNECTIONS: usize = 8;

/// Longest a cluster may take to have a leader.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where etcd is, if it is.
pub(crate) fn installed() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|path| path.join("etcd"))
        .find(|path| path.is_file())
}

/// Members that are killed with it.
struct Members {
    children: Vec<Child>,
    ports: Vec<u16>,
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Members {
    fn start(etcd: &Path, directory: &Path, count: usize) -> Self {
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let peer = |n: usize| format!("http://127.0.0.1:{}", ports[n].1);
        let all = (0..count).map(|n| format!("m{n}={}", peer(n))).collect::<Vec<_>>().join(",");
        let start = |n: usize| {
            let client = format!("http://127.0.0.1:{}", ports[n].0);
            let log = File::create(directory.join(format!("m{n}.log"))).unwrap();
            Command::new(etcd)
                .args(["--name", &format!("m{n}"), "--data-dir"])
                .arg(directory.join(format!("m{n}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer(n), "--initial-advertise-peer-urls", &peer(n)])
                .args(["--initial-cluster", &all, "--log-level", "error"])
                // Room for the whole measurement; the default would refuse it.
                .args(["--quota-backend-bytes", "8589934592"])
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap()
        };
        let children = (0..count).map(start).collect();
        Self { children, ports: ports.into_iter().map(|(client, _)| client).collect() }
    }

    /// CPU time of all members so far, in seconds.
    fn cpu_seconds(&self) -> f64 {
        self.children.iter().map(|child| crate::cpu_seconds_of(&child.id().to_string())).sum()
    }

    /// The port of the member that leads.
    async fn leader(&self) -> u16 {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            for port in &self.ports {
                if let Ok(client) = connect(*port).await
                    && let Ok(status) =
                        call(client, *port, "etcdserverpb.Maintenance/Status", Bytes::new()).await
                    && let Some(member) = field(&status, 1).and_then(|header| varint_field(header, 2))
                    && varint_field(&status, 4) == Some(member)
                {
                    return *port;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd has no leader");
    }
}

async fn connect(port: u16) -> Result<SendRequest<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(8 << 20);
    let (client, connection) = builder.handshake(stream).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// One call: the message that came back.
async fn call(
    client: SendRequest<Bytes>,
    port: u16,
    method: &str,
    message: Bytes,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let mut client = client.ready().await?;
    let request = http::Request::post(format!("http://127.0.0.1:{port}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = client.send_request(request, false)?;
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
    framed.extend_from_slice(&message);
    body.send_data(framed.into(), true)?;
    let mut body = response.await?.into_body();
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        bytes.extend_from_slice(&part);
    }
    let status = body.trailers().await?.and_then(|trailers| trailers.get("grpc-status").cloned());
    if status.as_ref().is_none_or(|status| status.as_bytes() != b"0") || bytes.len() < 5 {
        return Err(format!("grpc status {status:?}").into());
    }
    Ok(Bytes::from(bytes).slice(5..))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

/// A field of bytes or of a message.
fn put_field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, u64::try_from(bytes.len()).unwrap());
    out.extend_from_slice(bytes);
}

/// The fields of a message: number, and either a varint or bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(message: &mut &[u8]) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = message.split_first()?;
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
    let mut found = Vec::new();
    while let Some(tag) = varint(&mut message) {
        match (tag & 7, varint(&mut message)) {
            (0, Some(value)) => found.push((tag >> 3, value, &[][..])),
            (2, Some(len)) => {
                let Some((bytes, rest)) = message.split_at_checked(usize::try_from(len).unwrap()) else {
                    break;
                };
                message = rest;
                found.push((tag >> 3, 0, bytes));
            }
            _ => break,
        }
    }
    found
}

fn field(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message).into_iter().find(|(n, ..)| *n == number).map(|(_, _, bytes)| bytes)
}

fn varint_field(message: &[u8], number: u64) -> Option<u64> {
    fields(message).into_iter().find(|(n, ..)| *n == number).map(|(_, value, _)| value)
}

/// Is it a row that a put alone writes: of its session or its object? (Others are counters, once for a whole batch of ours.)
fn is_own(key: &[u8]) -> bool {
    key.starts_with(b"\x01s")
        || matches!((key.first(), key.get(9)), (Some(b'n'), Some(b'N' | b'o' | b'b' | b'p')))
}

/// `TxnRequest`: if the name was never written (version 0), put all.
fn transaction(batch: &WriteBatch) -> Bytes {
    let mut txn = Vec::new();
    let rows = batch.0.iter().filter(|(key, _)| is_own(key));
    for (key, value) in rows.clone() {
        if key.get(9) == Some(&b'N') && key[0] == b'n' {
            let mut compare = Vec::new();
            put_field(&mut compare, 3, key);
            // `version`, of the one-of: it is there although it is 0. Result EQUAL and target VERSION are the defaults.
            compare.extend_from_slice(&[4 << 3, 0]);
            put_field(&mut txn, 1, &compare);
        }
        let mut put = Vec::new();
        put_field(&mut put, 1, key);
        put_field(&mut put, 2, value.as_deref().unwrap_or_default());
        let mut operation = Vec::new();
        put_field(&mut operation, 2, &put);
        put_field(&mut txn, 2, &operation);
    }
    txn.into()
}

/// Transactions of puts as the model makes them, with the rows of each and its bytes.
fn transactions(clients: usize) -> (Vec<Bytes>, usize, usize) {
    let model = MemKv::new();
    let sessions = limits::sessions(&model, clients);
    let (mut rows, mut bytes) = (0, 0);
    let made = (0..MADE).map(|number| {
        let nth = usize::try_from(number).unwrap();
        let sequence = u64::try_from(nth / clients).unwrap() + 1;
        let session = sessions[nth % clients];
        let id = RequestId { session, sequence, lowest_unacknowledged: sequence };
        let input = Input::Command(id, objects::put(number.into()));
        let batch = limits::batch(&model, number.into(), [input]);
        let own = batch.0.iter().filter(|(key, _)| is_own(key));
        rows = own.clone().count();
        bytes = own.map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
        let made = transaction(&batch);
        model.commit(batch, alba_core::kv::Durability::Eventual).unwrap();
        made
    });
    (made.collect(), rows, bytes)
}

/// Transactions for the bench's time on so many members; CPU time is etcd's and the clients'.
pub(crate) async fn puts(bench: &Bench, etcd: &Path, members: usize, clients: usize) -> Load {
    let (made, rows, bytes) = transactions(clients);
    println!(r#"{{"name":"metadata/put/etcd/transaction","rows":{rows},"bytes":{bytes}}}"#);
    let directory = bench.directory();
    let members = Members::start(etcd, directory.path(), members);
    let port = members.leader().await;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS.min(clients) {
        connections.push(connect(port).await.unwrap());
    }
    let (made, next) = (Arc::new(made), Arc::new(AtomicUsize::new(0)));
    let cpu = || crate::cpu_seconds() + members.cpu_seconds();
    let (began, before, time) = (Instant::now(), cpu(), bench.seconds);
    let running: Vec<_> = (0..clients)
        .map(|client| {
            let (made, next) = (made.clone(), next.clone());
            let connection = connections[client % connections.len()].clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while began.elapsed() < time
                    && let Some(txn) = made.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let started = Instant::now();
                    let method = "etcdserverpb.KV/Txn";
                    let answer = call(connection.clone(), port, method, txn.clone()).await.unwrap();
                    assert_eq!(varint_field(&answer, 2), Some(1), "the transaction did not succeed");
                    times.push(started.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for client in running {
        times.extend(client.await.unwrap());
    }
    Load::of(times, began.elapsed(), cpu() - before)
}
