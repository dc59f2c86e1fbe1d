//! Files that clients name: the proxy opens them on its own host, relative to its working directory.
//!
//! A client may name anything, so what could block a thread for ever (a pipe, a terminal) is refused before it is
//! opened.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use alba_client::{FileSink, FileSource};
use alba_core::env::{Deadline, Env, blocking, within};
use alba_core::wire::proxy::ErrorCode;

use crate::refusal::Refusal;

/// The kernel's limit, less the zero at the end.
const MAX_PATH: usize = 4095;

fn path_of(bytes: &[u8]) -> Result<PathBuf, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::unknown("the file name is empty"));
    }
    if bytes.len() > MAX_PATH {
        let text = format!("the file name is {} bytes long; at most {MAX_PATH} are allowed", bytes.len());
        return Err(Refusal::unknown(text));
    }
    Ok(Path::new(OsStr::from_bytes(bytes)).to_owned())
}

/// What is at `path`: its kind, or that there is nothing.
async fn look(env: &Env, path: &Path, deadline: Deadline) -> Result<io::Result<std::fs::Metadata>, Refusal> {
    let owned = path.to_owned();
    let looked = blocking(env.spawn.as_ref(), move || std::fs::metadata(owned));
    // A file system that hangs holds up this request only.
    within(env.clock.as_ref(), deadline, looked)
        .await
        .map_err(|_| Refusal::unknown(format!("{}: the file system does not answer", path.display())))?
        .map_err(Refusal::unknown)
}

fn not_a_file(path: &Path) -> Refusal {
    Refusal::unknown(format!("{} is not a regular file", path.display()))
}

/// Opens the file to upload.
pub(crate) async fn input(env: &Env, name: &[u8], deadline: Deadline) -> Result<FileSource, Refusal> {
    let path = path_of(name)?;
    let refused = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => ErrorCode::FileNotFound,
            _ => ErrorCode::Unknown,
        };
        Refusal::new(code, format!("cannot read the file to upload, {}: {error}", path.display()))
    };
    if !look(env, &path, deadline).await?.map_err(refused)?.is_file() {
        return Err(not_a_file(&path));
    }
    let opened = FileSource::open(env.spawn.clone(), &path);
    within(env.clock.as_ref(), deadline, opened)
        .await
        .map_err(|_| Refusal::unknown(format!("{}: the file system does not answer", path.display())))?
        .map_err(refused)
}

/// The file to download to. Nothing is created before the first byte is there.
pub(crate) async fn output(env: &Env, name: &[u8], deadline: Deadline) -> Result<FileSink, Refusal> {
    let path = path_of(name)?;
    match look(env, &path, deadline).await? {
        Ok(there) if !there.is_file() => Err(not_a_file(&path)),
        // What is wrong with the path will show when the file is created.
        Ok(_) | Err(_) => Ok(FileSink::new(env.spawn.clone(), path)),
    }
}
