//! Namespaces, through a client of this process's own.

use alba_core::ids::{NamespaceName, PresetName};
use alba_core::units::ByteCount;
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

/// Delete a namespace with all its objects
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba delete-namespace photos")]
pub(crate) struct Delete {
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
}

impl Delete {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        session.client().await?.delete_namespace(&self.namespace, session.deadline()).await?;
        Ok(Answer::done(format!("deleted namespace {}", shown(&self.namespace))))
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
#[command(after_help = "Example:\n  alba list-namespaces --first a --last m --to-json")]
pub(crate) struct List {
    #[command(flatten)]
    range: RangeArgs,
}

impl List {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let found = Backend::new(&client, session.deadline()).namespaces(self.range.pager()).await?;
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
