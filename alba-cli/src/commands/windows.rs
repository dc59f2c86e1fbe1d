//! Maintenance windows: until then OSDs are away on purpose, and nothing is repaired for their sake.

use std::time::Duration;

use alba_core::ids::{LongId, NodeId};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmError, AbmQuery, OsdFilter, WINDOW_MAX, WindowRecord, WindowTarget,
};
use alba_maintenance::schedule::{duration, duration_text};
use clap::Args;
use serde_json::{Value, json};

use super::backend::{Backend, mismatch};
use crate::answer::Answer;
use crate::error::CliError;
use crate::json;
use crate::ranges::Pager;
use crate::session::Session;
use crate::table::table;

/// What is away.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// All OSDs of this node
    #[arg(long, value_name = "NODE")]
    node: Option<NodeId>,
    /// This OSD
    #[arg(long, value_name = "LONG_ID")]
    long_id: Option<LongId>,
}

impl Target {
    fn get(self) -> Result<WindowTarget, CliError> {
        match (self.node, self.long_id) {
            (Some(node), None) => Ok(WindowTarget::Node(node)),
            (None, Some(long_id)) => Ok(WindowTarget::Osd(long_id)),
            _ => Err(CliError::usage("name a node or an OSD")),
        }
    }
}

/// Say that OSDs are away on purpose for a while: nothing is repaired for their sake until then
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba maintenance-window --node node-3 --for 2h --reason \"new memory\"\n\n\
                  It ends by itself. What they hold does not count as redundancy while they do not answer, and `alba status` \
                  says why nothing is repaired. Once more for the same node: it lasts as long from now on."
)]
pub(crate) struct Open {
    #[command(flatten)]
    target: Target,
    /// How long, such as 45m, 2h or 1d; at most 30d
    #[arg(long = "for", value_name = "TIME", value_parser = period)]
    period: Duration,
    /// Why, for those who look
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Up to the longest that the metadata takes.
fn period(text: &str) -> Result<Duration, String> {
    let period = duration(text)?;
    let most = Duration::from_micros(WINDOW_MAX);
    match period.is_zero() || period > most {
        true => Err(format!("{text:?} is not between nothing and {}", duration_text(most))),
        false => Ok(period),
    }
}

impl Open {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let target = self.target.get()?;
        // A slip of the pen would leave the node that is meant without its window.
        let known = backend.osds(OsdFilter::All, Pager::all()).await?;
        match &target {
            WindowTarget::Node(node) if !known.iter().any(|osd| osd.info.place.node() == node) => {
                return Err(CliError::failure(format!("no OSD of this backend is on node {node}")));
            }
            WindowTarget::Osd(long_id) if !known.iter().any(|osd| osd.info.long_id == *long_id) => {
                return Err(AbmError::OsdUnknown(long_id.clone()).into());
            }
            WindowTarget::Node(_) | WindowTarget::Osd(_) => {}
        }
        let period = u64::try_from(self.period.as_micros()).unwrap_or(u64::MAX);
        let command = AbmCommand::OpenWindow { target: target.clone(), period, reason: self.reason };
        backend.command(command).await?;
        let (now, windows) = open(&backend).await?;
        let window = windows.into_iter().find(|window| window.target == target);
        let window = window.ok_or_else(|| CliError::failure("it was closed again meanwhile"))?;
        let text = format!("nothing is repaired for the sake of {} for {}", of(&target), left(&window, now));
        Answer::new(shown(&window, now), text)
    }
}

/// End a maintenance window before its time
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba cancel-maintenance-window --node node-3")]
pub(crate) struct Cancel {
    #[command(flatten)]
    target: Target,
}

impl Cancel {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let target = self.target.get()?;
        if !open(&backend).await?.1.iter().any(|window| window.target == target) {
            return Err(CliError::failure(format!("no maintenance window is open for {}", of(&target))));
        }
        let text = format!("{} is to be there again", of(&target));
        backend.command(AbmCommand::CloseWindow { target }).await?;
        Ok(Answer::done(text))
    }
}

/// List the maintenance windows that are open
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-maintenance-windows --to-json")]
pub(crate) struct List {}

impl List {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let (now, windows) = open(&Backend::new(&client, session.deadline())).await?;
        let rows =
            windows.iter().map(|window| vec![of(&window.target), left(window, now), window.reason.clone()]);
        let text = table(&["WHAT", "FOR", "REASON"], rows.collect());
        Answer::new(windows.iter().map(|window| shown(window, now)).collect::<Vec<_>>(), text)
    }
}

/// Those that are open, and the ABM's time, by which they end.
pub(crate) async fn open(backend: &Backend<'_>) -> Result<(u64, Vec<WindowRecord>), CliError> {
    match backend.ask(AbmQuery::Windows).await? {
        AbmAnswer::Windows { now, windows } => Ok((now, windows)),
        _ => Err(mismatch("Windows")),
    }
}

fn of(target: &WindowTarget) -> String {
    match target {
        WindowTarget::Node(node) => format!("node {node}"),
        WindowTarget::Osd(long_id) => format!("OSD {long_id}"),
    }
}

/// How long it is open yet, to the second.
pub(crate) fn left(window: &WindowRecord, now: u64) -> String {
    duration_text(Duration::from_secs(window.until.saturating_sub(now).div_ceil(1_000_000)))
}

/// For people: what, for how long, why.
pub(crate) fn line(window: &WindowRecord, now: u64) -> String {
    let why = if window.reason.is_empty() { String::new() } else { format!(" ({})", window.reason) };
    format!("{} for {}{why}", of(&window.target), left(window, now))
}

pub(crate) fn shown(window: &WindowRecord, now: u64) -> Value {
    let (node, long_id) = match &window.target {
        WindowTarget::Node(node) => (Some(node.as_str()), None),
        WindowTarget::Osd(long_id) => (None, Some(long_id.as_str())),
    };
    json!({
        "node_id": node,
        "long_id": long_id,
        "reason": window.reason,
        "since": json::seconds(window.since),
        "until": json::seconds(window.until),
        "seconds_left": json::seconds(window.until.saturating_sub(now)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_last_longer_than_nothing_and_at_most_thirty_days() {
        assert_eq!(period("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(period("30d"), Ok(Duration::from_micros(WINDOW_MAX)));
        for wrong in ["0s", "31d", "soon", "", "-1h"] {
            assert!(period(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_left_is_by_the_time_of_the_metadata() {
        let window = WindowRecord {
            target: WindowTarget::Node(NodeId::new("node-3").unwrap()),
            reason: "new memory".to_owned(),
            since: 5_000_000,
            until: 3_605_000_000,
        };
        assert_eq!(line(&window, 5_000_000), "node node-3 for 1h (new memory)");
        let shown = shown(&window, 3_600_000_000);
        assert_eq!((&shown["seconds_left"], &shown["node_id"]), (&json!(5.0), &json!("node-3")));
        assert!(shown["long_id"].is_null());
    }
}
