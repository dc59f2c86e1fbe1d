//! Backups of metadata groups as objects: of one group in a namespace of another.

use std::path::{Path, PathBuf};

use alba_client::metadata::MetadataClient;
use alba_client::{Consistency, FileSink, FileSource, UploadOptions};
use alba_core::env::files;
use alba_core::ids::{GroupId, NamespaceName, ObjectName};
use clap::Args;
use serde_json::json;

use super::backend::{Backend, shown};
use crate::answer::Answer;
use crate::error::CliError;
use crate::names;
use crate::session::Session;

/// Write one state of a metadata group to an object; keep it in a namespace of another group
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba backup-metadata nsm-0 backups nsm-0-today\n\nA group that is lost cannot give the objects of its own namespaces: \
    that the namespace is in another group is checked.\nThe ABM's backups cannot be reached without the ABM: keep those as files, too."
)]
pub(crate) struct Backup {
    /// The group
    group: GroupId,
    /// Where the object goes
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// Its name
    #[arg(value_parser = names::object())]
    name: ObjectName,
    /// Where the file is kept that is uploaded [default: that of the system]
    #[arg(long, value_name = "DIR")]
    temporary: Option<PathBuf>,
}

/// A directory of this process only, removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn create(session: &Session, parent: Option<PathBuf>) -> Result<Self, CliError> {
        let parent = parent.unwrap_or_else(std::env::temp_dir);
        let directory = parent.join(format!("alba-{:016x}", session.env.rng.u64()));
        files::create_dir_all(&directory).map_err(|error| CliError::file("create", &directory, &error))?;
        Ok(Self(directory))
    }

    fn file(&self) -> PathBuf {
        self.0.join("backup")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // In a directory for such things.
        drop(files::remove_dir_all(&self.0));
    }
}

fn failed(error: &anyhow::Error) -> CliError {
    CliError::failure(format!("{error:#}"))
}

impl Backup {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let namespace = Backend::new(&client, session.deadline()).namespace(&self.namespace).await?;
        if namespace.group == self.group {
            return Err(CliError::usage(format!(
                "namespace {} is in group {} itself: its objects are lost with it",
                shown(&self.namespace),
                self.group
            )));
        }
        let config = session.config()?.client;
        let env = MetadataClient::secured(&session.env, &config)?;
        let temporary = Temporary::create(session, self.temporary)?;
        let file = temporary.file();
        let written = alba_metadata::backup_to_file(&env, config.metadata, &self.group, &file).await;
        let verified = written.map_err(|error| failed(&error))?;
        let bytes = length(&file)?;
        let source = FileSource::open(session.env.spawn.clone(), &file).await;
        let mut source = source.map_err(|error| CliError::file("read", &file, &error))?;
        let options = UploadOptions::default();
        let deadline = session.bulk_deadline(bytes);
        client.upload(&self.namespace, &self.name, &mut source, options, deadline).await?;
        let applied = verified.description.applied;
        let text =
            format!("group {}: {} rows, applied index {applied}, {bytes} bytes", self.group, verified.rows);
        Answer::new(json!({ "rows": verified.rows, "applied": applied, "bytes": bytes }), text)
    }
}

fn length(file: &Path) -> Result<u64, CliError> {
    std::fs::metadata(file).map(|meta| meta.len()).map_err(|error| CliError::file("read", file, &error))
}

/// Make a metadata group of a backup that is an object, in the data directory of a server that does not run
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba restore-metadata nsm-0 backups nsm-0-today --metadata-config /etc/alba/metadata.toml\n\nThe same as alba download-object \
    and alba metadata restore: what is said there holds."
)]
pub(crate) struct Restore {
    /// The group
    group: GroupId,
    /// Where the object is
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// Its name
    #[arg(value_parser = names::object())]
    name: ObjectName,
    /// Configuration of the metadata server that shall have the group
    #[arg(long, value_name = "FILE")]
    metadata_config: PathBuf,
    /// Where the file is kept that is downloaded [default: that of the system]
    #[arg(long, value_name = "DIR")]
    temporary: Option<PathBuf>,
}

impl Restore {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let temporary = Temporary::create(session, self.temporary)?;
        let file = temporary.file();
        let found = client.manifest(&self.namespace, &self.name, Consistency::Consistent, session.deadline());
        let Some(found) = found.await? else {
            return Err(alba_client::ClientError::ObjectUnknown(self.name).into());
        };
        let mut sink = FileSink::new(session.env.spawn.clone(), &file);
        let deadline = session.bulk_deadline(found.manifest.size);
        client.download(&self.namespace, &self.name, Consistency::Consistent, &mut sink, deadline).await?;
        let restored =
            alba_metadata::restore_file(&session.env, &self.metadata_config, &self.group, &file).await;
        let rows = restored.map_err(|error| failed(&error))?.rows;
        Answer::new(json!({ "rows": rows }), format!("group {}: {rows} rows restored", self.group))
    }
}
