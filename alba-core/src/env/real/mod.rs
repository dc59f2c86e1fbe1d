//! The real outside: tokio's clock, sockets and threads, the kernel's randomness.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "this module is the door")]

mod bulk;
pub mod disk;
#[cfg(feature = "quic")]
pub mod quic;
mod socket_file;
mod tcp;
pub mod turns;
pub(crate) mod urgency;

use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use tcp::Tcp;
pub use urgency::{go_before_all, go_first};

use super::Env;
use super::clock::{Clock, Moment};
use super::rng::Rng;
use super::spawn::{BlockingWork, Here, Spawn, Task, TaskHandle, Urgency};

/// The real [`Env`], with as many threads for bulk as there are processors.
pub fn env() -> Env {
    env_with(processors())
}

/// How many processors this process may use.
pub fn processors() -> NonZero<usize> {
    std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

/// The real [`Env`], with so many threads for bulk, and as many for maintenance.
pub fn env_with(bulk_threads: NonZero<usize>) -> Env {
    let clock: Arc<dyn Clock> = Arc::new(TokioClock::new());
    Env {
        net: Arc::new(Tcp::new(clock.clone())),
        clock,
        rng: Arc::new(OsRandom),
        spawn: Arc::new(TokioSpawn { home: Handle::try_current().ok() }),
        bulk: Arc::new(bulk::BulkThreads::for_clients(bulk_threads)),
        aside: Arc::new(bulk::BulkThreads::for_maintenance(bulk_threads)),
    }
}

/// The system's clocks.
pub struct TokioClock {
    start: Instant,
}

impl TokioClock {
    /// Starts at moment zero.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for TokioClock {
    fn now(&self) -> Moment {
        Moment(self.start.elapsed())
    }

    fn wall_micros(&self) -> u64 {
        // Before 1970 there is no ALBA; a clock that says so gives 0.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    async fn sleep_until(&self, moment: Moment) {
        // tokio cannot represent moments beyond some decades: those never come.
        match self.start.checked_add(moment.0) {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// The kernel's generator.
pub struct OsRandom;

impl Rng for OsRandom {
    fn fill(&self, bytes: &mut [u8]) {
        rand::Rng::fill_bytes(&mut rand::rng(), bytes);
    }
}

/// Tasks on the executor that runs where this was made (else on the one that runs where they are started), so that what many share
/// does not run where the first of them happened to. Blocking work beside the task that asks for it.
struct TokioSpawn {
    home: Option<Handle>,
}

impl Spawn for TokioSpawn {
    fn spawn(&self, name: &'static str, task: Task) -> TaskHandle {
        let Some(home) = &self.home else { return self.spawn_beside(name, task) };
        let abort = home.spawn(task).abort_handle();
        TaskHandle::new(move || abort.abort())
    }

    fn spawn_beside(&self, _name: &'static str, task: Task) -> TaskHandle {
        let abort = tokio::spawn(task).abort_handle();
        TaskHandle::new(move || abort.abort())
    }

    fn spawn_thread(&self, name: &'static str, urgency: Urgency, task: Task) -> TaskHandle {
        let Some(home) = self.home.clone().or_else(|| Handle::try_current().ok()) else {
            return self.spawn(name, task);
        };
        let aborted = Arc::new(Notify::new());
        let abort = aborted.clone();
        let task: Task = Box::pin(async move {
            tokio::select! {
                biased;
                () = aborted.notified() => {}
                () = task => {}
            }
        });
        // To have it back when there is no thread for it.
        let task = Arc::new(Mutex::new(Some(task)));
        let taken = task.clone();
        let take = |task: &Mutex<Option<_>>| task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let run = move || {
            urgency::own(urgency);
            if let Some(task) = take(&taken) {
                home.block_on(task);
            }
        };
        if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(run) {
            tracing::warn!(%error, name, "no thread of its own");
            if let Some(task) = take(&task) {
                self.spawn(name, task);
            }
        }
        TaskHandle::new(move || abort.notify_one())
    }

    fn run_blocking(&self, work: BlockingWork) {
        tokio::task::spawn_blocking(work);
    }

    fn here(&self) -> Here {
        urgency::here()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::current;
    use std::time::Duration;

    use super::*;
    use crate::env::{TaskGone, blocking, computing, elsewhere};
    use crate::request::{self, Request, TraceId};

    const SOON: Duration = Duration::from_secs(60);

    fn thread_name() -> String {
        current().name().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn bulk_has_threads_of_its_own_which_may_compute() {
        let env = env();
        let caller = current().id();
        assert_eq!(env.spawn.here(), Here::Shared);
        let spawn = env.spawn.clone();
        let found = elsewhere(env.bulk.as_ref(), "test", async move {
            let this = current().id();
            let computed = computing(spawn.as_ref(), current).await.unwrap().id() == this;
            // It may go on elsewhere, since it waits for this one.
            let blocked = blocking(spawn.as_ref(), current).await.unwrap().id() == this;
            assert_eq!(computing(spawn.as_ref(), || panic!("as tests do")).await, Err::<(), _>(TaskGone));
            (thread_name(), spawn.here(), computed, blocked)
        });
        let (name, here, computed_there, blocked_there) = found.await.unwrap();
        assert_eq!((name.as_str(), here), ("bulk", Here::Bulk));
        assert!(computed_there && !blocked_there);
        let blocked = blocking(env.bulk.as_ref(), current).await.unwrap();
        assert_ne!(blocked.id(), caller);
        let spawn = env.spawn.clone();
        let aside = elsewhere(env.aside.as_ref(), "test", async move { (thread_name(), spawn.here()) });
        assert_eq!(aside.await.unwrap(), ("aside".to_owned(), Here::Bulk), "maintenance has others");
        // Dropping it in a task must not wait for its threads.
        drop(env);
    }

    #[tokio::test]
    async fn what_is_done_elsewhere_is_part_of_the_same_request_and_ends_with_it() {
        struct Told(mpsc::Sender<()>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }

        let env = env();
        let request = Request::new(TraceId::new(7), None);
        let trace = request.scope(elsewhere(env.bulk.as_ref(), "test", async { request::trace() }));
        assert_eq!(trace.await, Ok(7));

        let (told, dropped) = mpsc::channel();
        let told = Told(told);
        let never = elsewhere(env.bulk.as_ref(), "test", async move {
            let _told = told;
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), never).await.is_err());
        dropped.recv_timeout(SOON).unwrap();
        let panics = elsewhere(env.bulk.as_ref(), "test", async { panic!("as tests do") });
        assert_eq!(panics.await, Err::<(), _>(TaskGone));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_task_with_a_thread_of_its_own_may_block_and_can_be_ended() {
        let env = env();
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let spawn = env.spawn.clone();
        let task = env.spawn.spawn_thread(
            "own",
            Urgency::Both,
            Box::pin(async move {
                let _end = end;
                // Timers and tasks are those of the executor that started it.
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert_eq!(blocking(spawn.as_ref(), || panic!("as tests do")).await, Err::<(), _>(TaskGone));
                let here = blocking(spawn.as_ref(), thread_name).await.unwrap();
                tell.send((here, thread_name(), spawn.here())).unwrap();
                std::future::pending::<()>().await;
            }),
        );
        let found = told.recv_timeout(SOON).unwrap();
        assert_eq!(found, ("own".to_owned(), "own".to_owned(), Here::Own));
        task.abort();
        assert_eq!(ended.recv_timeout(SOON), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn what_many_share_runs_where_the_environment_was_made() {
        let runtime = |name: &str| {
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).build().unwrap()
        };
        let (home, other) = (runtime("home"), runtime("other"));
        let env = home.block_on(async { env() });
        let (tell, told) = mpsc::channel();
        other.block_on(async {
            env.spawn.spawn("test", Box::pin(async move { tell.send(thread_name()).unwrap() }));
        });
        assert_eq!(told.recv_timeout(SOON).unwrap(), "home");
    }
}
