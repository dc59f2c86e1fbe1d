//! A bounded number of connections to one ASD.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::connection::Connection;

/// Idle connections, and the right to have one. Connections in use and idle ones together are never more than the
/// permits: a new one is made only by who holds a permit and found none idle.
pub(super) struct Pool {
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    pub(super) fn new(max_connections: usize) -> Self {
        let permits = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        Self { permits: Semaphore::new(permits), idle: Mutex::new(Vec::new()) }
    }

    /// Waits for the right to use a connection; given back when dropped, wherever the caller is cancelled.
    pub(super) async fn permit(&self) -> Option<Permit<'_>> {
        // None: the semaphore was closed, which nobody does.
        self.permits.acquire().await.ok().map(|permit| Permit { pool: self, _permit: permit })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        // Nothing that can panic happens under this lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to use one connection.
pub(super) struct Permit<'a> {
    pool: &'a Pool,
    _permit: SemaphorePermit<'a>,
}

impl Permit<'_> {
    /// The idle connection used last (the likeliest to be alive) that is still usable; the others are dropped.
    pub(super) async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.pool.idle().pop()?;
            if connection.is_usable().await {
                return Some(connection);
            }
        }
    }

    /// Drops all idle connections: one turned out to be dead, so its siblings are.
    pub(super) fn forget_idle(&self) {
        let dead = std::mem::take(&mut *self.pool.idle());
        drop(dead);
    }

    /// Gives a connection without an outstanding answer back, and with it the right.
    pub(super) fn give_back(self, connection: Connection) {
        self.pool.idle().push(connection);
    }
}
