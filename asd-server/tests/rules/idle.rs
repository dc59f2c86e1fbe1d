//! Connections on which nothing happens cost little, and there are only so many.

use alba_core::env::Stream;
use alba_core::wire::asd::encode_prologue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Bytes of memory that a process has in use.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

async fn open(env: &Env, address: SocketAddr) -> Option<Stream> {
    let mut stream = env.net.connect(address, env.deadline_in(WAIT)).await.unwrap();
    // A connection beyond the limit is closed at once: that may show at either step.
    stream.write_all(&encode_prologue(None).unwrap()).await.ok()?;
    let mut answer = vec![0; 8 + LONG_ID.len()];
    stream.read_exact(&mut answer).await.ok()?;
    Some(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let address = free_address();
    // Half of what this process may have, so that other tests have some, too.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = 10_000.min(usize::try_from(files / 2).unwrap());
    let limit = format!("max_connections={count}");
    let asd = start(&env, directory.path(), address, &[&limit]).await;
    // One that works while the others idle.
    let osd = client(&env, address);
    osd.apply(small(), Priority::High, env.deadline_in(WAIT)).await.unwrap();
    let before = resident(asd.0.id());
    let mut idle = Vec::new();
    let limit = env.deadline_in(Duration::from_secs(120));
    // The connections of `probe` may still be open.
    while idle.len() < count - 1 {
        assert!(!limit.left(env.clock.as_ref()).is_zero(), "only {} connections", idle.len());
        idle.extend(open(&env, address).await);
    }
    assert!(open(&env, address).await.is_none(), "one more than allowed");
    let each = resident(asd.0.id()).saturating_sub(before) / u64::try_from(count).unwrap();
    assert!(each < 16 << 10, "{each} bytes for an idle connection");
    let found = osd.multi_get(vec!["k".into()], Priority::High, env.deadline_in(WAIT)).await.unwrap();
    assert!(found[0].is_some());
    drop(idle);
    let limit = env.deadline_in(WAIT);
    while open(&env, address).await.is_none() {
        assert!(!limit.left(env.clock.as_ref()).is_zero(), "places of closed connections are not free again");
    }
}
