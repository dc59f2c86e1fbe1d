//! Simulated connections: ordered, reliable byte pipes like TCP's, with seeded latency, bounded buffers, and failures on
//! demand. Bytes on a blocked link are late, not lost, and a crashed node resets its connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::executor::{Core, lock};
use crate::env::{Clock as _, Deadline, Listener, Moment, Net, Stream, within};

/// What one direction of a connection holds at most, in bytes: about what a kernel's socket buffers do.
const PIPE_BYTES: usize = 256 * 1024;

/// Connections waiting to be accepted.
const BACKLOG: usize = 128;

/// One-way latency without extra delay, in microseconds.
const LATENCY_MICROS: std::ops::Range<u64> = 40..400;

/// One write in this many is accepted in part only, so that readers see frames in pieces.
const SHORT_WRITE_ONE_IN: u32 = 16;

/// Ports given out when 0 is asked for.
const FIRST_FREE_PORT: u16 = 49_152;

/// The address of a node; every node has one.
pub(super) fn address_of(node: u32) -> IpAddr {
    // 10.0.0.0/8 has room for 2^24 nodes.
    let [_, high, middle, low] = node.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, high, middle, low))
}

fn node_at(address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(v4) => {
            let [ten, high, middle, low] = v4.octets();
            (ten == 10).then(|| u32::from_be_bytes([0, high, middle, low]))
        }
        IpAddr::V6(_) => None,
    }
}

fn error(kind: io::ErrorKind, text: String) -> io::Error {
    io::Error::new(kind, text)
}

/// All links, listeners and connections of a run.
pub(super) struct Network {
    state: Mutex<State>,
    /// Told when links are blocked, slowed or healed.
    changed: Notify,
}

struct State {
    rng: StdRng,
    listeners: BTreeMap<SocketAddr, Arc<Mutex<Backlog>>>,
    pipes: Vec<Weak<Pipe>>,
    blocked: BTreeSet<(u32, u32)>,
    delays: BTreeMap<(u32, u32), Duration>,
    next_port: u16,
}

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<(Stream, SocketAddr)>,
    acceptor: Option<Waker>,
    closed: bool,
}

