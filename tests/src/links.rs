//! Connections between processes on loopback that a test can cut: one way, both ways, or reset.
//!
//! Each node is reached by everybody at its *front*, and a forwarder passes bytes on to where it really listens. Who connects is
//! told by the kernel's tables (which process owns the other end of the connection), so that one address per node is enough.
//! What is sent into a cut is held back, not lost, and arrives when the cut is healed: as over a real network, where TCP
//! sends it again. TCP only.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes of one connection and direction in here at once.
const BUFFER: usize = 64 << 10;

/// Who is at one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// A node, by its number.
    Node(usize),
    /// Anybody else: the test's own clients.
    Client,
}

/// Where a node is reached, and where it listens.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// Where everybody connects.
    pub front: SocketAddr,
    /// Where the node listens.
    pub back: SocketAddr,
}

/// What happens to bytes on their way from one party to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    cut: bool,
    late: Duration,
    /// Raised: all connections are reset.
    resets: u64,
}

/// The connections between some nodes and their clients. Dropping it ends them all.
pub struct Links {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    nodes: usize,
    /// From × to; the last of each stands for clients.
    ways: Vec<watch::Sender<Way>>,
    /// Of each node, while it runs.
    processes: Mutex<Vec<Option<u32>>>,
}

impl Shared {
    fn way(&self, from: Party, to: Party) -> &watch::Sender<Way> {
        let number = |party| match party {
            Party::Node(node) => {
                assert!(node < self.nodes, "there is no node {node}");
                node
            }
            Party::Client => self.nodes,
        };
        &self.ways[number(from) * (self.nodes + 1) + number(to)]
    }

    /// Whose connection to `front` this is.
    fn party(&self, peer: SocketAddr, front: SocketAddr) -> Party {
        let Some(socket) = socket_of(peer, front) else { return Party::Client };
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let owner = processes.iter().position(|pid| pid.is_some_and(|pid| owns(pid, &socket)));
        owner.map_or(Party::Client, Party::Node)
    }
}

impl Links {
    /// Listens at all fronts. Nothing is cut.
    pub async fn start(ends: &[Ends]) -> Self {
        let nodes = ends.len();
        let open = Way { cut: false, late: Duration::ZERO, resets: 0 };
        let ways = (0..(nodes + 1) * (nodes + 1)).map(|_| watch::Sender::new(open)).collect();
        let shared = Arc::new(Shared { nodes, ways, processes: Mutex::new(vec![None; nodes]) });
        let mut tasks = Vec::new();
        for (node, ends) in ends.iter().enumerate() {
            let listener = TcpListener::bind(ends.front).await.unwrap();
            tasks.push(tokio::spawn(accept(shared.clone(), listener, node, *ends)));
        }
        Self { shared, tasks }
    }

    /// Says which process a node is now. Connections made before that count as clients'.
    pub fn set_process(&self, node: usize, pid: Option<u32>) {
        self.shared.processes.lock().unwrap_or_else(PoisonError::into_inner)[node] = pid;
    }

    fn change(&self, from: Party, to: Party, change: impl FnOnce(&mut Way)) {
        self.shared.way(from, to).send_modify(change);
    }

    /// Nothing gets from one to the other any more.
    pub fn cut(&self, from: Party, to: Party) {
        self.change(from, to, |way| way.cut = true);
    }

    /// Nothing gets from or to the node any more, but for what clients and it say to each other.
    pub fn isolate(&self, node: usize) {
        for other in (0..self.shared.nodes).filter(|other| *other != node) {
            self.cut(Party::Node(node), Party::Node(other));
            self.cut(Party::Node(other), Party::Node(node));
        }
    }

    /// What one sends to the other arrives later by so much.
    pub fn delay(&self, from: Party, to: Party, late: Duration) {
        self.change(from, to, |way| way.late = late);
    }

    /// Breaks all connections between two parties.
    pub fn reset(&self, one: Party, other: Party) {
        self.change(one, other, |way| way.resets += 1);
        self.change(other, one, |way| way.resets += 1);
    }

    /// Everything flows again.
    pub fn heal(&self) {
        for way in &self.shared.ways {
            way.send_modify(|way| {
                way.cut = false;
                way.late = Duration::ZERO;
            });
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        // Connections end with their ways.
        for way in &self.shared.ways {
            way.send_modify(|way| way.resets += 1);
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, node: usize, ends: Ends) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors: the next one may do better.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::spawn(forward(shared.clone(), stream, peer, node, ends));
    }
}

async fn forward(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, node: usize, ends: Ends) {
    let from = shared.party(peer, ends.front);
    let to = Party::Node(node);
    let mut there = shared.way(from, to).subscribe();
    let mut back = shared.way(to, from).subscribe();
    let resets = |way: &watch::Receiver<Way>| way.borrow().resets;
    let (there_resets, back_resets) = (resets(&there), resets(&back));
    // A connection comes about only when both ways are open.
    for way in [&mut there, &mut back] {
        if way.wait_for(|way| !way.cut || way.resets > there_resets.max(back_resets)).await.is_err() {
            return;
        }
    }
    // Refused: the node is not running; dropping the stream says so.
    let Ok(onward) = TcpStream::connect(ends.back).await else { return };
    drop(stream.set_nodelay(true));
    drop(onward.set_nodelay(true));
    let ((near_read, near_write), (far_read, far_write)) = (stream.into_split(), onward.into_split());
    let reset = {
        let (mut there, mut back) = (there.clone(), back.clone());
        async move {
            tokio::select! {
                biased;
                _ = there.wait_for(|way| way.resets > there_resets) => {}
                _ = back.wait_for(|way| way.resets > back_resets) => {}
            }
        }
    };
    tokio::select! {
        biased;
        () = reset => {}
        _ = async { tokio::join!(pump(near_read, far_write, there), pump(far_read, near_write, back)) } => {}
    }
}

/// Passes bytes on while the way is open, and at last their end.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        let late = match way.wait_for(|way| !way.cut).await {
            Ok(way) => way.late,
            Err(_) => return,
        };
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        if read == 0 {
            drop(to.shutdown().await);
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// The inode of the socket at the other end of a connection from `peer` to `front`.
fn socket_of(peer: SocketAddr, front: SocketAddr) -> Option<String> {
    let (peer, front) = (in_table(peer)?, in_table(front)?);
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        // sl, local, remote, state, queues, timers, retransmissions, uid, timeout, inode
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&peer.as_str()) && fields.get(2) == Some(&front.as_str()))
            .then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"0")))
    })
}

