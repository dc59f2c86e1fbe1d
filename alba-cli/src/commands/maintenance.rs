//! What agents do and go by: the work queue, jobs, the maintenance configuration, who is there.

use alba_core::ids::{AgentId, JobName, NamespaceName, NodeId, PresetName};
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmError, AbmQuery, JobAction, JobRecord, LeafProgress, MaintenanceUpdate,
    RedisEviction,
};
use clap::Args;
use serde_json::json;

use super::backend::{Backend, mismatch};
use crate::answer::Answer;
use crate::error::CliError;
use crate::ranges::{RangeArgs, collect};
use crate::session::Session;
use crate::table::table;
use crate::{json, names};

/// Print how much maintenance work waits or is under way
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-work --to-json")]
pub(crate) struct ListWork {}

impl ListWork {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        match backend.ask(AbmQuery::WorkCount).await? {
            AbmAnswer::WorkCount(count) => {
                Answer::new(json!({ "count": count }), format!("{count} items of work"))
            }
            _ => Err(mismatch("WorkCount")),
        }
    }
}

/// List the agents that said they are there within the last minute
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-participants")]
pub(crate) struct ListParticipants {}

impl ListParticipants {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let AbmAnswer::Participants(found) = backend.ask(AbmQuery::Participants).await? else {
            return Err(mismatch("Participants"));
        };
        let rows =
            found.iter().map(|one| vec![AgentId::to_string(&one.agent), one.role.clone(), one.about.clone()]);
        let text = table(&["AGENT", "ROLE", "ABOUT"], rows.collect());
        let shown = found.iter().map(|one| {
            let seen = json::seconds(one.seen);
            json!({ "id": one.agent.as_str(), "role": one.role, "about": one.about, "seen": seen })
        });
        Answer::new(shown.collect::<Vec<_>>(), text)
    }
}

async fn jobs(backend: &Backend<'_>, range: &RangeArgs) -> Result<Vec<JobRecord>, CliError> {
    let key = |job: &JobRecord| job.name.as_str().as_bytes().to_vec();
    let ask = async |range: RangeQuery| match backend.ask(AbmQuery::Jobs(range)).await? {
        AbmAnswer::Jobs(page) => Ok(page),
        _ => Err(mismatch("Jobs")),
    };
    collect(range.pager(), key, ask).await
}

fn action(action: &JobAction) -> &'static str {
    match action {
        JobAction::Rewrite => "rewrite",
        JobAction::Verify { .. } => "verify",
    }
}

/// List the jobs that were started and not cleared
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-jobs")]
pub(crate) struct ListJobs {
    #[command(flatten)]
    range: RangeArgs,
}

impl ListJobs {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let found = jobs(&Backend::new(&client, session.deadline()), &self.range).await?;
        let rows = found.iter().map(|job| {
            let name = job.name.to_string();
            vec![name, action(&job.action).to_owned(), job.namespace.to_string(), job.leaves.to_string()]
        });
        let text = table(&["JOB", "ACTION", ">NAMESPACE ID", ">LEAVES"], rows.collect());
        Answer::new(found.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), text)
    }
}

/// Show how far a job has come, leaf by leaf
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba show-job-progress scrub-1")]
pub(crate) struct ShowProgress {
    /// Its name
    name: JobName,
}

impl ShowProgress {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let leaves = match backend.ask(AbmQuery::JobProgress(self.name.clone())).await? {
            AbmAnswer::JobProgress(Some(leaves)) => leaves,
            AbmAnswer::JobProgress(None) => return Err(AbmError::JobUnknown(self.name).into()),
            _ => return Err(mismatch("JobProgress")),
        };
        let finished = leaves.iter().all(|leaf| leaf.next.is_none());
        let sum = |get: fn(&LeafProgress) -> u64| leaves.iter().map(get).fold(0, u64::saturating_add);
        let text = format!(
            "{}: {} objects done, {} of {} leaves finished",
            self.name,
            sum(|leaf| leaf.count),
            leaves.iter().filter(|leaf| leaf.next.is_none()).count(),
            leaves.len()
        );
        let shown = leaves.iter().enumerate().map(|(position, leaf)| {
            json!({
                "leaf": position,
                "count": leaf.count,
                "next": leaf.next.map(|next| next.to_string()),
                "fragments_detected_missing": leaf.fragments_detected_missing,
                "fragments_osd_unavailable": leaf.fragments_osd_unavailable,
                "fragments_checksum_mismatch": leaf.fragments_checksum_mismatch,
            })
        });
        let result = json!({
            "finished": finished,
            "count": sum(|leaf| leaf.count),
            "fragments_detected_missing": sum(|leaf| leaf.fragments_detected_missing),
            "fragments_osd_unavailable": sum(|leaf| leaf.fragments_osd_unavailable),
            "fragments_checksum_mismatch": sum(|leaf| leaf.fragments_checksum_mismatch),
            "leaves": shown.collect::<Vec<_>>(),
        });
        Answer::new(result, text)
    }
}

