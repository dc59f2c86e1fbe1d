//! The daemon: one data directory, one engine, its listeners.

mod announce;
mod controls;
#[cfg(test)]
mod tests;
mod watch;

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alba_core::daemon::{Context, Daemon, Threads};
use alba_core::env::real::disk::{IoConfig, RealDisk};
use alba_core::env::real::quic;
use alba_core::env::real::turns::SharedTurns;
use alba_core::env::{DeviceTurns, Env, Listener, NoTurns, within};
use anyhow::Context as _;

use crate::config::{AsdSection, Config};
use crate::engine::{Engine, EngineParts, FjallIndex, OpenError};
use crate::home::Home;
use crate::server::{Exposure, Server, ServerLimits, Service, ServiceLimits};
use crate::state::FileSystem;
use announce::Announcer;
use watch::{Announce, Watch};

/// How often metrics and health are brought up to date.
const WATCH: Duration = Duration::from_secs(1);

/// Between attempts to open a store that does not open.
const REOPEN: Duration = Duration::from_secs(3);

/// An opening that takes longer is told to clients; until then they wait in the listener's backlog.
const OPENING: Duration = Duration::from_secs(2);

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

    const GOES_BEFORE_ALL: bool = true;

    fn threads(processors: NonZero<usize>) -> Threads {
        // One disk's worth: others on this machine want theirs.
        Threads::one_for(processors.get(), 4, 2, 8)
    }

    fn check(config: &Config) -> Result<(), String> {
        config.asd.check()
    }

    fn metrics_listen(config: &Config) -> Option<SocketAddr> {
        config.asd.metrics_listen
    }

    async fn run(config: Config, context: Context) -> anyhow::Result<()> {
        let Context { env, stop, health, mut changes, pages: _ } = context;
        let mut section = config.asd;
        raise_open_files();
        let home = Home::open(
            &section.data_dir,
            section.long_id.as_ref(),
            &section.place,
            section.auto_format,
            env.rng.as_ref(),
        )?;
        let limits = ServiceLimits {
            answers: section.max_in_flight_bytes,
            schedule: section.schedule(),
            ..ServiceLimits::default()
        };
        let service = Service::beside_others(env.clone(), limits, turns(home.directory()));
        let peers = home.peers();
        service.peers().keep_in(&peers).with_context(|| format!("cannot read {}", peers.display()))?;
        let identity = home.identity.clone();
        let mut watch = Watch::new(
            env.clone(),
            health,
            service.clone(),
            identity,
            home.directory().to_owned(),
            section.segment_bytes,
        );
        watch.warnings = warnings(&section);
        let listener = env.net.listen(section.listen).await?;
        let address = listener.local_addr().context("cannot tell the address it listens on")?;
        watch.announce = announce(&section, address);
        let server =
            Server::new(env.clone(), home.identity.long_id.clone(), service.clone(), limits_of(&section)?);
        let exposure = section.exposure();
        let certified = listen_to_members(&env, &section).await?;
        let mut idle = Some((server, listener, certified));
        let mut serve = || {
            let (server, listener, certified) = idle.take()?;
            // Who has a certificate of the cluster may do everything.
            let certified = certified.map(|listener| {
                let serving = Box::pin(server.clone().serve_to(listener, Exposure::Trusted));
                env.spawn.spawn("asd quic server", serving).abort_on_drop()
            });
            let serving = Box::pin(server.serve_to(listener, exposure));
            Some((env.spawn.spawn("asd server", serving).abort_on_drop(), certified))
        };
        let work = async {
            let mut accepting = None;
            let mut opening = Box::pin(open_until_it_works(&env, &home, &section, &service));
            let opened = loop {
                match within(env.clock.as_ref(), env.deadline_in(OPENING), &mut opening).await {
                    Ok(opened) => break opened?,
                    // It is told to clients, and shown.
                    Err(_) => {
                        accepting = accepting.or_else(&mut serve);
                        watch.look().await;
                    }
                }
            };
            drop(opening);
            service.set_engine(Ok(opened.clone()));
            let _accepting = accepting.or_else(&mut serve);
            let long_id = &home.identity.long_id;
            tracing::info!(%long_id, %address, ?exposure, data_dir = %section.data_dir.display(), "serving");
            loop {
                watch.look().await;
                let wait = env.clock.sleep_until(env.clock.now().plus(WATCH));
                tokio::select! {
                    biased;
                    changed = changes.next::<Config>() => {
                        let found = watch.file_system().await;
                        reload(&mut section, &changed.asd, &opened, &service, found);
                    }
                    () = wait => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.wait() => {}
            ended = Box::pin(work) => {
                let ended: anyhow::Result<()> = ended;
                ended?;
            }
        }
        if let Some(engine) = service.take_engine() {
            engine.close(env.deadline_in(CLOSE)).await;
        }
        Ok(())
    }
}

/// The listener for the cluster's members, when there is to be one.
async fn listen_to_members(env: &Env, section: &AsdSection) -> anyhow::Result<Option<Box<dyn Listener>>> {
    let (Some(at), Some((authority, certificate, key))) = (section.quic_listen, section.tls_files()) else {
        return Ok(None);
    };
    let identity = quic::Identity::read(authority, certificate, key)?;
    let limits = quic::QuicLimits::default();
    let listener = quic::listen(env.clock.clone(), &identity, at, quic::ASD, &limits).await?;
    tracing::info!(%at, "serving members of the cluster over QUIC");
    Ok(Some(listener))
}

/// The turns of the device that `directory` is on. Without them it is only that clients wait a little longer.
fn turns(directory: &Path) -> Arc<dyn DeviceTurns> {
    match SharedTurns::of(directory) {
        Ok(Some(turns)) => return Arc::new(turns),
        Ok(None) => tracing::debug!("the data directory is on no block device: no turns with others"),
        Err(error) => tracing::debug!(%error, "no turns with others on the same device"),
    }
    Arc::new(NoTurns)
}

/// What an operator should know at the start.
fn warnings(section: &AsdSection) -> Vec<String> {
    let mut warnings = Vec::new();
    if section.insecure_listen && !section.listen.ip().is_loopback() {
        warnings.push(format!(
            "insecure_listen: who reaches {} can read and write everything, without authentication",
            section.listen
        ));
    }
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if section.exposure() == Exposure::DirectReads {
        tracing::info!(
            listen = %section.listen,
            "others can reach this port: it serves GetVersion, PartialGet and Capabilities only"
        );
    }
    warnings
}

/// As many files as the system allows: each connection is one, each open segment, too. Where it is refused, what there
/// is has to do: a connection that cannot be accepted is logged.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, ?current, "cannot raise the number of open files");
    }
}

