//! Objects, through a client of this process's own: it codes and reads without a proxy.

use std::path::PathBuf;

use alba_client::{ClientError, Consistency, FileSink, FileSource, ObjectSource, Overwrite, UploadOptions};
use alba_core::ids::{NamespaceName, ObjectName, text_or_hex};
use alba_core::units::ByteCount;
use clap::Args;
use serde_json::json;

use crate::answer::Answer;
use crate::error::CliError;
use crate::progress::{self, CountedSink, CountedSource};
use crate::ranges::{RangeArgs, collect};
use crate::session::Session;
use crate::table::table;
use crate::{json, names};

/// Store a file as an object
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba upload-object demo ./holiday.jpg holiday.jpg")]
pub(crate) struct Upload {
    /// In which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The file to read
    file: PathBuf,
    /// The object's name
    #[arg(value_parser = names::object())]
    name: ObjectName,
    /// Replace an object of that name
    #[arg(long)]
    allow_overwrite: bool,
}

impl Upload {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let source = FileSource::open(session.env.spawn.clone(), &self.file).await;
        let source = source.map_err(|error| ClientError::source(&error))?;
        let size = source.size();
        let client = session.client().await?;
        let overwrite = if self.allow_overwrite { Overwrite::Unconditionally } else { Overwrite::NoPrevious };
        let options = UploadOptions { overwrite, checksum: None };
        let bar = progress::bytes(size, "upload");
        let mut source = CountedSource { source, bar: bar.clone() };
        let deadline = session.bulk_deadline(size);
        let stored = client.upload(&self.namespace, &self.name, &mut source, options, deadline).await?;
        bar.finish_and_clear();
        // What is left undone now would only be found by maintenance, much later.
        client.settle(deadline).await?;
        let text = format!("stored {} as {}", ByteCount(size), text_or_hex(self.name.as_bytes()));
        Answer::new(json::manifest(&stored.manifest), text)
    }
}

/// Read an object into a file
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba download-object demo holiday.jpg ./copy.jpg")]
pub(crate) struct Download {
    /// In which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The object's name
    #[arg(value_parser = names::object())]
    name: ObjectName,
    /// The file to write; an old one is replaced
    file: PathBuf,
}

impl Download {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let fresh = Consistency::Consistent;
        let found = client.manifest(&self.namespace, &self.name, fresh, session.deadline()).await?;
        let found = found.ok_or_else(|| ClientError::ObjectUnknown(self.name.clone()))?;
        let size = found.manifest.size;
        let bar = progress::bytes(size, "download");
        let sink = FileSink::new(session.env.spawn.clone(), &self.file);
        let mut sink = CountedSink { sink, bar: bar.clone() };
        let deadline = session.bulk_deadline(size);
        client.download(&self.namespace, &self.name, fresh, &mut sink, deadline).await?;
        bar.finish_and_clear();
        let text = format!("read {} into {}", ByteCount(size), self.file.display());
        Answer::new(json!({ "size": size }), text)
    }
}

/// Delete an object
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba delete-object demo holiday.jpg")]
pub(crate) struct Delete {
    /// In which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The object's name
    #[arg(value_parser = names::object())]
    name: ObjectName,
    /// An object that does not exist is no error
    #[arg(long)]
    may_not_exist: bool,
}

impl Delete {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let must_exist = !self.may_not_exist;
        client.delete_object(&self.namespace, &self.name, must_exist, session.deadline()).await?;
        Ok(Answer::done(format!("deleted {}", text_or_hex(self.name.as_bytes()))))
    }
}

/// Show an object's manifest: where its fragments are
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba show-object demo holiday.jpg --to-json")]
pub(crate) struct Show {
    /// In which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The object's name
    #[arg(value_parser = names::object())]
    name: ObjectName,
}

impl Show {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let found =
            client.manifest(&self.namespace, &self.name, Consistency::Consistent, session.deadline()).await?;
        let found = found.ok_or_else(|| ClientError::ObjectUnknown(self.name.clone()))?;
        let manifest = &found.manifest;
        let (k, m) = manifest.scheme.shape.as_u8();
        let mut text = format!(
            "{} ({}), {}, code {k}+{m}, checksum {}\n",
            text_or_hex(manifest.name.as_bytes()),
            manifest.object_id,
            ByteCount(manifest.size),
            manifest.checksum,
        );
        let rows = manifest.fragments().map(|(chunk, fragment, entry)| {
            let osd = entry.location.map_or_else(|| "none".to_owned(), |osd| osd.to_string());
            let len = entry.packed_len.to_string();
            vec![chunk.to_string(), fragment.to_string(), osd, len, entry.checksum.to_string()]
        });
        text.push_str(&table(&[">CHUNK", ">FRAGMENT", ">OSD", ">BYTES", "CHECKSUM"], rows.collect()));
        Answer::new(json::manifest(manifest), text)
    }
}

/// List the objects of a namespace
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-objects demo --first holiday --max 100")]
pub(crate) struct List {
    /// In which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    #[command(flatten)]
    range: RangeArgs,
}

impl List {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let key = |name: &ObjectName| name.as_bytes().to_vec();
        let page = async |query| client.list_objects(&self.namespace, query, session.deadline()).await;
        let found = collect(self.range.pager(), key, page).await?;
        let names: Vec<String> = found.iter().map(|name| text_or_hex(name.as_bytes())).collect();
        let text = names.join("\n");
        Answer::new(names, text)
    }
}
