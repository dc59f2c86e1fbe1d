//! Recovery of metadata groups that were lost, and the decisions that it leaves to an operator.

use std::collections::BTreeMap;
use std::path::PathBuf;

use alba_client::Client;
use alba_core::ids::{GroupId, LongId, NamespaceName, NodeId, ObjectId, ObjectName, text_or_hex};
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::abm::{AbmCommand, NamespaceRecord};
use alba_core::wire::rpc::nsm::{Finding, FindingReason, NsmAnswer, NsmCommand, NsmQuery, Resolution};
use clap::Args;
use serde_json::json;

use super::backend::{Backend, mismatch, shown};
use crate::answer::Answer;
use crate::error::CliError;
use crate::recover::{self, Task};
use crate::session::Session;
use crate::table::table;
use crate::{json, names};

/// Rebuild the namespaces of a metadata group that was lost for good, from what OSDs hold and a backup
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba update-nsm-host nsm-0 --lost\n  alba recover-nsm nsm-0 --to nsm-1 --backup /backup/nsm-0-1764101000000000.backup\n\n\
    Nothing that may have been deleted or replaced is brought back by itself: such objects are listed apart, and the namespace is \
    served\nonly when somebody has decided about them. Stopped in the middle, the same command goes on. Exit code 0: everything is \
    served\nagain; 3: it worked, and something is left for an operator; 1: it did not work."
)]
pub(crate) struct RecoverNsm {
    /// The lost group
    group: GroupId,
    /// The group that gets its namespaces
    #[arg(long, value_name = "GROUP")]
    to: GroupId,
    /// The newest backup of the lost group
    #[arg(long, value_name = "FILE")]
    backup: Option<PathBuf>,
    /// Where progress and report are kept [default: ./recover-GROUP]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Long id of an OSD that will not come back; give it once for each
    #[arg(long, value_name = "LONG_ID")]
    without_osd: Vec<LongId>,
}

impl RecoverNsm {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let work_dir = self.work_dir.unwrap_or_else(|| format!("recover-{}", self.group).into());
        let task =
            Task { from: self.group, to: self.to, backup: self.backup, work_dir, without: self.without_osd };
        recover::recover(session, task).await
    }
}

/// Put a lost ABM together from what groups, OSDs and an old backup say of it
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba recover-abm --nsm-host nsm-0 --nsm-host nsm-1 --backup /backup/abm-1764101000000000.backup abm.recovered\n  \
    alba metadata restore --config metadata.toml --group abm abm.recovered\n\n\
    The NSM groups must run, on the metadata servers that the client configuration names; the ABM need not, and nothing is changed.\n\
    The file is a backup: `alba metadata restore` makes the group of it, where there is none. Exit code 3: it worked, and OSDs have\n\
    namespaces that no group has."
)]
pub(crate) struct RecoverAbm {
    /// An NSM group; give it once for each
    #[arg(long, value_name = "GROUP")]
    nsm_host: Vec<GroupId>,
    /// The newest backup of the ABM
    #[arg(long, value_name = "FILE")]
    backup: Option<PathBuf>,
    /// An OSD that is elsewhere than it was, or that nobody knows: [NODE@]IP:PORT; give it once for each
    #[arg(long, value_name = "[NODE@]IP:PORT", value_parser = at)]
    osd: Vec<recover::abm::At>,
    /// Long id of an OSD that will not come back; give it once for each
    #[arg(long, value_name = "LONG_ID")]
    without_osd: Vec<LongId>,
    /// A group that is lost, too: namespaces that no other group has are its
    #[arg(long, value_name = "GROUP")]
    lost_group: Option<GroupId>,
    /// The new backup
    file: PathBuf,
}

fn at(text: &str) -> Result<recover::abm::At, String> {
    let (node, address) = match text.rsplit_once('@') {
        Some((node, address)) => (Some(node), address),
        None => (None, text),
    };
    let node = node.map(NodeId::new).transpose().map_err(|error| error.to_string())?;
    let address = address.parse().map_err(|_| format!("{address:?} is no IP:PORT"))?;
    Ok(recover::abm::At { node, address })
}

impl RecoverAbm {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let task = recover::abm::Task {
            groups: self.nsm_host,
            backup: self.backup,
            osds: self.osd,
            without: self.without_osd,
            lost_group: self.lost_group,
            file: self.file,
        };
        recover::abm::recover(session, task).await
    }
}

