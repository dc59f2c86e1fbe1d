//! Finds out whether a directory's file system takes O_DIRECT, by doing it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use super::file::direct_flag;
use crate::aligned::Aligned;
use crate::env::disk::BLOCK;

/// Names that begin so are never shown: at most a crash during the probe leaves one.
pub(super) const PROBE_PREFIX: &str = ".direct-io-probe-";

/// What came out.
#[derive(Debug)]
pub(super) enum Probed {
    /// A block was written and read back.
    Takes,
    /// The file system refused.
    Refuses,
    /// Something else is wrong with it: full, read-only, failing.
    Unknown(io::Error),
}

/// Tries in `directory`.
pub(super) fn probe(directory: &Path) -> Probed {
    let mut block = Aligned::new(BLOCK);
    let block = block.bytes_mut();
    match write_and_read(directory, block) {
        Ok(()) => Probed::Takes,
        Err(error) if is_refusal(&error) => Probed::Refuses,
        // Nothing can be written: reading what is there tells as well.
        Err(error) => match read_any(directory, block) {
            Ok(true) => Probed::Takes,
            Err(other) if is_refusal(&other) => Probed::Refuses,
            Ok(false) | Err(_) => Probed::Unknown(error),
        },
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

fn write_and_read(directory: &Path, block: &mut [u8]) -> io::Result<()> {
    static PROBES: AtomicU64 = AtomicU64::new(0);
    let number = PROBES.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("{PROBE_PREFIX}{}-{number}", process::id()));
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).custom_flags(direct_flag()?).open(&path);
    let file = match file {
        // Some create it before they refuse.
        Err(error) => {
            drop(fs::remove_file(&path));
            return Err(error);
        }
        Ok(file) => file,
    };
    fs::remove_file(&path)?;
    block.fill(0xA5);
    file.write_all_at(block, 0)?;
    block.fill(0);
    file.read_exact_at(block, 0)?;
    if block.iter().all(|byte| *byte == 0xA5) { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Reads a block of the first file with one. False when there is none.
fn read_any(directory: &Path, block: &mut [u8]) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_file() && metadata.len() > 0 {
            let file: File = OpenOptions::new().read(true).custom_flags(direct_flag()?).open(path)?;
            return Ok(file.read_at(block, 0)? > 0);
        }
    }
    Ok(false)
}
