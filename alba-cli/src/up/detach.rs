//! `alba up --detach`: the same command again in the background, and waiting for its ready line.

use std::ffi::OsString;
use std::process::Stdio;

use alba_core::env::{files, within};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use super::config_files::Paths;
use super::plan::ShapeArgs;
use super::{Ready, START, Up};
use crate::answer::Answer;
use crate::error::CliError;
use crate::session::Session;

/// Longest ready line: some hundred bytes per process.
const LONGEST: u64 = 16 << 20;

/// Starts the background process and returns once it is ready, or says why it is not.
pub(super) async fn run(up: &Up, session: &Session) -> Result<Answer, CliError> {
    let paths = Paths::create(&up.data_dir)?;
    let log_path = paths.log(super::table::SUPERVISOR);
    let log =
        files::append_log(&log_path, LONGEST).map_err(|error| CliError::file("write", &log_path, &error))?;
    let failed =
        |error: std::io::Error| CliError::failure(format!("cannot start in the background: {error}"));
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(arguments(up, &paths))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        let clock = session.env.clock.as_ref();
        let read = async { BufReader::new(out.take(LONGEST)).read_line(&mut line).await };
        // A little more than its own limit: it says better what went wrong.
        let deadline = session.env.deadline_in(START.saturating_mul(2));
        within(clock, deadline, read).await?.map_err(failed)?;
    }
    let silent = || CliError::failure(format!("the cluster did not start; see {}", log_path.display()));
    let envelope: Value = serde_json::from_str(&line).map_err(|_| silent())?;
    if envelope["success"] != true {
        let message = envelope["error"]["message"].as_str().map(str::to_owned);
        return Err(message.map_or_else(silent, CliError::failure));
    }
    let ready: Ready = serde_json::from_value(envelope["result"].clone()).map_err(|_| silent())?;
    let mut answer = ready.answer()?;
    answer.text.push_str(&format!("  alba down --data-dir {}      stops it\n", paths.root.display()));
    Ok(answer)
}

fn arguments(up: &Up, paths: &Paths) -> Vec<OsString> {
    let mut args: Vec<OsString> = ["up", "--detached", "--to-json", "--data-dir"].map(OsString::from).into();
    args.push(paths.root.clone().into());
    if up.no_restart {
        args.push("--no-restart".into());
    }
    // Taken apart: an option that is new cannot be forgotten here.
    let ShapeArgs {
        nodes,
        osds_per_node,
        metadata_nodes,
        nsm_groups,
        proxies,
        proxy_port,
        asd_base_port,
        metadata_base_port,
        metrics_base_port,
        osd_capacity,
        fragment_cache,
    } = up.shape.clone();
    let numbers = [
        ("--nodes", nodes.map(u64::from)),
        ("--osds-per-node", osds_per_node.map(u64::from)),
        ("--metadata-nodes", metadata_nodes.map(u64::from)),
        ("--nsm-groups", nsm_groups.map(u64::from)),
        ("--proxies", proxies.map(u64::from)),
        ("--proxy-port", proxy_port.map(u64::from)),
        ("--asd-base-port", asd_base_port.map(u64::from)),
        ("--metadata-base-port", metadata_base_port.map(u64::from)),
        ("--metrics-base-port", metrics_base_port.map(u64::from)),
        ("--osd-capacity", osd_capacity),
    ];
    for (option, value) in numbers {
        if let Some(value) = value {
            args.push(option.into());
            args.push(value.to_string().into());
        }
    }
    if let Some(kind) = fragment_cache {
        args.push("--fragment-cache".into());
        args.push(kind.name().into());
    }
    args
}

/// In the background process: away from the terminal, whose end must not be ours.
pub(super) fn leave_terminal() -> Result<(), CliError> {
    rustix::process::setsid()
        .map(drop)
        .map_err(|error| CliError::failure(format!("cannot leave the terminal: {error}")))
}