/// Give a namespace of a metadata group that was lost to another one, empty and not served yet
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba recover-namespace photos nsm-1\n\nalba recover-nsm does this for all namespaces of a group, and what comes after it."
)]
pub(crate) struct RecoverNamespace {
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    /// The new group
    group: GroupId,
}

impl RecoverNamespace {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let (name, group) = (self.namespace.clone(), self.group.clone());
        backend.command(AbmCommand::RecoverNamespace { name, group }).await?;
        let now = backend.namespace(&self.namespace).await?;
        let text = format!("namespace {} waits in group {} for its objects", shown(&now.name), self.group);
        Answer::new(json::namespace(&now), text)
    }
}

/// What is said of an object that is listed apart; its manifest would be long.
struct Brief {
    id: ObjectId,
    name: ObjectName,
    size: u64,
    timestamp: Timestamp,
    reason: FindingReason,
}

impl From<Finding> for Brief {
    fn from(finding: Finding) -> Self {
        let Finding { reason, manifest } = finding;
        let (id, name) = (manifest.object_id, manifest.name);
        Self { id, name, size: manifest.size, timestamp: manifest.timestamp, reason }
    }
}

/// All that is listed apart in a namespace, by id.
async fn findings(
    session: &Session,
    client: &Client,
    namespace: &NamespaceRecord,
) -> Result<Vec<Brief>, CliError> {
    let mut found: Vec<Brief> = Vec::new();
    loop {
        let after = found.last().map(|finding| finding.id);
        let query = NsmQuery::RecoveryFindings { namespace: namespace.id, after, max: 200 };
        match Backend::new(client, session.deadline()).nsm(namespace, query).await? {
            NsmAnswer::Findings(page) => {
                let more = page.has_more && !page.items.is_empty();
                found.extend(page.items.into_iter().map(Brief::from));
                if !more {
                    return Ok(found);
                }
            }
            _ => return Err(mismatch("RecoveryFindings")),
        }
    }
}

fn reason(reason: FindingReason) -> &'static str {
    match reason {
        FindingReason::Conflict => "conflict",
        FindingReason::PossiblyDeleted => "possibly deleted",
    }
}

/// List the objects of a namespace that a recovery found and does not bring back by itself
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba list-recovery-findings photos\n\nThe report of alba recover-nsm says more of why."
)]
pub(crate) struct ListFindings {
    /// Its name
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
}

impl ListFindings {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let namespace = Backend::new(&client, session.deadline()).namespace(&self.namespace).await?;
        let findings = findings(session, &client, &namespace).await?;
        let rows = findings.iter().map(|finding| {
            vec![
                text_or_hex(finding.name.as_bytes()),
                hex::encode(finding.id.as_bytes()),
                finding.size.to_string(),
                json::seconds(finding.timestamp.0).to_string(),
                reason(finding.reason).to_owned(),
            ]
        });
        let text = table(&["NAME", "OBJECT ID", ">SIZE", ">SINCE", "WHY"], rows.collect());
        let list = findings.iter().map(|finding| {
            json!({
                "name": text_or_hex(finding.name.as_bytes()),
                "object_id": hex::encode(finding.id.as_bytes()),
                "size": finding.size,
                "timestamp": json::seconds(finding.timestamp.0),
                "reason": reason(finding.reason),
            })
        });
        Answer::new(list.collect::<Vec<_>>(), text)
    }
}

/// What becomes of the chosen ones.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Decision {
    /// They are the objects of their names
    #[arg(long)]
    restore: bool,
    /// They were deleted or replaced: their fragments are deleted, too
    #[arg(long)]
    discard: bool,
    /// Of the objects of each name the one that was stored last is restored, the others are discarded
    #[arg(long)]
    newest: bool,
}

/// Which.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Chosen {
    /// Id of an object, as alba list-recovery-findings shows it; give it once for each
    #[arg(long, value_name = "HEX", value_parser = object_id)]
    object_id: Vec<ObjectId>,
    /// All objects with one of these reasons
    #[arg(long, value_enum, value_name = "REASON")]
    all: Vec<Reason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Reason {
    Conflict,
    PossiblyDeleted,
}

