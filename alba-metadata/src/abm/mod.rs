//! The ABM: who and where (features §1.3 to §1.5, §2.2, §3.7). It never touches a device or a group: what they must learn
//! goes into the outbox, and its next step happens when delivery is marked.

mod care;
pub mod export;
mod groups;
mod jobs;
mod keys;
mod leases;
mod letters;
pub(crate) mod lifecycle;
mod links;
mod namespaces;
mod osds;
mod outbox;
mod presets;
pub mod rebuild;
mod recount;
mod revisions;
mod tasks;
#[cfg(test)]
mod tests;
mod walks;
mod work;

use alba_core::ids::{AlbaId, MessageId, NamespaceId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::range::PAGE_MAX;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery, Destination, Message, NamespaceRecord,
    NamespaceState, OsdMessage,
};
use alba_core::wire::rpc::nsm::NsmMessage;

use crate::machine::last_input;
use crate::model::{FIRST_FORMAT, Fault, Model};
use crate::txn::{KvTxn, counter};
use crate::value::{decode, encode, load, save};

pub use namespaces::name_aside;
pub(crate) use namespaces::{Move, Readiness, move_of, moves, readiness};
pub(crate) use osds::{Peers, by_id as osd_by_id, peers, peers_revision};
pub(crate) use outbox::{numbers as message_numbers, outgoing};
pub use recount::recount;
pub(crate) use revisions::watched;

type Refused = Fault<AbmError>;

/// Longest record taken, in bytes: messages carry them, and values stay below 90 KiB.
const MAX_RECORD: usize = 32 << 10;

/// The ABM's model.
pub struct Abm;

impl Abm {
    /// Is this a command that only the leader itself gives, because it says what happened outside?
    pub(crate) fn is_internal(command: &AbmCommand) -> bool {
        matches!(
            command,
            AbmCommand::MarkClaimed { .. }
                | AbmCommand::MarkForeign { .. }
                | AbmCommand::MarkDelivered { .. }
                | AbmCommand::MarkRefused { .. }
                | AbmCommand::MarkPeersTold { .. }
                | AbmCommand::FinishMove { .. }
                | AbmCommand::AbortMove { .. }
        )
    }
}

impl Model for Abm {
    type Command = AbmCommand;
    type Outcome = AbmOutcome;
    type Error = AbmError;
    type Query = AbmQuery;
    type Answer = AbmAnswer;

