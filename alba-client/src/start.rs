//! How daemons begin: the metadata servers may come up after them.

use std::sync::Arc;
use std::time::Duration;

use alba_core::daemon::Context;

use crate::metadata::Outages;
use crate::{Client, ClientConfig, ClientError};

/// First and longest pause between attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

impl Client {
    /// Connects for as long as it takes: at a restart of everything the metadata servers may come up last. The daemon's
    /// health says so meanwhile. None when told to stop before; an error only for a configuration that cannot be right.
    pub async fn connect_as_daemon(
        config: &ClientConfig,
        context: &Context,
    ) -> Result<Option<Self>, ClientError> {
        Self::connect_when_possible(config, context, None).await
    }

    /// The same for an agent: what it asks of a group that does not answer waits as [`Outages`] says.
    pub async fn connect_as_agent(
        config: &ClientConfig,
        context: &Context,
        outages: Arc<Outages>,
    ) -> Result<Option<Self>, ClientError> {
        Self::connect_when_possible(config, context, Some(outages)).await
    }

    async fn connect_when_possible(
        config: &ClientConfig,
        context: &Context,
        outages: Option<Arc<Outages>>,
    ) -> Result<Option<Self>, ClientError> {
        let clock = context.env.clock.as_ref();
        let mut pause = RETRY.0;
        loop {
            let error = tokio::select! {
                biased;
                () = context.stop.wait() => return Ok(None),
                client = Self::connect_with(context.env.clone(), config.clone(), outages.clone()) => match client {
                    Ok(client) => return Ok(Some(client)),
                    Err(error @ ClientError::Config(_)) => return Err(error),
                    Err(error) => error,
                },
            };
            tracing::warn!(%error, "metadata servers cannot be reached; trying again");
            context.health.set_not_ready(format!("metadata servers cannot be reached: {error}"));
            tokio::select! {
                biased;
                () = context.stop.wait() => return Ok(None),
                () = clock.sleep_until(clock.now().plus(pause)) => pause = (pause * 2).min(RETRY.1),
            }
        }
    }
}
