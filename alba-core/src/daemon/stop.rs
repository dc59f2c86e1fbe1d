//! How a daemon learns that it should stop.

use std::sync::Arc;

use tokio::sync::watch;

/// Says when to stop; cheap to clone.
#[derive(Debug, Clone)]
pub struct StopSignal(watch::Receiver<bool>);

/// Gives the signal. Dropping it gives it, too: who could have stopped the daemon is gone.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<watch::Sender<bool>>);

impl StopSignal {
    /// A signal and what gives it.
    pub fn pair() -> (Stopper, Self) {
        let (sender, receiver) = watch::channel(false);
        (Stopper(Arc::new(sender)), Self(receiver))
    }

    /// Returns once it is time to stop; at once when it already is. Safe to drop and await again.
    pub async fn wait(&self) {
        let mut receiver = self.0.clone();
        // An error: the stopper is gone.
        drop(receiver.wait_for(|stop| *stop).await);
    }

    /// Is it time to stop?
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

impl Stopper {
    /// Gives the signal.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}
