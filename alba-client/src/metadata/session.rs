//! A session with one group: which commands are under way, and what the group may forget.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::wire::rpc::{RequestId, SessionId};

/// How far a session runs ahead of its oldest unanswered command. The group remembers at most so many replies.
const WINDOW: u64 = 1024;

/// Numbers commands.
pub(super) struct Session {
    id: SessionId,
    state: Mutex<State>,
}

struct State {
    next: u64,
    /// Under way: may still be retried.
    open: BTreeSet<u64>,
}

impl Session {
    pub(super) fn new(id: SessionId) -> Self {
        Self { id, state: Mutex::new(State { next: 1, open: BTreeSet::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of one command. While it lives the group remembers the reply; dropped, the command is never sent again.
pub(super) struct Ticket {
    session: Arc<Session>,
    sequence: u64,
    sends: Mutex<u32>,
}

impl Ticket {
    /// The next number; none when the session is too far ahead of an unanswered command.
    pub(super) fn take(session: &Arc<Session>) -> Option<Self> {
        let mut state = session.lock();
        let oldest = state.open.first().copied().unwrap_or(state.next);
        if state.next - oldest >= WINDOW {
            return None;
        }
        let sequence = state.next;
        state.next += 1;
        state.open.insert(sequence);
        drop(state);
        Some(Self { session: session.clone(), sequence, sends: Mutex::new(0) })
    }

    /// The id to send; counts as a sending.
    pub(super) fn request_id(&self) -> RequestId {
        *self.sends.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let state = self.session.lock();
        // The ticket itself is open: never above its own number.
        let lowest_unacknowledged = state.open.first().copied().unwrap_or(self.sequence);
        RequestId { session: self.session.id, sequence: self.sequence, lowest_unacknowledged }
    }

    /// How often it may have been sent.
    pub(super) fn sends(&self) -> u32 {
        *self.sends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.lock().open.remove(&self.sequence);
    }
}
