//! The same through a proxy, as volume drivers do it: the proxy opens the files, so paths are made absolute here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use alba_core::ids::{NamespaceName, ObjectName, PresetName, text_or_hex};
use alba_core::units::ByteCount;
use clap::Args;
use serde_json::json;

use crate::answer::Answer;
use crate::error::CliError;
use crate::names;
use crate::ranges::{RangeArgs, collect};
use crate::session::Session;
use crate::table::table;

/// Which proxy.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which proxy (default: the first of the client configuration that answers)")]
pub(crate) struct ProxyArgs {
    /// Its address
    #[arg(short = 'h', long)]
    host: Option<IpAddr>,
    /// Its port
    #[arg(short = 'p', long)]
    port: Option<u16>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Port of a proxy that only --host names.
const PORT: u16 = 10_000;

impl ProxyArgs {
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match (self.host, self.port) {
            (None, None) => None,
            (host, port) => {
                Some(SocketAddr::new(host.unwrap_or(Ipv4Addr::LOCALHOST.into()), port.unwrap_or(PORT)))
            }
        }
    }
}

/// The proxy has another working directory.
fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| CliError::file("find", path, &error))
}

/// List namespaces through a proxy
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:\n  alba proxy-list-namespaces -h 127.0.0.1 -p 10000"
)]
pub(crate) struct ListNamespaces {
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    range: RangeArgs,
}

impl ListNamespaces {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let mut proxy = session.proxy(self.proxy.address(), session.deadline()).await?;
        let key = |(name, _): &(NamespaceName, PresetName)| name.as_bytes().to_vec();
        let page = async |query| proxy.list_namespaces_with_presets(&query, session.deadline()).await;
        let found = collect(self.range.pager(), key, page).await?;
        let rows = found.iter().map(|(name, preset)| vec![text_or_hex(name.as_bytes()), preset.to_string()]);
        let text = table(&["NAME", "PRESET"], rows.collect());
        let names: Vec<String> = found.iter().map(|(name, _)| text_or_hex(name.as_bytes())).collect();
        Answer::new(names, text)
    }
}

/// Create a namespace through a proxy
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-create-namespace photos -p 10000")]
pub(crate) struct CreateNamespace {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// What it asks of its objects; without it the default preset
    preset: Option<PresetName>,
}

impl CreateNamespace {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let mut proxy = session.proxy(self.proxy.address(), deadline).await?;
        proxy.create_namespace(&self.namespace, self.preset.as_ref(), deadline).await?;
        Ok(Answer::done(format!("created namespace {}", text_or_hex(self.namespace.as_bytes()))))
    }
}

/// Delete a namespace through a proxy
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-delete-namespace photos")]
pub(crate) struct DeleteNamespace {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
}

impl DeleteNamespace {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let mut proxy = session.proxy(self.proxy.address(), deadline).await?;
        proxy.delete_namespace(&self.namespace, deadline).await?;
        Ok(Answer::done(format!("deleted namespace {}", text_or_hex(self.namespace.as_bytes()))))
    }
}

/// Store a file as an object through a proxy, which reads the file itself
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:\n  alba proxy-upload-object demo ./holiday.jpg holiday.jpg"
)]
pub(crate) struct UploadObject {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// In which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The file to read, on the proxy's host
    file: PathBuf,
    /// The object's name
    #[arg(value_parser = names::object())]
    name: ObjectName,
    /// Replace an object of that name
    #[arg(long)]
    allow_overwrite: bool,
}

impl UploadObject {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let file = absolute(&self.file)?;
        // The proxy may run elsewhere and see another file: the size here is only a hint for the deadline.
        let size = std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let deadline = session.bulk_deadline(size);
        let mut proxy = session.proxy(self.proxy.address(), deadline).await?;
        proxy.upload_object(&self.namespace, &self.name, &file, self.allow_overwrite, None, deadline).await?;
        Ok(Answer::done(format!("stored {} as {}", file.display(), text_or_hex(self.name.as_bytes()))))
    }
}

/// Read an object into a file through a proxy, which writes the file itself
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:\n  alba proxy-download-object demo holiday.jpg ./copy.jpg"
)]
pub(crate) struct DownloadObject {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// In which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The object's name
    #[arg(value_parser = names::object())]
    name: ObjectName,
    /// The file to write, on the proxy's host
    file: PathBuf,
}

impl DownloadObject {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let file = absolute(&self.file)?;
        let deadline = session.deadline();
        let mut proxy = session.proxy(self.proxy.address(), deadline).await?;
        let summary = proxy.object_info(&self.namespace, &self.name, true, deadline).await?;
        let deadline = session.bulk_deadline(summary.size);
        proxy.download_object(&self.namespace, &self.name, &file, true, deadline).await?;
        let text = format!("read {} into {}", ByteCount(summary.size), file.display());
        Answer::new(json!({ "size": summary.size }), text)
    }
}

/// Delete an object through a proxy
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-delete-object demo holiday.jpg")]
pub(crate) struct DeleteObject {
    #[command(flatten)]
    proxy: ProxyArgs,
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

impl DeleteObject {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let mut proxy = session.proxy(self.proxy.address(), deadline).await?;
        proxy.delete_object(&self.namespace, &self.name, self.may_not_exist, deadline).await?;
        Ok(Answer::done(format!("deleted {}", text_or_hex(self.name.as_bytes()))))
    }
}

/// List the objects of a namespace through a proxy
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-list-objects demo --max 100")]
pub(crate) struct ListObjects {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// In which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    #[command(flatten)]
    range: RangeArgs,
}

impl ListObjects {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let mut proxy = session.proxy(self.proxy.address(), session.deadline()).await?;
        let key = |name: &ObjectName| name.as_bytes().to_vec();
        let page = async |query| proxy.list_objects(&self.namespace, &query, session.deadline()).await;
        let found = collect(self.range.pager(), key, page).await?;
        let names: Vec<String> = found.iter().map(|name| text_or_hex(name.as_bytes())).collect();
        let text = names.join("\n");
        Answer::new(names, text)
    }
}

/// Make a proxy forget what it has cached of a namespace
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-invalidate-cache demo")]
pub(crate) struct InvalidateCache {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// Which namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
}

impl InvalidateCache {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let mut proxy = session.proxy(self.proxy.address(), deadline).await?;
        proxy.invalidate_cache(&self.namespace, deadline).await?;
        Ok(Answer::done("done"))
    }
}

/// Print a proxy's version
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-get-version -h 127.0.0.1 -p 10000")]
pub(crate) struct GetVersion {
    #[command(flatten)]
    proxy: ProxyArgs,
}

impl GetVersion {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let version = session.proxy(self.proxy.address(), deadline).await?.version(deadline).await?;
        let (major, minor, patch) = version.number;
        let result = json!({ "major": major, "minor": minor, "patch": patch, "hash": version.revision });
        Answer::new(result, format!("{major}.{minor}.{patch} {}", version.revision))
    }
}
