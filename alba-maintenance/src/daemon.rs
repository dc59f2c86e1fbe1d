//! The agent as a daemon: from its configuration to work that is done.

use std::net::SocketAddr;

use alba_client::Client;
use alba_client::metadata::Outages;
use alba_core::daemon::{Context, Daemon, allocator};

use crate::agent::{Agent, new_agent_id};
use crate::backend::Backend;
use crate::config::MaintenanceConfig;
use crate::{pace, tasks, waiting};

/// Freed memory kept for the next fragments: some chunks' worth.
pub const KEPT: u64 = 32 << 20;

/// `alba-maintenance`.
pub struct MaintenanceDaemon;

impl Daemon for MaintenanceDaemon {
    type Config = MaintenanceConfig;

    const NAME: &'static str = "maintenance";

    const ABOUT: &'static str = "ALBA's maintenance agent: cleans up, collects garbage, repairs, scrubs, does the work queue. \
         More: --list-tasks shows its tasks, --once TASK does one of them and ends";

    const GIVES_WAY: bool = true;

    fn check(config: &MaintenanceConfig) -> Result<(), String> {
        config.check()
    }

    fn metrics_listen(config: &MaintenanceConfig) -> Option<SocketAddr> {
        config.metrics_listen
    }

    async fn run(config: MaintenanceConfig, mut context: Context) -> anyhow::Result<()> {
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
        let adapt = config.adapt_to_clients;
        let agent = Agent::new(backend.clone(), id, tasks::all(&config), config);
        let (board, clock) = (agent.board().clone(), env.clock.clone());
        context.pages.add("/tasks", move || board.show(clock.now()));
        let waiting = waiting::tell(env.clone(), outages, context.health.clone());
        let watch = async {
            if adapt {
                pace::give_way(backend.clone(), agent.pace().clone(), pace::OSDS_PER_REPAIR).await;
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
            () = waiting => {}
            () = reload => {}
        }
        Ok(())
    }
}
