//! What one server does for a group while its replica leads it: the backend's bootstrap, the registration of groups,
//! delivery, clean-up. Each begins with the leadership and ends with it; a moment in which two servers do the same is
//! harmless, since all of it is commands that a repetition does not change.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use alba_core::env::Env;
use alba_core::ids::{AlbaId, GroupId};
use alba_core::wire::rpc::Consistency;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmOutcome, AbmQuery};
use tokio::sync::watch;

use super::{Devices, Groups, REQUEST_TIME, StartError, abm_id, ages, deliver, peers, relocate, uuid};
use crate::abm::Abm;
use crate::machine::{Input, Output};
use crate::model::Model;
use crate::raft::AnyRaft;
use crate::replicator::{ReplicationError, Replicator, read_with};
use crate::txn::KvTxn;

/// How often each group is asked for left-over work, and with it whether its store is sound.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether the groups' servers are registered as they are.
const REGISTER_EVERY: Duration = Duration::from_secs(5);

/// Between attempts of what must succeed before anything else.
const RETRY: Duration = Duration::from_millis(200);

/// For one attempt.
const ATTEMPT: Duration = Duration::from_secs(30);

/// Runs what `duty` gives as long as the group is led from here, anew with each leadership.
pub(super) async fn while_leading<F>(
    env: Env,
    mut leads: watch::Receiver<bool>,
    name: &'static str,
    duty: impl Fn() -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    // An error: it will never change again.
    while leads.wait_for(|leads| *leads).await.is_ok() {
        let task = env.spawn.spawn(name, Box::pin(duty())).abort_on_drop();
        if leads.wait_for(|leads| !*leads).await.is_err() {
            std::future::pending::<()>().await;
        }
        drop(task);
    }
}

/// Makes the backend's id and tells the ABM where the groups are.
pub(super) struct Registrar {
    pub(super) env: Env,
    pub(super) abm: Arc<dyn Replicator<Abm>>,
    pub(super) groups: Arc<Groups>,
    pub(super) rafts: BTreeMap<GroupId, Arc<dyn AnyRaft>>,
    pub(super) advertise: String,
    pub(super) alba_id: Arc<OnceLock<AlbaId>>,
}

impl Registrar {
    fn failed(error: ReplicationError) -> StartError {
        match abm_id() {
            Ok(group) => StartError::Group { group, error },
            Err(error) => error,
        }
    }

    /// First start of the backend: makes its id. Always: gives it.
    pub(super) async fn bootstrap(&self) -> Result<AlbaId, StartError> {
        if let Some(id) = self.alba_id.get() {
            return Ok(id.clone());
        }
        let wanted = AlbaId::new(uuid(&self.env)).map_err(|error| StartError::Abm(error.into()))?;
        let first = Input::Internal(AbmCommand::Bootstrap { alba_id: wanted });
        match self.abm.propose(first, self.env.deadline_in(ATTEMPT)).await.map_err(Self::failed)?.0 {
            Output::Done(Ok(AbmOutcome::AlbaId(id))) => Ok(self.alba_id.get_or_init(|| id).clone()),
            Output::Done(Err(error)) => Err(StartError::Abm(error)),
            _ => Err(StartError::Unexpected),
        }
    }

    /// Tells the ABM where the NSM groups of this process are, if it has them otherwise. Is that known of all?
    pub(super) async fn register(&self) -> Result<bool, StartError> {
        let deadline = self.env.deadline_in(ATTEMPT);
        let known = match self.abm.query(AbmQuery::Groups, Consistency::Any, deadline).await {
            Ok((Ok(AbmAnswer::Groups(groups)), _)) => groups,
            Ok((Err(error), _)) => return Err(StartError::Abm(error)),
            Ok(_) => return Err(StartError::Unexpected),
            Err(error) => return Err(Self::failed(error)),
        };
        let mut all = true;
        for id in self.groups.nsm.keys() {
            let servers = match self.rafts.get(id) {
                None => vec![self.advertise.clone()],
                Some(raft) => raft.addresses(),
            };
            let as_known = known.iter().any(|record| record.id == *id && record.servers == servers);
            all &= !servers.is_empty();
            if servers.is_empty() || as_known {
                continue;
            }
            let command = Input::Internal(AbmCommand::AddGroup { id: id.clone(), servers });
            let deadline = self.env.deadline_in(ATTEMPT);
            match self.abm.propose(command, deadline).await.map_err(Self::failed)?.0 {
                Output::Done(Ok(_)) => {}
                Output::Done(Err(error)) => return Err(StartError::Abm(error)),
                _ => return Err(StartError::Unexpected),
            }
        }
        Ok(all)
    }
}

