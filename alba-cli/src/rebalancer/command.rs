//! What the program does beside being a daemon: `--dry-run`, and `--once` for timers of systemd or cron.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use alba_client::Client;
use alba_core::daemon;
use alba_core::env::{Env, real};
use alba_core::units::ByteCount;
use alba_maintenance::agent::new_agent_id;
use alba_maintenance::{Agent, Backend, configuration};
use alba_rebalancer::observe::Observation;
use alba_rebalancer::{Onlooker, Rebalancer, Report};
use anyhow::Context as _;
use async_trait::async_trait;
use clap::Parser;

use super::task::NAME;
use super::{Rebalance, RebalancerConfig, RebalancerDaemon};
use crate::table::table;

#[derive(Debug, Parser)]
#[command(
    name = "rebalancer",
    version,
    about = "ALBA's rebalancer, once",
    after_help = "Example:\n  alba rebalancer --config rebalancer.toml --dry-run\n\n\
                  Exit codes: 0 done, 1 failed, 2 wrong arguments or configuration."
)]
struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override a key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Move until the fill is even or nothing more can be done, and end
    #[arg(long, required_unless_present = "dry_run")]
    once: bool,
    /// Print what would be moved, and what it would gain; nothing moves
    #[arg(long, conflicts_with = "once")]
    dry_run: bool,
}

/// Runs the program from its arguments (the first is its name) to its end.
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    if !args.iter().any(|arg| arg == "--once" || arg == "--dry-run") {
        return daemon::main::<RebalancerDaemon>(args);
    }
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where it cannot be printed, the exit code says it.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let config = match configuration::<RebalancerDaemon>(arguments.config.as_deref(), &arguments.set) {
        Ok(config) => config,
        Err(error) => return complain(&format!("{error:#}"), 2),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.context("cannot start threads").and_then(|runtime| {
        let env = real::env();
        if arguments.dry_run {
            runtime.block_on(Box::pin(dry_run(&env, &config))).map(|text| (text, true))
        } else {
            runtime.block_on(Box::pin(once(&env, &config)))
        }
    });
    match ended {
        Ok((text, well)) => {
            // A reader that went away (`| head`) is no failure of ours.
            drop(writeln!(std::io::stdout().lock(), "{text}"));
            ExitCode::from(u8::from(!well))
        }
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

fn complain(message: &str, code: u8) -> ExitCode {
    drop(writeln!(std::io::stderr().lock(), "rebalancer: {message}"));
    ExitCode::from(code)
}

/// What was done, and is all well?
async fn once(env: &Env, config: &RebalancerConfig) -> anyhow::Result<(String, bool)> {
    let client = Client::connect(env.clone(), config.engine()).await?;
    let backend = Backend::new(env.clone(), client);
    let task = Arc::new(Rebalance::new(config.rebalance.settings(false)));
    let agent = Agent::new(backend, new_agent_id(env)?, vec![task], config.framework());
    let once = agent.once(NAME).await?;
    if let Some((_, error)) = once.failed.first() {
        return Ok((format!("failed: {error}"), false));
    }
    let text = if once.done == 0 { "another agent is at it" } else { "nothing more is to be moved" };
    Ok((text.to_owned(), true))
}

/// Lets everything pass.
struct Nobody;

#[async_trait]
impl Onlooker for Nobody {
    async fn pace(&self, _: u64) {}

    fn begins(&self, _: &Observation) {}

    fn moved(&self, _: u64) {}
}

async fn dry_run(env: &Env, config: &RebalancerConfig) -> anyhow::Result<String> {
    let client = Client::connect(env.clone(), config.engine()).await?;
    let rebalancer = Rebalancer::new(client, env.clone());
    let mut settings = config.rebalance.settings(true);
    // Nothing is moved: nobody has to be spared.
    (settings.moves_at_once, settings.osd.moves_at_once) = (1024, 1024);
    settings.osd.bytes_per_second = u64::MAX;
    let report = rebalancer.pass(settings, &Nobody).await?;
    Ok(shown(&report))
}

fn percent(rate: f64) -> String {
    format!("{:.1} %", rate * 100.0)
}

fn range(observation: &Observation) -> String {
    let mut rates: Vec<_> = observation.osds.values().map(|fill| fill.rate()).collect();
    rates.sort_unstable();
    match (rates.first(), rates.last()) {
        (Some(least), Some(most)) => {
            format!("{:.1}–{}", least.as_f64() * 100.0, percent(most.as_f64()))
        }
        _ => "none".to_owned(),
    }
}

/// The plan by OSD and by pair of OSDs, and what it gains.
fn shown(report: &Report) -> String {
    if report.before.is_even() {
        return format!("the fill is even ({}): nothing would be moved", range(&report.before));
    }
    let goal = percent(report.before.bounds.even.as_f64());
    let rows = report.before.osds.iter().map(|(id, before)| {
        let after = report.after.osds.get(id).map_or_else(String::new, |fill| percent(fill.rate().as_f64()));
        let sum = |of: fn(&(alba_core::ids::OsdId, alba_core::ids::OsdId)) -> alba_core::ids::OsdId| {
            ByteCount(report.flows.iter().filter(|(pair, _)| of(pair) == *id).map(|(_, flow)| flow.1).sum())
        };
        vec![
            id.to_string(),
            before.node.to_string(),
            before.total.to_string(),
            percent(before.rate().as_f64()),
            after,
            sum(|pair| pair.0).to_string(),
            sum(|pair| pair.1).to_string(),
        ]
    });
    let osds = table(&[">OSD", "NODE", ">CAPACITY", ">NOW", ">AFTER", ">GIVES", ">TAKES"], rows.collect());
    let rows = report.flows.iter().map(|((source, target), (moves, bytes))| {
        vec![source.to_string(), target.to_string(), moves.to_string(), ByteCount(*bytes).to_string()]
    });
    let flows = table(&[">FROM", ">TO", ">OBJECTS", ">BYTES"], rows.collect());
    format!(
        "{osds}\n{flows}\n{} moves of {} (at least {} have to move to be even at {goal}); the fill would go from {} to {}",
        report.moves,
        ByteCount(report.bytes),
        ByteCount(report.before.least_bytes()),
        range(&report.before),
        range(&report.after),
    )
}
