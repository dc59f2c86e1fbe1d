//! What loopback TCP can do between two ends in this process: plain threads with blocking sockets, one at each end of
//! every connection, or tokio with a runtime of its own for each side, as two daemons would have.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::disk::{each, per_second};

/// What answers and asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ends {
    /// Threads and blocking sockets.
    Threads,
    /// Two tokio runtimes with a worker per core.
    Tokio,
}

/// Bytes of an acknowledgement.
const ACK: usize = 16;
/// Frames in flight per connection.
const WINDOW: u64 = 4;

/// Copies frames of `frame` bytes over `connections` connections, acknowledged, up to four unacknowledged each: MB/s
/// (10^6 bytes).
pub(crate) fn copy(connections: usize, frame: usize, time: Duration) -> io::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        scope.spawn(move || {
            for stream in listener.incoming().take(connections).flatten() {
                thread::spawn(move || swallow(stream, frame));
            }
        });
        each(connections, time, |_, start| {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let data = vec![7; frame];
            start.go();
            let (mut sent, mut acknowledged) = (0, 0);
            while start.goes_on() || acknowledged < sent {
                if start.goes_on() && sent - acknowledged < WINDOW {
                    stream.write_all(&data)?;
                    sent += 1;
                } else {
                    stream.read_exact(&mut [0; ACK])?;
                    acknowledged += 1;
                }
            }
            Ok(sent * u64::try_from(frame).map_err(io::Error::other)?)
        })
    })
}

/// Reads frames into memory and acknowledges each, to the end of the stream.
fn swallow(mut stream: TcpStream, frame: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut memory = vec![0; frame];
    loop {
        stream.read_exact(&mut memory)?;
        stream.write_all(&[1; ACK])?;
    }
}

/// Requests and answers of fixed sizes, one at a time per connection: answers per second.
pub(crate) fn echo(
    ends: Ends,
    connections: usize,
    request: usize,
    answer: usize,
    time: Duration,
) -> io::Result<f64> {
    match ends {
        Ends::Threads => echo_threads(connections, request, answer, time),
        Ends::Tokio => echo_tokio(connections, request, answer, time),
    }
}

fn echo_threads(connections: usize, request: usize, answer: usize, time: Duration) -> io::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        scope.spawn(move || {
            for mut stream in listener.incoming().take(connections).flatten() {
                thread::spawn(move || -> io::Result<()> {
                    stream.set_nodelay(true)?;
                    let (mut asked, answer) = (vec![0; request], vec![2; answer]);
                    loop {
                        stream.read_exact(&mut asked)?;
                        stream.write_all(&answer)?;
                    }
                });
            }
        });
        ask(connections, time, answer, || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Ok((stream, vec![1; request]))
        })
    })
}

/// Asks the same again and again, one thread per connection, one question at a time: answers per second. `connect` gives
/// a connection and what to ask; every answer has `answer` bytes. For the echo, and for any server that answers so.
pub(crate) fn ask(
    connections: usize,
    time: Duration,
    answer: usize,
    connect: impl Fn() -> io::Result<(TcpStream, Vec<u8>)> + Sync,
) -> io::Result<f64> {
    let millions = each(connections, time, |_, start| {
        let (mut stream, request) = connect()?;
        let mut answer = vec![0; answer];
        start.go();
        let mut answers = 0;
        while start.goes_on() {
            stream.write_all(&request)?;
            stream.read_exact(&mut answer)?;
            answers += 1;
        }
        Ok(answers)
    })?;
    Ok(millions * 1e6)
}

fn echo_tokio(connections: usize, request: usize, answer: usize, time: Duration) -> io::Result<f64> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let (server, clients) = (runtime()?, runtime()?);
    let listener = server.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    server.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let (mut asked, answer) = (vec![0; request], vec![2; answer]);
                loop {
                    stream.read_exact(&mut asked).await?;
                    stream.write_all(&answer).await?;
                }
                #[allow(unreachable_code)]
                Ok::<(), io::Error>(())
            });
        }
    });
    let answers = Arc::new(AtomicU64::new(0));
    let (count, took) = clients.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..connections {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let began = Instant::now();
        let tasks: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                let answers = answers.clone();
                tokio::spawn(async move {
                    let (request, mut answer) = (vec![1; request], vec![0; answer]);
                    while began.elapsed() < time {
                        stream.write_all(&request).await?;
                        stream.read_exact(&mut answer).await?;
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<(), io::Error>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        Ok::<_, io::Error>((answers.load(Ordering::Relaxed), began.elapsed()))
    })?;
    server.shutdown_background();
    Ok(per_second(count, took))
}
