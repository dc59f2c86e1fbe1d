//! What a store behind TCP can do on this machine when it does nothing but what it must: the bytes come over loopback into
//! aligned memory, go to the disk from there, are synced, and acknowledged. Where clients, network and disk share few
//! cores this, not the disk alone, is what bounds a daemon.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::disk::{Memory, RANGE, direct, each};

/// Bytes of an acknowledgement.
const ACK: usize = 16;

/// Frames of `frame` bytes, one at a time per connection, each written with O_DIRECT into a range of its own of a
/// prewritten file, synced with fdatasync and acknowledged by a thread per connection: MB/s (10^6 bytes).
pub(crate) fn store(path: &Path, connections: usize, frame: usize, time: Duration) -> io::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        scope.spawn(move || -> io::Result<()> {
            for (number, stream) in (0..).zip(listener.incoming().take(connections)) {
                let (stream, file) =
                    (stream?, OpenOptions::new().write(true).custom_flags(direct()).open(path)?);
                thread::spawn(move || keep(stream, &file, number, frame));
            }
            Ok(())
        });
        each(connections, time, |_, start| {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let data = vec![7; frame];
            start.go();
            let mut bytes = 0;
            while start.goes_on() {
                stream.write_all(&data)?;
                stream.read_exact(&mut [0; ACK])?;
                bytes += u64::try_from(frame).unwrap();
            }
            Ok(bytes)
        })
    })
}

/// The other end of one connection, to its end.
fn keep(mut stream: TcpStream, file: &File, number: u64, frame: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut memory = Memory::new(frame, number);
    let mut bytes = 0;
    loop {
        stream.read_exact(memory.get())?;
        file.write_all_at(memory.get(), number * RANGE + bytes % RANGE)?;
        file.sync_data()?;
        stream.write_all(&[1; ACK])?;
        bytes += u64::try_from(frame).unwrap();
    }
}
