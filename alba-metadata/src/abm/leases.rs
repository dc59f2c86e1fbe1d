//! Who does what: leases on tasks, which agents are there, and the configuration they go by (features §3.2, §3.11).
//!
//! Leases run out by the ABM's own time, which only grows and is the leader's clock when that is ahead. When that clock
//! jumps, a lease ends early or late; so its end only lets another agent begin, and what agents do is harmless when
//! two do it. Tokens grow from one holder to the next for what is not.

use alba_core::ids::{AgentId, TaskName};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::abm::{
    AbmError, AbmOutcome, LeaseRecord, MaintenanceConfig, MaintenanceUpdate, ParticipantRecord,
};

use super::revisions::{self, Kind};
use super::{MAX_RECORD, Refused, keys, refuse};
use crate::txn::KvTxn;
use crate::value::{decode, encode, load, save, scan_prefix};

/// Longest lease, in microseconds: one hour. Who needs longer renews.
const PERIOD_MAX: u64 = 3600 * 1_000_000;

/// An agent that has not been heard of for so long (microseconds) is gone: it registers every 10 s (features §3.2).
const PARTICIPANT_AGE: u64 = 60 * 1_000_000;

/// Most agents: each registers anew at every start.
const PARTICIPANTS_MAX: usize = 1000;

/// Longest role and description, in bytes.
const TEXT_MAX: usize = 256;

/// The end of a lease.
pub(super) fn until(now: Timestamp, period: u64) -> Result<u64, Refused> {
    if (1..=PERIOD_MAX).contains(&period) {
        return Ok(now.0.saturating_add(period));
    }
    refuse(AbmError::BadArgument(format!("a lease lasts 1 to {PERIOD_MAX} microseconds")))
}

/// A token larger than all before.
pub(super) fn next_token(txn: &mut KvTxn<'_>) -> Result<u64, KvError> {
    txn.add(keys::TOKEN, 1)?;
    crate::txn::counter(txn, keys::TOKEN)
}

pub(super) fn acquire(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    task: &TaskName,
    agent: &AgentId,
    period: u64,
) -> Result<AbmOutcome, Refused> {
    let expires = until(now, period)?;
    let token = match load::<LeaseRecord>(txn, &keys::lease(task))? {
        Some(lease) if lease.expires > now.0 && lease.agent != *agent => {
            return refuse(AbmError::LeaseMismatch { task: task.clone(), holder: lease.agent.to_string() });
        }
        Some(lease) if lease.expires > now.0 => lease.token,
        _ => next_token(txn)?,
    };
    let lease = LeaseRecord { task: task.clone(), agent: agent.clone(), token, expires };
    save(txn, keys::lease(task), &lease)?;
    Ok(AbmOutcome::Lease(lease))
}

/// The lease, if the token is the newest: also one that ran out, as long as nobody else took the task.
pub(super) fn held(txn: &KvTxn<'_>, task: &TaskName, token: u64) -> Result<LeaseRecord, Refused> {
    match load::<LeaseRecord>(txn, &keys::lease(task))? {
        Some(lease) if lease.token == token => Ok(lease),
        Some(lease) => {
            refuse(AbmError::LeaseMismatch { task: task.clone(), holder: lease.agent.to_string() })
        }
        None => refuse(AbmError::LeaseMismatch { task: task.clone(), holder: "nobody".to_owned() }),
    }
}

pub(super) fn renew(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    task: &TaskName,
    token: u64,
    period: u64,
) -> Result<AbmOutcome, Refused> {
    let lease = LeaseRecord { expires: until(now, period)?, ..held(txn, task, token)? };
    save(txn, keys::lease(task), &lease)?;
    Ok(AbmOutcome::Lease(lease))
}

pub(super) fn release(txn: &mut KvTxn<'_>, task: &TaskName, token: u64) -> Result<AbmOutcome, Refused> {
    held(txn, task, token)?;
    txn.delete(keys::lease(task));
    Ok(AbmOutcome::Done)
}

pub(super) fn register(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    agent: &AgentId,
    role: &str,
    about: &str,
) -> Result<AbmOutcome, Refused> {
    if role.len() > TEXT_MAX || about.len() > TEXT_MAX {
        return refuse(AbmError::BadArgument(format!("role and description have at most {TEXT_MAX} bytes")));
    }
    let mut others = participants(txn)?;
    for old in &others {
        if now.0.saturating_sub(old.seen) > PARTICIPANT_AGE {
            txn.delete(keys::participant(&old.agent));
        }
    }
    others.retain(|old| old.agent != *agent && now.0.saturating_sub(old.seen) <= PARTICIPANT_AGE);
    if others.len() >= PARTICIPANTS_MAX {
        return refuse(AbmError::BadArgument(format!("there are {PARTICIPANTS_MAX} agents already")));
    }
    let (role, about) = (role.to_owned(), about.to_owned());
    let record = ParticipantRecord { agent: agent.clone(), role, about, seen: now.0 };
    save(txn, keys::participant(agent), &record)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn participants(store: &(impl KvRead + ?Sized)) -> Result<Vec<ParticipantRecord>, KvError> {
    let entries = scan_prefix(store, keys::PARTICIPANTS, usize::MAX)?;
    entries.into_iter().map(|(_, value)| decode(&value)).collect()
}

pub(super) fn maintenance(store: &(impl KvRead + ?Sized)) -> Result<MaintenanceConfig, KvError> {
    Ok(load(store, keys::MAINTENANCE)?.unwrap_or_default())
}

pub(super) fn update_maintenance(
    txn: &mut KvTxn<'_>,
    update: &MaintenanceUpdate,
) -> Result<AbmOutcome, Refused> {
    let old = maintenance(txn)?;
    let mut config = old.clone();
    config.merge(update);
    if config == old {
        return Ok(AbmOutcome::Done);
    }
    let value = encode(&config)?;
    if value.len() > MAX_RECORD {
        return refuse(AbmError::BadArgument("too many nodes or cache prefixes".to_owned()));
    }
    txn.put(keys::MAINTENANCE, value);
    revisions::bump(txn, Kind::Maintenance)?;
    Ok(AbmOutcome::Done)
}
