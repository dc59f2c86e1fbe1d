//! `alba status`: one screen that says whether all is well, and an exit code that says it to scripts.

mod care;
mod judge;
mod observe;
mod rebalance;
mod replicas;

use std::collections::BTreeSet;
use std::path::PathBuf;

use alba_core::ids::{NamespaceId, TaskName, text_or_hex};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{Destination, OsdState, RunState, SurveyCounts, TaskRecord};
use clap::Args;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::client_file::ClientFile;
use crate::commands::tasks;
use crate::error::CliError;
use crate::session::Session;
use crate::table::table;
use judge::Verdict;
use observe::{NamespaceSeen, Observed};

/// Show whether all is well: OSDs, capacity, groups, queues, objects below their policy
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 healthy; 1 degraded; 3 data at risk or metadata unreachable; 2 wrong arguments.\n\n\
                  Example:\n  alba status --data-dir ./alba-data"
)]
pub(crate) struct Status {
    /// Of the cluster that `alba up` runs in this directory
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Status {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let file = match &self.data_dir {
            Some(dir) => ClientFile::read(&dir.join("client.toml"))?,
            None => session.config()?,
        };
        let observed = observe::observe(session, file).await.map_err(|error| match error.exit {
            // Who cannot ask cannot say that data is safe.
            1 => CliError { exit: Verdict::AtRisk.exit_code(), ..error },
            _ => error,
        })?;
        let (verdict, reasons) = findings(&observed);
        let mut answer =
            Answer::new(to_json(&observed, verdict, &reasons), to_text(&observed, verdict, &reasons))?;
        answer.exit = verdict.exit_code();
        Ok(answer)
    }
}

/// All that is wrong, worst first.
fn findings(observed: &Observed) -> (Verdict, Vec<String>) {
    let mut found: Vec<(Verdict, String)> = Vec::new();
    for osd in &observed.osds {
        let who = format!("OSD {} on {} ({})", osd.id_text(), osd.record.info.place, osd.address());
        match &osd.usage {
            Some(Err(error)) => {
                let why = observed.care.excuse(&osd.record);
                let why =
                    why.map_or_else(String::new, |why| format!("; nothing is repaired for its sake: {why}"));
                found.push((Verdict::Degraded, format!("{who} does not answer: {error}{why}")));
            }
            Some(Ok(usage)) if observe::is_full(usage) => {
                found.push((Verdict::Degraded, format!("{who} is full")));
            }
            _ => {}
        }
    }
    for group in observed.groups.iter().filter(|group| group.lost) {
        found.push((Verdict::AtRisk, format!("group {} is lost", group.id)));
    }
    found.extend(observed.replicas.iter().flat_map(replicas::GroupSeen::findings));
    for (destination, waiting) in &observed.stuck {
        found.push((
            Verdict::Degraded,
            format!("{waiting} messages are stuck on their way to {}", to(destination)),
        ));
    }
    for (proxy, error) in observed.proxies.iter().filter_map(|(at, seen)| Some((at, seen.as_ref().err()?))) {
        found.push((Verdict::Degraded, format!("proxy {proxy} does not answer: {error}")));
    }
    for seen in &observed.namespaces {
        found.extend(namespace_findings(seen, observed.care.fresh(seen.record.id)));
    }
    found.extend(damage_findings(observed));
    found.extend(observed.care.finding().map(|finding| (Verdict::Degraded, finding)));
    // Stable: of one kind, in the order found.
    found.sort_by_key(|(verdict, _)| std::cmp::Reverse(*verdict));
    let verdict = found.first().map_or(Verdict::Healthy, |(verdict, _)| *verdict);
    (verdict, found.into_iter().map(|(_, reason)| reason).collect())
}

/// `surveyed`: what agents have counted just now.
fn namespace_findings(seen: &NamespaceSeen, surveyed: Option<SurveyCounts>) -> Vec<(Verdict, String)> {
    let name = text_or_hex(seen.record.name.as_bytes());
    let counted = match &seen.counted {
        None => return Vec::new(),
        Some(Err(error)) => {
            return vec![(Verdict::AtRisk, format!("namespace {name}: its group does not answer: {error}"))];
        }
        Some(Ok(counted)) => counted,
    };
    let mut found = Vec::new();
    let safety = counted.safety;
    if safety.unreadable > 0 {
        let text = format!("namespace {name}: {} objects cannot be read now", safety.unreadable);
        found.push((Verdict::AtRisk, text));
    }
    if safety.at_risk > 0 {
        let text = format!("namespace {name}: one more loss would destroy {} objects", safety.at_risk);
        found.push((Verdict::AtRisk, text));
    }
    let (below, exact) = counted.below(surveyed);
    if below > 0 {
        let least = if exact { "" } else { "at least " };
        let text = format!("namespace {name}: {least}{below} objects are below their policy");
        found.push((Verdict::Degraded.max(safety.verdict()), text));
    }
    if counted.wanted.is_none() {
        let text =
            format!("namespace {name}: the OSDs can satisfy no policy of preset {}", seen.record.preset);
        found.push((Verdict::Degraded, text));
    }
    if let Some(SurveyCounts { unrepairable, .. }) = surveyed.filter(|counts| counts.unrepairable > 0) {
        let text = format!(
            "namespace {name}: {unrepairable} objects cannot be repaired as things are; alba list-unrepairable says why"
        );
        found.push((Verdict::Degraded, text));
    }
    if !exact {
        let text = format!("namespace {name}: too many objects on OSDs that do not answer to look at each");
        found.push((Verdict::Degraded, text));
    }
    found
}