/// Forget a job, also one that is not finished; its name is free then
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba clear-job-progress scrub-1")]
pub(crate) struct ClearProgress {
    /// Its name
    name: JobName,
}

impl ClearProgress {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let command = AbmCommand::ClearJob { name: self.name.clone() };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("cleared job {}", self.name)))
    }
}

/// Which job.
#[derive(Debug, Args)]
struct Job {
    /// The namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The job's name: unique until it is cleared
    #[arg(long, value_name = "NAME")]
    job_name: JobName,
    /// Cut the namespace into so many leaves, which agents do side by side
    #[arg(long, value_name = "N", default_value_t = 1)]
    factor: u32,
}

impl Job {
    async fn start(self, action: JobAction, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let (name, namespace, factor) = (self.job_name.clone(), self.namespace, self.factor);
        let command = AbmCommand::StartJob { name, namespace, action, factor };
        Backend::new(&client, session.deadline()).command(command).await?;
        let text = format!(
            "job {} is in the work queue of the agents; alba show-job-progress tells how far it is",
            self.job_name
        );
        Answer::new(json!({ "name": self.job_name.as_str() }), text)
    }
}

/// Start a job that stores every object of a namespace anew
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba rewrite-namespace demo --job-name rewrite-1 --factor 4")]
pub(crate) struct Rewrite {
    #[command(flatten)]
    job: Job,
}

impl Rewrite {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        self.job.start(JobAction::Rewrite, session).await
    }
}

/// Start a job that looks at every fragment of a namespace and repairs
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba verify-namespace demo --job-name scrub-1 --factor 10")]
pub(crate) struct Verify {
    #[command(flatten)]
    job: Job,
    /// Only ask whether fragments are there, don't read them
    #[arg(long)]
    no_verify_checksum: bool,
    /// Leave fragments on OSDs that don't answer as they are
    #[arg(long)]
    no_repair_osd_unavailable: bool,
}

impl Verify {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let action = JobAction::Verify {
            checksums: !self.no_verify_checksum,
            repair_osd_unavailable: !self.no_repair_osd_unavailable,
        };
        self.job.start(action, session).await
    }
}

async fn show_config(backend: &Backend<'_>) -> Result<Answer, CliError> {
    match backend.ask(AbmQuery::Maintenance).await? {
        AbmAnswer::Maintenance(config) => {
            let mut shown = json::maintenance(&config);
            let paused = super::tasks::paused(backend).await?;
            let paused: Vec<&str> = paused.iter().map(|task| task.as_str()).collect();
            if let Some(fields) = shown.as_object_mut() {
                fields.insert("paused_tasks".to_owned(), json!(paused));
            }
            let lines =
                shown.as_object().into_iter().flatten().map(|(key, value)| format!("{key} = {value}"));
            let text = lines.collect::<Vec<_>>().join("\n");
            Answer::new(shown, text)
        }
        _ => Err(mismatch("Maintenance")),
    }
}

/// Show what the maintenance agents go by
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba get-maintenance-config --to-json")]
pub(crate) struct GetConfig {}

impl GetConfig {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        show_config(&Backend::new(&client, session.deadline())).await
    }
}

