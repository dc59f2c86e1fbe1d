//! Namespaces, through a client of this process's own.

use alba_core::ids::{NamespaceName, PresetName};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{AbmError, NamespaceRecord, NamespaceState};
use clap::Args;

use super::backend::{Backend, shown};
use crate::answer::Answer;
use crate::error::CliError;
use crate::ranges::RangeArgs;
use crate::session::Session;
use crate::table::table;
use crate::{json, names};

/// Create a namespace; it can be written to on return
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba create-namespace photos default")]
pub(crate) struct Create {
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// What it asks of its objects, for ever; without it the default preset
    preset: Option<PresetName>,
}

impl Create {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let record = client.create_namespace(&self.namespace, self.preset, session.deadline()).await?;
        let text =
            format!("created namespace {} (id {}, preset {})", shown(&record.name), record.id, record.preset);
        Answer::new(json::namespace(&record), text)
    }
}

/// Delete a namespace with all its objects; it can come back for a while (`undelete-namespace`)
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  alba delete-namespace photos\n  alba delete-namespace photos --now\n\n\
                        How long it is kept: `alba update-maintenance-config --auto-cleanup-deleted-namespaces DAYS`; 0 days: not.")]
pub(crate) struct Delete {
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// For good, and free its space
    #[arg(long)]
    now: bool,
}

/// Take a namespace out of the trash, with all it had
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba undelete-namespace photos\n\nOne whose name was given to a new namespace is called NAME~ID; \
                        list-namespaces shows it."
)]
pub(crate) struct Undelete {
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
}

impl Undelete {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let record = session.client().await?.undelete_namespace(&self.namespace, session.deadline()).await?;
        Answer::new(json::namespace(&record), format!("namespace {} is back", shown(&record.name)))
    }
}

impl Delete {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let name = shown(&self.namespace);
        if self.now {
            client.delete_namespace(&self.namespace, session.deadline()).await?;
            return Ok(Answer::done(format!("deleted namespace {name} for good")));
        }
        Ok(Answer::done(match client.discard_namespace(&self.namespace, session.deadline()).await? {
            Some(_) => format!("deleted namespace {name}; `alba undelete-namespace {name}` brings it back"),
            None => format!("deleted namespace {name} for good"),
        }))
    }
}

/// Show how much a namespace holds and how redundant it is
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba show-namespace demo")]
pub(crate) struct Show {
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
}

impl Show {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let record = backend.namespace(&self.namespace).await?;
        if is_trashed(&record) {
            let hint = "it is in the trash, and `alba undelete-namespace` brings it back";
            return Err(CliError::from(AbmError::NamespaceUnknown(record.name)).while_doing(hint));
        }
        let counters = backend.statistics(&record).await?;
        let mut text = format!(
            "namespace {} (id {}), preset {}, group {}, {}\n{} objects, {} in them, {} on OSDs\n",
            shown(&record.name),
            record.id,
            record.preset,
            record.group,
            json::namespace_state(&record.state),
            counters.objects,
            ByteCount(counters.logical_bytes),
            ByteCount(counters.storage_bytes),
        );
        let buckets = counters.buckets.iter().map(|(bucket, objects)| {
            let (k, m) = bucket.shape.as_u8();
            let fragments = format!("{} of {}", bucket.fragments, bucket.shape.total());
            vec![format!("{k}+{m}"), fragments, bucket.max_per_node.to_string(), objects.to_string()]
        });
        text.push_str(&table(&["CODE", ">FRAGMENTS", ">MOST PER NODE", ">OBJECTS"], buckets.collect()));
        let mut result = json::statistics(&counters);
        if let Some(fields) = result.as_object_mut() {
            fields.insert("namespace".to_owned(), json::namespace(&record));
        }
        Answer::new(result, text)
    }
}

/// List namespaces
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  alba list-namespaces --first a --last m --to-json\n  alba list-namespaces --trash"
)]
pub(crate) struct List {
    #[command(flatten)]
    range: RangeArgs,
    /// Those in the trash, and no others
    #[arg(long)]
    trash: bool,
}

fn is_trashed(record: &NamespaceRecord) -> bool {
    matches!(record.state, NamespaceState::Trashed { .. })
}

impl List {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let mut found = Backend::new(&client, session.deadline()).namespaces(self.range.pager()).await?;
        found.retain(|record| is_trashed(record) == self.trash);
        let rows = found.iter().map(|record| {
            let state = json::namespace_state(&record.state).to_owned();
            vec![
                shown(&record.name),
                record.id.to_string(),
                state,
                record.group.to_string(),
                record.preset.to_string(),
            ]
        });
        let text = table(&["NAME", ">ID", "STATE", "GROUP", "PRESET"], rows.collect());
        Answer::new(found.iter().map(json::namespace).collect::<Vec<_>>(), text)
    }
}