/// As the kernel's table of sockets shows an address.
fn in_table(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    // The four bytes as a number of the machine's byte order, which is little-endian wherever we run.
    Some(format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port()))
}

fn owns(pid: u32, socket: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|link| link.as_os_str() == socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::PortBlock;
    use std::process::{Child, Command, Stdio};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn local(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    async fn within<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, what).await.expect("in time")
    }

    /// One node behind its front.
    async fn one() -> (PortBlock, Links, TcpListener, Ends) {
        let ports = PortBlock::claim();
        let ends = Ends { front: local(ports.port(0)), back: local(ports.port(1)) };
        let listener = TcpListener::bind(ends.back).await.unwrap();
        let links = Links::start(&[ends]).await;
        (ports, links, listener, ends)
    }

    #[tokio::test]
    async fn what_is_sent_into_a_cut_arrives_when_it_is_healed() {
        let (_ports, links, listener, ends) = one().await;
        let mut near = within(TcpStream::connect(ends.front)).await.unwrap();
        let (mut far, _) = within(listener.accept()).await.unwrap();
        near.write_all(b"a").await.unwrap();
        assert_eq!(within(far.read_u8()).await.unwrap(), b'a');
        links.cut(Party::Client, Party::Node(0));
        near.write_all(b"b").await.unwrap();
        // The other way is open.
        far.write_all(b"c").await.unwrap();
        assert_eq!(within(near.read_u8()).await.unwrap(), b'c');
        let held = tokio::time::timeout(Duration::from_millis(200), far.read_u8()).await;
        assert!(held.is_err(), "{held:?} got through the cut");
        links.heal();
        assert_eq!(within(far.read_u8()).await.unwrap(), b'b');
        drop(near);
        assert_eq!(within(far.read(&mut [0])).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn reset_breaks_what_is_there_and_a_dead_node_refuses() {
        let (_ports, links, listener, ends) = one().await;
        let mut near = within(TcpStream::connect(ends.front)).await.unwrap();
        let (_far, _) = within(listener.accept()).await.unwrap();
        links.reset(Party::Client, Party::Node(0));
        assert!(matches!(within(near.read(&mut [0])).await, Ok(0) | Err(_)));
        let mut near = within(TcpStream::connect(ends.front)).await.unwrap();
        let (mut far, _) = within(listener.accept()).await.unwrap();
        near.write_all(b"d").await.unwrap();
        assert_eq!(within(far.read_u8()).await.unwrap(), b'd');
        drop(listener);
        let mut near = within(TcpStream::connect(ends.front)).await.unwrap();
        assert!(matches!(within(near.read(&mut [0])).await, Ok(0) | Err(_)));
    }

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[tokio::test]
    async fn a_node_is_known_by_its_process() {
        let ports = PortBlock::claim();
        let ends = |n: u16| Ends { front: local(ports.port(n * 2)), back: local(ports.port(n * 2 + 1)) };
        let listener = TcpListener::bind(ends(1).back).await.unwrap();
        let links = Links::start(&[ends(0), ends(1)]).await;
        links.cut(Party::Node(0), Party::Node(1));
        // A process that connects when it is told to.
        let script =
            format!("read go; exec 3<>/dev/tcp/127.0.0.1/{}; echo hi >&3; read end <&3", ports.port(2));
        let child = Command::new("bash").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let mut child = Killed(child);
        links.set_process(0, Some(child.0.id()));
        std::io::Write::write_all(&mut child.0.stdin.take().unwrap(), b"go\n").unwrap();
        let cut = tokio::time::timeout(Duration::from_millis(500), listener.accept()).await;
        assert!(cut.is_err(), "node 0 got through the cut");
        // The test itself is none of the nodes.
        let mut own = within(TcpStream::connect(ends(1).front)).await.unwrap();
        own.write_all(b"own").await.unwrap();
        let (mut far, _) = within(listener.accept()).await.unwrap();
        assert_eq!(within(far.read_u8()).await.unwrap(), b'o');
        links.heal();
        let (mut far, _) = within(listener.accept()).await.unwrap();
        assert_eq!(within(far.read_u8()).await.unwrap(), b'h');
    }
}
