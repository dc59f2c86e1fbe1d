//! Moving a namespace to another metadata group.

use std::time::Duration;

use alba_core::env::NamespaceStore;
use alba_core::ids::{GroupId, NamespaceName};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{AbmCommand, NamespaceRecord, NamespaceState};
use alba_core::wire::rpc::nsm::{MAX_PAGE_BYTES, MoveStatus, NsmAnswer, NsmQuery, Phase};
use clap::Args;

use super::backend::{Backend, shown};
use crate::answer::Answer;
use crate::error::CliError;
use crate::session::Session;
use crate::{json, names, progress};

/// How long it is waited for when no --timeout is given. The move goes on without this command.
const WAIT: Duration = Duration::from_secs(3600);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// For the question how far it is: that is only for show.
const LOOK: Duration = Duration::from_secs(2);

/// Move a namespace to another metadata group, while clients go on
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  alba move-namespace photos nsm-1\n  alba move-namespace photos nsm-1 --no-wait\n\n\
                        Clients wait for a moment at the end and notice nothing else. The metadata servers make the move; this \
                        command only\nasks for it and waits. To see how far one is, give the same command again."
)]
pub(crate) struct Move {
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// Where to
    group: GroupId,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

impl Move {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let before = backend.namespace(&self.namespace).await?;
        let name = shown(&self.namespace);
        match &before.state {
            // Given before, perhaps by someone else.
            NamespaceState::Moving { to } if *to == self.group => {}
            NamespaceState::Active if before.group == self.group => {
                return Answer::new(
                    json::namespace(&before),
                    format!("namespace {name} is in group {}", self.group),
                );
            }
            _ => {
                let (name, to) = (self.namespace.clone(), self.group.clone());
                backend.command(AbmCommand::StartMove { name, to }).await?;
            }
        }
        if self.no_wait {
            let now = backend.namespace(&self.namespace).await?;
            let text = format!("namespace {name} is being moved to group {}", self.group);
            return Answer::new(json::namespace(&now), text);
        }
        let deadline = session.deadline_or(WAIT);
        let backend = Backend::new(&client, deadline);
        let clock = session.env.clock.as_ref();
        let spinner = progress::spinner();
        loop {
            let now = backend.namespace(&self.namespace).await?;
            match &now.state {
                NamespaceState::Moving { to } if *to == self.group => {
                    let look = session.env.deadline_in(LOOK);
                    let far = how_far(client.namespace_store().as_ref(), &now, to, look).await;
                    spinner.set_message(format!("moving namespace {name} from {} to {to}: {far}", now.group));
                }
                _ if now.group == self.group => {
                    spinner.finish_and_clear();
                    let text = format!("moved namespace {name} from group {} to {}", before.group, now.group);
                    return Answer::new(json::namespace(&now), text);
                }
                state => {
                    spinner.finish_and_clear();
                    let state = json::namespace_state(state);
                    return Err(CliError::failure(format!(
                        "the move of namespace {name} was given up; it is {state} in group {} (the log of the metadata server that \
                         leads the ABM says why)",
                        now.group
                    )));
                }
            }
            if deadline.left(clock) <= PAUSE {
                spinner.finish_and_clear();
                return Err(CliError::failure(format!(
                    "namespace {name} is still being moved; that goes on without this command"
                )));
            }
            clock.sleep_until(clock.now().plus(PAUSE)).await;
        }
    }
}

/// How far a move is, for people.
async fn how_far(
    store: &dyn NamespaceStore,
    namespace: &NamespaceRecord,
    to: &GroupId,
    deadline: alba_core::env::Deadline,
) -> String {
    let ask = || NsmQuery::MoveStatus(namespace.id);
    let source = store.query(&namespace.group, ask(), deadline).await;
    let phase = match source {
        Ok(NsmAnswer::MoveStatus(MoveStatus::Outgoing { phase, .. })) => match phase {
            Phase::Prepared => "copying",
            Phase::Frozen => "copying the last changes",
            Phase::HandedOver(_) => "handed over",
        },
        Ok(_) => "waiting",
        Err(_) => "the group that has it does not answer",
    };
    match store.query(to, ask(), deadline).await {
        Ok(NsmAnswer::MoveStatus(MoveStatus::Incoming { next_page, .. })) => {
            let page = u64::try_from(MAX_PAGE_BYTES).unwrap_or(u64::MAX);
            format!("{phase}, at most {} copied", ByteCount(next_page.saturating_mul(page)))
        }
        Ok(_) => phase.to_owned(),
        Err(_) => format!("{phase}; the group it goes to does not answer"),
    }
}
