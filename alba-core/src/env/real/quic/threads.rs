//! Where QUIC encrypts and decrypts: beside the tasks that use it, or on threads of its own where these go before everything else on the
//! machine. What goes through a connection is not all small, and for QUIC it is one task that moves it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::{Builder, Handle};
use tokio::task::AbortHandle;

use crate::env::real::{processors, urgency};

#[cfg(test)]
thread_local! {
    /// As if threads for small requests went before everything else.
    pub(super) static ALWAYS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn are_wanted() -> bool {
    #[cfg(test)]
    if ALWAYS.get() {
        return true;
    }
    urgency::goes_before_all()
}

/// What endpoints made by the calling task run on.
pub(super) fn runtime() -> Arc<dyn Runtime> {
    match are_wanted().then(own).flatten() {
        Some(own) => Arc::new(Elsewhere(own)),
        None => Arc::new(TokioRuntime),
    }
}

/// Starts a task that decrypts or signs, where endpoints made by the calling task run.
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    match are_wanted().then(own).flatten() {
        Some(own) => own.spawn(task).abort_handle(),
        None => tokio::spawn(task).abort_handle(),
    }
}

/// That run there.
#[cfg(test)]
pub(super) fn tasks() -> usize {
    own().map_or(0, |own| own.metrics().num_alive_tasks())
}

/// The threads of this process, which end with it. None where there cannot be any.
fn own() -> Option<Handle> {
    static OWN: OnceLock<Option<tokio::runtime::Runtime>> = OnceLock::new();
    let start = || {
        let built = Builder::new_multi_thread()
            .enable_all()
            // Half of the processors, and four at most, encrypt more than a disk gives.
            .worker_threads((processors().get() / 2).clamp(1, 4))
            .thread_name("quic")
            .on_thread_start(urgency::go_soon)
            .build();
        built.inspect_err(|error| tracing::warn!(%error, "no threads of its own for QUIC")).ok()
    };
    OWN.get_or_init(start).as_ref().map(|runtime| runtime.handle().clone())
}

#[derive(Debug)]
struct Elsewhere(Handle);

impl Runtime for Elsewhere {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _there = self.0.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _there = self.0.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// No executor is there: everything must come from the threads of its own.
    #[test]
    fn tasks_timers_and_sockets_are_of_threads_that_only_quic_has() {
        let elsewhere = Elsewhere(own().unwrap());
        let mut timer = elsewhere.new_timer(elsewhere.now() + Duration::from_millis(1));
        let socket = elsewhere.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        assert_ne!(socket.local_addr().unwrap().port(), 0);
        let (tell, told) = mpsc::channel();
        elsewhere.spawn(Box::pin(async move {
            std::future::poll_fn(|context| timer.as_mut().poll(context)).await;
            tell.send(std::thread::current().name().map(str::to_owned)).unwrap();
        }));
        let thread = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(thread.as_deref(), Some("quic"));
    }
}
