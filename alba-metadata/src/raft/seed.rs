//! The first replica of a group that is made of a restored state: it alone votes, and the group's other addresses are
//! members under names that nobody has, so that empty servers there are taken in when they ask.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Disk, Env, blocking};
use alba_core::kv::Kv;
use openraft::storage::RaftLogStorage;
use openraft::{CommittedLeaderId, LogId, Membership, Vote};

use super::home::{Home, Record};
use super::log::{LogLimits, LogStore};
use super::state::{Applied, put_applied};
use super::types::{Replica, StoredMembership};

/// For the log to be closed.
const CLOSE: Duration = Duration::from_secs(60);

/// Which store of a home holds its state; none when it has no replica yet.
pub(crate) async fn state_of(files: &dyn Disk) -> io::Result<Option<u64>> {
    let bytes = super::home::read(files, super::home::RECORD).await?;
    Ok(match bytes {
        Some(bytes) => Some(super::home::unseal::<Record>(&bytes)?.state),
        None => None,
    })
}

/// Makes an empty home that of a replica whose state is in store 1, which `kv` is, and was filled before. `position` is the
/// term and index that the state had reached: the new group goes on after it.
pub(crate) async fn seed(
    env: &Env,
    home: &Home,
    kv: Arc<dyn Kv>,
    position: (u64, u64),
    address: &str,
    others: &[String],
) -> io::Result<()> {
    let name = || env.rng.u64().max(1);
    let id = name();
    // A term of its own: no replica of the old group can have voted in it under this name anyway.
    let term = position.0.saturating_add(1);
    let at = LogId::new(CommittedLeaderId::new(term, id), position.1.max(1));
    let mut nodes = BTreeMap::from([(id, Replica { address: address.to_owned() })]);
    for other in others.iter().filter(|other| *other != address) {
        nodes.insert(name(), Replica { address: other.clone() });
    }
    let membership = StoredMembership::new(Some(at), Membership::new(vec![BTreeSet::from([id])], nodes));
    let applied = Applied { log: Some(at), membership };
    blocking(env.spawn.as_ref(), move || put_applied(kv.as_ref(), &applied))
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
    let opened = LogStore::open(env.clone(), home.log.clone(), LogLimits::default()).await;
    let mut log = opened.map_err(io::Error::other)?.0;
    let voted = log.save_vote(&Vote::new(term, id)).await.map_err(io::Error::other);
    if !log.close(env.deadline_in(CLOSE)).await {
        return Err(io::Error::other("the log does not close"));
    }
    voted?;
    // Last: only with this record does anything here belong to a replica.
    home.save(Record { id, state: 1, complete: true }).await
}
