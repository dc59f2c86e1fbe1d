//! Configurations that were read again while the daemon runs.

use std::any::Any;
use std::sync::Arc;

use tokio::sync::watch;

type Shared = Arc<dyn Any + Send + Sync>;

/// Gives the daemon its configuration each time it was read again; cheap to clone.
#[derive(Debug, Clone)]
pub struct Changes(watch::Receiver<Option<Shared>>);

/// Hands configurations over.
#[derive(Debug)]
pub struct Changing(watch::Sender<Option<Shared>>);

impl Changes {
    /// Both ends.
    pub fn pair() -> (Changing, Self) {
        let (sender, receiver) = watch::channel(None);
        (Changing(sender), Self(receiver))
    }

    /// The next configuration, of the daemon's own type; of several at once the last. Never returns when none comes. Safe
    /// to drop and await again.
    pub async fn next<C: Send + Sync + 'static>(&mut self) -> Arc<C> {
        loop {
            if self.0.changed().await.is_err() {
                return std::future::pending().await;
            }
            let config = self.0.borrow_and_update().clone().and_then(|config| config.downcast().ok());
            if let Some(config) = config {
                return config;
            }
        }
    }
}

impl Changing {
    /// Hands `config` over; it was checked before.
    pub fn hand_over<C: Send + Sync + 'static>(&self, config: C) {
        self.0.send_replace(Some(Arc::new(config)));
    }
}
