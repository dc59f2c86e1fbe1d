//! A client that speaks the original's protocols byte by byte, written from their description and from nothing of ours: what it
//! understands, an unmodified client of the original understands.
//!
//! It knows little and panics on whatever it does not expect.

pub mod asd;
pub mod manifest;
pub mod message;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub use message::{Reply, Request, request, slices};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Magic 1148837403 and version 1, little endian.
pub const PROLOGUE: [u8; 8] = [0x1b, 0xde, 0x79, 0x44, 1, 0, 0, 0];

trait Stream: Read + Write {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Self::set_nonblocking(self, nonblocking)
    }
}

impl Stream for UnixStream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Self::set_nonblocking(self, nonblocking)
    }
}

/// A connection to a proxy.
pub struct Connection(Box<dyn Stream>);

impl Connection {
    /// Over TCP, without a prologue.
    pub fn raw(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(Box::new(stream))
    }

    /// Over TCP.
    pub fn tcp(to: SocketAddr) -> Self {
        let mut connection = Self::raw(to);
        connection.send(&PROLOGUE);
        connection
    }

    /// Over a socket file, if anybody answers there.
    pub fn unix(to: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Self(Box::new(stream));
        connection.0.write_all(&PROLOGUE)?;
        Ok(connection)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next answer's payload, or why there is none.
    pub fn try_answer(&mut self) -> io::Result<Vec<u8>> {
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix)?;
        let mut payload = vec![0; usize::try_from(u32::from_le_bytes(prefix)).unwrap()];
        self.0.read_exact(&mut payload)?;
        Ok(payload)
    }

    /// The next answer's payload.
    pub fn answer(&mut self) -> Vec<u8> {
        self.try_answer().unwrap()
    }

    /// Sends a request and takes the answer's payload, or says why there is none.
    pub fn try_ask(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        self.0.write_all(&request.frame())?;
        self.try_answer()
    }

    /// Sends a request and takes the answer's payload.
    pub fn ask(&mut self, request: Request) -> Vec<u8> {
        self.send(&request.frame());
        self.answer()
    }

    /// The result of a request that must succeed.
    pub fn ok(&mut self, request: Request) -> Reply {
        let command = request.0[0];
        let mut reply = Reply::new(self.ask(request));
        let status = reply.u32();
        assert_eq!(status, 0, "command {command}: {}", String::from_utf8_lossy(&reply.rest()));
        reply
    }

    /// A request that must succeed and has no result.
    pub fn done(&mut self, request: Request) {
        self.ok(request).end();
    }

    /// Code and text of a request that must fail.
    pub fn err(&mut self, request: Request) -> (u32, String) {
        let mut reply = Reply::new(self.ask(request));
        let code = reply.u32();
        assert_ne!(code, 0, "it succeeded");
        let text = reply.text();
        reply.end();
        (code, text)
    }

    /// Has nothing arrived yet?
    pub fn is_silent(&mut self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let read = self.0.read(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// What still comes before the other side closes.
    pub fn to_the_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => rest,
            // Closed with bytes of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => rest,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}
