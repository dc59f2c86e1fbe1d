//! Backups that the leader of a group makes by itself. When the next is due is told by the names of those that are there:
//! neither a restart nor another leader with the same directory makes one too soon.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Env, blocking, files};
use alba_core::ids::GroupId;
use alba_core::kv::KvError;
use alba_core::wire::rpc::Consistency;

use super::file::Draft;
use super::make;
use crate::model::Model;
use crate::replicator::{ReplicationError, Replicator};

/// What a server is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Where backups go.
    pub(crate) directory: PathBuf,
    /// Between two.
    pub(crate) every: Duration,
    /// So many are kept of a group.
    pub(crate) keep: usize,
}

/// After a failure.
const RETRY: Duration = Duration::from_secs(60);

/// For one backup.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// `GROUP-MICROSECONDS.backup`: names of one group sort by time.
fn name(group: &GroupId, taken: u64) -> String {
    format!("{group}-{taken:020}.backup")
}

/// The times of the finished backups of a group, oldest first.
fn found(directory: &Path, group: &GroupId) -> std::io::Result<Vec<u64>> {
    let prefix = format!("{group}-");
    let mut times = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let file = entry?.file_name();
        let middle = file.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".backup"));
        // Of a group whose name goes on after ours the rest is no number of 20 digits.
        if let Some(Ok(time)) = middle.filter(|middle| middle.len() == 20).map(str::parse) {
            times.push(time);
        }
    }
    times.sort_unstable();
    Ok(times)
}

/// Makes backups as long as it runs: while the group is led from here.
pub(crate) async fn run<M: Model>(
    env: Env,
    group: GroupId,
    replicator: Arc<dyn Replicator<M>>,
    schedule: Schedule,
) {
    loop {
        let pause = match step(&env, &group, replicator.as_ref(), &schedule).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::error!(%group, error, "no backup was made");
                metrics::counter!("alba_backup_failures", "group" => group.to_string()).increment(1);
                RETRY
            }
        };
        env.clock.sleep_until(env.clock.now().plus(pause)).await;
    }
}

/// Makes a backup if it is time; how long to wait then.
async fn step<M: Model>(
    env: &Env,
    group: &GroupId,
    replicator: &dyn Replicator<M>,
    schedule: &Schedule,
) -> Result<Duration, String> {
    let times = {
        let (directory, group) = (schedule.directory.clone(), group.clone());
        let look = move || {
            files::create_dir_all(&directory)?;
            found(&directory, &group)
        };
        blocking(env.spawn.as_ref(), look).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?
    };
    let now = env.clock.wall_micros();
    let age = times.last().map(|last| Duration::from_micros(now.saturating_sub(*last)));
    if let Some(age) = age.filter(|age| *age < schedule.every) {
        return Ok(schedule.every.saturating_sub(age));
    }
    make(env, group, replicator, schedule, now).await.map_err(|error| error.to_string())?;
    Ok(schedule.every)
}

async fn make<M: Model>(
    env: &Env,
    group: &GroupId,
    replicator: &dyn Replicator<M>,
    schedule: &Schedule,
    now: u64,
) -> Result<(), ReplicationError> {
    let (schedule, group) = (schedule.clone(), group.clone());
    let work = move |view: &dyn alba_core::kv::KvRead| {
        let failed = |error: &dyn std::fmt::Display| KvError::Io(error.to_string());
        let path = schedule.directory.join(name(&group, now));
        let mut draft = Draft::create(&path).map_err(|error| failed(&error))?;
        let mut written = Ok(());
        make::pieces(view, &group, now, &mut |piece| {
            written = draft.write(&piece);
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        written.map_err(|error| failed(&error))?;
        let verified = draft.finish().map_err(|error| failed(&error))?;
        tracing::info!(%group, path = %path.display(), rows = verified.rows, "a backup was made");
        // Only now: there is always a good one.
        let times = found(&schedule.directory, &group).map_err(|error| failed(&error))?;
        let too_many = times.len().saturating_sub(schedule.keep);
        for old in times.into_iter().take(too_many) {
            let old = schedule.directory.join(name(&group, old));
            files::remove_file(&old).map_err(|error| failed(&error))?;
        }
        Ok(())
    };
    let deadline = env.deadline_in(LONGEST);
    replicator.read(Box::new(work), Consistency::Linearizable, deadline).await.map(|_| ())
}
