//! Both directions of a connection, with what arrived and was not taken yet.
//!
//! What is large is moved by threads that give way to small requests: for that it can be handed to a task there. Every wait has a deadline.

use std::io::{self, IoSlice};

use alba_core::env::{Deadline, Env, Stream, within};
use alba_core::net::frame::PER_CALL;
use tokio::io::AsyncWriteExt;

use crate::frame::Inbox;
use crate::handler::Answer;

/// Why less waits than was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfilled {
    /// The client has gone.
    Ended,
    /// It did not come in time.
    Late,
}

/// Waits for `reading`, which is false where the client's side ended before all was there.
async fn arrived(
    env: &Env,
    deadline: Deadline,
    reading: impl Future<Output = io::Result<bool>>,
) -> Result<(), Unfilled> {
    match within(env.clock.as_ref(), deadline, reading).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false) | Err(_)) => Err(Unfilled::Ended),
        Err(_) => Err(Unfilled::Late),
    }
}

/// See the module.
pub(crate) struct Wire {
    pub(crate) stream: Stream,
    pub(crate) inbox: Inbox,
}

impl Wire {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, inbox: Inbox::default() }
    }

    /// For the task that uses it from now on.
    pub(crate) fn adopted(self, env: &Env) -> io::Result<Self> {
        Ok(Self { stream: env.net.adopt(self.stream)?, inbox: self.inbox })
    }

    /// Reads until `wanted` bytes wait.
    pub(crate) async fn fill(
        &mut self,
        env: &Env,
        wanted: usize,
        deadline: Deadline,
    ) -> Result<(), Unfilled> {
        arrived(env, deadline, self.inbox.read_until(&mut self.stream, wanted)).await
    }

    /// Drops `len` bytes as they arrive.
    pub(crate) async fn discard(
        &mut self,
        env: &Env,
        len: usize,
        deadline: Deadline,
    ) -> Result<(), Unfilled> {
        arrived(env, deadline, self.inbox.discard(&mut self.stream, len)).await
    }

    /// Sends an answer without copying its parts together.
    pub(crate) async fn send(&mut self, env: &Env, answer: &Answer, deadline: Deadline) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> =
            answer.parts().iter().flat_map(|part| part.chunks(PER_CALL)).map(IoSlice::new).collect();
        let stream = &mut self.stream;
        let write = async {
            let mut rest = slices.as_mut_slice();
            while !rest.is_empty() {
                let mut bytes = 0;
                let fits = |slice: &&IoSlice<'_>| {
                    bytes += slice.len();
                    bytes <= PER_CALL
                };
                // One is never too much.
                let now = rest.iter().take_while(fits).count().max(1);
                let written = stream.write_vectored(&rest[..now]).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                IoSlice::advance_slices(&mut rest, written);
            }
            stream.flush().await
        };
        within(env.clock.as_ref(), deadline, write)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}
