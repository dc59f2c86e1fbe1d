//! The replicas of the metadata groups: who answers, who leads, what is missing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use alba_client::metadata::MetadataClient;
use alba_core::env::{Env, within};
use alba_core::ids::GroupId;
use alba_core::wire::rpc::admin::GroupStatus;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::judge::Verdict;

/// A server that takes longer does not answer, as far as people who watch are concerned.
const PATIENCE: Duration = Duration::from_secs(2);

/// A group as its servers tell of it.
pub(super) struct GroupSeen {
    pub(super) id: GroupId,
    pub(super) servers: Vec<(SocketAddr, Result<GroupStatus, String>)>,
}

/// Asks all servers of all groups at once, those included of which only the others know: silent ones must not add up.
pub(super) async fn ask_all(
    env: &Env,
    metadata: &MetadataClient,
    groups: Vec<(GroupId, BTreeSet<SocketAddr>)>,
) -> Vec<GroupSeen> {
    join_all(groups.into_iter().map(|(id, servers)| ask(env, metadata, id, servers))).await
}

async fn ask(env: &Env, metadata: &MetadataClient, id: GroupId, servers: BTreeSet<SocketAddr>) -> GroupSeen {
    let mut seen = GroupSeen { id, servers: Vec::new() };
    let mut wanted = servers;
    for _ in 0..2 {
        let answers = wanted.into_iter().map(async |server| {
            let deadline = env.deadline_in(PATIENCE);
            let status = metadata.group_status_at(server, &seen.id, deadline);
            let status = match within(env.clock.as_ref(), deadline, status).await {
                Ok(status) => status.map_err(|error| error.to_string()),
                Err(late) => Err(late.to_string()),
            };
            (server, status)
        });
        let answers = join_all(answers).await;
        seen.servers.extend(answers);
        let members = seen.members();
        let asked: BTreeSet<SocketAddr> = seen.servers.iter().map(|(server, _)| *server).collect();
        wanted = members.into_iter().filter(|member| !asked.contains(member)).collect();
    }
    seen.servers.sort_by_key(|(server, _)| *server);
    seen
}

impl GroupSeen {
    /// The newest view that anyone has; none of a group that is not replicated, or of which nobody answers.
    fn newest(&self) -> Option<&GroupStatus> {
        let answers = self.servers.iter().filter_map(|(_, status)| status.as_ref().ok());
        answers
            .filter(|status| status.replica != 0)
            .max_by_key(|status| (status.term, status.lag_known(), status.applied))
    }

    fn members(&self) -> Vec<SocketAddr> {
        let members = self.newest().map(|status| status.members.as_slice()).unwrap_or_default();
        members.iter().filter_map(|member| member.address.parse().ok()).collect()
    }

    /// Where the leader is.
    fn leader(&self) -> Option<&str> {
        let status = self.newest()?;
        let leader = status.leader?;
        status.members.iter().find(|member| member.replica == leader).map(|member| member.address.as_str())
    }

    /// What is wrong with it.
    pub(super) fn findings(&self) -> Vec<(Verdict, String)> {
        let Some(newest) = self.newest() else { return Vec::new() };
        let id = &self.id;
        let mut found = Vec::new();
        let mut well = 0;
        for member in newest.members.iter().filter(|member| member.voter) {
            let answer = self.servers.iter().find(|(server, _)| server.to_string() == member.address);
            let trouble = match answer {
                None => Some("was not asked".to_owned()),
                Some((_, Err(error))) => Some(format!("does not answer: {error}")),
                Some((_, Ok(status))) if status.replica != member.replica => {
                    Some("is another replica now".to_owned())
                }
                Some((_, Ok(status))) => status.trouble.clone(),
            };
            match trouble {
                None => well += 1,
                Some(trouble) => {
                    found.push((
                        Verdict::Degraded,
                        format!("group {id}: the replica at {} {trouble}", member.address),
                    ));
                }
            }
        }
        let voters = newest.members.iter().filter(|member| member.voter).count();
        if well * 2 <= voters {
            found.push((
                Verdict::AtRisk,
                format!("group {id} has no majority: {well} of {voters} replicas are well"),
            ));
        } else if self.leader().is_none() {
            found.push((Verdict::AtRisk, format!("group {id} has no leader")));
        }
        found
    }

    /// One line, of a replicated group.
    pub(super) fn line(&self) -> Option<String> {
        let newest = self.newest()?;
        let leader = self.leader().unwrap_or("nobody");
        let lag = newest.members.iter().filter_map(|member| member.lag).max();
        let lag = lag.map_or_else(String::new, |lag| format!(", at most {lag} entries behind"));
        Some(format!("{} led by {leader}, {} replicas{lag}", self.id, newest.members.len()))
    }

