//! Segments written ahead: overwriting blocks that exist and then syncing is several times faster than appending to
//! fresh files, because nothing but the data has to be journaled.

use std::str::FromStr;
use std::time::Duration;

use alba_core::env::Env;
use alba_core::env::real::disk::IoConfig;

use crate::daemon::parts;
use crate::engine::{Engine, EngineConfig};
use crate::home::Home;

/// Index cache meanwhile, in bytes.
const CACHE: u64 = 8 << 20;

/// For closing the store.
const CLOSE: Duration = Duration::from_secs(60);

/// How much to write ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// So many bytes.
    Bytes(u64),
    /// What the file system has, less a reserve.
    All,
}

impl FromStr for Preparation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.parse()
            .map(Self::Bytes)
            .map_err(|_| format!("{text:?} is neither a number of bytes nor \"all\""))
    }
}

/// What `all` leaves to the index and to others, in segments.
const RESERVE: u64 = 8;

/// Prepares a store; tells (done, total) bytes as it goes on, and gives what was written.
pub(crate) async fn prepare(
    env: &Env,
    home: &Home,
    wanted: Preparation,
    segment_bytes: u64,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> anyhow::Result<u64> {
    let parts = parts(env, home, CACHE, IoConfig::default())?;
    let (free, _) = parts.disk.space().await?;
    let count = match wanted {
        Preparation::Bytes(bytes) => bytes.div_ceil(segment_bytes),
        Preparation::All => (free / segment_bytes).saturating_sub(RESERVE),
    };
    let config =
        EngineConfig { segment_bytes, background: false, preparation_rate: 0, ..EngineConfig::default() };
    let (engine, _) = Engine::open(parts, config).await?;
    progress(0, count * segment_bytes);
    let done = engine.prepare(count, |done| progress(done * segment_bytes, count * segment_bytes)).await;
    engine.close(env.deadline_in(CLOSE)).await;
    done?;
    Ok(count * segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_bytes_or_all() {
        assert_eq!("all".parse(), Ok(Preparation::All));
        assert_eq!("1073741824".parse(), Ok(Preparation::Bytes(1 << 30)));
        assert!("1GB".parse::<Preparation>().is_err());
    }
}
