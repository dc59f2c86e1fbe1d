//! A bounded number of connections to one ASD, and of idle ones to many.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::connection::Connection;
use crate::env::Net;

/// A bound on the idle connections of many clients together: what is beyond it is closed after use. Connections in use are bounded
/// by each client alone, and by how much is done at once.
#[derive(Debug)]
pub struct IdleLimit {
    idle: AtomicUsize,
    most: usize,
}

impl IdleLimit {
    /// At most so many.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { idle: AtomicUsize::new(0), most })
    }

    /// How many there are now.
    pub fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }

    /// Room for one more?
    fn take(&self) -> bool {
        let more = |idle: usize| idle.checked_add(1).filter(|idle| *idle <= self.most);
        self.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, connections: usize) {
        self.idle.fetch_sub(connections, Ordering::Relaxed);
    }
}

/// Idle connections, and the right to have one. Connections in use and idle ones together are never more than the
/// permits: a new one is made only by who holds a permit and found none idle.
pub(super) struct Pool {
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
    limit: Option<Arc<IdleLimit>>,
}

impl Pool {
    pub(super) fn new(max_connections: usize, limit: Option<Arc<IdleLimit>>) -> Self {
        let permits = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        Self { permits: Semaphore::new(permits), idle: Mutex::new(Vec::new()), limit }
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

    fn pop(&self) -> Option<Connection> {
        let connection = self.idle().pop()?;
        if let Some(limit) = &self.limit {
            limit.give_back(1);
        }
        Some(connection)
    }

    fn take_all(&self) -> Vec<Connection> {
        let all = std::mem::take(&mut *self.idle());
        if let Some(limit) = &self.limit {
            limit.give_back(all.len());
        }
        all
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.take_all());
    }
}

/// The right to use one connection.
pub(super) struct Permit<'a> {
    pool: &'a Pool,
    _permit: SemaphorePermit<'a>,
}

impl Permit<'_> {
    /// The idle connection used last (the likeliest to be alive) that is still usable, for the task that asks; the others are
    /// dropped.
    pub(super) async fn take_idle(&self, net: &dyn Net) -> Option<Connection> {
        loop {
            let mut connection = self.pool.pop()?;
            // In this order: what has just been adopted does not know yet what the other side did.
            if connection.is_usable().await
                && let Ok(connection) = connection.adopted(net)
            {
                return Some(connection);
            }
        }
    }

    /// Drops all idle connections: one turned out to be dead, so its siblings are.
    pub(super) fn forget_idle(&self) {
        drop(self.pool.take_all());
    }

    /// Gives a connection without an outstanding answer back, and with it the right. It is closed when there are too many idle
    /// ones.
    pub(super) fn give_back(self, connection: Connection) {
        if self.pool.limit.as_ref().is_none_or(|limit| limit.take()) {
            self.pool.idle().push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_idle_ones_than_the_limit() {
        let limit = IdleLimit::new(2);
        assert_eq!([limit.take(), limit.take(), limit.take()], [true, true, false]);
        assert_eq!(limit.idle(), 2);
        limit.give_back(1);
        assert!(limit.take() && !limit.take());
        limit.give_back(2);
        assert_eq!(limit.idle(), 0);
    }
}
