//! The rebalancer as a program: `alba rebalancer`, a daemon, or one pass with `--once`, or none with `--dry-run`.
//!
//! It is an agent like those of maintenance: one task, of which one agent at a time has the lease, within hours and rates,
//! paused with `alba pause-task rebalance`. What it does is in `alba_rebalancer`.

mod command;
mod config;
mod task;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alba_client::{Client, ClientError};
use alba_core::daemon::{Context, Daemon};
use alba_maintenance::agent::new_agent_id;
use alba_maintenance::{Agent, Backend, pace};

pub(crate) use command::main;
pub(crate) use config::RebalancerConfig;
pub(crate) use task::{NAME as TASK, Rebalance};

/// First and longest pause between attempts to reach the metadata servers at start.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// `alba rebalancer`.
pub(crate) struct RebalancerDaemon;

impl Daemon for RebalancerDaemon {
    type Config = RebalancerConfig;

    const NAME: &'static str = "rebalancer";

    const ABOUT: &'static str = "ALBA's rebalancer: evens the fill of the OSDs while clients go on. \
         More: --dry-run shows what it would move, --once moves it and ends";

    fn check(config: &RebalancerConfig) -> Result<(), String> {
        config.check()
    }

    fn metrics_listen(config: &RebalancerConfig) -> Option<SocketAddr> {
        config.metrics_listen
    }

    async fn run(config: RebalancerConfig, mut context: Context) -> anyhow::Result<()> {
        let Some(client) = connect(&config, &context).await? else { return Ok(()) };
        let env = context.env.clone();
        let backend = Backend::new(env.clone(), client);
        let id = new_agent_id(&env)?;
        tracing::info!(agent = %id, "working");
        let task = Arc::new(Rebalance::new(config.rebalance.settings(false)));
        let agent = Agent::new(backend.clone(), id, vec![task.clone()], config.framework());
        let (board, clock) = (agent.board().clone(), env.clock.clone());
        context.pages.add("/tasks", move || board.show(clock.now()));
        context.health.set_ready();
        let watch = async {
            if config.adapt_to_clients {
                pace::watch_latency(backend.clone(), agent.pace().clone()).await;
            }
            std::future::pending::<()>().await;
        };
        let reload = async {
            loop {
                let config = context.changes.next::<RebalancerConfig>().await;
                task.configure(config.rebalance.settings(false));
                agent.configure(config.framework());
                tracing::info!("goes by its new configuration; servers only after a restart");
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
async fn connect(config: &RebalancerConfig, context: &Context) -> anyhow::Result<Option<Client>> {
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
