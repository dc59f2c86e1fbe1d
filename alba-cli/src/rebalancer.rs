//! The rebalancer as a program: `alba rebalancer`, a daemon, or one pass with `--once`, or none with `--dry-run`.
//!
//! It is an agent like those of maintenance: one task, of which one agent at a time has the lease, within hours and rates,
//! paused with `alba pause-task rebalance`. What it does is in `alba_rebalancer`.

mod command;
mod config;
mod note;
mod task;

use std::net::SocketAddr;
use std::sync::Arc;

use alba_client::Client;
use alba_client::metadata::Outages;
use alba_core::daemon::{Context, Daemon, allocator};
use alba_maintenance::agent::new_agent_id;
use alba_maintenance::{Agent, Backend, KEPT, pace, waiting};

pub(crate) use command::main;
pub(crate) use config::RebalancerConfig;
pub(crate) use note::{Note, Tenths, tenths};
pub(crate) use task::{NAME as TASK, Rebalance};

/// `alba rebalancer`.
pub(crate) struct RebalancerDaemon;

impl Daemon for RebalancerDaemon {
    type Config = RebalancerConfig;

    const NAME: &'static str = "rebalancer";

    const ABOUT: &'static str = "ALBA's rebalancer: evens the fill of the OSDs while clients go on. \
         More: --dry-run shows what it would move, --once moves it and ends";

    const GIVES_WAY: bool = true;

    fn check(config: &RebalancerConfig) -> Result<(), String> {
        config.check()
    }

    fn metrics_listen(config: &RebalancerConfig) -> Option<SocketAddr> {
        config.metrics_listen
    }

    async fn run(config: RebalancerConfig, mut context: Context) -> anyhow::Result<()> {
        let _allocator = allocator::keep_some(&context, KEPT);
        let env = context.env.clone();
        let outages = Outages::new(env.clone());
        let Some(client) = Client::connect_as_agent(&config.engine(), &context, outages.clone()).await?
        else {
            return Ok(());
        };
        let backend = Backend::new(env.clone(), client);
        let id = new_agent_id(&env)?;
        tracing::info!(agent = %id, "working");
        let task = Arc::new(Rebalance::new(config.rebalance.settings(false)));
        let agent = Agent::new(backend.clone(), id, vec![task.clone()], config.framework());
        let (board, clock) = (agent.board().clone(), env.clock.clone());
        context.pages.add("/tasks", move || board.show(clock.now()));
        let waiting = waiting::tell(env.clone(), outages, context.health.clone());
        let watch = async {
            if config.adapt_to_clients {
                pace::give_way(backend.clone(), agent.pace().clone(), pace::OSDS_PER_MOVE).await;
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
            () = waiting => {}
            () = reload => {}
        }
        Ok(())
    }
}
