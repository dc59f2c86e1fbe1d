//! Unix sockets: connections inside one machine, guarded by a file's permissions.
//!
//! Must never take a socket away from a process that answers on it, nor let anybody in before the permissions are set: the
//! socket listens only after that, and until then connects to it are refused.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::{UnixListener, UnixSocket, UnixStream};

use crate::env::clock::{Clock, Deadline};
use crate::env::net::{Listener, Stream};
use crate::env::within;

/// Connections that wait to be accepted; the kernel cuts it to its own limit.
const BACKLOG: u32 = 1024;

/// How long another process may be busy with socket files of the same directory: it needs a few system calls.
const BUSY: Duration = Duration::from_secs(2);

/// Pause between two looks whether it still is.
const PAUSE: Duration = Duration::from_millis(10);

/// How long the kernel may take to say whether somebody listens.
const PROBE: Duration = Duration::from_secs(2);

pub(super) async fn connect(clock: &dyn Clock, to: &Path, deadline: Deadline) -> io::Result<Stream> {
    let late =
        || io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {} in time", to.display()));
    let stream = within(clock, deadline, UnixStream::connect(to)).await.map_err(|_| late())??;
    Ok(Box::new(stream))
}

pub(super) async fn listen(clock: &dyn Clock, at: &Path, mode: u32) -> io::Result<Box<dyn Listener>> {
    let said = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}", at.display()))
    };
    let work = async {
        let path = std::path::absolute(at)?;
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let _lock = lock(clock, &directory).await?;
        remove_stale(clock, &path).await?;
        let socket = UnixSocket::new_stream()?;
        socket.bind(&path)?;
        // From here on it is ours, and goes whatever fails.
        let file = SocketFile { identity: identity(&path)?, path, directory };
        fs::set_permissions(&file.path, fs::Permissions::from_mode(mode))?;
        Ok(FileAccept { listener: Some(socket.listen(BACKLOG)?), _file: file })
    };
    Ok(Box::new(work.await.map_err(said)?))
}

/// Looking whether a file is in use and replacing it is one step for all who do it under this lock. A lock of the directory
/// leaves nothing behind, and the kernel gives it back when the process dies.
async fn lock(clock: &dyn Clock, directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    let deadline = Deadline::after(clock, BUSY);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if deadline.left(clock).is_zero() => {
                let text = "another process holds a lock of its directory";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            Err(TryLockError::WouldBlock) => clock.sleep_until(clock.now().plus(PAUSE)).await,
        }
    }
}

/// Removes a socket that nobody answers on.
async fn remove_stale(clock: &dyn Clock, path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something is there that is no socket"));
    }
    let in_use = || Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on it"));
    match within(clock, Deadline::after(clock, PROBE), UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Its queue is full: somebody has it.
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => in_use(),
        Ok(Err(error)) => Err(error),
        Ok(Ok(_)) | Err(_) => in_use(),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let there = fs::symlink_metadata(path)?;
    Ok((there.dev(), there.ino()))
}

/// A socket's file; removed when dropped, if it is still the same.
struct SocketFile {
    path: PathBuf,
    directory: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Without the lock somebody else may be replacing it right now. What is left is replaced by who listens there next.
        let Ok(lock) = File::open(&self.directory) else { return };
        if lock.try_lock().is_ok() && identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nobody is left to be told that it did not work.
            drop(fs::remove_file(&self.path));
        }
    }
}

struct FileAccept {
    /// Gone before the file is: a process that finds the file may take it as soon as nobody answers.
    listener: Option<UnixListener>,
    _file: SocketFile,
}

impl Drop for FileAccept {
    fn drop(&mut self) {
        self.listener = None;
    }
}

/// Sockets of this kind have no address of this kind.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[async_trait]
impl Listener for FileAccept {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        // It is there until the drop.
        let Some(listener) = &self.listener else { return std::future::pending().await };
        let (stream, _) = listener.accept().await?;
        Ok((Box::new(stream), NOWHERE))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(NOWHERE)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::env::real::env;

    async fn listen_at(path: &Path) -> io::Result<Box<dyn Listener>> {
        env().net.listen_file(path, 0o600).await
    }

    #[tokio::test]
    async fn bytes_pass_and_only_the_owner_may_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut listener = listen_at(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let env = env();
        let deadline = env.deadline_in(Duration::from_secs(10));
        let mut near = env.net.connect_file(&path, deadline).await.unwrap();
        let (mut far, peer) = listener.accept().await.unwrap();
        assert!(peer.ip().is_loopback());
        near.write_all(b"hello").await.unwrap();
        let mut read = [0; 5];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
        drop(listener);
        assert!(!path.exists(), "removed when the listener goes");
        assert!(env.net.connect_file(&path, deadline).await.is_err());
    }

    #[tokio::test]
    async fn a_socket_that_is_in_use_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = listen_at(&path).await.unwrap();
        let error = listen_at(&path).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("socket"), "{error}");
        assert!(path.exists());
        drop(first);
        assert!(listen_at(&path).await.is_ok());
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        // The standard library's leaves its file.
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = listen_at(&path).await.unwrap();
        let env = env();
        env.net.connect_file(&path, env.deadline_in(Duration::from_secs(10))).await.unwrap();
    }

    #[tokio::test]
    async fn other_files_are_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert_eq!(listen_at(&path).await.err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(listen_at(&link).await.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"data");
        let missing = directory.path().join("no/such/directory");
        assert_eq!(listen_at(&missing).await.err().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_file_that_is_another_ones_by_now_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = listen_at(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _second = listen_at(&path).await.unwrap();
        drop(first);
        assert!(path.exists());
    }

    /// Of many that start at once on what a dead process left, exactly one gets it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_many_at_once_one_gets_it() {
        let directory = tempfile::tempdir().unwrap();
        for round in 0..10 {
            let path = directory.path().join(format!("socket-{round}"));
            drop(StdListener::bind(&path).unwrap());
            let starters: Vec<_> = (0..8)
                .map(|_| {
                    let path = path.clone();
                    tokio::spawn(async move { listen_at(&path).await.ok() })
                })
                .collect();
            let mut got = Vec::new();
            for starter in starters {
                got.extend(starter.await.unwrap());
            }
            assert_eq!(got.len(), 1);
            let env = env();
            env.net.connect_file(&path, env.deadline_in(Duration::from_secs(10))).await.unwrap();
        }
    }
}
