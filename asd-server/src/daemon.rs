//! The daemon: one data directory, one engine, one listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alba_core::daemon::{Context, Daemon};
use alba_core::env::Env;
use alba_core::env::real::disk::RealDisk;
use anyhow::Context as _;

use crate::config::{AsdSection, Config};
use crate::engine::{Engine, EngineParts, FjallIndex, OpenError};
use crate::gauge;
use crate::home::Home;
use crate::server::{Server, ServerLimits, Service, ServiceLimits};

/// How often metrics and health are brought up to date.
const WATCH: Duration = Duration::from_secs(1);

/// Between attempts to open a store that does not open.
const REOPEN: Duration = Duration::from_secs(3);

/// How long a stopping engine may take to make its index durable.
const CLOSE: Duration = Duration::from_secs(5);

/// Room of a frame beyond the largest batch: keys, lengths, asserts.
const FRAME_SLACK: u64 = 1 << 20;

/// The storage daemon of one disk.
pub struct AsdDaemon;

impl Daemon for AsdDaemon {
    type Config = Config;

    const NAME: &'static str = "asd-server";

    const ABOUT: &'static str =
        "Serves one disk as an ordered key-value store with atomic conditional batches";

    fn check(config: &Config) -> Result<(), String> {
        config.asd.check()
    }

    fn metrics_listen(config: &Config) -> Option<SocketAddr> {
        config.asd.metrics_listen
    }

    async fn run(config: Config, context: Context) -> anyhow::Result<()> {
        let Context { env, stop, health } = context;
        let section = config.asd;
        let home = Home::open(&section.data_dir, section.long_id.as_ref(), &section.place, env.rng.as_ref())?;
        if section.insecure_listen {
            tracing::warn!(listen = %section.listen, "insecure_listen: anyone who reaches it can read and write");
        }
        let listener = env.net.listen(section.listen).await?;
        let address = listener.local_addr().context("cannot tell the address it listens on")?;
        let long_id = home.identity.long_id.clone();
        let service = Service::new(
            env.clone(),
            ServiceLimits { answers: section.max_in_flight_bytes, ..ServiceLimits::default() },
        );
        let limits = ServerLimits {
            connections: section.max_connections,
            frame: usize::try_from(section.segment_bytes + FRAME_SLACK)?,
            request_bytes: usize::try_from(section.max_in_flight_bytes + FRAME_SLACK)?,
            ..ServerLimits::default()
        };
        let server = Server::new(env.clone(), long_id.clone(), service.clone(), limits);
        // Clients wait in the listener's backlog until the first attempt to open the store is over.
        let mut idle = Some((server, listener));
        let mut serve = || {
            let (server, listener) = idle.take()?;
            Some(env.spawn.spawn("asd server", Box::pin(server.serve(listener))).abort_on_drop())
        };
        let work = async {
            let mut accepting = None;
            let engine = loop {
                match open(&env, &home, &section).await {
                    Ok(engine) => break engine,
                    // Waiting does not help.
                    Err(error @ OpenError::Version { .. }) => return Err(error.into()),
                    // A state: it is tried again, and clients are told.
                    Err(error) => {
                        let reason = format!("the store does not open: {error}");
                        tracing::error!("{reason}; it is tried again");
                        health.set_not_ready(&reason);
                        service.set_engine(Err(reason));
                        accepting = accepting.or_else(&mut serve);
                        env.clock.sleep_until(env.clock.now().plus(REOPEN)).await;
                    }
                }
            };
            service.set_engine(Ok(engine.clone()));
            let _accepting = accepting.or_else(&mut serve);
            tracing::info!(%long_id, %address, data_dir = %section.data_dir.display(), "serving");
            while !stop.is_stopping() {
                report(&engine, &health);
                env.clock.sleep_until(env.clock.now().plus(WATCH)).await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            biased;
            () = stop.wait() => {}
            ended = work => ended?,
        }
        if let Some(engine) = service.take_engine() {
            engine.close(env.deadline_in(CLOSE)).await;
        }
        Ok(())
    }
}

async fn open(env: &Env, home: &Home, section: &AsdSection) -> Result<Arc<Engine>, OpenError> {
    let parts = parts(env, home, section.index_cache_bytes);
    let (engine, opening) = Engine::open(parts, section.engine()).await?;
    tracing::info!(replayed = opening.replayed, rebuilt = opening.rebuilt, "store opened");
    Ok(Arc::new(engine))
}

/// What the engine of a data directory uses.
pub(crate) fn parts(env: &Env, home: &Home, index_cache_bytes: u64) -> EngineParts {
    EngineParts {
        disk: Arc::new(RealDisk::new(home.segments(), env.spawn.clone())),
        index: Arc::new(FjallIndex { directory: home.index(), cache_bytes: index_cache_bytes }),
        clock: env.clock.clone(),
        spawn: env.spawn.clone(),
        store: home.store,
    }
}

fn report(engine: &Engine, health: &alba_core::daemon::Health) {
    let usage = engine.usage();
    metrics::gauge!("alba_osd_used_bytes").set(gauge(usage.used.get()));
    metrics::gauge!("alba_osd_capacity_bytes").set(gauge(usage.capacity.get()));
    let status = engine.status();
    let mut reasons = Vec::new();
    reasons.extend(status.writing.map(|error| format!("writing fails: {error}")));
    reasons.extend(status.reading.map(|error| format!("reading fails: {error}")));
    reasons.extend(status.index.map(|error| format!("the index fails: {error}")));
    if engine.is_full() {
        reasons.push("full: it takes no more data".to_owned());
    }
    if !status.damage.is_empty() {
        reasons.push(format!("data was lost before the start: {}", status.damage.join("; ")));
    }
    if reasons.is_empty() {
        health.set_ready();
    } else {
        health.set_not_ready(reasons.join("; "));
    }
}