    pub(super) fn json(&self) -> Option<Value> {
        let newest = self.newest()?;
        let replicas = newest.members.iter().map(|member| {
            let answer = self.servers.iter().find(|(server, _)| server.to_string() == member.address);
            json!({
                "replica": format!("{:016x}", member.replica),
                "address": member.address,
                "voter": member.voter,
                "lag": member.lag,
                "answers": answer.is_some_and(|(_, status)| status.is_ok()),
            })
        });
        Some(json!({
            "id": self.id.as_str(),
            "leader": self.leader(),
            "term": newest.term,
            "replicas": replicas.collect::<Vec<_>>(),
        }))
    }
}

/// The leader's view says more than a follower's of the same term.
trait LagKnown {
    fn lag_known(&self) -> bool;
}

impl LagKnown for GroupStatus {
    fn lag_known(&self) -> bool {
        self.members.iter().any(|member| member.lag.is_some())
    }
}

#[cfg(test)]
mod tests {
    use alba_core::wire::rpc::admin::GroupMember;

    use super::*;

    fn status(replica: u64, leader: Option<u64>, trouble: Option<&str>) -> GroupStatus {
        let member =
            |n: u64| GroupMember { replica: n, address: format!("127.0.0.1:400{n}"), voter: true, lag: None };
        GroupStatus {
            replica,
            leader,
            term: 7,
            members: (1..=3).map(member).collect(),
            trouble: trouble.map(str::to_owned),
            ..GroupStatus::default()
        }
    }

    fn seen(answers: [Result<GroupStatus, String>; 3]) -> GroupSeen {
        let servers = (1..=3).map(|n| format!("127.0.0.1:400{n}").parse().unwrap()).zip(answers).collect();
        GroupSeen { id: GroupId::new("abm").unwrap(), servers }
    }

    fn verdicts(group: &GroupSeen) -> Vec<Verdict> {
        group.findings().into_iter().map(|(verdict, _)| verdict).collect()
    }

    #[test]
    fn a_silent_replica_degrades_and_a_lost_majority_is_a_risk() {
        let good = |n| Ok(status(n, Some(1), None));
        let silent = || Err("refused".to_owned());
        let whole = seen([good(1), good(2), good(3)]);
        assert_eq!(verdicts(&whole), []);
        assert_eq!(whole.line().unwrap(), "abm led by 127.0.0.1:4001, 3 replicas");
        assert_eq!(verdicts(&seen([good(1), good(2), silent()])), [Verdict::Degraded]);
        let ill = seen([good(1), good(2), Ok(status(3, Some(1), Some("its log is full")))]);
        assert!(ill.findings()[0].1.contains("4003 its log is full"), "{:?}", ill.findings());
        let alone = seen([silent(), silent(), Ok(status(3, None, None))]);
        assert_eq!(verdicts(&alone), [Verdict::Degraded, Verdict::Degraded, Verdict::AtRisk]);
        let torn = seen([Ok(status(1, None, None)), Ok(status(2, None, None)), silent()]);
        assert_eq!(verdicts(&torn), [Verdict::Degraded, Verdict::AtRisk]);
    }

    #[test]
    fn a_group_without_replication_has_nothing_to_say() {
        let single = GroupSeen {
            id: GroupId::new("abm").unwrap(),
            servers: vec![("127.0.0.1:4000".parse().unwrap(), Ok(GroupStatus::default()))],
        };
        assert!(single.findings().is_empty() && single.line().is_none() && single.json().is_none());
    }

    #[test]
    fn silent_servers_of_many_groups_do_not_add_up() {
        use alba_core::env::sim::Simulation;
        let sim = Simulation::new(1);
        let (asks, silent) = (sim.node(1), sim.node(2));
        sim.sever(&asks, &silent);
        let env = asks.env();
        let server = silent.address(4000);
        let metadata = MetadataClient::connect(env.clone(), vec![server]);
        let groups: Vec<_> =
            (0..6).map(|n| (GroupId::new(format!("nsm-{n}")).unwrap(), BTreeSet::from([server]))).collect();
        let seen = sim.run(Duration::from_secs(60), ask_all(&env, &metadata, groups)).unwrap();
        assert!(seen.len() == 6 && seen.iter().all(|group| group.servers[0].1.is_err()));
        // Simulated time.
        assert!(sim.now().0 < PATIENCE * 2, "{:?}", sim.now());
    }
}
