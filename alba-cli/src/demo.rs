//! `alba demo`: a cluster of its own that stores files, loses storage daemons, and still reads everything back.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alba_client::{Client, Consistency};
use alba_core::env::{Deadline, Env, Moment, files};
use alba_core::ids::{NamespaceName, ObjectName};
use alba_core::units::ByteCount;
use alba_proxy::client::ProxyClient;
use clap::Args;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng as _, RngExt as _};
use serde_json::json;

use crate::answer::{Answer, note};
use crate::client_file::ClientFile;
use crate::error::CliError;
use crate::progress;
use crate::session::Session;
use crate::table::table;
use crate::up::plan::ShapeArgs;
use crate::up::{Cluster, Up};

/// Sizes around the limits of fragments, chunks and blocks, and one that takes a moment.
const SIZES: [usize; 8] = [0, 1, 4095, (1 << 20) - 1, 5 << 20, (5 << 20) + 1, 12_345_678, 64 << 20];

/// Slices read of each object.
const SLICES: usize = 20;

/// Longest slice in bytes: what volume drivers ask for at most.
const LONGEST_SLICE: usize = 256 << 10;

/// Of each transfer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Store files, kill storage daemons, read everything back: a tour of two minutes at most
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba demo")]
pub(crate) struct Demo {
    /// Keep everything here instead of in a temporary directory that is removed at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// What was done, and how it went.
struct Step {
    what: String,
    result: String,
    took: Duration,
}

/// A stored file.
struct Stored {
    name: ObjectName,
    bytes: Vec<u8>,
}

impl Demo {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let env = &session.env;
        let (dir, temporary) = match self.data_dir {
            Some(dir) => (dir, false),
            None => (std::env::temp_dir().join(format!("alba-demo-{:016x}", env.rng.u64())), true),
        };
        let up = Up {
            data_dir: dir.clone(),
            shape: free_ports(env).await?,
            // What is killed is to stay down until the demo starts it again.
            no_restart: true,
            detach: false,
            detached: false,
            die_with_parent: false,
        };
        let mut interrupted = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
            .map_err(|error| CliError::failure(error.to_string()))?;
        let toured = tokio::select! {
            biased;
            _ = interrupted.recv() => Err(CliError::failure("interrupted")),
            toured = tour(&up, session) => toured,
        };
        if temporary {
            files::remove_dir_all(&dir).map_err(|error| CliError::file("remove", &dir, &error))?;
        }
        report(&toured?)
    }
}

/// The whole tour. Dropping it half way kills the cluster.
async fn tour(up: &Up, session: &Session) -> Result<Vec<Step>, CliError> {
    let mut log = Log { env: session.env.clone(), steps: Vec::new(), since: session.env.clock.now() };
    let mut cluster = Cluster::start(up, &session.env).await?;
    log.done(
        "start a cluster",
        format!("{} processes, 12 storage daemons on 4 nodes", cluster.ready.processes.len()),
    );
    let toured = with_cluster(&mut cluster, up, session, &mut log).await;
    cluster.stop().await;
    toured?;
    log.done("stop the cluster", "all processes gone".to_owned());
    Ok(log.steps)
}

async fn with_cluster(
    cluster: &mut Cluster,
    up: &Up,
    session: &Session,
    log: &mut Log,
) -> Result<(), CliError> {
    let env = &session.env;
    let mut rng = env.rng.generator();
    let proxy =
        *cluster.ready.proxies.first().ok_or_else(|| CliError::failure("the cluster has no proxy"))?;
    let desk = Desk { env, proxy, dir: up.data_dir.clone(), namespace: NamespaceName::new("demo")? };
    let mut stored = Vec::new();
    for (position, size) in SIZES.into_iter().enumerate() {
        stored.push(desk.store(&format!("file-{position}"), size, &mut rng).await?);
    }
    log.done("store files", format!("{} files, {}", stored.len(), total(&stored)));

    let client = session.client_of(ClientFile::read(&cluster.ready.config)?, desk.deadline()).await?;
    let spare = spare(&client, &desk, &stored).await?;
    let victims = victims(cluster, spare, &mut rng);
    for victim in &victims {
        cluster.kill(victim)?;
    }
    let names: Vec<&str> = victims.iter().map(String::as_str).collect();
    log.done("kill storage daemons (SIGKILL)", format!("{} of 12: {}", victims.len(), names.join(", ")));

    let slices = desk.check(&stored, &mut rng).await?;
    log.done("read everything without them", format!("{} and {slices} slices, all equal", total(&stored)));
    let more = desk.store("stored-meanwhile", 5 << 20, &mut rng).await?;
    stored.push(more);
    log.done("store one more file without them", ByteCount(5 << 20).to_string());
    for victim in &victims {
        cluster.start_again(victim, env).await?;
    }
    log.done("start them again", "all ready".to_owned());
    let slices = desk.check(&stored, &mut rng).await?;
    log.done("read everything again", format!("{} and {slices} slices, all equal", total(&stored)));
    Ok(())
}

fn total(stored: &[Stored]) -> ByteCount {
    stored.iter().map(|file| file.bytes.len()).sum::<usize>().into()
}

/// The table at the end.
fn report(steps: &[Step]) -> Result<Answer, CliError> {
    let seconds = |took: Duration| format!("{:.1} s", took.as_secs_f64());
    let rows = steps.iter().map(|step| vec![step.what.clone(), step.result.clone(), seconds(step.took)]);
    let text = table(&["STEP", "RESULT", ">TOOK"], rows.collect());
    let steps = steps
        .iter()
        .map(|step| json!({ "step": step.what, "result": step.result, "seconds": step.took.as_secs_f64() }));
    Answer::new(json!({ "steps": steps.collect::<Vec<_>>() }), text)
}

