//! The library's tasks, timers and randomness on [`Env`], so that the simulator can drive it with a seed.
//!
//! The library asks for them without saying for whom. So each of its tasks carries its environment, which is the current
//! one of the thread while the task runs; what it starts belongs to the same.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use alba_core::env::{Env, Moment, TaskGone, real};
use openraft::async_runtime::{AsyncRuntime, TokioOneShotSender};
use tokio::sync::oneshot;

thread_local! {
    static CURRENT: RefCell<Option<Env>> = const { RefCell::new(None) };
}

/// Of whoever calls the library from outside its tasks: the real one.
static OUTSIDE: OnceLock<Env> = OnceLock::new();

fn current() -> Env {
    let inside = CURRENT.with(|current| current.borrow().clone());
    inside.unwrap_or_else(|| OUTSIDE.get_or_init(real::env).clone())
}

/// Work in an environment.
pub(super) struct Scoped<F> {
    env: Env,
    work: Pin<Box<F>>,
}

/// Runs `work`, and whatever the library starts in it, in `env`.
pub(super) fn scoped<F: Future>(env: &Env, work: F) -> Scoped<F> {
    Scoped { env: env.clone(), work: Box::pin(work) }
}

/// Puts the environment before back.
struct Back(Option<Env>);

impl Drop for Back {
    fn drop(&mut self) {
        let before = self.0.take();
        CURRENT.with(|current| current.replace(before));
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let env = self.env.clone();
        let _back = Back(CURRENT.with(|current| current.replace(Some(env))));
        self.work.as_mut().poll(context)
    }
}

/// The runtime.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EnvRuntime;

/// A moment, a day later than the clock says, so that the library may go back from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

const DAY: Duration = Duration::from_secs(86_400);

impl Instant {
    fn moment(self) -> Moment {
        Moment(self.0.saturating_sub(DAY))
    }
}

impl openraft::Instant for Instant {
    fn now() -> Self {
        Self(current().clock.now().0.saturating_add(DAY))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, after: Duration) {
        *self = *self + after;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, before: Duration) -> Self {
        Self(self.0.saturating_sub(before))
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, before: Duration) {
        *self = *self - before;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A wait.
pub struct Sleep(Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Sleep {
    fn until(moment: Moment) -> Self {
        let clock = current().clock;
        Self(Mutex::new(Box::pin(async move { clock.sleep_until(moment).await })))
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Nobody else has it: the lock only makes it shareable for the compiler.
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll(context)
    }
}

/// Work with a limit.
pub struct Limited<F> {
    work: Pin<Box<F>>,
    limit: Sleep,
}

/// The limit came first.
#[derive(Debug)]
pub struct Late;

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not done in time")
    }
}

impl<F: Future> Future for Limited<F> {
    type Output = Result<F::Output, Late>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.work.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut self.limit).poll(context).map(|()| Err(Late))
    }
}

/// A task's end.
pub struct Joined<T>(oneshot::Receiver<T>);

impl<T> Future for Joined<T> {
    type Output = Result<T, TaskGone>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map_err(|_| TaskGone)
    }
}

/// Randomness of the environment.
pub struct EnvRng(Env);

impl rand_08::RngCore for EnvRng {
    fn next_u32(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.0.rng.u64().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    fn next_u64(&mut self) -> u64 {
        self.0.rng.u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.rng.fill(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_08::Error> {
        self.0.rng.fill(bytes);
        Ok(())
    }
}

impl AsyncRuntime for EnvRuntime {
    type JoinError = TaskGone;
    type JoinHandle<T: Send + 'static> = Joined<T>;
    type Sleep = Sleep;
    type Instant = Instant;
    type TimeoutError = Late;
    type Timeout<R, T: Future<Output = R> + Send> = Limited<T>;
    type ThreadLocalRng = EnvRng;
    type OneshotSender<T: Send> = TokioOneShotSender<T>;
    type OneshotReceiver<T: Send> = oneshot::Receiver<T>;
    type OneshotReceiverError = oneshot::error::RecvError;

    fn spawn<T>(future: T) -> Joined<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        let env = current();
        let (output, joined) = oneshot::channel();
        let work = async move {
            // Whoever wanted it may have gone.
            drop(output.send(future.await));
        };
        // It runs on when the handle is dropped, as the library expects.
        drop(env.spawn.spawn("openraft", Box::pin(scoped(&env, work))));
        Joined(joined)
    }

    fn sleep(duration: Duration) -> Sleep {
        Sleep::until(current().clock.now().plus(duration))
    }

    fn sleep_until(deadline: Instant) -> Sleep {
        Sleep::until(deadline.moment())
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Limited<F> {
        Limited { work: Box::pin(future), limit: Self::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Instant, future: F) -> Limited<F> {
        Limited { work: Box::pin(future), limit: Self::sleep_until(deadline) }
    }

    fn is_panic(_: &TaskGone) -> bool {
        // A task is not aborted: without an answer it panicked, or its node is gone.
        true
    }

    fn thread_rng() -> EnvRng {
        EnvRng(current())
    }

    fn oneshot<T: Send>() -> (TokioOneShotSender<T>, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (TokioOneShotSender(sender), receiver)
    }
}
