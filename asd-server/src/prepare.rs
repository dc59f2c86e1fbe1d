//! Segments written ahead: overwriting blocks that exist and then syncing is several times faster than appending to
//! fresh files, because nothing but the data has to be journaled.

use std::str::FromStr;

use alba_core::env::Env;

use crate::home::Home;

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

/// Prepares an empty store; tells (done, total) bytes as it goes on, and gives what was written.
///
/// The only place that asks the engine for it. This engine makes its segments when it needs them and cannot yet.
pub(crate) async fn prepare(
    env: &Env,
    home: &Home,
    wanted: Preparation,
    segment_bytes: u64,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> anyhow::Result<u64> {
    let _ = (env, home, segment_bytes);
    progress(0, if let Preparation::Bytes(bytes) = wanted { bytes } else { 0 });
    anyhow::bail!("the directory is formatted, but this version's storage engine cannot prepare segments")
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
