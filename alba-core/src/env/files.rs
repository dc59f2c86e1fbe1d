//! Writes to the ordinary file system: configuration, process tables, downloaded objects. Storage engines use
//! [`super::Disk`] instead.
#![allow(clippy::disallowed_methods, reason = "this module is the door")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Creates a directory and its parents.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Creates or truncates `path`, for writing.
pub fn create(path: &Path) -> io::Result<File> {
    File::create(path)
}

/// Creates or truncates `path` with these permission bits (less the process's umask).
pub fn create_with_mode(path: &Path, mode: u32) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)
}

/// Opens `path` for reading and writing as it is, creating it when it is not there.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Removes a file.
pub fn remove_file(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// Removes a directory with all it holds.
pub fn remove_dir_all(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path)
}

/// Replaces `path` with `content` so that a crash leaves the old or the new content, never a mixture: a new file is
/// written and synced, renamed over the old one, and the directory synced.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let fresh = directory.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(directory)?.sync_all()
}

/// Moves a file or directory so that it is at its new place after a crash too. What it holds must be synced before.
pub fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let directory = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Opens `path` for appending, for another process to log to. A log of more than `longest` bytes is first put aside as
/// `path.old`, replacing the one that was put aside before.
pub fn append_log(path: &Path, longest: u64) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > longest) {
        let mut old = path.as_os_str().to_owned();
        old.push(".old");
        fs::rename(path, old)?;
    }
    OpenOptions::new().append(true).create(true).open(path)
}

/// Takes the lock that `path` stands for, creating the file; none when another process has it. It is given back when
/// the file is dropped, however this process ends.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        append_log(&path, 4).unwrap().write_all(b"12345").unwrap();
        append_log(&path, 4).unwrap().write_all(b"6").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"6");
        assert_eq!(fs::read(dir.path().join("x.log.old")).unwrap(), b"12345");
    }

    #[test]
    fn a_lock_is_held_once_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = try_lock(&path).unwrap();
        assert!(held.is_some() && try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }
}
