//! The real outside: tokio's clock, sockets and threads, the kernel's randomness.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "this module is the door")]

pub mod disk;
#[cfg(feature = "quic")]
pub mod quic;
mod socket_file;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::clock::{Clock, Deadline, Moment};
use super::net::{Listener, Net, Stream};
use super::rng::Rng;
use super::spawn::{BlockingWork, Spawn, Task, TaskHandle};
use super::{Env, within};

/// The real [`Env`].
pub fn env() -> Env {
    let clock: Arc<dyn Clock> = Arc::new(TokioClock::new());
    Env {
        net: Arc::new(Tcp { clock: clock.clone() }),
        clock,
        rng: Arc::new(OsRandom),
        spawn: Arc::new(TokioSpawn),
    }
}

/// The system's clocks.
pub struct TokioClock {
    start: Instant,
}

impl TokioClock {
    /// Starts at moment zero.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for TokioClock {
    fn now(&self) -> Moment {
        Moment(self.start.elapsed())
    }

    fn wall_micros(&self) -> u64 {
        // Before 1970 there is no ALBA; a clock that says so gives 0.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    async fn sleep_until(&self, moment: Moment) {
        // tokio cannot represent moments beyond some decades: those never come.
        match self.start.checked_add(moment.0) {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// The kernel's generator.
pub struct OsRandom;

impl Rng for OsRandom {
    fn fill(&self, bytes: &mut [u8]) {
        rand::Rng::fill_bytes(&mut rand::rng(), bytes);
    }
}

/// TCP.
pub struct Tcp {
    clock: Arc<dyn Clock>,
}

impl Tcp {
    /// TCP whose connects are timed by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }
}

#[async_trait]
impl Net for Tcp {
    async fn connect(&self, to: SocketAddr, deadline: Deadline) -> io::Result<Stream> {
        let stream =
            within(self.clock.as_ref(), deadline, TcpStream::connect(to)).await.map_err(|_| {
                io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {to} in time"))
            })??;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(at)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {at}: {error}")))?;
        Ok(Box::new(TcpAccept(listener)))
    }

    async fn connect_file(&self, to: &Path, deadline: Deadline) -> io::Result<Stream> {
        socket_file::connect(self.clock.as_ref(), to, deadline).await
    }

    async fn listen_file(&self, at: &Path, mode: u32) -> io::Result<Box<dyn Listener>> {
        socket_file::listen(self.clock.as_ref(), at, mode).await
    }
}

struct TcpAccept(TcpListener);

#[async_trait]
impl Listener for TcpAccept {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// tokio's tasks and its bounded pool of blocking threads.
pub struct TokioSpawn;

impl Spawn for TokioSpawn {
    fn spawn(&self, _name: &'static str, task: Task) -> TaskHandle {
        let abort = tokio::spawn(task).abort_handle();
        TaskHandle::new(move || abort.abort())
    }

    fn run_blocking(&self, work: BlockingWork) {
        tokio::task::spawn_blocking(work);
    }
}