impl Network {
    pub(super) fn new(rng: StdRng) -> Self {
        let state = State {
            rng,
            listeners: BTreeMap::new(),
            pipes: Vec::new(),
            blocked: BTreeSet::new(),
            delays: BTreeMap::new(),
            next_port: FIRST_FREE_PORT,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn is_blocked(&self, from: u32, to: u32) -> bool {
        lock(&self.state).blocked.contains(&(from, to))
    }

    /// Stops bytes from `from` to `to`; what is under way arrives after the link heals.
    pub(super) fn block(&self, from: u32, to: u32) {
        lock(&self.state).blocked.insert((from, to));
    }

    /// Opens all blocked links and takes away all delays.
    pub(super) fn heal(&self) {
        let pipes = {
            let mut state = lock(&self.state);
            state.blocked.clear();
            state.delays.clear();
            state.live_pipes()
        };
        for pipe in pipes {
            pipe.wake_both();
        }
        self.changed.notify_waiters();
    }

    /// Adds a one-way delay.
    pub(super) fn slow(&self, from: u32, to: u32, by: Duration) {
        lock(&self.state).delays.insert((from, to), by);
    }

    /// Resets the connections of a node, stops its listeners.
    pub(super) fn end_node(&self, node: u32) {
        self.reset_where(|pipe| pipe.from == node || pipe.to == node);
        let address = address_of(node);
        let ended: Vec<_> = {
            let mut state = lock(&self.state);
            let ended: Vec<_> =
                state.listeners.keys().copied().filter(|listener| listener.ip() == address).collect();
            ended.iter().filter_map(|at| state.listeners.remove(at)).collect()
        };
        for backlog in ended {
            close(&backlog);
        }
    }

    /// Resets the connections between two nodes.
    pub(super) fn sever(&self, one: u32, other: u32) {
        self.reset_where(|pipe| (pipe.from, pipe.to) == (one, other) || (pipe.from, pipe.to) == (other, one));
    }

    fn reset_where(&self, which: impl Fn(&Pipe) -> bool) {
        let pipes = lock(&self.state).live_pipes();
        for pipe in pipes.iter().filter(|pipe| which(pipe)) {
            lock(&pipe.state).reset = true;
            pipe.wake_both();
        }
    }

    /// Ends all listeners and connections.
    pub(super) fn clear(&self) {
        self.reset_where(|_| true);
        let listeners = std::mem::take(&mut lock(&self.state).listeners);
        for backlog in listeners.values() {
            close(backlog);
        }
    }

    /// When bytes sent now arrive.
    fn arrival(&self, now: Moment, from: u32, to: u32) -> Moment {
        let mut state = lock(&self.state);
        let latency = Duration::from_micros(state.rng.random_range(LATENCY_MICROS));
        let extra = state.delays.get(&(from, to)).copied().unwrap_or_default();
        now.plus(latency).plus(extra)
    }

    /// How much of a write of `len` bytes goes through at once.
    fn accepted(&self, len: usize) -> usize {
        let mut state = lock(&self.state);
        if len > 1 && state.rng.random_ratio(1, SHORT_WRITE_ONE_IN) {
            state.rng.random_range(1..len)
        } else {
            len
        }
    }

    fn pipe(&self, from: u32, to: u32) -> Arc<Pipe> {
        let pipe = Arc::new(Pipe { from, to, state: Mutex::default() });
        let mut state = lock(&self.state);
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        state.pipes.push(Arc::downgrade(&pipe));
        pipe
    }
}

impl State {
    fn live_pipes(&self) -> Vec<Arc<Pipe>> {
        self.pipes.iter().filter_map(Weak::upgrade).collect()
    }
}

fn close(backlog: &Mutex<Backlog>) {
    let (waiting, acceptor) = {
        let mut backlog = lock(backlog);
        backlog.closed = true;
        (std::mem::take(&mut backlog.waiting), backlog.acceptor.take())
    };
    drop(waiting);
    if let Some(acceptor) = acceptor {
        acceptor.wake();
    }
}

/// One node's sockets.
pub(super) struct SimNet {
    pub(super) core: Arc<Core>,
    pub(super) node: u32,
    pub(super) life: u64,
}

impl SimNet {
    fn alive(&self) -> io::Result<()> {
        if self.core.node_life(self.node) == self.life {
            Ok(())
        } else {
            Err(error(io::ErrorKind::NetworkDown, format!("node {} has crashed", self.node)))
        }
    }

    /// The address seen by all, of one that may be given as loopback or unspecified.
    fn resolve(&self, address: SocketAddr) -> io::Result<(u32, SocketAddr)> {
        let ip = if address.ip().is_loopback() || address.ip().is_unspecified() {
            address_of(self.node)
        } else {
            address.ip()
        };
        let node = node_at(ip)
            .ok_or_else(|| error(io::ErrorKind::AddrNotAvailable, format!("{address} is no node's")))?;
        Ok((node, SocketAddr::new(ip, address.port())))
    }

    async fn open(&self, to: SocketAddr) -> io::Result<Stream> {
        let (peer, to) = self.resolve(to)?;
        // The handshake goes both ways: it waits while either way is blocked.
        loop {
            let changed = self.core.network.changed.notified();
            if !self.core.network.is_blocked(self.node, peer)
                && !self.core.network.is_blocked(peer, self.node)
            {
                break;
            }
            changed.await;
        }
        let clock = super::clock::SimClock { core: self.core.clone(), node: self.node };
        let there = self.core.network.arrival(self.core.now(), self.node, peer);
        let back = self.core.network.arrival(there, peer, self.node);
        clock.sleep_until(back).await;
        self.alive()?;
        let refused = || error(io::ErrorKind::ConnectionRefused, format!("nobody listens on {to}"));
        let backlog = lock(&self.core.network.state).listeners.get(&to).cloned().ok_or_else(refused)?;
        let outgoing = self.core.network.pipe(self.node, peer);
        let incoming = self.core.network.pipe(peer, self.node);
        let (local_port, from) = {
            let mut state = lock(&self.core.network.state);
            let port = state.free_port();
            (port, SocketAddr::new(address_of(self.node), port))
        };
        let theirs: Stream = Box::new(SimStream {
            core: self.core.clone(),
            outgoing: incoming.clone(),
            incoming: outgoing.clone(),
        });
        let acceptor = {
            let mut backlog = lock(&backlog);
            if backlog.closed || backlog.waiting.len() >= BACKLOG {
                return Err(refused());
            }
            backlog.waiting.push_back((theirs, from));
            backlog.acceptor.take()
        };
        if let Some(acceptor) = acceptor {
            acceptor.wake();
        }
        self.core.record(self.node, "connect", format!("{to} from port {local_port}").as_bytes());
        Ok(Box::new(SimStream { core: self.core.clone(), outgoing, incoming }))
    }
}

impl State {
    fn free_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = if port == u16::MAX { FIRST_FREE_PORT } else { port + 1 };
        port
    }
}

#[async_trait]
impl Net for SimNet {
    async fn connect(&self, to: SocketAddr, deadline: Deadline) -> io::Result<Stream> {
        self.alive()?;
        let clock = super::clock::SimClock { core: self.core.clone(), node: self.node };
        within(&clock, deadline, self.open(to))
            .await
            .map_err(|_| error(io::ErrorKind::TimedOut, format!("no connection to {to} in time")))?
    }

    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        self.alive()?;
        let (node, mut at) = self.resolve(at)?;
        if node != self.node {
            return Err(error(
                io::ErrorKind::AddrNotAvailable,
                format!("cannot listen on {at}: not this node's"),
            ));
        }
        let backlog: Arc<Mutex<Backlog>> = Arc::default();
        {
            let mut state = lock(&self.core.network.state);
            if at.port() == 0 {
                at.set_port(state.free_port());
            }
            if state.listeners.contains_key(&at) {
                return Err(error(io::ErrorKind::AddrInUse, format!("cannot listen on {at}: in use")));
            }
            state.listeners.insert(at, backlog.clone());
        }
        self.core.record(self.node, "listen", at.to_string().as_bytes());
        Ok(Box::new(SimListener { core: self.core.clone(), at, backlog }))
    }
}

