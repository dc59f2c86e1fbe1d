//! Backup files on an ordinary file system.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use alba_core::env::files;
use alba_core::kv::{Durability, Kv, WriteBatch};

use super::format::{BackupError, Description, Reader};

/// A backup that is being written, beside its place. It gets there only when it is whole and sound; dropped before, nothing
/// is left.
pub struct Draft {
    file: Option<File>,
    part: PathBuf,
    place: PathBuf,
}

impl Draft {
    /// Begins a file that only its owner can read: presets hold keys.
    ///
    /// # Errors
    /// `AlreadyExists` when there is something at `place`.
    pub fn create(place: &Path) -> io::Result<Self> {
        if place.symlink_metadata().is_ok() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", place.display())));
        }
        let mut name = place.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(".part");
        let part = place.with_file_name(name);
        if part.symlink_metadata().is_ok() {
            // Of one that was cut off; its permissions may be others.
            files::remove_file(&part)?;
        }
        let file = files::create_with_mode(&part, 0o600)?;
        Ok(Self { file: Some(file), part, place: place.to_owned() })
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Err(io::Error::other("the draft is finished")),
        }
    }

    /// Verifies what was written and puts it in its place. In this order: content safe, verified, named.
    pub fn finish(mut self) -> Result<Verified, BackupError> {
        if let Some(file) = &self.file {
            file.sync_all()?;
        }
        let verified = verify(&self.part)?;
        files::rename_durably(&self.part, &self.place)?;
        self.file = None;
        Ok(verified)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // At worst it is left over, under a name that nobody takes for a backup.
            drop(files::remove_file(&self.part));
        }
    }
}

/// A backup that was read to its end and is sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What it says of itself.
    pub description: Description,
    /// Its rows.
    pub rows: u64,
}

fn open(path: &Path) -> Result<(Reader<BufReader<File>>, Description), BackupError> {
    Reader::new(BufReader::with_capacity(1 << 20, File::open(path)?))
}

/// Reads a backup to its end.
pub fn verify(path: &Path) -> Result<Verified, BackupError> {
    let (mut reader, description) = open(path)?;
    while reader.next_entries()?.is_some() {}
    Ok(Verified { description, rows: reader.count() })
}

/// Puts the rows of a backup into an empty store and makes them safe. The store is worth nothing unless this succeeds.
pub(crate) fn load(path: &Path, kv: &dyn Kv) -> Result<Description, BackupError> {
    let failed = |error: alba_core::kv::KvError| BackupError::Io(io::Error::other(error));
    let (mut reader, description) = open(path)?;
    while let Some(entries) = reader.next_entries()? {
        let batch = WriteBatch(entries.into_iter().map(|(key, value)| (key, Some(value))).collect());
        kv.commit(batch, Durability::Eventual).map_err(failed)?;
    }
    kv.sync().map_err(failed)?;
    Ok(description)
}