fn object_id(text: &str) -> Result<ObjectId, String> {
    let bytes = hex::decode(text).map_err(|error| error.to_string())?;
    ObjectId::try_from(bytes.as_slice()).map_err(|error| error.to_string())
}

/// Decide about objects that a recovery has listed apart
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  alba resolve-recovery-findings photos --object-id 3f1c... --restore\n  \
    alba resolve-recovery-findings photos --all possibly-deleted --discard\n  \
    alba resolve-recovery-findings photos --all conflict --newest\n\nThen give alba recover-nsm again: it ends the recovery."
)]
pub(crate) struct Resolve {
    /// Of the namespace
    #[arg(value_parser = names::namespace())]
    namespace: NamespaceName,
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    decision: Decision,
}

impl Resolve {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let namespace = Backend::new(&client, session.deadline()).namespace(&self.namespace).await?;
        let mut findings = findings(session, &client, &namespace).await?;
        let missing = |id: &&ObjectId| !findings.iter().any(|finding| finding.id == **id);
        if let Some(unknown) = self.chosen.object_id.iter().find(missing) {
            let text = format!("object {} is not listed apart", hex::encode(unknown.as_bytes()));
            return Err(CliError::usage(text));
        }
        findings.retain(|finding| {
            let reason = match finding.reason {
                FindingReason::Conflict => Reason::Conflict,
                FindingReason::PossiblyDeleted => Reason::PossiblyDeleted,
            };
            self.chosen.object_id.contains(&finding.id) || self.chosen.all.contains(&reason)
        });
        let decisions = decide(&findings, &self.decision);
        let (mut restored, mut discarded) = (0_u64, 0_u64);
        for (object, resolution) in decisions {
            let command = NsmCommand::ResolveFinding { namespace: namespace.id, object, resolution };
            let done = client.namespace_store().command(&namespace.group, command, session.deadline()).await;
            let about = format!(
                "object {}, after {restored} restored and {discarded} discarded",
                hex::encode(object.as_bytes())
            );
            done.map_err(|error| CliError::from(error).while_doing(&about))?;
            match resolution {
                Resolution::Restore => restored += 1,
                Resolution::Discard => discarded += 1,
            }
        }
        let text = format!("{restored} objects restored, {discarded} discarded");
        Answer::new(json!({ "restored": restored, "discarded": discarded }), text)
    }
}

/// Discards come first: they free names.
fn decide(findings: &[Brief], decision: &Decision) -> Vec<(ObjectId, Resolution)> {
    let mut newest: BTreeMap<&ObjectName, &Brief> = BTreeMap::new();
    for finding in findings {
        let best = newest.entry(&finding.name).or_insert(finding);
        if (finding.timestamp, finding.id) > (best.timestamp, best.id) {
            *best = finding;
        }
    }
    let mut decisions: Vec<(ObjectId, Resolution)> = findings
        .iter()
        .map(|finding| {
            let is_newest = || newest.get(&finding.name).is_some_and(|best| best.id == finding.id);
            let restore = decision.restore || (decision.newest && is_newest());
            (finding.id, if restore { Resolution::Restore } else { Resolution::Discard })
        })
        .collect();
    decisions.sort_by_key(|(_, resolution)| *resolution == Resolution::Restore);
    decisions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(id: u8, name: &str, timestamp: u64) -> Brief {
        Brief {
            id: ObjectId::new([id; 32]),
            name: ObjectName::new(name).unwrap(),
            size: 1,
            timestamp: Timestamp(timestamp),
            reason: FindingReason::Conflict,
        }
    }

    #[test]
    fn of_each_name_the_newest_is_restored_after_the_others_are_discarded() {
        let findings = [brief(1, "a", 5), brief(2, "a", 9), brief(3, "b", 1), brief(4, "a", 7)];
        let newest = Decision { restore: false, discard: false, newest: true };
        let decided: Vec<(u8, Resolution)> =
            decide(&findings, &newest).into_iter().map(|(id, what)| (id.as_bytes()[0], what)).collect();
        use Resolution::{Discard, Restore};
        assert_eq!(decided, [(1, Discard), (4, Discard), (2, Restore), (3, Restore)]);
        let all = Decision { restore: true, discard: false, newest: false };
        assert!(decide(&findings, &all).iter().all(|(_, what)| *what == Restore));
    }
}