struct SimListener {
    core: Arc<Core>,
    at: SocketAddr,
    backlog: Arc<Mutex<Backlog>>,
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        poll_fn(|context| {
            let mut backlog = lock(&self.backlog);
            if let Some(connection) = backlog.waiting.pop_front() {
                return Poll::Ready(Ok(connection));
            }
            if backlog.closed {
                return Poll::Ready(Err(error(
                    io::ErrorKind::NotConnected,
                    format!("{} is closed", self.at),
                )));
            }
            backlog.acceptor = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.at)
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let removed = {
            let mut state = lock(&self.core.network.state);
            // After a crash the address may belong to the node's next life.
            match state.listeners.get(&self.at) {
                Some(backlog) if Arc::ptr_eq(backlog, &self.backlog) => state.listeners.remove(&self.at),
                _ => None,
            }
        };
        drop(removed);
        close(&self.backlog);
    }
}

/// One direction of a connection.
struct Pipe {
    from: u32,
    to: u32,
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    under_way: VecDeque<(Moment, Bytes)>,
    bytes: usize,
    last_arrival: Moment,
    /// When the writer's end of stream arrives.
    end: Option<Moment>,
    reader_gone: bool,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake_both(&self) {
        let (reader, writer) = {
            let mut state = lock(&self.state);
            (state.reader.take(), state.writer.take())
        };
        for waker in [reader, writer].into_iter().flatten() {
            waker.wake();
        }
    }

    /// The writer will send no more.
    fn finish(&self, core: &Core) {
        let arrival = core.network.arrival(core.now(), self.from, self.to);
        {
            let mut state = lock(&self.state);
            let at = arrival.max(state.last_arrival);
            state.end.get_or_insert(at);
        }
        self.wake_both();
    }
}

struct SimStream {
    core: Arc<Core>,
    outgoing: Arc<Pipe>,
    incoming: Arc<Pipe>,
}

fn reset_by_peer() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionReset)
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipe = &self.incoming;
        let blocked = self.core.network.is_blocked(pipe.from, pipe.to);
        // Swapped in and dropped after the lock is released: a waker may own a future that uses this pipe.
        let mut waker = Some(context.waker().clone());
        let mut guard = lock(&pipe.state);
        let state = &mut *guard;
        if state.reset {
            return Poll::Ready(Err(reset_by_peer()));
        }
        std::mem::swap(&mut state.reader, &mut waker);
        if blocked {
            return Poll::Pending; // healing wakes the reader
        }
        let now = self.core.now();
        let next = match (state.under_way.front_mut(), state.end) {
            (Some((arrival, chunk)), _) if *arrival <= now => {
                let piece = chunk.split_to(chunk.len().min(buffer.remaining()));
                if chunk.is_empty() {
                    state.under_way.pop_front();
                }
                state.bytes -= piece.len();
                buffer.put_slice(&piece);
                let writer = state.writer.take();
                drop(guard);
                self.core.record(pipe.to, "deliver", &piece);
                if let Some(writer) = writer {
                    writer.wake();
                }
                return Poll::Ready(Ok(()));
            }
            (Some((arrival, _)), _) => *arrival,
            (None, Some(end)) if end <= now => return Poll::Ready(Ok(())),
            (None, Some(end)) => end,
            (None, None) => return Poll::Pending, // a write wakes the reader
        };
        drop(guard);
        self.core.wake_at(next, context.waker());
        Poll::Pending
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = &self.outgoing;
        let mut waker = Some(context.waker().clone());
        {
            let mut state = lock(&pipe.state);
            if state.reset {
                return Poll::Ready(Err(reset_by_peer()));
            }
            if state.reader_gone || state.end.is_some() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if state.bytes >= PIPE_BYTES {
                std::mem::swap(&mut state.writer, &mut waker);
                return Poll::Pending;
            }
        }
        let arrival = self.core.network.arrival(self.core.now(), pipe.from, pipe.to);
        let accepted = self.core.network.accepted(data.len());
        let (reader, taken) = {
            let mut state = lock(&pipe.state);
            let taken = accepted.min(PIPE_BYTES - state.bytes);
            let piece = Bytes::copy_from_slice(data.split_at(taken).0);
            // TCP keeps the order, whatever each segment's latency.
            let arrival = arrival.max(state.last_arrival);
            state.last_arrival = arrival;
            state.bytes += taken;
            if taken > 0 {
                state.under_way.push_back((arrival, piece));
            }
            (state.reader.take(), taken)
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.finish(&self.core);
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.outgoing.finish(&self.core);
        lock(&self.incoming.state).reader_gone = true;
        self.incoming.wake_both();
    }
}
