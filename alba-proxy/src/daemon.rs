//! The proxy as a daemon: from its configuration to a server that serves.

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use alba_client::{Client, FragmentCacheKind};
use alba_core::daemon::{Changes, Context, Daemon, Threads, allocator};
use anyhow::Context as _;

use crate::{ProxyConfig, Server, readiness};

/// Freed memory kept for the next buffers. As much as buffers may have in flight by default.
const KEPT: u64 = 64 << 20;

/// Longest that a proxy that ends waits for what its uploads left to do: tags, late fragments.
const LAST_STEPS: Duration = Duration::from_secs(2);

/// `alba-proxy`.
pub struct ProxyDaemon;

impl Daemon for ProxyDaemon {
    type Config = ProxyConfig;

    const NAME: &'static str = "proxy";

    const ABOUT: &'static str = "ALBA's proxy: serves the ALBA protocol to volume drivers";

    const GOES_BEFORE_ALL: bool = true;

    fn threads(processors: NonZero<usize>) -> Threads {
        // Bulk is encoded there, by all processors.
        Threads::one_for(processors.get(), 2, 1, usize::MAX)
    }

    fn check(config: &ProxyConfig) -> Result<(), String> {
        config.check()
    }

    fn metrics_listen(config: &ProxyConfig) -> Option<SocketAddr> {
        config.metrics_listen
    }

    async fn run(config: ProxyConfig, context: Context) -> anyhow::Result<()> {
        if !config.listen_at().ip().is_loopback() {
            tracing::warn!(
                listen = %config.listen_at(),
                "insecure_listen: anybody who reaches this address can read and delete everything"
            );
        }
        let _allocator = allocator::keep_some(&context, KEPT);
        // First the port: one that is taken should stop the start at once, not after the metadata is there.
        let listener = context.env.net.listen(config.listen_at()).await?;
        let listen = listener.local_addr().context("listening socket")?;
        let mut listeners = vec![listener];
        if let Some(path) = &config.listen_unix {
            let mode = config.socket_mode().map_err(anyhow::Error::msg)?;
            listeners.push(context.env.net.listen_file(path, mode).await?);
        }
        let Some(client) = Client::connect_as_daemon(&config.engine(), &context).await? else {
            return Ok(());
        };
        tracing::info!(%listen, listen_unix = ?config.listen_unix, "serving");
        let publish = crate::read_metrics::publish(client.clone(), Arc::clone(&context.env.clock));
        let _reads = context.env.spawn.spawn("read-metrics", Box::pin(publish)).abort_on_drop();
        let cached = client.config().fragment_cache.kind != FragmentCacheKind::None;
        let _publish = cached.then(|| {
            let publish = crate::caches::publish(client.clone(), Arc::clone(&context.env.clock));
            context.env.spawn.spawn("cache-metrics", Box::pin(publish)).abort_on_drop()
        });
        let server = Server::new(context.env.clone(), config, Arc::new(client.clone()));
        let (health, stop) = (context.health.clone(), context.stop.clone());
        let watch = readiness::watch(context.env.clone(), client.clone(), health, stop.clone());
        let _watch = context.env.spawn.spawn("readiness", Box::pin(watch)).abort_on_drop();
        let reload = reload(server.clone(), client.clone(), context.changes);
        let _reload = context.env.spawn.spawn("reload", Box::pin(reload)).abort_on_drop();
        let served = server.run_on(listeners, stop).await.context("serving");
        if let Err(error) = client.settle(context.env.deadline_in(LAST_STEPS)).await {
            tracing::info!(%error, "what uploads left to do is left to maintenance");
        }
        served
    }
}

/// Hands on what was read again.
async fn reload(server: Server, client: Client, mut changes: Changes) {
    loop {
        let new = changes.next::<ProxyConfig>().await;
        if let Some(now) = server.reload(&new)
            && !client.reconfigure(now.engine())
        {
            tracing::error!("configuration reloaded too often; restart to change it again");
        }
    }
}