/// The duties of the server that leads the ABM.
pub(super) async fn abm(
    env: Env,
    registrar: Arc<Registrar>,
    groups: Arc<Groups>,
    devices: Arc<dyn Devices>,
    misfits: ages::Misfits,
) {
    let alba_id = loop {
        match registrar.bootstrap().await {
            Ok(id) => break id,
            Err(error) => tracing::warn!(%error, "cannot bootstrap the backend yet"),
        }
        env.clock.sleep_until(env.clock.now().plus(RETRY)).await;
    };
    let deliverer = deliver::Deliverer::new(&env, &registrar.abm, &groups, &devices, &alba_id);
    let _deliver = env.spawn.spawn("metadata-deliver", Box::pin(deliverer.run())).abort_on_drop();
    let peers = peers::run(env.clone(), registrar.abm.clone(), devices.clone());
    let _peers = env.spawn.spawn("metadata-peers", Box::pin(peers)).abort_on_drop();
    let ages = ages::run(env.clone(), registrar.abm.clone(), groups.clone(), misfits);
    let _ages = env.spawn.spawn("metadata-ages", Box::pin(ages)).abort_on_drop();
    let moves = relocate::run(env.clone(), registrar.abm.clone(), groups.clone());
    let _moves = env.spawn.spawn("metadata-moves", Box::pin(moves)).abort_on_drop();
    loop {
        let pause = match registrar.register().await {
            Ok(true) => REGISTER_EVERY,
            // A group is still forming; until it is registered no namespace can be created there.
            Ok(false) => RETRY,
            Err(error) => {
                tracing::warn!(%error, "cannot register the groups of this server yet");
                RETRY
            }
        };
        env.clock.sleep_until(env.clock.now().plus(pause)).await;
    }
}

/// Clean-up in bounded steps, of a group that is led from here; on the way it notices a store that failed, and has it
/// opened again.
pub(super) async fn tidy<M: Model>(
    env: Env,
    group: GroupId,
    replicator: Arc<dyn Replicator<M>>,
    troubles: Arc<Mutex<BTreeMap<GroupId, String>>>,
) {
    let leads = replicator.leadership();
    loop {
        let mut more = false;
        let leads = *leads.borrow();
        let result = if leads { step(&env, replicator.as_ref()).await } else { Ok(false) };
        {
            let mut troubles = troubles.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(left) => {
                    more = left;
                    troubles.remove(&group)
                }
                // Another one leads, or none does: that is told by the replica itself.
                Err(ReplicationError::NotLeader { .. }) => troubles.remove(&group),
                Err(error) => troubles.insert(group.clone(), error.to_string()),
            };
        }
        if !more {
            env.clock.sleep_until(env.clock.now().plus(TIDY_EVERY)).await;
        }
    }
}

/// A step, if there is anything to do: an idle group writes nothing. Is there more?
async fn step<M: Model>(env: &Env, replicator: &dyn Replicator<M>) -> Result<bool, ReplicationError> {
    let looked = read_with(replicator, env.deadline_in(REQUEST_TIME), |store| {
        let mut txn = KvTxn::new(store);
        let more = M::tidy(&mut txn)?;
        txn.accept();
        Ok(more || !txn.into_batch().0.is_empty())
    });
    match looked.await {
        Ok(false) => return Ok(false),
        // A store that failed is opened again by the next proposal.
        Ok(true) | Err(ReplicationError::Store(_)) => {}
        Err(error) => return Err(error),
    }
    let tidied = replicator.propose(Input::Tidy, env.deadline_in(REQUEST_TIME)).await?;
    Ok(matches!(tidied.0, Output::Tidied(true)))
}

