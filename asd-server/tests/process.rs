//! The real program: killed while it writes, started again, everything acknowledged is there.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod fixture;
mod load;
mod memory;
mod rules;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::osd::{Osd, OsdAssert, OsdBatch, OsdKey, OsdUpdate, Priority, StoredValue};
use alba_core::env::{Env, OsdError, TaskHandle, real};
use alba_core::net::asd::AsdClient;
use bytes::Bytes;

use fixture::{LONG_ID, WAIT, client, command, ended, free_address, page, program, start};

fn stored(nth: u64) -> StoredValue {
    let len = [10, 5_000, 20_000, 70_000][usize::try_from(nth % 4).unwrap()];
    let value: Vec<u8> = (0..len).map(|i: u64| (i.wrapping_mul(nth + 1) >> 3).to_le_bytes()[0]).collect();
    let value = Bytes::from(value);
    StoredValue { checksum: ChecksumAlgorithm::Crc32c.of(&value), value }
}

fn key(writer: u64, nth: u64) -> OsdKey {
    format!("w{writer}-{nth:06}").into()
}

/// The batch number `nth` of a writer: its value; each fourth one takes away the value three before it, too.
fn batch(writer: u64, nth: u64) -> OsdBatch {
    let mut updates = vec![OsdUpdate::Set(key(writer, nth), stored(nth))];
    updates.extend(takes_away(nth).map(|gone| OsdUpdate::Delete(key(writer, gone))));
    OsdBatch { asserts: vec![OsdAssert::Absent(key(writer, nth))], updates }
}

fn takes_away(nth: u64) -> Option<u64> {
    (nth % 4 == 3).then(|| nth - 3)
}

/// Writes until it fails; gives the number of the batch that was not acknowledged.
async fn write(env: Env, osd: Arc<AsdClient>, writer: u64, from: u64, busy: Arc<AtomicBool>) -> u64 {
    let mut nth = from;
    loop {
        let deadline = env.deadline_in(Duration::from_secs(5));
        if let Err(error) = osd.apply(batch(writer, nth), Priority::High, deadline).await {
            assert!(matches!(error, OsdError::Connection(_) | OsdError::Timeout), "{error}");
            return nth;
        }
        nth += 1;
        if nth >= from + 20 {
            busy.store(true, Ordering::Relaxed);
        }
    }
}

/// What one writer did in one round.
struct Written {
    writer: u64,
    from: u64,
    /// Everything below is acknowledged.
    end: u64,
    /// Did the batch `end` happen? It may have or not, but once seen it stays so.
    last: Option<bool>,
}

/// Compares what is there with what a writer was told.
async fn check(env: &Env, osd: &AsdClient, written: &mut Written) {
    let Written { writer, from, end, .. } = *written;
    let mut expected: BTreeMap<u64, bool> = (from..end).map(|nth| (nth, true)).collect();
    expected.extend((from..end).filter_map(takes_away).map(|gone| (gone, false)));
    let get = async |nth| {
        let found = osd.multi_get(vec![key(writer, nth)], Priority::High, env.deadline_in(WAIT)).await;
        found.unwrap().pop().flatten()
    };
    let last = get(end).await;
    assert!(last.is_none() || last == Some(stored(end)), "half a value of writer {writer}: {end}");
    assert!(written.last.is_none_or(|before| before == last.is_some()), "{writer}: {end} changed its mind");
    written.last = Some(last.is_some());
    // All of the last batch, or nothing of it.
    if let (true, Some(gone)) = (last.is_some(), takes_away(end)) {
        expected.insert(gone, false);
    }
    for (nth, present) in expected {
        let wanted = present.then(|| stored(nth));
        assert!(get(nth).await == wanted, "writer {writer}, value {nth}: present {present} expected");
    }
}

/// Rounds of the kill loop: more with `ALBA_LONG` (a number, or anything for 200).
fn rounds() -> u64 {
    std::env::var("ALBA_LONG").map_or(20, |long| long.parse().unwrap_or(200))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_writes_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("asd");
    let env = real::env();
    let address = free_address();
    let mut all: Vec<Written> = Vec::new();
    let rounds = rounds();
    for round in 0..=rounds {
        let mut asd = start(&env, &data, address, &[]).await;
        let osd = client(&env, address);
        // Old rounds now and then, the last one and all at the end always.
        let first = if round % 5 == 0 || round == rounds { 0 } else { all.len().saturating_sub(4) };
        for written in &mut all[first..] {
            check(&env, &osd, written).await;
        }
        if round == rounds {
            break;
        }
        let busy = Arc::new(AtomicBool::new(false));
        // A write that was cut off may have happened: each round has numbers of its own.
        let from = round * 100_000;
        let mut running = Vec::new();
        for writer in 0..4 {
            let (env, osd, busy) = (env.clone(), osd.clone(), busy.clone());
            let (answer, result) = tokio::sync::oneshot::channel();
            let spawn = env.spawn.clone();
            let task = async move {
                let _ = answer.send(write(env, osd, writer, from, busy).await);
            };
            spawn.spawn("writer", Box::pin(task));
            running.push((writer, result));
        }
        let limit = env.deadline_in(WAIT);
        while !busy.load(Ordering::Relaxed) {
            assert!(!limit.left(env.clock.as_ref()).is_zero(), "it does not write");
            env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(5))).await;
        }
        asd.0.kill().unwrap();
        asd.0.wait().unwrap();
        for (writer, result) in running {
            all.push(Written { writer, from, end: result.await.unwrap(), last: None });
        }
    }
    let count: u64 = all.iter().map(|written| written.end - written.from).sum();
    assert!(count >= rounds * 20, "{count} acknowledged in {rounds} rounds");
}

#[tokio::test]
async fn a_directory_in_use_and_a_wrong_identity_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let address = free_address();
    let running = start(&env, directory.path(), address, &[]).await;
    let second = ended(&mut command(directory.path(), free_address(), &[]), 1);
    assert!(second.contains("in use by a running ASD"), "{second}");
    drop(running);
    let other = ended(&mut command(directory.path(), free_address(), &["place=\"node-1\""]), 1);
    assert!(other.contains("belongs to the ASD with place node-0"), "{other}");
    let mut check = program("fsck");
    let checked = ended(check.args(["--rebuild-index", "--data-dir"]).arg(directory.path()), 0);
    assert!(checked.contains("0 values") && checked.contains("0 damaged"), "{checked}");
}