    fn apply(txn: &mut KvTxn<'_>, now: Timestamp, command: &AbmCommand) -> Result<AbmOutcome, Refused> {
        use AbmCommand as C;
        match command {
            C::Bootstrap { alba_id } => bootstrap(txn, alba_id),
            C::AddGroup { id, servers } => groups::add(txn, id, servers),
            C::CreateGroup { id, servers } => groups::create(txn, id, servers),
            C::UpdateGroup { id, servers, lost } => groups::update(txn, id, servers.as_deref(), *lost),
            C::ReportGroupLoad { id, load } => groups::report(txn, id, load),
            C::AddOsd(info) => osds::add(txn, info),
            C::UpdateOsd(info) => osds::update(txn, info),
            C::MarkClaimed { long_id } => osds::mark_claimed(txn, now, long_id),
            C::MarkForeign { long_id, owner } => osds::mark_foreign(txn, long_id, owner),
            C::DrainOsd { long_id } => osds::drain(txn, long_id, true),
            C::UndrainOsd { long_id } => osds::drain(txn, long_id, false),
            C::DecommissionOsd { long_id } => osds::decommission(txn, now, long_id),
            C::PurgeOsd { long_id } => osds::purge(txn, now, long_id),
            C::ReportOsds(reports) => osds::report(txn, now, reports),
            C::MarkPeersTold { osd, revision } => osds::peers_told(txn, *osd, *revision),
            C::CreatePreset { name, preset } => presets::create(txn, name, preset),
            C::SetDefaultPreset { name } => presets::set_default(txn, name),
            C::UpdatePreset { name, policies, fragment_size } => {
                presets::update(txn, name, policies.as_deref(), *fragment_size)
            }
            C::AddOsdsToPreset { name, osds } => presets::add_osds(txn, name, osds),
            C::DeletePreset { name } => presets::delete(txn, name),
            C::CreateNamespace { name, preset, group } => {
                namespaces::create(txn, name, preset.as_ref(), group.as_ref())
            }
            C::DeleteNamespace { name } => namespaces::delete(txn, name),
            C::TrashNamespace { name } => namespaces::trash(txn, now, name),
            C::UndeleteNamespace { name } => namespaces::undelete(txn, name),
            C::RecoverNamespace { name, group } => namespaces::recover(txn, name, group),
            C::FinishRecovery { name } => namespaces::finish_recovery(txn, name),
            C::StartMove { name, to } => namespaces::start_move(txn, name, to),
            C::FinishMove { name, to } => namespaces::finish_move(txn, name, to),
            C::AbortMove { name, to } => namespaces::abort_move(txn, name, to),
            C::MarkDelivered { destination, upto } => {
                for (id, message) in outbox::take(txn, destination, *upto)? {
                    delivered(txn, now, destination, id, &message)?;
                }
                Ok(AbmOutcome::Done)
            }
            C::MarkRefused { destination, id, reason } => {
                letters::refused(txn, now, destination, *id, reason)
            }
            C::RetryDeadLetter { destination, id } => letters::retry(txn, destination, *id),
            C::DropDeadLetter { destination, id, as_delivered } => {
                letters::drop_one(txn, now, destination, *id, *as_delivered)
            }
            C::AddWork(items) => work::add_all(txn, now, items),
            C::ClaimWork { agent, max, period } => work::claim(txn, now, agent, *max, *period),
            C::RenewWork { ids, token, period } => work::renew(txn, now, ids, *token, *period),
            C::FailWork { id, token, reason } => work::fail(txn, now, *id, *token, reason),
            C::MarkWorkCompleted(ids) => work::completed(txn, now, ids),
            C::StartJob { name, namespace, action, factor } => {
                jobs::start(txn, now, name, namespace, action, *factor)
            }
            C::UpdateJobProgress { name, leaf, expected, progress } => {
                jobs::update(txn, name, *leaf, expected, progress)
            }
            C::ClearJob { name } => jobs::clear(txn, name),
            C::AcquireLease { task, agent, period } => leases::acquire(txn, now, task, agent, *period),
            C::RenewLease { task, token, period } => leases::renew(txn, now, task, *token, *period),
            C::ReleaseLease { task, token } => leases::release(txn, task, *token),
            C::RegisterParticipant { agent, role, about } => leases::register(txn, now, agent, role, about),
            C::RemoveParticipant { agent } => {
                txn.delete(keys::participant(agent));
                Ok(AbmOutcome::Done)
            }
            C::UpdateMaintenance(update) => leases::update_maintenance(txn, update),
            C::ReportTask { task, token, report } => tasks::report(txn, now, task, *token, report),
            C::ForgetTask { task } => tasks::forget(txn, now, task),
            C::EmptyTrash { namespace } => namespaces::empty_trash(txn, now, *namespace),
            C::DiscardNamespace { name } => namespaces::discard(txn, now, name),
            C::PauseTask { task, paused } => tasks::pause(txn, task, *paused),
            C::MarkTask { task, token, mark } => tasks::mark(txn, task, *token, *mark),
            C::OpenWindow { target, period, reason } => care::open(txn, now, target, *period, reason),
            C::CloseWindow { target } => care::close(txn, target),
            C::ReportSurveys { task, token, surveys } => care::surveyed(txn, now, task, *token, surveys),
            C::ReportRepairs { task, token, failed, well } => {
                care::repaired(txn, now, task, *token, failed, well)
            }
            C::WakeUnrepaired { task, token } => care::wake(txn, now, task, *token),
        }
    }

    fn format_of(command: &AbmCommand) -> u8 {
        use AbmCommand as C;
        match command {
            C::MarkTask { .. }
            | C::OpenWindow { .. }
            | C::CloseWindow { .. }
            | C::ReportSurveys { .. }
            | C::ReportRepairs { .. }
            | C::WakeUnrepaired { .. } => 2,
            _ => FIRST_FORMAT,
        }
    }

    fn tidy(txn: &mut KvTxn<'_>) -> Result<bool, KvError> {
        walks::go_on(txn)
    }

    fn query(store: &dyn KvRead, query: &AbmQuery) -> Result<AbmAnswer, Refused> {
        use {AbmAnswer as A, AbmQuery as Q};
        Ok(match query {
            Q::AlbaId => A::AlbaId(alba_id(store)?),
            Q::Osds { filter, range } => A::Osds(osds::list(store, *filter, range)?),
            Q::Osd(long_id) => A::Osd(load(store, &keys::osd(long_id))?),
            Q::OsdHealth(range) => A::OsdHealth(osds::health(store, range)?),
            Q::OsdNamespaces { osd, after, max } => {
                A::NamespaceIds(osds::namespaces(store, *osd, *after, *max)?)
            }
            Q::Presets(range) => A::Presets(presets::list(store, range)?),
            Q::Preset(name) => A::Preset(presets::find(store, name)?),
            Q::PresetsPropagation => A::PresetsPropagation(walks::propagation(store)?),
            Q::Namespaces(range) => A::Namespaces(namespaces::list(store, range)?),
            Q::Namespace(name) => A::Namespace(load(store, &keys::namespace(name))?),
            Q::NamespaceOsds(id) => A::OsdIds(namespaces::delivered_osds(store, *id)?),
            Q::Groups => A::Groups(groups::all(store)?),
            Q::Messages { destination, max } => {
                let max = usize::try_from(*max).unwrap_or(usize::MAX).min(PAGE_MAX);
                A::Messages(outbox::oldest(store, destination, max)?)
            }
            Q::Queues => A::Queues(outbox::counts(store, keys::QUEUE_LENGTHS)?),
            Q::DeadLetterCounts => A::Queues(outbox::counts(store, keys::LETTER_COUNTS)?),
            Q::DeadLetters { destination, after, max } => {
                A::DeadLetters(letters::list(store, destination, *after, *max)?)
            }
            Q::WorkCount => A::WorkCount(counter(store, keys::WORK_COUNT)?),
            Q::Work { after, max } => A::Work(work::list(store, *after, *max)?),
            Q::Jobs(range) => A::Jobs(jobs::list(store, range)?),
            Q::JobProgress(name) => A::JobProgress(jobs::progress(store, name)?),
            Q::Lease(task) => A::Lease(load(store, &keys::lease(task))?),
            Q::Participants => A::Participants(leases::participants(store)?),
            Q::Maintenance => A::Maintenance(Box::new(leases::maintenance(store)?)),
            Q::Revisions => A::Revisions(revisions::all(store)?),
            Q::Tasks(range) => A::Tasks(tasks::list(store, range)?),
            Q::PausedTasks => A::PausedTasks(tasks::paused(store)?),
            Q::TaskMark(task) => A::TaskMark(load(store, &keys::mark(task))?),
            Q::Windows => {
                let now = last_input(store)?.0;
                A::Windows { now, windows: care::windows(store, now)? }
            }
            Q::Surveys { after, max } => {
                A::Surveys { now: last_input(store)?.0, page: care::surveys(store, *after, *max)? }
            }
            Q::Unrepaired { after, max } => {
                A::Unrepaired { now: last_input(store)?.0, page: care::unrepaired(store, *after, *max)? }
            }
        })
    }

