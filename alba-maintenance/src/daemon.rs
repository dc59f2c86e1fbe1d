//! The agent as a daemon: from its configuration to work that is done.

use std::net::SocketAddr;
use std::time::Duration;

use alba_client::{Client, ClientError};
use alba_core::daemon::{Context, Daemon};

use crate::agent::{Agent, new_agent_id};
use crate::backend::Backend;
use crate::config::MaintenanceConfig;
use crate::{pace, tasks};

/// First and longest pause between attempts to reach the metadata servers at start.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// `alba-maintenance`.
pub struct MaintenanceDaemon;

impl Daemon for MaintenanceDaemon {
    type Config = MaintenanceConfig;

    const NAME: &'static str = "maintenance";

    const ABOUT: &'static str = "ALBA's maintenance agent: cleans up, collects garbage, repairs, scrubs, does the work queue. \
         More: --list-tasks shows its tasks, --once TASK does one of them and ends";

    fn check(config: &MaintenanceConfig) -> Result<(), String> {
        config.check()
    }

    fn metrics_listen(config: &MaintenanceConfig) -> Option<SocketAddr> {
        config.metrics_listen
    }

    async fn run(config: MaintenanceConfig, mut context: Context) -> anyhow::Result<()> {
        let Some(client) = connect(&config, &context).await? else { return Ok(()) };
        let env = context.env.clone();
        let backend = Backend::new(env.clone(), client);
        let id = new_agent_id(&env)?;
        tracing::info!(agent = %id, "working");
        let adapt = config.adapt_to_clients;
        let agent = Agent::new(backend.clone(), id, tasks::all(&config), config);
        let (board, clock) = (agent.board().clone(), env.clock.clone());
        context.pages.add("/tasks", move || board.show(clock.now()));
        context.health.set_ready();
        let watch = async {
            if adapt {
                pace::watch_latency(backend.clone(), agent.pace().clone()).await;
            }
            std::future::pending::<()>().await;
        };
        let reload = async {
            loop {
                let config = context.changes.next::<MaintenanceConfig>().await;
                agent.configure(config.as_ref().clone());
                tracing::info!(
                    "goes by its new configuration; servers, gc_grace and scrub_period only after a restart"
                );
            }
        };
        tokio::select! {
            biased;
            () = agent.clone().run(context.stop.clone()) => {}
            () = watch => {}
            () = reload => {}
        }
        Ok(())
    }
}

/// Connects to the metadata servers, for as long as it takes: at a restart of everything they may come up last. None
/// when told to stop before.
async fn connect(config: &MaintenanceConfig, context: &Context) -> anyhow::Result<Option<Client>> {
    let clock = context.env.clock.as_ref();
    let mut pause = RETRY.0;
    loop {
        let error = tokio::select! {
            biased;
            () = context.stop.wait() => return Ok(None),
            client = Client::connect(context.env.clone(), config.engine()) => match client {
                Ok(client) => return Ok(Some(client)),
                Err(ClientError::Config(reason)) => anyhow::bail!("configuration: {reason}"),
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
