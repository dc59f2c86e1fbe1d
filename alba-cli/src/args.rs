//! The command line, and how a command becomes an exit code.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::answer::{Answer, Output};
use crate::commands::{
    backend, backups, ca, drain, fsck, groups, maintenance, metadata, moves, namespaces, objects, osds,
    presets, proxy, proxy_state, recovery, safety, tasks, windows,
};
use crate::error::CliError;
use crate::session::Session;
use crate::{demo, down, status, up};

/// The `alba` command.
#[derive(Debug, Parser)]
#[command(
    name = "alba",
    version,
    about = "ALBA: an erasure-coded, strongly consistent object backend",
    after_help = "Example:\n  alba up                         start a whole cluster on this machine\n  \
                  alba upload-object demo FILE NAME   store a file in it\n  alba status                     see how it is"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes, before or after its name.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Client configuration; without it ./alba-data/client.toml, where `alba up` writes it, if there is one
    #[arg(long, global = true, value_name = "FILE", env = "ALBA_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Write one JSON object to standard output instead of text
    #[arg(long, global = true)]
    pub(crate) to_json: bool,
    /// Say more on standard error
    #[arg(long, global = true)]
    pub(crate) verbose: bool,
    /// Give up after this many seconds [default: 20, and for bulk data 1 more per 4 MiB]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no positive number of seconds");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero()).ok_or_else(wrong)
}

#[derive(Debug, Subcommand)]
enum Command {
    // A cluster on this machine.
    Up(up::Up),
    Down(down::Down),
    Demo(demo::Demo),
    Status(status::Status),
    Fsck(fsck::Fsck),
    // Namespaces and objects, as a client of its own.
    CreateNamespace(namespaces::Create),
    DeleteNamespace(namespaces::Delete),
    UndeleteNamespace(namespaces::Undelete),
    ShowNamespace(namespaces::Show),
    ListNamespaces(namespaces::List),
    MoveNamespace(moves::Move),
    UploadObject(objects::Upload),
    DownloadObject(objects::Download),
    DeleteObject(objects::Delete),
    ShowObject(objects::Show),
    ListObjects(objects::List),
    // Presets.
    CreatePreset(presets::Create),
    ListPresets(presets::List),
    UpdatePreset(presets::Update),
    PresetSetDefault(presets::SetDefault),
    AddOsdsToPreset(presets::AddOsds),
    DeletePreset(presets::Delete),
    GetPresetsPropagationState(presets::Propagation),
    // OSDs.
    AddOsd(osds::Add),
    ClaimOsd(osds::Claim),
    ListOsds(osds::ListClaimed),
    ListAllOsds(osds::ListAll),
    ListAvailableOsds(osds::ListAvailable),
    UpdateOsd(osds::Update),
    DecommissionOsd(osds::Decommission),
    DrainOsd(drain::DrainOsd),
    DrainNode(drain::DrainNode),
    PurgeOsd(osds::Purge),
    ListDecommissioningOsds(osds::ListDecommissioning),
    ListDrainingOsds(osds::ListDraining),
    ListPurgingOsds(osds::ListPurging),
    // The backend.
    GetAlbaId(backend::GetAlbaId),
    ListNsmHosts(backend::ListNsmHosts),
    AddNsmHost(groups::Add),
    UpdateNsmHost(groups::Update),
    ListNsmHostMessages(groups::GroupMessages),
    ListOsdMessages(groups::OsdMessages),
    DeliverMessages(groups::Deliver),
    ListDeadLetters(groups::ListLetters),
    RetryDeadLetter(groups::RetryLetter),
    DropDeadLetter(groups::DropLetter),
    BackupMetadata(backups::Backup),
    RestoreMetadata(backups::Restore),
    RecoverNsm(recovery::RecoverNsm),
    RecoverAbm(recovery::RecoverAbm),
    RecoverNamespace(recovery::RecoverNamespace),
    ListRecoveryFindings(recovery::ListFindings),
    ResolveRecoveryFindings(recovery::Resolve),
    GetDiskSafety(safety::GetDiskSafety),
    ListUnrepairable(safety::ListUnrepairable),
    RewriteObject(safety::RewriteObject),
    ListParticipants(maintenance::ListParticipants),
    ListWork(maintenance::ListWork),
    ListJobs(maintenance::ListJobs),
    ShowJobProgress(maintenance::ShowProgress),
    ClearJobProgress(maintenance::ClearProgress),
    RewriteNamespace(maintenance::Rewrite),
    VerifyNamespace(maintenance::Verify),
    GetMaintenanceConfig(maintenance::GetConfig),
    UpdateMaintenanceConfig(maintenance::UpdateConfig),
    MaintenanceWindow(windows::Open),
    CancelMaintenanceWindow(windows::Cancel),
    ListMaintenanceWindows(windows::List),
    PauseTask(tasks::Pause),
    ResumeTask(tasks::Resume),
    ListTasks(tasks::List),
    Version(backend::Version),
    ListMetadataNodes(metadata::List),
    AddMetadataNode(metadata::Add),
    RemoveMetadataNode(metadata::Remove),
    Ca(ca::Ca),
    // Through a proxy.
    ProxyListNamespaces(proxy::ListNamespaces),
    ProxyCreateNamespace(proxy::CreateNamespace),
    ProxyDeleteNamespace(proxy::DeleteNamespace),
    ProxyUploadObject(proxy::UploadObject),
    ProxyDownloadObject(proxy::DownloadObject),
    ProxyDeleteObject(proxy::DeleteObject),
    ProxyListObjects(proxy::ListObjects),
    ProxyInvalidateCache(proxy::InvalidateCache),
    ProxyGetVersion(proxy::GetVersion),
    ProxyStatistics(proxy_state::Statistics),
    ProxyOsdView(proxy_state::OsdView),
    ProxyOsdInfo(proxy_state::OsdInfo),
    ProxyClientCfg(proxy_state::ClientCfg),
    // Daemons, dispatched before this is parsed: here for the help.
    /// Run the storage daemon of one disk
    AsdServer(DaemonArgs),
    /// Run a metadata server
    Metadata(DaemonArgs),
    /// Run a proxy for volume drivers
    Proxy(DaemonArgs),
    /// Run a maintenance agent
    Maintenance(DaemonArgs),
    /// Run a rebalancer
    Rebalancer(DaemonArgs),
}

