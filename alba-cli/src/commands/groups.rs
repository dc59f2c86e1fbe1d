//! The metadata groups, and what is on its way to them and to OSDs.

use std::time::Duration;

use alba_core::ids::{GroupId, LongId, MessageId, OsdId};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmQuery, DeadLetter, Destination, Message};
use clap::Args;
use serde_json::{Value, json};

use super::backend::{Backend, mismatch};
use crate::answer::Answer;
use crate::error::CliError;
use crate::json::seconds;
use crate::session::Session;
use crate::table::table;

/// Add a metadata group for namespaces
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba add-nsm-host nsm-1 --server 10.0.0.5:4000 --server 10.0.0.6:4000\n\n\
                        The servers must host the group (`groups` in their configuration)."
)]
pub(crate) struct Add {
    /// Its name
    group: GroupId,
    /// A server that hosts it; give it once for each
    #[arg(long, value_name = "IP:PORT", required = true)]
    server: Vec<std::net::SocketAddr>,
}

impl Add {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let servers = self.server.iter().map(ToString::to_string).collect();
        let command = AbmCommand::CreateGroup { id: self.group.clone(), servers };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("added metadata group {}", self.group)))
    }
}

/// What to change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// A server that hosts it from now on; give it once for each
    #[arg(long, value_name = "IP:PORT")]
    server: Vec<std::net::SocketAddr>,
    /// Give it up for good: nothing is sent there any more, and its namespaces can be recovered elsewhere
    #[arg(long)]
    lost: bool,
}

/// Change where a metadata group is, or give it up
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba update-nsm-host nsm-1 --server 10.0.0.7:4000\n  alba update-nsm-host nsm-1 --lost"
)]
pub(crate) struct Update {
    /// Its name
    group: GroupId,
    #[command(flatten)]
    changes: Changes,
}

impl Update {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let Changes { server, lost } = self.changes;
        let servers =
            (!server.is_empty()).then(|| server.iter().map(ToString::to_string).collect::<Vec<_>>());
        let command = AbmCommand::UpdateGroup { id: self.group.clone(), servers, lost };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("updated metadata group {}", self.group)))
    }
}

/// A destination for people and programs.
fn shown(destination: &Destination) -> String {
    match destination {
        Destination::Group(id) => format!("group {id}"),
        Destination::Osd(id) => format!("OSD {id}"),
    }
}

/// What a message is, without what it carries: presets are long.
fn kind(message: &Message) -> &'static str {
    use alba_core::wire::rpc::abm::OsdMessage;
    use alba_core::wire::rpc::nsm::NsmMessage;
    match message {
        Message::Nsm(message) => match message {
            NsmMessage::CreateNamespace { .. } => "CreateNamespace",
            NsmMessage::DeleteNamespace { .. } => "DeleteNamespace",
            NsmMessage::LinkOsd { .. } => "LinkOsd",
            NsmMessage::UnlinkOsd { .. } => "UnlinkOsd",
            NsmMessage::UpdatePreset { .. } => "UpdatePreset",
            NsmMessage::UpdateOsd { .. } => "UpdateOsd",
            NsmMessage::RecoverNamespace { .. } => "RecoverNamespace",
            NsmMessage::SetTrashed { .. } => "SetTrashed",
            NsmMessage::SetOsdUse { .. } => "SetOsdUse",
        },
        Message::Osd(message) => match message {
            OsdMessage::Identify { .. } => "Identify",
            OsdMessage::AddNamespace { .. } => "AddNamespace",
            OsdMessage::RemoveNamespace { .. } => "RemoveNamespace",
        },
        Message::Skip => "Skip",
    }
}

async fn list_messages(backend: &Backend<'_>, destination: Destination) -> Result<Answer, CliError> {
    // Every page begins at the oldest one, so only one page can be had.
    let query = AbmQuery::Messages { destination, max: u32::MAX };
    let AbmAnswer::Messages(messages) = backend.ask(query).await? else { return Err(mismatch("Messages")) };
    let rows = messages.iter().map(|(id, message)| vec![id.to_string(), kind(message).to_owned()]);
    let text = table(&[">ID", "MESSAGE"], rows.collect());
    let shown = messages.iter().map(|(id, message)| json!([id, kind(message)]));
    Answer::new(shown.collect::<Vec<_>>(), text)
}

/// List the oldest messages that a metadata group has not got yet, at most 200
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-nsm-host-messages nsm-0")]
pub(crate) struct GroupMessages {
    /// Its name
    group: GroupId,
}

impl GroupMessages {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        list_messages(&backend, Destination::Group(self.group)).await
    }
}

/// List the oldest messages that an OSD has not got yet, at most 200
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-osd-messages --long-id 3f1c...")]
pub(crate) struct OsdMessages {
    /// Its long id
    #[arg(long)]
    long_id: LongId,
}

/// The id of a claimed OSD.
async fn osd_id(backend: &Backend<'_>, long_id: &LongId) -> Result<OsdId, CliError> {
    let record = backend.osd(long_id).await?;
    record
        .osd_id
        .ok_or_else(|| CliError::failure(format!("OSD {long_id} is not claimed: nothing is sent there")))
}