/// What is known to be damaged or missing: from when somebody found it until it is repaired.
fn damage_findings(observed: &Observed) -> Vec<(Verdict, String)> {
    let least = if observed.damage.more { "at least " } else { "" };
    let of = |(namespace, count): (&NamespaceId, &u64)| {
        let named = observed.namespaces.iter().find(|seen| seen.record.id == *namespace);
        // What waits of one that is gone goes by itself.
        let name = text_or_hex(named?.record.name.as_bytes());
        let text = format!(
            "namespace {name}: {least}{count} fragments that were found damaged or missing wait for repair"
        );
        Some((Verdict::Degraded, text))
    };
    observed.damage.fragments.iter().filter_map(of).collect()
}

fn to(destination: &Destination) -> String {
    match destination {
        Destination::Group(group) => format!("group {group}"),
        Destination::Osd(osd) => format!("OSD {osd}"),
    }
}

fn to_json(observed: &Observed, verdict: Verdict, reasons: &[String]) -> Value {
    let osds = observed.osds.iter().map(|osd| {
        json!({
            "id": osd.record.osd_id,
            "long_id": osd.record.info.long_id.as_str(),
            "node_id": osd.record.info.place.node().as_str(),
            "state": crate::json::osd_state(osd.record.state),
            "answers": osd.usage.as_ref().map(Result::is_ok),
            "error": osd.usage.as_ref().and_then(|usage| usage.as_ref().err()),
            "used": osd.usage.as_ref().and_then(|usage| Some(usage.as_ref().ok()?.used)),
            "capacity": osd.usage.as_ref().and_then(|usage| Some(usage.as_ref().ok()?.capacity)),
        })
    });
    let namespaces = observed.namespaces.iter().map(|seen| {
        let counted = seen.counted.as_ref().and_then(|counted| counted.as_ref().ok());
        json!({
            "name": text_or_hex(seen.record.name.as_bytes()),
            "state": crate::json::namespace_state(&seen.record.state),
            "preset": seen.record.preset.as_str(),
            "group": seen.record.group.as_str(),
            "objects": counted.map(|c| c.objects),
            "logical": counted.map(|c| c.logical),
            "storage": counted.map(|c| c.storage),
            "policy": counted.and_then(|c| c.wanted).map(|w| <[u32; 4]>::from(w.policy)),
            "below_policy": counted.map(|c| c.below(observed.care.fresh(seen.record.id)).0),
            "at_risk": counted.map(|c| c.safety.at_risk),
            "unreadable": counted.map(|c| c.safety.unreadable),
            "damaged_fragments": observed.damage.fragments.get(&seen.record.id).unwrap_or(&0),
            "exact": counted.map(|c| c.below(observed.care.fresh(seen.record.id)).1),
            "agents": observed.care.json(seen.record.id),
        })
    });
    let queues = observed.queues.iter();
    let stuck = |destination: &Destination| observed.stuck.iter().any(|(other, _)| other == destination);
    let queues = queues.map(|(destination, waiting)| {
        json!({ "destination": to(destination), "messages": waiting, "stuck": stuck(destination) })
    });
    let proxies =
        observed.proxies.iter().map(|(proxy, seen)| json!({ "address": proxy, "answers": seen.is_ok() }));
    json!({
        "health": verdict.word(),
        "reasons": reasons,
        "alba_id": observed.alba_id.as_str(),
        "osds": osds.collect::<Vec<_>>(),
        "groups": observed.groups.iter().map(crate::json::nsm_host).collect::<Vec<_>>(),
        "replicas": observed.replicas.iter().filter_map(replicas::GroupSeen::json).collect::<Vec<_>>(),
        "namespaces": namespaces.collect::<Vec<_>>(),
        "queues": queues.collect::<Vec<_>>(),
        "proxies": proxies.collect::<Vec<_>>(),
        "agents": observed.agents,
        "tasks": observed.tasks.iter().map(tasks::shown).collect::<Vec<_>>(),
        "maintenance_windows": observed.care.windows_json(),
        "paused_tasks": observed.paused.iter().map(TaskName::as_str).collect::<Vec<_>>(),
        "fill_tenths": rebalance::histogram(&observed.osds),
        "fill_tenths_goal": rebalance::goal(&observed.osds).0,
        "fill_goal": rebalance::goal(&observed.osds).1,
        "rebalance": observed.rebalance.json(),
    })
}

