//! A group's directory of a backup, while no server uses it.

use std::path::Path;
use std::sync::Arc;

use alba_core::env::{Env, blocking, files};
use alba_core::kv::Kv;
use anyhow::{Context as _, bail};

use super::file::{Verified, load, verify};
use crate::daemon::{MetadataConfig, REPLICA, StatesIn, home};
use crate::raft::seed::seed;
use crate::raft::{Home, States};

/// Restores `backup` as the group that it is of, into the data directory that `config` names. In this order: everything is
/// verified; the group is made beside its place; it gets there by its name. A crash before that leaves nothing that a
/// server takes for a group.
pub(crate) async fn restore(env: &Env, config: &MetadataConfig, backup: &Path) -> anyhow::Result<Verified> {
    let verified = {
        let backup = backup.to_owned();
        blocking(env.spawn.as_ref(), move || verify(&backup)).await??
    };
    let group = &verified.description.group;
    if !config.groups.contains(group) {
        bail!("the backup is of group {group}, which the configuration does not host");
    }
    let place = config.data_dir.join(group.as_str());
    if place.exists() && (!place.is_dir() || std::fs::read_dir(&place)?.next().is_some()) {
        bail!("{} is not empty: move it away first", place.display());
    }
    // A group's name has no dot.
    let beside = config.data_dir.join(format!("{group}.restoring"));
    remove(&beside)?;
    let made = make(env, config, backup, &beside, &verified).await;
    if let Err(error) = made {
        drop(remove(&beside));
        return Err(error);
    }
    if place.exists() {
        remove(&place)?;
    }
    files::rename_durably(&beside, &place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(verified)
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match files::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

async fn make(
    env: &Env,
    config: &MetadataConfig,
    backup: &Path,
    beside: &Path,
    verified: &Verified,
) -> anyhow::Result<()> {
    files::create_dir_all(beside).with_context(|| format!("cannot create {}", beside.display()))?;
    let replicated = !config.nodes.is_empty();
    let kv: Arc<dyn Kv> = {
        let (backup, beside, memory) = (backup.to_owned(), beside.to_owned(), config.memory());
        let wanted = verified.description.clone();
        let fill = move || -> anyhow::Result<Arc<dyn Kv>> {
            let kv: Arc<dyn Kv> = if replicated {
                StatesIn { directory: beside, memory }.open(1)?
            } else {
                Arc::new(memory.open(&beside)?)
            };
            if load(&backup, kv.as_ref())? != wanted {
                bail!("the backup changed while it was read");
            }
            Ok(kv)
        };
        blocking(env.spawn.as_ref(), fill).await??
    };
    if replicated {
        let advertise = config.advertise.unwrap_or(config.listen).to_string();
        let others: Vec<String> = config.nodes.iter().map(ToString::to_string).collect();
        let home: Home = home(beside, config.memory())?;
        let position = (verified.description.term, verified.description.applied);
        seed(env, &home, kv, position, &advertise, &others).await?;
        debug_assert!(beside.join(REPLICA).is_dir());
    }
    Ok(())
}
