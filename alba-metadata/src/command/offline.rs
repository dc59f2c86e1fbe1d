//! What is done with backups and with data directories of servers that do not run; checks and exports also of those that do.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alba_core::env::real::disk::{IoConfig, RealDisk};
use alba_core::env::{Env, blocking, files};
use alba_core::ids::GroupId;
use alba_core::kv::Kv;
use alba_core::wire::rpc::admin::StreamKind;
use anyhow::{Context as _, bail};
use clap::Args;

use super::online::{Servers, Source};
use super::{configuration, of_file, say};
use crate::backup::{ModelKind, OldGroup, check, export, file, restore};
use crate::daemon::{MetadataConfig, REPLICA, StatesIn, lock};
use crate::raft::States;
use crate::raft::seed::state_of;

/// Make a group of a backup, in the data directory of a server that does not run
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba-metadata restore --config /etc/alba/metadata.toml --group nsm-0 /backup/nsm-0.backup\n\n\
    What happened in the group after the backup is lost. With `nodes` in the configuration the server is the group's only \
    voter at first; start the others with nothing of the group in their data directories."
)]
pub(super) struct Restore {
    /// Configuration of the server that shall have the group
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The group; must be the backup's
    #[arg(long)]
    group: GroupId,
    /// The backup
    file: PathBuf,
}

impl Restore {
    pub(super) async fn run(self, env: &Env) -> anyhow::Result<bool> {
        let verified = restore_file(env, &self.config, &self.group, &self.file).await?;
        say(&format!("group {}: {} rows restored", self.group, verified.rows));
        Ok(true)
    }
}

/// Makes `group` of a backup in the data directory of the server that the configuration file `config` is of. The server must not
/// run and must have nothing of the group.
pub async fn restore_file(
    env: &Env,
    config: &Path,
    group: &GroupId,
    file: &Path,
) -> anyhow::Result<file::Verified> {
    let config = configuration(config)?;
    files::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot create data_dir {}", config.data_dir.display()))?;
    let _lock = lock(&config.data_dir)?;
    let of = of_file(file, file::verify(file))?.description.group;
    if of != *group {
        bail!("{} is a backup of group {of}, not of {group}", file.display());
    }
    let restored = restore::restore(env, &config, file).await;
    restored.with_context(|| file.display().to_string())
}

/// Where a state is read from.
#[derive(Debug, Args)]
struct State {
    /// Configuration of a metadata server that does not run, or, with --online, of one that does
    #[arg(long, value_name = "FILE", required_unless_present_any = ["backup", "server"])]
    config: Option<PathBuf>,
    /// A backup instead of a data directory
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "online", "server"])]
    backup: Option<PathBuf>,
    /// Ask the servers while they run
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    servers: Servers,
    /// The group; without it all of the configuration
    #[arg(long)]
    group: Option<GroupId>,
}

/// A state that was opened.
struct Opened {
    group: GroupId,
    kv: Arc<dyn Kv>,
    /// What it is of, when it is no data directory.
    _old: Option<OldGroup>,
}

impl State {
    /// Asks servers? Then which, and for which groups.
    fn online(&self, env: &Env) -> anyhow::Result<Option<(Source, Vec<GroupId>)>> {
        if !self.online && !self.servers.is_named() {
            return Ok(None);
        }
        let groups = match (&self.group, &self.config) {
            (Some(group), _) => vec![group.clone()],
            (None, Some(config)) => configuration(config)?.groups,
            (None, None) => bail!("which group? Give --group"),
        };
        Ok(Some((Source::new(env, self.config.as_ref(), &self.servers)?, groups)))
    }

    /// Hands each state to `each`; a data directory is locked meanwhile.
    async fn each(&self, env: &Env, each: fn(&Opened) -> anyhow::Result<bool>) -> anyhow::Result<bool> {
        if let Some(path) = &self.backup {
            let path = path.clone();
            let work = move || each(&of_backup(&path)?);
            return blocking(env.spawn.as_ref(), work).await?;
        }
        let Some(path) = &self.config else { bail!("give --config or --backup") };
        let config = configuration(path)?;
        if !config.data_dir.is_dir() {
            bail!("data_dir {} is not there", config.data_dir.display());
        }
        let _lock = lock(&config.data_dir)?;
        let mut well = true;
        for group in config.groups.iter().filter(|group| self.group.as_ref().is_none_or(|one| one == *group))
        {
            let opened = of_directory(env, &config, group).await?;
            well &= blocking(env.spawn.as_ref(), move || each(&opened)).await??;
        }
        Ok(well)
    }
}