/// Change what the maintenance agents go by; what is not named stays
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  alba update-maintenance-config --auto-repair-add-disabled-node node-3\n  \
                        alba update-maintenance-config --auto-cleanup-deleted-namespaces 30"
)]
pub(crate) struct UpdateConfig {
    /// Treat OSDs that show no life for long as if they were decommissioned
    #[arg(long, overrides_with = "disable_auto_repair")]
    enable_auto_repair: bool,
    /// Don't
    #[arg(long)]
    disable_auto_repair: bool,
    /// How long that is
    #[arg(long, value_name = "SECONDS")]
    auto_repair_timeout_seconds: Option<u64>,
    /// OSDs on this node count as alive whatever they show: planned work
    #[arg(long, value_name = "NODE")]
    auto_repair_add_disabled_node: Vec<NodeId>,
    /// The planned work on this node is over
    #[arg(long, value_name = "NODE")]
    auto_repair_remove_disabled_node: Vec<NodeId>,
    /// Move data from full OSDs to emptier ones
    #[arg(long, overrides_with = "disable_rebalance")]
    enable_rebalance: bool,
    /// Don't
    #[arg(long)]
    disable_rebalance: bool,
    /// Namespaces whose names begin so are caches of that preset
    #[arg(long, value_name = "PREFIX,PRESET", value_parser = pair)]
    add_cache_eviction: Vec<(String, PresetName)>,
    /// Namespaces whose names begin so are caches no more
    #[arg(long, value_name = "PREFIX")]
    remove_cache_eviction: Vec<String>,
    /// Evict from caches what was not used for longest, as this redis knows
    #[arg(long, value_name = "redis://HOST:PORT/KEY", value_parser = redis)]
    set_lru_cache_eviction: Option<RedisEviction>,
    /// Days that deleted namespaces are kept; 0: they are gone at once
    #[arg(long, value_name = "DAYS")]
    auto_cleanup_deleted_namespaces: Option<u32>,
}

fn pair(text: &str) -> Result<(String, PresetName), String> {
    let (prefix, preset) = text.split_once(',').ok_or_else(|| format!("{text:?} is not PREFIX,PRESET"))?;
    Ok((prefix.to_owned(), PresetName::new(preset).map_err(|error| error.to_string())?))
}

fn redis(text: &str) -> Result<RedisEviction, String> {
    let wrong = || format!("{text:?} is not redis://HOST:PORT/KEY");
    let rest = text.strip_prefix("redis://").ok_or_else(wrong)?;
    let (address, key) = rest.split_once('/').ok_or_else(wrong)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    if host.is_empty() || key.is_empty() {
        return Err(wrong());
    }
    Ok(RedisEviction { host: host.to_owned(), port, key: key.to_owned() })
}

/// One of two flags.
fn switch(on: bool, off: bool) -> Option<bool> {
    (on || off).then_some(on && !off)
}

impl UpdateConfig {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let update = MaintenanceUpdate {
            enable_auto_repair: switch(self.enable_auto_repair, self.disable_auto_repair),
            auto_repair_timeout_seconds: self.auto_repair_timeout_seconds,
            add_disabled_nodes: self.auto_repair_add_disabled_node,
            remove_disabled_nodes: self.auto_repair_remove_disabled_node,
            enable_rebalance: switch(self.enable_rebalance, self.disable_rebalance),
            add_cache_eviction: self.add_cache_eviction,
            remove_cache_eviction: self.remove_cache_eviction,
            redis_lru_cache_eviction: self.set_lru_cache_eviction.map(Some),
            auto_cleanup_deleted_namespaces_days: self.auto_cleanup_deleted_namespaces,
        };
        if update == MaintenanceUpdate::default() {
            return Err(CliError::usage("nothing to change: name at least one option"));
        }
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        backend.command(AbmCommand::UpdateMaintenance(update)).await?;
        show_config(&backend).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_maintenance_configuration_are_parsed() {
        let eviction = redis("redis://cache-1:6379/lru").unwrap();
        assert_eq!((eviction.host.as_str(), eviction.port, eviction.key.as_str()), ("cache-1", 6379, "lru"));
        for wrong in ["cache-1:6379/lru", "redis://:1/k", "redis://h:x/k", "redis://h:1/", "redis://h:1"] {
            assert!(redis(wrong).is_err(), "{wrong}");
        }
        assert_eq!(pair("c-,default").unwrap(), ("c-".to_owned(), PresetName::new("default").unwrap()));
        assert!(pair("c-").is_err() && pair("c-,").is_err());
        assert_eq!(
            [switch(false, false), switch(true, false), switch(false, true)],
            [None, Some(true), Some(false)]
        );
    }
}