#[cfg(test)]
mod tests {
    use alba_core::env::sim::Simulation;
    use alba_core::kv::MemKv;
    use alba_core::wire::rpc::admin::GroupStatus;
    use async_trait::async_trait;

    use super::super::AsdDevices;
    use super::*;
    use crate::nsm::Nsm;
    use crate::raft::MembershipError;
    use crate::replicator::{Local, LocalLimits, StoreOpener};

    /// A group that has no members until it forms.
    #[derive(Default)]
    struct Forming(Mutex<Vec<String>>);

    #[async_trait]
    impl AnyRaft for Forming {
        async fn receive(&self, _: &[u8]) -> Vec<u8> {
            Vec::new()
        }
        fn status(&self) -> Result<GroupStatus, ReplicationError> {
            Ok(GroupStatus::default())
        }
        fn leader_address(&self) -> Option<String> {
            None
        }
        fn addresses(&self) -> Vec<String> {
            self.0.lock().unwrap().clone()
        }
        async fn add_replica(&self, _: &str) -> Result<u64, MembershipError> {
            Err(MembershipError::Busy)
        }
        async fn remove_replica(&self, _: u64) -> Result<(), MembershipError> {
            Err(MembershipError::Busy)
        }
        async fn snapshot_now(&self) -> Result<(), ReplicationError> {
            Ok(())
        }
    }

    fn opener() -> StoreOpener {
        let store = Arc::new(MemKv::new());
        Arc::new(move || Ok(store.clone()))
    }

    #[test]
    fn a_group_that_forms_after_the_abm_is_registered_soon_after() {
        let sim = Simulation::new(1);
        let env = sim.node(1).env();
        sim.run(Duration::from_secs(60), async {
            let id = GroupId::new("nsm-0").unwrap();
            let limits = LocalLimits::default;
            let abm = Local::<Abm>::start(env.clone(), &abm_id().unwrap(), opener(), limits()).await.unwrap();
            let abm: Arc<dyn Replicator<Abm>> = Arc::new(abm);
            let nsm = Local::<Nsm>::start(env.clone(), &id, opener(), limits()).await.unwrap();
            let nsm: Arc<dyn Replicator<Nsm>> = Arc::new(nsm);
            let groups = Arc::new(Groups { abm: Some(abm.clone()), nsm: [(id.clone(), nsm)].into() });
            let forming = Arc::new(Forming::default());
            let registrar = Arc::new(Registrar {
                env: env.clone(),
                abm: abm.clone(),
                groups: groups.clone(),
                rafts: [(id.clone(), forming.clone() as Arc<dyn AnyRaft>)].into(),
                advertise: "10.0.0.1:4000".to_owned(),
                alba_id: Arc::default(),
            });
            let devices = Arc::new(AsdDevices::new(env.clone()));
            let duty = super::abm(env.clone(), registrar, groups, devices, ages::Misfits::default());
            let _duty = env.spawn.spawn("duty", Box::pin(duty)).abort_on_drop();
            let pause = |time| env.clock.sleep_until(env.clock.now().plus(time));
            let registered = async || {
                let asked = abm.query(AbmQuery::Groups, Consistency::Any, env.deadline_in(ATTEMPT)).await;
                let (Ok(AbmAnswer::Groups(groups)), _) = asked.unwrap() else { panic!("no groups") };
                groups.into_iter().map(|group| group.servers).collect::<Vec<_>>()
            };
            pause(Duration::from_millis(1500)).await;
            assert_eq!(registered().await, Vec::<Vec<String>>::new());
            let servers = vec!["10.0.0.1:4000".to_owned(), "10.0.0.2:4000".to_owned()];
            forming.0.lock().unwrap().clone_from(&servers);
            // Simulated time: nobody should have to wait longer to create the first namespace.
            pause(Duration::from_secs(1)).await;
            assert_eq!(registered().await, [servers]);
        })
        .unwrap();
    }
}