    fn remember(outcome: &AbmOutcome) -> Result<Vec<u8>, KvError> {
        encode(outcome)
    }

    fn recall(_: &AbmCommand, kept: &[u8]) -> Result<AbmOutcome, KvError> {
        decode(kept)
    }
}

fn refuse<T>(error: AbmError) -> Result<T, Refused> {
    Err(Fault::Refused(error))
}

fn alba_id(store: &(impl KvRead + ?Sized)) -> Result<AlbaId, Refused> {
    match load(store, keys::ALBA_ID)? {
        Some(id) => Ok(id),
        None => refuse(AbmError::BadArgument("the backend has not been bootstrapped yet".to_owned())),
    }
}

fn bootstrap(txn: &mut KvTxn<'_>, alba_id: &AlbaId) -> Result<AbmOutcome, Refused> {
    if let Some(first) = load::<AlbaId>(txn, keys::ALBA_ID)? {
        return Ok(AbmOutcome::AlbaId(first));
    }
    save(txn, keys::ALBA_ID, alba_id)?;
    presets::bootstrap(txn)?;
    Ok(AbmOutcome::AlbaId(alba_id.clone()))
}

/// The next step after a message had its effect, or after a lost group was passed over.
fn delivered(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    destination: &Destination,
    id: MessageId,
    message: &Message,
) -> Result<(), Refused> {
    match (destination, message) {
        (Destination::Group(group), Message::Nsm(message)) => match message {
            NsmMessage::CreateNamespace { id, .. } => namespaces::created(txn, group, *id),
            NsmMessage::DeleteNamespace { id } => namespaces::removed(txn, group, *id),
            // A group that the namespace was taken from has no say any more: the new one hears of the link, too. And one
            // that it is being taken from may have passed over the message: whoever has it in the end hears it again.
            NsmMessage::LinkOsd { namespace, .. } | NsmMessage::UnlinkOsd { namespace, .. }
                if record_of(txn, *namespace)?.is_none_or(|record| {
                    record.group != *group || matches!(record.state, NamespaceState::Moving { .. })
                }) =>
            {
                Ok(())
            }
            NsmMessage::LinkOsd { namespace, osd, .. } => links::linked(txn, *namespace, *osd),
            NsmMessage::UnlinkOsd { namespace, osd } => links::unlinked(txn, now, *namespace, *osd, id),
            // Nothing follows these.
            NsmMessage::UpdatePreset { .. }
            | NsmMessage::UpdateOsd { .. }
            | NsmMessage::RecoverNamespace { .. }
            | NsmMessage::SetTrashed { .. }
            | NsmMessage::SetOsdUse { .. } => Ok(()),
        },
        (Destination::Osd(osd), Message::Osd(OsdMessage::AddNamespace { id, .. })) => {
            links::on_device(txn, now, *id, *osd)
        }
        (Destination::Osd(osd), Message::Osd(OsdMessage::RemoveNamespace { id })) => {
            links::unmarked(txn, now, *id, *osd)
        }
        (_, Message::Nsm(_) | Message::Osd(_) | Message::Skip) => Ok(()),
    }
}

/// The record of a namespace by its id.
fn record_of(store: &(impl KvRead + ?Sized), id: NamespaceId) -> Result<Option<NamespaceRecord>, KvError> {
    match load(store, &keys::namespace_by_id(id))? {
        Some(name) => load(store, &keys::namespace(&name)),
        None => Ok(None),
    }
}
