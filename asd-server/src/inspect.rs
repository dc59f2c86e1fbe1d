//! `asd-server inspect`: what a data directory holds, while no ASD is using it. It takes the directory's lock and changes
//! nothing a client could see.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use alba_core::env::osd::{Osd, Priority};
use alba_core::env::real;
use alba_core::ids::text_or_hex;
use alba_core::range::{RangeQuery, next_prefix};
use clap::Parser;
use serde::Serialize;

use crate::command::{self, Report};
use crate::daemon::parts;
use crate::engine::{Engine, EngineConfig, SegmentReport};
use crate::home::{Home, Identity};
use alba_core::env::real::disk::IoConfig;

/// Index cache while looking, in bytes.
const CACHE: u64 = 32 << 20;

/// For one step.
const STEP: Duration = Duration::from_secs(600);

#[derive(Debug, Parser)]
#[command(
    name = "asd-server inspect",
    about = "Shows what the data directory of an ASD that is not running holds",
    after_help = "Examples:\n  asd-server inspect --data-dir /mnt/disk1/asd --segments\n  \
                  asd-server inspect --data-dir /mnt/disk1/asd --keys 0x7000000000 --to-json"
)]
struct Arguments {
    /// The ASD's data directory
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// List the keys that begin with this (text, or hex after 0x; nothing: all) and the sizes of their values
    #[arg(long, value_name = "PREFIX", num_args = 0..=1, default_missing_value = "")]
    keys: Option<String>,
    /// List the segments
    #[arg(long)]
    segments: bool,
    /// Answer in JSON
    #[arg(long)]
    to_json: bool,
}

#[derive(Serialize)]
struct Found {
    identity: Identity,
    used_bytes: u64,
    segment_count: usize,
    segment_bytes: u64,
    /// Bytes of segments that hold no value: free, overwritten, deleted, and what describes the values.
    overhead_bytes: u64,
    index_was_rebuilt: bool,
    batches_replayed: u64,
    damage: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<Vec<SegmentReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<Key>>,
}

#[derive(Serialize)]
struct Key {
    /// Hex.
    key: String,
    /// For people.
    text: String,
    bytes: u64,
}

pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    command::run(args, inspect)
}

async fn inspect(arguments: Arguments) -> anyhow::Result<Report> {
    let env = real::env();
    let prefix = arguments.keys.as_deref().map(prefix).transpose()?;
    let home = Home::open_existing(&arguments.data_dir)?;
    let parts = parts(&env, &home, CACHE, IoConfig::default())?;
    let (engine, opening) =
        Engine::open(parts, EngineConfig { background: false, ..EngineConfig::default() }).await?;
    let used_bytes = engine.usage().used.get();
    let segments = engine.segments();
    let keys = match prefix {
        None => Ok(None),
        Some(prefix) => keys(&engine, &prefix, &env).await.map(Some),
    };
    engine.close(env.deadline_in(STEP)).await;
    let segment_bytes = segments.iter().map(|segment| segment.len).sum::<u64>();
    let found = Found {
        identity: home.identity.clone(),
        used_bytes,
        segment_count: segments.len(),
        segment_bytes,
        overhead_bytes: segment_bytes.saturating_sub(used_bytes),
        index_was_rebuilt: opening.rebuilt,
        batches_replayed: opening.replayed,
        damage: opening.damage,
        segments: arguments.segments.then_some(segments),
        keys: keys?,
    };
    let text =
        if arguments.to_json { serde_json::to_string_pretty(&found)? + "\n" } else { describe(&found) };
    Ok(Report { text, failed: !found.damage.is_empty() })
}

/// A prefix as it is written on the command line.
fn prefix(text: &str) -> anyhow::Result<Vec<u8>> {
    Ok(match text.strip_prefix("0x") {
        Some(digits) => hex::decode(digits)?,
        None => text.as_bytes().to_vec(),
    })
}

async fn keys(engine: &Engine, prefix: &[u8], env: &alba_core::env::Env) -> anyhow::Result<Vec<Key>> {
    let last = next_prefix(prefix).map(|end| (end, false));
    let mut query = RangeQuery { first: prefix.to_vec(), last, ..RangeQuery::all() };
    let mut keys = Vec::new();
    loop {
        let page = engine.range(query.clone(), Priority::Low, env.deadline_in(STEP)).await?;
        for key in &page.items {
            let bytes = engine.size_of(vec![key.clone()], env.deadline_in(STEP)).await?;
            keys.push(Key { key: hex::encode(key), text: text_or_hex(key), bytes });
        }
        match page.items.last() {
            Some(last) if page.has_more => query = query.after(last),
            _ => return Ok(keys),
        }
    }
}

fn describe(found: &Found) -> String {
    let mut text = format!(
        "asd {} at {}\n{} bytes of values\n{} segments, {} bytes, {} of them no values\n",
        found.identity.long_id,
        found.identity.place,
        found.used_bytes,
        found.segment_count,
        found.segment_bytes,
        found.overhead_bytes
    );
    if found.index_was_rebuilt {
        text += "the index was made again from the segments\n";
    }
    for line in &found.damage {
        text += &format!("lost: {line}\n");
    }
    for segment in found.segments.iter().flatten() {
        text += &format!(
            "segment {:016x} life {}: {:?}, {} of {} bytes written, {} values ({} bytes), {} tombstones\n",
            segment.number,
            segment.generation,
            segment.state,
            segment.written,
            segment.len,
            segment.values,
            segment.live_bytes,
            segment.tombstones
        );
    }
    for key in found.keys.iter().flatten() {
        text += &format!("key {} {}\n", key.text, key.bytes);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_text_or_hex() {
        assert_eq!(prefix("").unwrap(), b"");
        assert_eq!(prefix("test").unwrap(), b"test");
        assert_eq!(prefix("0x7000").unwrap(), b"p\0");
        assert!(prefix("0x7").is_err());
    }
}