/// Which maintenance tasks are under way, which fail, which are paused.
fn tasks_line(observed: &Observed) -> String {
    let name = |task: &TaskRecord| task.task.as_str().split('/').next().unwrap_or_default().to_owned();
    let of = |which: fn(&TaskRecord) -> bool| -> String {
        let names: BTreeSet<String> = observed.tasks.iter().filter(|task| which(task)).map(name).collect();
        if names.is_empty() { "none".to_owned() } else { names.into_iter().collect::<Vec<_>>().join(" ") }
    };
    let paused: Vec<&str> = observed.paused.iter().map(TaskName::as_str).collect();
    format!(
        "{} agents; running: {}; failing: {}; paused: {}",
        observed.agents,
        of(|task| task.report.state == RunState::Running),
        of(|task| task.failures > 0),
        if paused.is_empty() { "none".to_owned() } else { paused.join(" ") },
    )
}

fn to_text(observed: &Observed, verdict: Verdict, reasons: &[String]) -> String {
    let mut lines = vec![format!("cluster   {}", verdict.word())];
    lines.extend(reasons.iter().map(|reason| format!("          - {reason}")));
    lines.push(format!("backend   {}", observed.alba_id));
    let count = |state| observed.osds.iter().filter(|osd| osd.record.state == state).count();
    let silent = observed.osds.iter().filter(|osd| matches!(osd.usage, Some(Err(_)))).count();
    lines.push(format!(
        "OSDs      {} active, {} draining, {} decommissioning, {} available; {silent} of them do not answer",
        count(OsdState::Active),
        count(OsdState::Draining),
        count(OsdState::Decommissioning),
        count(OsdState::Available),
    ));
    let usages = observed.osds.iter().filter_map(|osd| osd.usage.as_ref()?.as_ref().ok());
    let (used, capacity) = usages.fold((0_u64, 0_u64), |(used, capacity), usage| {
        (used.saturating_add(usage.used.get()), capacity.saturating_add(usage.capacity.get()))
    });
    let percent = used.saturating_mul(100).checked_div(capacity).unwrap_or(0);
    lines.push(format!("capacity  {} of {} used ({percent} %)", ByteCount(used), ByteCount(capacity)));
    lines.extend(rebalance::fill_lines(&observed.rebalance, &observed.osds));
    lines.push(format!("rebalance {}", observed.rebalance.line()));
    let groups: Vec<String> = observed
        .groups
        .iter()
        .map(|group| format!("{} at {} ({} namespaces)", group.id, group.servers.join(" "), group.namespaces))
        .collect();
    lines.push(format!("groups    {}", groups.join(", ")));
    lines.extend(observed.replicas.iter().filter_map(|group| Some(format!("          {}", group.line()?))));
    let queues: Vec<String> = observed
        .queues
        .iter()
        .map(|(destination, waiting)| format!("{} for {}", waiting, to(destination)))
        .collect();
    lines.push(format!(
        "queues    {}",
        if queues.is_empty() { "empty".to_owned() } else { queues.join(", ") }
    ));
    let proxies: Vec<String> = (observed.proxies.iter())
        .map(|(proxy, seen)| format!("{proxy} {}", if seen.is_ok() { "answers" } else { "does not answer" }))
        .collect();
    lines.push(format!("proxies   {}", proxies.join(", ")));
    lines.push(format!("tasks     {}", tasks_line(observed)));
    lines.extend(observed.care.line().map(|line| format!("windows   {line}")));
    let rows = observed.namespaces.iter().map(|seen| {
        let counted = seen.counted.as_ref().and_then(|counted| counted.as_ref().ok());
        let number =
            |get: fn(&observe::Counted) -> u64| counted.map_or("?".to_owned(), |c| get(c).to_string());
        vec![
            text_or_hex(seen.record.name.as_bytes()),
            crate::json::namespace_state(&seen.record.state).to_owned(),
            seen.record.preset.to_string(),
            counted.and_then(|c| c.wanted).map_or("none".to_owned(), |w| w.policy.to_string()),
            number(|c| c.objects),
            counted.map_or("?".to_owned(), |c| ByteCount(c.logical).to_string()),
            counted.map_or("?".to_owned(), |c| c.below(observed.care.fresh(seen.record.id)).0.to_string()),
            number(|c| c.safety.at_risk),
            number(|c| c.safety.unreadable),
        ]
    });
    let headers = [
        "NAMESPACE",
        "STATE",
        "PRESET",
        "POLICY",
        ">OBJECTS",
        ">BYTES",
        ">BELOW POLICY",
        ">AT RISK",
        ">UNREADABLE",
    ];
    lines.push(String::new());
    lines.push(table(&headers, rows.collect()));
    lines.join("\n")
}