fn announce(section: &AsdSection, address: SocketAddr) -> Option<Announce> {
    let every = Duration::from_secs(section.multicast_seconds?.into());
    match Announcer::open(address) {
        Ok(announcer) => Some(Announce { announcer, every, address, last: None }),
        Err(error) => {
            tracing::warn!(%error, "this ASD cannot be announced by multicast");
            None
        }
    }
}

fn limits_of(section: &AsdSection) -> anyhow::Result<ServerLimits> {
    Ok(ServerLimits {
        connections: section.max_connections,
        frame: usize::try_from(section.segment_bytes + FRAME_SLACK)?,
        request_bytes: usize::try_from(section.max_in_flight_bytes + FRAME_SLACK)?,
        ..ServerLimits::default()
    })
}

/// Opens the store. While it does not open that is a state: it is tried again, and clients are told.
async fn open_until_it_works(
    env: &Env,
    home: &Home,
    section: &AsdSection,
    service: &Service,
) -> Result<Arc<Engine>, OpenError> {
    service.set_engine(Err(
        "it is starting: the store is being opened, and its index perhaps made again".into()
    ));
    loop {
        match open(env, home, section).await {
            Ok(engine) => return Ok(engine),
            // Waiting does not help.
            Err(error @ OpenError::Version { .. }) => return Err(error),
            Err(error) => {
                let reason = format!("the store does not open: {error}");
                tracing::error!("{reason}; it is tried again");
                service.set_engine(Err(reason));
                env.clock.sleep_until(env.clock.now().plus(REOPEN)).await;
            }
        }
    }
}

async fn open(env: &Env, home: &Home, section: &AsdSection) -> Result<Arc<Engine>, OpenError> {
    let parts = parts(env, home, section.index_cache_bytes, section.io())?;
    let (_, total) = parts.disk.space().await?;
    let (engine, opening) = Engine::open(parts, section.engine(total)).await?;
    tracing::info!(replayed = opening.replayed, rebuilt = opening.rebuilt, "store opened");
    Ok(Arc::new(engine))
}

/// Applies what can change live of a configuration that was read again.
fn reload(
    current: &mut AsdSection,
    new: &AsdSection,
    engine: &Engine,
    service: &Service,
    file_system: Option<FileSystem>,
) {
    service.gate().set_limits(new.schedule());
    let total = file_system.map_or_else(|| engine.usage().capacity.get(), |found| found.total_bytes);
    let capacity = new.capacity(total);
    engine.set_capacity(capacity);
    engine.set_rates(new.compaction_bytes_per_second, new.scrub_bytes_per_second);
    tracing::info!(capacity, ?new.maintenance_in_flight_bytes, "configuration reloaded");
    let live = AsdSection {
        capacity_bytes: new.capacity_bytes,
        capacity_percent: new.capacity_percent,
        disk_in_flight_bytes: new.disk_in_flight_bytes,
        maintenance_in_flight_bytes: new.maintenance_in_flight_bytes,
        compaction_bytes_per_second: new.compaction_bytes_per_second,
        scrub_bytes_per_second: new.scrub_bytes_per_second,
        ..current.clone()
    };
    if live != *new {
        tracing::warn!("other keys of the section asd changed: they take effect at the next start");
    }
    *current = live;
}

/// What the engine of a data directory uses.
pub(crate) fn parts(
    env: &Env,
    home: &Home,
    index_cache_bytes: u64,
    io: IoConfig,
) -> std::io::Result<EngineParts> {
    let disk = RealDisk::with(home.segments(), io)?;
    tracing::debug!(mode = ?disk.mode(), "disk opened");
    Ok(EngineParts {
        disk: Arc::new(disk),
        index: Arc::new(FjallIndex { directory: home.index(), cache_bytes: index_cache_bytes }),
        clock: env.clock.clone(),
        bulk: env.bulk.clone(),
        spawn: env.spawn.clone(),
        store: home.store,
    })
}
