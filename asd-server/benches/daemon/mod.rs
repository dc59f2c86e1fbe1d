//! The real program in a directory of its own, its segments prepared, and clients of it.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used, clippy::expect_used)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::osd::{Osd, OsdBatch, OsdKey, OsdUpdate, Priority, StoredValue, ValueSlice};
use alba_core::env::{Env, real};
use alba_core::ids::LongId;
use alba_core::net::asd::{AsdClient, AsdClientConfig, probe};
use alba_core::wire::asd::{Request, encode_prologue};

const LONG_ID: &str = "bench-asd";

/// For whatever is not measured.
const WAIT: Duration = Duration::from_secs(60);

/// A daemon that does not outlive the bench.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) env: Env,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Daemon {
    /// Formats `directory` with so many bytes of segments prepared, and starts the daemon there, on a free port of
    /// loopback, configured as it comes.
    pub(crate) async fn start(directory: &Path, prepared: u64) -> io::Result<Self> {
        let program = env!("CARGO_BIN_EXE_asd-server");
        let formatted = Command::new(program)
            .args(["format", "--place", "node-0", "--long-id", LONG_ID, "--data-dir"])
            .arg(directory)
            .args(["--prepare", &prepared.to_string()])
            .stdin(Stdio::null())
            .output()?;
        if !formatted.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&formatted.stderr).into_owned()));
        }
        // Free again once the listener is dropped.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let child = Command::new(program)
            .args(["--set", &format!("asd.data_dir={:?}", directory.to_str().unwrap())])
            .args(["--set", "asd.place=\"node-0\"", "--set", &format!("asd.listen=\"{address}\"")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut daemon = Self { child, address, env: real::env() };
        let limit = daemon.env.deadline_in(WAIT);
        while probe(&daemon.env, address, daemon.env.deadline_in(Duration::from_secs(1))).await.is_err() {
            if limit.left(daemon.env.clock.as_ref()).is_zero() || daemon.child.try_wait()?.is_some() {
                return Err(io::Error::other("the daemon does not start"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(daemon)
    }

    /// A client with one connection.
    pub(crate) fn client(&self) -> Client {
        let config = AsdClientConfig { max_connections: 1, ..AsdClientConfig::default() };
        let id = LongId::new(LONG_ID).unwrap();
        Client {
            env: self.env.clone(),
            osd: AsdClient::new(self.env.clone(), vec![self.address], id, config),
        }
    }

    /// A bare connection after its prologue, and a partial get as bytes.
    pub(crate) fn bare(&self, key: &OsdKey, slice: ValueSlice) -> io::Result<(TcpStream, Vec<u8>)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.write_all(&encode_prologue(Some(LONG_ID)).map_err(io::Error::other)?)?;
        // A status and a string.
        let mut answer = vec![0; 8 + LONG_ID.len()];
        stream.read_exact(&mut answer)?;
        assert!(answer.ends_with(LONG_ID.as_bytes()), "it is another ASD");
        let request = Request::PartialGet { key: key.clone(), slices: vec![slice], priority: Priority::High };
        Ok((stream, request.encode().map_err(io::Error::other)?.to_bytes().to_vec()))
    }

    /// The most memory it ever had resident, in bytes.
    pub(crate) fn peak_memory(&self) -> io::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
        kib.map(|kib| kib * 1024.0).ok_or_else(|| io::Error::other("no VmHWM"))
    }
}

/// One client. Any error ends the bench.
#[derive(Clone)]
pub(crate) struct Client {
    env: Env,
    osd: Arc<AsdClient>,
}

impl Client {
    async fn apply(&self, updates: Vec<OsdUpdate>) -> io::Result<()> {
        let batch = OsdBatch { asserts: Vec::new(), updates };
        let applied = self.osd.apply(batch, Priority::High, self.env.deadline_in(WAIT)).await;
        applied.map_err(io::Error::other)
    }

    pub(crate) async fn put(&self, key: OsdKey, stored: StoredValue) -> io::Result<()> {
        self.apply(vec![OsdUpdate::Set(key, stored)]).await
    }

    pub(crate) async fn delete(&self, keys: Vec<OsdKey>) -> io::Result<()> {
        self.apply(keys.into_iter().map(OsdUpdate::Delete).collect()).await
    }

    /// Gets a whole value, of `len` bytes.
    pub(crate) async fn get(&self, key: OsdKey, len: usize) -> io::Result<()> {
        let deadline = self.env.deadline_in(WAIT);
        let found =
            self.osd.multi_get(vec![key], Priority::High, deadline).await.map_err(io::Error::other)?;
        assert!(matches!(&found[..], [Some(stored)] if stored.value.len() == len), "another value");
        Ok(())
    }

    /// Gets a slice.
    pub(crate) async fn partial_get(&self, key: OsdKey, slice: ValueSlice) -> io::Result<()> {
        let deadline = self.env.deadline_in(WAIT);
        let found = self.osd.partial_get(key, vec![slice], Priority::High, deadline).await;
        let found = found.map_err(io::Error::other)?.unwrap_or_default();
        assert!(found.len() == 1 && found[0].len() == usize::try_from(slice.len).unwrap(), "another slice");
        Ok(())
    }
}