/// Writes down what was done, and shows it as it happens.
struct Log {
    env: Env,
    steps: Vec<Step>,
    since: Moment,
}

impl Log {
    fn done(&mut self, what: &str, result: String) {
        let now = self.env.clock.now();
        let took = now.since(self.since);
        self.since = now;
        note(&format!("{what}: {result}"));
        self.steps.push(Step { what: what.to_owned(), result, took });
    }
}

/// Stores and checks files through the proxy.
struct Desk<'e> {
    env: &'e Env,
    proxy: SocketAddr,
    dir: PathBuf,
    namespace: NamespaceName,
}

impl Desk<'_> {
    fn deadline(&self) -> Deadline {
        self.env.deadline_in(PATIENCE)
    }

    async fn connect(&self) -> Result<ProxyClient, CliError> {
        Ok(ProxyClient::connect(self.env, self.proxy, self.deadline()).await?)
    }

    fn file(&self, name: &str) -> Result<PathBuf, CliError> {
        let path = self.dir.join(name);
        std::path::absolute(&path).map_err(|error| CliError::file("find", &path, &error))
    }

    async fn store(&self, name: &str, size: usize, rng: &mut StdRng) -> Result<Stored, CliError> {
        let mut bytes = vec![0; size];
        rng.fill_bytes(&mut bytes);
        let path = self.file("demo.put")?;
        files::replace(&path, &bytes).map_err(|error| CliError::file("write", &path, &error))?;
        let object = ObjectName::new(name)?;
        let mut proxy = self.connect().await?;
        proxy.upload_object(&self.namespace, &object, &path, true, None, self.deadline()).await?;
        remove(&path)?;
        Ok(Stored { name: object, bytes })
    }

    /// Reads each object whole and in slices; says how many slices.
    async fn check(&self, stored: &[Stored], rng: &mut StdRng) -> Result<usize, CliError> {
        let bar = progress::bytes(total(stored).get(), "read and compare");
        let path = self.file("demo.got")?;
        let mut proxy = self.connect().await?;
        let mut slices = 0;
        for file in stored {
            let differs = |what: &str| CliError::failure(format!("{}: {what} read back differs", file.name));
            proxy.download_object(&self.namespace, &file.name, &path, true, self.deadline()).await?;
            let got = std::fs::read(&path).map_err(|error| CliError::file("read", &path, &error))?;
            if got != file.bytes {
                return Err(differs("what was"));
            }
            for (from, len) in cuts(file.bytes.len(), rng) {
                let wire = (i64::try_from(from).unwrap_or(i64::MAX), i32::try_from(len).unwrap_or(i32::MAX));
                let request = [(file.name.clone(), vec![wire])];
                let data = proxy.read_slices(&self.namespace, &request, true, self.deadline()).await?;
                if Some(data.as_ref()) != file.bytes.get(from..from + len) {
                    return Err(differs("a slice"));
                }
                slices += 1;
            }
            bar.inc(ByteCount::from(file.bytes.len()).get());
        }
        bar.finish_and_clear();
        remove(&path)?;
        Ok(slices)
    }
}

fn remove(path: &Path) -> Result<(), CliError> {
    files::remove_file(path).map_err(|error| CliError::file("remove", path, &error))
}

/// Random slices of an object of `size` bytes.
fn cuts(size: usize, rng: &mut StdRng) -> Vec<(usize, usize)> {
    let count = if size == 0 { 0 } else { SLICES };
    let mut cuts = Vec::with_capacity(count);
    for _ in 0..count {
        let from = rng.random_range(0..size);
        cuts.push((from, rng.random_range(1..=(size - from).min(LONGEST_SLICE))));
    }
    cuts
}

/// How many storage daemons may go before some chunk has fewer fragments than it needs.
async fn spare(client: &Client, desk: &Desk<'_>, stored: &[Stored]) -> Result<usize, CliError> {
    let mut spare = usize::MAX;
    for file in stored {
        let fresh = Consistency::Consistent;
        let found = client.manifest(&desk.namespace, &file.name, fresh, desk.deadline()).await?;
        let found = found.ok_or_else(|| CliError::failure(format!("{} has vanished", file.name)))?;
        let k = found.manifest.scheme.shape.k();
        for chunk in &found.manifest.chunks {
            let fragments = chunk.fragments.iter().filter(|fragment| fragment.location.is_some()).count();
            spare = spare.min(fragments.saturating_sub(k));
        }
    }
    Ok(spare)
}

/// So many storage daemons, at random.
fn victims(cluster: &Cluster, count: usize, rng: &mut StdRng) -> Vec<String> {
    let mut names: Vec<String> =
        (0..cluster.ready.osds.len()).map(|position| format!("asd-{position}")).collect();
    names.shuffle(rng);
    names.truncate(count);
    names.sort();
    names
}

/// Ports that nobody has now, all in one row from a random place on.
async fn free_ports(env: &Env) -> Result<ShapeArgs, CliError> {
    // 12 storage daemons, a proxy, a metadata server, and the metrics of these and of the maintenance agent.
    const WANTED: u16 = 29;
    let mut rng = env.rng.generator();
    for _ in 0..50 {
        let base: u16 = rng.random_range(20_000..32_000);
        let mut free = true;
        for port in base..base + WANTED {
            free &= env.net.listen(SocketAddr::from(([127, 0, 0, 1], port))).await.is_ok();
        }
        if free {
            return Ok(ShapeArgs {
                asd_base_port: Some(base),
                proxy_port: Some(base + 12),
                metadata_base_port: Some(base + 13),
                metrics_base_port: Some(base + 14),
                ..ShapeArgs::default()
            });
        }
    }
    Err(CliError::failure(format!("no {WANTED} free ports in a row between 20000 and 32000")))
}