#[derive(Debug, Args)]
struct DaemonArgs {
    /// See --help of the daemon
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Parses and runs.
pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(&args) {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&args, &error),
    };
    let output = Output { json: arguments.common.to_json };
    start_logs(arguments.common.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&CliError::failure(format!("cannot start threads: {error}"))),
    };
    let session = Session::new(arguments.common, output);
    let ended = runtime.block_on(Box::pin(dispatch(arguments.command, &session)));
    // What still runs serves nobody any more; blocking work may hold up the end for a moment only.
    runtime.shutdown_timeout(Duration::from_millis(500));
    match ended {
        Ok(answer) => output.succeed(&answer),
        Err(error) => output.fail(&error),
    }
}

async fn dispatch(command: Command, session: &Session) -> Result<Answer, CliError> {
    match command {
        Command::Up(command) => command.run(session).await,
        Command::Down(command) => command.run(session).await,
        Command::Demo(command) => command.run(session).await,
        Command::Status(command) => command.run(session).await,
        Command::Fsck(command) => command.run(session).await,
        Command::CreateNamespace(command) => command.run(session).await,
        Command::DeleteNamespace(command) => command.run(session).await,
        Command::UndeleteNamespace(command) => command.run(session).await,
        Command::ShowNamespace(command) => command.run(session).await,
        Command::ListNamespaces(command) => command.run(session).await,
        Command::MoveNamespace(command) => command.run(session).await,
        Command::UploadObject(command) => command.run(session).await,
        Command::DownloadObject(command) => command.run(session).await,
        Command::DeleteObject(command) => command.run(session).await,
        Command::ShowObject(command) => command.run(session).await,
        Command::ListObjects(command) => command.run(session).await,
        Command::CreatePreset(command) => command.run(session).await,
        Command::ListPresets(command) => command.run(session).await,
        Command::UpdatePreset(command) => command.run(session).await,
        Command::PresetSetDefault(command) => command.run(session).await,
        Command::AddOsdsToPreset(command) => command.run(session).await,
        Command::DeletePreset(command) => command.run(session).await,
        Command::GetPresetsPropagationState(command) => command.run(session).await,
        Command::AddOsd(command) => command.run(session).await,
        Command::ClaimOsd(command) => command.run(session).await,
        Command::ListOsds(command) => command.run(session).await,
        Command::ListAllOsds(command) => command.run(session).await,
        Command::ListAvailableOsds(command) => command.run(session).await,
        Command::UpdateOsd(command) => command.run(session).await,
        Command::DecommissionOsd(command) => command.run(session).await,
        Command::DrainOsd(command) => command.run(session).await,
        Command::DrainNode(command) => command.run(session).await,
        Command::PurgeOsd(command) => command.run(session).await,
        Command::ListDecommissioningOsds(command) => command.run(session).await,
        Command::ListDrainingOsds(command) => command.run(session).await,
        Command::ListPurgingOsds(command) => command.run(session).await,
        Command::GetAlbaId(command) => command.run(session).await,
        Command::ListNsmHosts(command) => command.run(session).await,
        Command::AddNsmHost(command) => command.run(session).await,
        Command::UpdateNsmHost(command) => command.run(session).await,
        Command::ListNsmHostMessages(command) => command.run(session).await,
        Command::ListOsdMessages(command) => command.run(session).await,
        Command::DeliverMessages(command) => command.run(session).await,
        Command::ListDeadLetters(command) => command.run(session).await,
        Command::RetryDeadLetter(command) => command.run(session).await,
        Command::DropDeadLetter(command) => command.run(session).await,
        Command::BackupMetadata(command) => command.run(session).await,
        Command::RestoreMetadata(command) => command.run(session).await,
        Command::RecoverNsm(command) => command.run(session).await,
        Command::RecoverAbm(command) => command.run(session).await,
        Command::RecoverNamespace(command) => command.run(session).await,
        Command::ListRecoveryFindings(command) => command.run(session).await,
        Command::ResolveRecoveryFindings(command) => command.run(session).await,
        Command::GetDiskSafety(command) => command.run(session).await,
        Command::ListUnrepairable(command) => command.run(session).await,
        Command::RewriteObject(command) => command.run(session).await,
        Command::ListParticipants(command) => command.run(session).await,
        Command::ListWork(command) => command.run(session).await,
        Command::ListJobs(command) => command.run(session).await,
        Command::ShowJobProgress(command) => command.run(session).await,
        Command::ClearJobProgress(command) => command.run(session).await,
        Command::RewriteNamespace(command) => command.run(session).await,
        Command::VerifyNamespace(command) => command.run(session).await,
        Command::GetMaintenanceConfig(command) => command.run(session).await,
        Command::UpdateMaintenanceConfig(command) => command.run(session).await,
        Command::MaintenanceWindow(command) => command.run(session).await,
        Command::CancelMaintenanceWindow(command) => command.run(session).await,
        Command::ListMaintenanceWindows(command) => command.run(session).await,
        Command::PauseTask(command) => command.run(session).await,
        Command::ResumeTask(command) => command.run(session).await,
        Command::ListTasks(command) => command.run(session).await,
        Command::Version(command) => command.run(session).await,
        Command::ListMetadataNodes(command) => command.run(session).await,
        Command::AddMetadataNode(command) => command.run(session).await,
        Command::RemoveMetadataNode(command) => command.run(session).await,
        Command::Ca(command) => command.run(session).await,
        Command::ProxyListNamespaces(command) => command.run(session).await,
        Command::ProxyCreateNamespace(command) => command.run(session).await,
        Command::ProxyDeleteNamespace(command) => command.run(session).await,
        Command::ProxyUploadObject(command) => command.run(session).await,
        Command::ProxyDownloadObject(command) => command.run(session).await,
        Command::ProxyDeleteObject(command) => command.run(session).await,
        Command::ProxyListObjects(command) => command.run(session).await,
        Command::ProxyInvalidateCache(command) => command.run(session).await,
        Command::ProxyGetVersion(command) => command.run(session).await,
        Command::ProxyStatistics(command) => command.run(session).await,
        Command::ProxyOsdView(command) => command.run(session).await,
        Command::ProxyOsdInfo(command) => command.run(session).await,
        Command::ProxyClientCfg(command) => command.run(session).await,
        Command::AsdServer(rest)
        | Command::Metadata(rest)
        | Command::Proxy(rest)
        | Command::Maintenance(rest)
        | Command::Rebalancer(rest) => {
            Err(CliError::usage(format!("write the daemon's name first: alba NAME {:?}", rest.rest)))
        }
    }
}

/// Help and version go to standard output and are no failure. A mistake goes to standard error, and to standard output
/// too when the caller asked for JSON: a script that reads one object always finds one.
fn refuse(args: &[OsString], error: &clap::Error) -> ExitCode {
    // Where it cannot be printed, the exit code says it.
    drop(error.print());
    if error.use_stderr() && args.iter().any(|arg| arg == "--to-json") {
        let text = error.to_string();
        let text = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        return Output { json: true }.fail(&CliError::usage(text));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn start_logs(verbose: bool) {
    let level = if verbose { "info,alba_client=debug,alba_cli=debug" } else { "warn" };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // In a process that has a subscriber already, that one stays.
    drop(lines.try_init());
}

#[cfg(test)]
mod tests;