/// A backup's rows in a store beside it.
fn of_backup(path: &Path) -> anyhow::Result<Opened> {
    let mut name = path.file_name().context("no file name")?.to_owned();
    name.push(".scratch");
    let old = of_file(path, OldGroup::open(path, path.with_file_name(name)))?;
    Ok(Opened { group: old.description().group.clone(), kv: old.kv().clone(), _old: Some(old) })
}

/// The store of a group, which must be there.
async fn of_directory(env: &Env, config: &MetadataConfig, group: &GroupId) -> anyhow::Result<Opened> {
    let directory = config.data_dir.join(group.as_str());
    if !directory.is_dir() {
        bail!("{} is not there", directory.display());
    }
    let files = directory.join(REPLICA);
    let memory = config.memory();
    let state = if files.is_dir() {
        let io = IoConfig { threads: 1, buffer_bytes: 1 << 20, ..IoConfig::default() };
        let state = state_of(&RealDisk::with(files, io)?).await?;
        Some(state.with_context(|| format!("{} holds no replica yet", directory.display()))?)
    } else {
        None
    };
    let open = move || match state {
        Some(state) => StatesIn { directory, memory }.open(state),
        None => memory.open(&directory).map(|kv| Arc::new(kv) as Arc<dyn Kv>),
    };
    let kv = blocking(env.spawn.as_ref(), open).await??;
    Ok(Opened { group: group.clone(), kv, _old: None })
}

/// Make every counter and index of a group again and say which differ
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba-metadata fsck --config /etc/alba/metadata.toml\n  alba-metadata fsck --backup /backup/nsm-0.backup\n  \
    alba-metadata fsck --online --config /etc/alba/metadata.toml --group nsm-0\n\nOne JSON line for each difference; exit code 1 \
    when there are any. Needs memory for the keys of the largest namespace, with --online on the server."
)]
pub(super) struct Fsck {
    #[command(flatten)]
    state: State,
}

impl Fsck {
    pub(super) async fn run(self, env: &Env) -> anyhow::Result<bool> {
        let Some((source, groups)) = self.state.online(env)? else {
            return self.state.each(env, fsck).await;
        };
        let mut well = true;
        for group in groups {
            let differences = source.print(&group, StreamKind::Check).await?;
            conclude(&group, differences);
            well &= differences == 0;
        }
        Ok(well)
    }
}

/// For people; lines for programs are on standard output.
#[allow(clippy::print_stderr, reason = "a command's word to whoever gave it")]
fn conclude(group: &GroupId, differences: usize) {
    eprintln!("group {group}: {differences} differences");
}

fn fsck(state: &Opened) -> anyhow::Result<bool> {
    let view = state.kv.snapshot()?;
    let lines = check(ModelKind::of(&state.group), view.as_ref())?;
    lines.iter().for_each(|line| say(line));
    conclude(&state.group, lines.len());
    Ok(lines.is_empty())
}

/// Write a group as JSON lines
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba-metadata export --backup /backup/nsm-0.backup | jq .\n\nFor people: nothing reads it back."
)]
pub(super) struct Export {
    #[command(flatten)]
    state: State,
}

impl Export {
    pub(super) async fn run(self, env: &Env) -> anyhow::Result<bool> {
        let Some((source, groups)) = self.state.online(env)? else {
            return self.state.each(env, print).await;
        };
        for group in groups {
            source.print(&group, StreamKind::Export).await?;
        }
        Ok(true)
    }
}

fn print(state: &Opened) -> anyhow::Result<bool> {
    use std::io::Write;
    let view = state.kv.snapshot()?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    export(ModelKind::of(&state.group), view.as_ref(), &mut |line| {
        written = writeln!(out, "{line}");
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    match written.and_then(|()| out.flush()) {
        // `| head`.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(true),
    }
}
