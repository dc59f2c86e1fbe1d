//! TCP whose sockets can change hands between executors.
//!
//! A socket is woken by the executor it was registered with. Used by a task of another one, each readiness would go by way of threads
//! that may be busy with something else, or less urgent: so it is registered anew by the one that uses it ([`Net::adopt`]).
//!
//! Between processes of one host there is nothing that could be congested, whatever algorithm the host has against that: see [`ON_LOOPBACK`].

use std::any::Any;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Handle, Id};

use super::socket_file;
use crate::env::clock::{Clock, Deadline};
use crate::env::net::{Listener, Net, Stream};
use crate::env::within;

/// Congestion control of connections over loopback: one that never paces, and that any process may choose. BBR, the default of many
/// hosts, has a timer end each pause between packets: with it repair was 6 % slower, and slices took 1.1 to 1.5 times as long (p50).
/// A socket that BBR had at its beginning is paced for ever, so it is chosen before there is a connection.
const ON_LOOPBACK: &str = "reno";

/// Chooses for a socket that is to have connections with this address. Without it they are slower, and that is all.
fn choose_congestion_control(socket: impl AsFd, address: SocketAddr) {
    if address.ip().to_canonical().is_loopback()
        && let Err(error) = rustix::net::sockopt::set_tcp_congestion(socket, ON_LOOPBACK)
    {
        tracing::debug!(%error, %address, "congestion control is left as it is");
    }
}

/// Connects as [`TcpStream::connect`] does.
async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    choose_congestion_control(&socket, to);
    socket.connect(to).await
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
        let stream = within(self.clock.as_ref(), deadline, connect(to)).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {to} in time"))
        })??;
        stream.set_nodelay(true)?;
        Ok(Socket::here(stream))
    }

    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(at)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {at}: {error}")))?;
        // Accepted connections inherit it.
        choose_congestion_control(&listener, at);
        Ok(Box::new(TcpAccept(listener)))
    }

    async fn connect_file(&self, to: &Path, deadline: Deadline) -> io::Result<Stream> {
        socket_file::connect(self.clock.as_ref(), to, deadline).await
    }

    async fn listen_file(&self, at: &Path, mode: u32) -> io::Result<Box<dyn Listener>> {
        socket_file::listen(self.clock.as_ref(), at, mode).await
    }

    fn adopt(&self, stream: Stream) -> io::Result<Stream> {
        let any: &dyn Any = stream.as_ref();
        let is_elsewhere = |socket: &Socket| socket.registered != Handle::current().id();
        if !any.downcast_ref::<Socket>().is_some_and(is_elsewhere) {
            return Ok(stream);
        }
        let any: Box<dyn Any> = stream;
        let socket = any.downcast::<Socket>().map_err(|_| io::Error::other("a socket of another kind"))?;
        Ok(Socket::here(TcpStream::from_std(socket.stream.into_std()?)?))
    }
}

struct TcpAccept(TcpListener);

#[async_trait]
impl Listener for TcpAccept {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Socket::here(stream), peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A connection, and the executor that is told when it is ready.
struct Socket {
    stream: TcpStream,
    registered: Id,
}

impl Socket {
    /// Of a stream that was made by the task that calls.
    fn here(stream: TcpStream) -> Stream {
        Box::new(Self { stream, registered: Handle::current().id() })
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::env::real;

    fn registered(stream: &Stream) -> Id {
        let any: &dyn Any = stream.as_ref();
        any.downcast_ref::<Socket>().unwrap().registered
    }

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    #[test]
    fn an_adopted_stream_goes_on_where_it_was_and_outlives_the_executor_it_came_from() {
        let (first, second) = (runtime(), runtime());
        let net = Tcp::new(real::env().clock);
        let connect = async {
            let mut listener = net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let soon = real::env().deadline_in(Duration::from_secs(60));
            let mut near = net.connect(listener.local_addr().unwrap(), soon).await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            near.write_all(b"before").await.unwrap();
            let mut byte = [0];
            far.read_exact(&mut byte).await.unwrap();
            assert_eq!(&byte, b"b");
            (near, far)
        };
        let (near, far) = first.block_on(connect);
        assert_eq!(registered(&far), first.handle().id());
        let far = first.block_on(async { net.adopt(far).unwrap() });
        assert_eq!(registered(&far), first.handle().id(), "it was there already");
        let (mut near, mut far) =
            second.block_on(async { (net.adopt(near).unwrap(), net.adopt(far).unwrap()) });
        assert_eq!(registered(&far), second.handle().id());
        first.shutdown_background();
        second.block_on(async {
            let mut rest = [0; 10];
            near.write_all(b" and").await.unwrap();
            far.read_exact(&mut rest[..9]).await.unwrap();
            assert_eq!(&rest[..9], b"efore and");
            far.write_all(b"back").await.unwrap();
            near.read_exact(&mut rest[..4]).await.unwrap();
            assert_eq!(&rest[..4], b"back");
        });
    }

    #[tokio::test]
    async fn nothing_is_paced_on_loopback() {
        let net = Tcp::new(real::env().clock);
        for at in ["127.0.0.1:0", "[::ffff:127.0.0.1]:0"] {
            let mut listener = net.listen(at.parse().unwrap()).await.unwrap();
            let soon = real::env().deadline_in(Duration::from_secs(60));
            let near = net.connect(listener.local_addr().unwrap(), soon).await.unwrap();
            let (far, _) = listener.accept().await.unwrap();
            for end in [near, far] {
                let any: &dyn Any = end.as_ref();
                let stream = &any.downcast_ref::<Socket>().unwrap().stream;
                assert_eq!(rustix::net::sockopt::tcp_congestion(stream).unwrap(), ON_LOOPBACK, "{at}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_socket_is_given_back() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = Tcp::new(real::env().clock).adopt(Box::new(near)).unwrap();
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
    }
}
