//! What the machine gives without us.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use super::cpu_seconds_of;
use crate::content;

const BLOCK: usize = 1 << 20;

/// A stream of blocks over one TCP connection on loopback: MB/s, and the CPU seconds per GiB of both its ends.
pub fn loopback(time: Duration) -> (f64, f64) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let cpu = cpu_seconds_of("self");
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut memory = vec![0; BLOCK];
        let mut total = 0_u64;
        loop {
            match stream.read(&mut memory).unwrap() {
                0 => return total,
                read => total += u64::try_from(read).unwrap(),
            }
        }
    });
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    let data = vec![7; BLOCK];
    while began.elapsed() < time {
        stream.write_all(&data).unwrap();
    }
    drop(stream);
    let bytes = as_f64(receiver.join().unwrap());
    let cpu = cpu_seconds_of("self") - cpu;
    (bytes / began.elapsed().as_secs_f64() / 1e6, cpu * f64::from(1 << 30) / bytes)
}

/// What 4 KiB of a file take to be read from the disk, past the page cache where the file system can: one read every
/// 5 ms by a thread that goes before others where it may. Beside a load this is what no program could do without.
pub fn small_reads(directory: &Path, time: Duration) -> Vec<Duration> {
    const BYTES: usize = 4096;
    const BLOCKS: u64 = 16 << 10;
    let path = directory.join("small-reads");
    content::write_file(&path, "small reads", BLOCKS * 4096).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
    let file = fs::OpenOptions::new().read(true).custom_flags(direct).open(&path);
    let file = file.or_else(|_| File::open(&path)).unwrap();
    // Only root may; as the others it is late by what it waits for a processor.
    let _ = rustix::process::setpriority_process(None, -20);
    let mut memory = vec![0; 2 * BYTES];
    let start = memory.as_ptr().align_offset(BYTES);
    let memory = &mut memory[start..start + BYTES];
    let (began, mut times) = (Instant::now(), Vec::new());
    // Some order in which no two neighbours follow each other.
    let places = (0..BLOCKS).cycle().map(|n| n * 7919 % BLOCKS);
    for place in places {
        let started = Instant::now();
        file.read_exact_at(memory, place * 4096).unwrap();
        times.push(started.elapsed());
        if began.elapsed() >= time {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    times
}

/// Blocks written over in one file, each synced: MB/s.
pub fn disk(directory: &Path, time: Duration) -> f64 {
    const BLOCKS: u64 = 256;
    let file = File::create(directory.join("raw")).unwrap();
    let data = vec![9; BLOCK];
    let step = u64::try_from(BLOCK).unwrap();
    for block in 0..BLOCKS {
        file.write_all_at(&data, block * step).unwrap();
    }
    file.sync_all().unwrap();
    let (began, mut written) = (Instant::now(), 0_u64);
    while began.elapsed() < time {
        file.write_all_at(&data, written % BLOCKS * step).unwrap();
        file.sync_data().unwrap();
        written += 1;
    }
    as_f64(written * step) / began.elapsed().as_secs_f64() / 1e6
}

/// Small questions and answers of `len` bytes over so many connections: answers per second.
pub fn echo(connections: usize, len: usize, time: Duration) -> f64 {
    const QUESTION: usize = 64;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let began = Instant::now();
    let answers: u64 = thread::scope(|scope| {
        scope.spawn(move || {
            for stream in listener.incoming().take(connections) {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    let (mut question, answer) = ([0; QUESTION], vec![1; len]);
                    while stream.read_exact(&mut question).is_ok() && stream.write_all(&answer).is_ok() {}
                });
            }
        });
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_nodelay(true).unwrap();
                    let (question, mut answer, mut count) = ([2; QUESTION], vec![0; len], 0_u64);
                    while began.elapsed() < time {
                        stream.write_all(&question).unwrap();
                        stream.read_exact(&mut answer).unwrap();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    as_f64(answers) / began.elapsed().as_secs_f64()
}

/// Files of one size that wait to be copied, none of them in memory.
pub struct Copies {
    directory: PathBuf,
    size: u64,
    count: usize,
}

impl Copies {
    /// `count` files of `size` bytes below `directory`.
    pub fn prepare(directory: &Path, size: u64, count: usize) -> Self {
        let directory = directory.join("raw-copy");
        fs::create_dir_all(&directory).unwrap();
        let data = content::bytes("raw copy", usize::try_from(size).unwrap());
        for number in 0..count {
            let mut file = File::create(directory.join(format!("from-{number}"))).unwrap();
            file.write_all(&data).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
        Self { directory, size, count }
    }

    /// Copies them one by one in so many threads: each is read from the disk, written to a new file, and synced. MB/s.
    pub fn run(self, threads: usize) -> f64 {
        let next = AtomicUsize::new(0);
        let began = Instant::now();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut data = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.count {
                            return;
                        }
                        data.clear();
                        let path = |what: &str| self.directory.join(format!("{what}-{number}"));
                        File::open(path("from")).unwrap().read_to_end(&mut data).unwrap();
                        let mut file = File::create(path("to")).unwrap();
                        file.write_all(&data).unwrap();
                        file.sync_all().unwrap();
                    }
                });
            }
        });
        let bytes = as_f64(self.size * u64::try_from(self.count).unwrap());
        let speed = bytes / began.elapsed().as_secs_f64() / 1e6;
        fs::remove_dir_all(&self.directory).unwrap();
        speed
    }
}

/// MB/s of a copy of about so many bytes in files of `size` bytes, by one thread or by four, whichever is faster.
pub fn fastest_copy(directory: &Path, size: u64, bytes: f64) -> f64 {
    let mut count = 16;
    while as_f64(size) * f64::from(count) < bytes && count < 1024 {
        count += 16;
    }
    let speed = |threads| Copies::prepare(directory, size, usize::try_from(count).unwrap()).run(threads);
    speed(1).max(speed(4))
}

/// The same before something that is to be compared with it, and after: how fast the machine is changes meanwhile.
pub struct CopyAround {
    directory: PathBuf,
    size: u64,
    bytes: f64,
    last: f64,
}

impl CopyAround {
    /// See [`fastest_copy`]; called before.
    pub fn before(directory: &Path, size: u64, bytes: f64) -> Self {
        Self { directory: directory.to_owned(), size, bytes, last: fastest_copy(directory, size, bytes) }
    }

    /// MB/s, the mean of before and now. Now is before what comes next.
    pub fn around(&mut self) -> f64 {
        let now = fastest_copy(&self.directory, self.size, self.bytes);
        f64::midpoint(std::mem::replace(&mut self.last, now), now)
    }
}

/// Exact for what is counted here.
#[allow(clippy::cast_precision_loss)]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}
