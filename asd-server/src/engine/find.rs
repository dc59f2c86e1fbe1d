//! The segments on the disk, in the order of the history, and what of them is missing.

use std::collections::BTreeSet;
use std::io;

use alba_core::env::DiskFile;

use super::format::{BLOCK, BLOCK_BYTES, FormatError};
use super::recovery::{OpenError, Sources};
use super::segment::{self, Preface, Segment, file_name};

/// What was found.
pub(crate) struct Found {
    /// In the order of the history.
    pub segments: Vec<Segment>,
    /// Number of the next new segment.
    pub slots: u64,
    /// Numbers of segments that once were and cannot be used.
    pub lost: Vec<u64>,
    /// What is lost, for people.
    pub damage: Vec<String>,
}

/// What is said of a segment that is not there.
pub(crate) fn is_missing(number: u64) -> String {
    format!("{} is missing; its values are lost", file_name(number))
}

/// Opens all segments. Files whose creation was cut off are removed.
pub(crate) async fn segments(sources: &Sources) -> Result<Found, OpenError> {
    let disk = sources.disk.as_ref();
    let names = disk.list().await?;
    for name in names.iter().filter(|name| segment::is_unfinished(name)) {
        disk.remove(name).await?;
    }
    let numbers: BTreeSet<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    let mut found = Found { segments: Vec::new(), slots: 0, lost: Vec::new(), damage: Vec::new() };
    let mut there = BTreeSet::new();
    for number in numbers {
        let name = file_name(number);
        let preface = segment::open(disk, number).await?;
        there.insert(number);
        match preface.header {
            Ok(header) if header.seed.store != sources.store || header.seed.segment != number => {
                found.damage.push(format!("{name} belongs to another store and is ignored"));
            }
            Err(FormatError::Version(version)) => {
                return Err(OpenError::Version { segment: number, found: version });
            }
            Err(_) if !is_written(preface.file.as_ref()).await? => {
                // Its creation was cut off: header and length are durable before the first record.
                disk.remove(&name).await?;
                there.remove(&number);
            }
            Err(error) => {
                found.lost.push(number);
                found.damage.push(format!("{name}: {error}; its values are lost"));
            }
            Ok(header) => {
                let Preface { file, closing, damage, .. } = preface;
                let readable = file.len().await?;
                if readable < header.len {
                    if !is_written(file.as_ref()).await? && closing.is_none() {
                        // As above.
                        disk.remove(&name).await?;
                        there.remove(&number);
                        continue;
                    }
                    found.damage.push(format!("{name} is cut off"));
                }
                if let Some(error) = &damage {
                    tracing::warn!(%error, name, "a damaged block; nothing is lost by it");
                }
                let readable = readable.min(header.len);
                let closing_rotten = closing.is_none() && damage.is_some();
                found.segments.push(Segment { header, file, readable, closing, closing_rotten });
            }
        }
    }
    // Headers tell how many there were; the newest may be of a process that made some more without using them.
    let known = found.segments.iter().map(|segment| segment.header.slots).max().unwrap_or(0);
    for number in (0..known).filter(|number| !there.contains(number)) {
        found.lost.push(number);
        found.damage.push(is_missing(number));
    }
    found.slots = there.last().map_or(0, |last| last + 1).max(known);
    found.segments.sort_by_key(|segment| segment.header.order());
    Ok(found)
}

/// Was anything ever written behind the header? Rot counts as written: nothing is removed that may be evidence.
async fn is_written(file: &dyn DiskFile) -> io::Result<bool> {
    for at in [BLOCK_BYTES, 2 * BLOCK_BYTES] {
        match file.read_at(at, BLOCK).await {
            Ok(block) if block.iter().any(|byte| *byte != 0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
