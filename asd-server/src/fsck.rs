//! `asd-server fsck`: looks through a data directory that no ASD is using.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use alba_core::env::osd::{Osd, OsdError, Priority};
use alba_core::env::{Env, real};
use alba_core::range::RangeQuery;
use clap::Parser;

use crate::command::{self, Report};
use crate::daemon::parts;
use crate::engine::{Engine, EngineConfig};
use crate::home::Home;
use alba_core::env::real::disk::IoConfig;

/// Index cache while checking, in bytes.
const CACHE: u64 = 32 << 20;

/// For one step.
const STEP: Duration = Duration::from_secs(600);

#[derive(Debug, Parser)]
#[command(
    name = "asd-server fsck",
    about = "Checks the data directory of an ASD that is not running",
    after_help = "Example:\n  asd-server fsck --data-dir /mnt/disk1/asd --rebuild-index"
)]
struct Arguments {
    /// The ASD's data directory
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Throw the index away and make it again from the segments
    #[arg(long)]
    rebuild_index: bool,
}

/// Runs it. Exit code 1 also when damage was found.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    command::run(args, check)
}

async fn check(arguments: Arguments) -> anyhow::Result<Report> {
    let env: Env = real::env();
    let home = Home::open_existing(&arguments.data_dir)?;
    let parts = parts(&env, &home, CACHE, IoConfig::default())?;
    if arguments.rebuild_index {
        parts.index.wipe()?;
    }
    let (engine, opening) =
        Engine::open(parts, EngineConfig { background: false, ..EngineConfig::default() }).await?;
    let mut text = format!("asd {}\n", home.identity.long_id);
    if opening.rebuilt {
        text += &format!("index made again from {} batches\n", opening.replayed);
    }
    for line in &opening.damage {
        text += &format!("lost: {line}\n");
    }
    let (mut values, mut damaged) = (0_u64, 0_u64);
    let mut query = RangeQuery::all();
    loop {
        let page = engine.range(query.clone(), Priority::Low, env.deadline_in(STEP)).await?;
        for key in &page.items {
            values += 1;
            match engine.multi_get(vec![key.clone()], Priority::Low, env.deadline_in(STEP)).await {
                Ok(_) => {}
                Err(OsdError::Damaged(reason)) => {
                    damaged += 1;
                    text += &format!("damaged: {}: {reason}\n", alba_core::ids::text_or_hex(key));
                }
                Err(error) => return Err(error.into()),
            }
        }
        match page.items.last() {
            Some(last) if page.has_more => query = query.after(last),
            _ => break,
        }
    }
    let used = engine.usage().used;
    engine.close(env.deadline_in(STEP)).await;
    text += &format!("{values} values, {used}; {damaged} damaged\n");
    Ok(Report { text, failed: damaged > 0 || !opening.damage.is_empty() })
}