impl OsdMessages {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let id = osd_id(&backend, &self.long_id).await?;
        list_messages(&backend, Destination::Osd(id)).await
    }
}

/// Wait until all messages are delivered; the metadata servers do that by themselves, all the time
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba deliver-messages --timeout 60")]
pub(crate) struct Deliver {}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

impl Deliver {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let client = session.client().await?;
        let backend = Backend::new(&client, deadline);
        let clock = session.env.clock.as_ref();
        loop {
            let queues = backend.queues().await?;
            if queues.is_empty() {
                return Ok(Answer::done("all messages are delivered"));
            }
            if deadline.left(clock) <= PAUSE {
                let left: Vec<String> =
                    queues.iter().map(|(to, waiting)| format!("{waiting} for {}", shown(to))).collect();
                return Err(CliError::failure(format!("messages are left: {}", left.join(", "))));
            }
            clock.sleep_until(clock.now().plus(PAUSE)).await;
        }
    }
}

async fn letters(backend: &Backend<'_>, destination: &Destination) -> Result<Vec<DeadLetter>, CliError> {
    let mut found: Vec<DeadLetter> = Vec::new();
    loop {
        let after = found.last().map(|letter| letter.id);
        let query = AbmQuery::DeadLetters { destination: destination.clone(), after, max: u32::MAX };
        let AbmAnswer::DeadLetters(page) = backend.ask(query).await? else {
            return Err(mismatch("DeadLetters"));
        };
        let more = page.has_more && !page.items.is_empty();
        found.extend(page.items);
        if !more {
            return Ok(found);
        }
    }
}

fn destination_json(destination: &Destination) -> Value {
    match destination {
        Destination::Group(id) => json!({ "nsm_host": id.as_str() }),
        Destination::Osd(id) => json!({ "osd_id": id }),
    }
}

/// List the messages that their destination refuses for good
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-dead-letters --to-json")]
pub(crate) struct ListLetters {}

impl ListLetters {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let AbmAnswer::Queues(counts) = backend.ask(AbmQuery::DeadLetterCounts).await? else {
            return Err(mismatch("DeadLetterCounts"));
        };
        let (mut rows, mut result) = (Vec::new(), Vec::new());
        for (destination, _) in counts {
            for letter in letters(&backend, &destination).await? {
                let kind = kind(&letter.message);
                rows.push(vec![
                    shown(&destination),
                    letter.id.to_string(),
                    kind.to_owned(),
                    letter.reason.clone(),
                ]);
                result.push(json!({
                    "destination": destination_json(&destination),
                    "id": letter.id,
                    "message": kind,
                    "reason": letter.reason,
                    "since": seconds(letter.since),
                }));
            }
        }
        Answer::new(result, table(&["DESTINATION", ">ID", "MESSAGE", "REASON"], rows))
    }
}

/// Which dead letter.
#[derive(Debug, Args)]
struct Which {
    /// Its number
    #[arg(long, value_parser = message_id)]
    id: MessageId,
    #[command(flatten)]
    to: To,
}

fn message_id(text: &str) -> Result<MessageId, String> {
    let number: u64 = text.parse().map_err(|_| format!("{text:?} is no message id"))?;
    MessageId::new(number).map_err(|error| error.to_string())
}

/// Whose it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct To {
    /// Of this metadata group
    #[arg(long, value_name = "GROUP")]
    nsm_host: Option<GroupId>,
    /// Of this OSD
    #[arg(long)]
    long_id: Option<LongId>,
}

impl Which {
    async fn destination(&self, backend: &Backend<'_>) -> Result<Destination, CliError> {
        match (&self.to.nsm_host, &self.to.long_id) {
            (Some(group), _) => Ok(Destination::Group(group.clone())),
            (None, Some(long_id)) => osd_id(backend, long_id).await.map(Destination::Osd),
            (None, None) => Err(CliError::usage("give --nsm-host or --long-id")),
        }
    }
}

/// Send a dead letter again, with all others of its namespace there
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba retry-dead-letter --nsm-host nsm-0 --id 12")]
pub(crate) struct RetryLetter {
    #[command(flatten)]
    which: Which,
}

impl RetryLetter {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let destination = self.which.destination(&backend).await?;
        backend.command(AbmCommand::RetryDeadLetter { destination, id: self.which.id }).await?;
        Ok(Answer::done(format!("message {} is sent again", self.which.id)))
    }
}

/// Forget a dead letter
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba drop-dead-letter --long-id 3f1c... --id 12 --as-delivered")]
pub(crate) struct DropLetter {
    #[command(flatten)]
    which: Which,
    /// Go on as if it had been delivered, because its effect is there
    #[arg(long)]
    as_delivered: bool,
}

impl DropLetter {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let destination = self.which.destination(&backend).await?;
        let (id, as_delivered) = (self.which.id, self.as_delivered);
        backend.command(AbmCommand::DropDeadLetter { destination, id, as_delivered }).await?;
        Ok(Answer::done(format!("message {id} is forgotten")))
    }
}
