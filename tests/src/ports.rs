//! Port ranges that no two fixtures share, also across test processes.

use std::fs::{File, OpenOptions};
use std::net::{TcpListener, UdpSocket};

/// Ports of one block.
pub const BLOCK: u16 = 100;

/// Below the kernel's range for outgoing connections (32768 and up), so that none of those takes one.
const FIRST: u16 = 20_000;
const BLOCKS: u16 = 120;

/// A block of ports. It belongs to this value until it is dropped.
pub struct PortBlock {
    base: u16,
    /// Its lock is the claim; the kernel takes it back when the process dies.
    _claim: File,
}

impl PortBlock {
    /// Claims a block in which no port is in use now.
    pub fn claim() -> Self {
        let directory = std::env::temp_dir().join("alba-test-ports");
        std::fs::create_dir_all(&directory).unwrap();
        // Start at different blocks, so that fixtures that start together do not try the same ones.
        let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap();
        for step in 0..BLOCKS {
            let block = (start + step) % BLOCKS;
            let path = directory.join(format!("block-{block}"));
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap();
            let base = FIRST + block * BLOCK;
            if file.try_lock().is_ok() && (base..base + BLOCK).all(is_free) {
                return Self { base, _claim: file };
            }
        }
        panic!("no block of {BLOCK} free ports from {FIRST} on");
    }

    /// The port at `offset` in the block.
    pub fn port(&self, offset: u16) -> u16 {
        assert!(offset < BLOCK);
        self.base + offset
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart() {
        let (one, other) = (PortBlock::claim(), PortBlock::claim());
        assert!(one.port(0).abs_diff(other.port(0)) >= BLOCK);
    }
}
