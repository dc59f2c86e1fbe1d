//! Three servers in one process, over real sockets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::real::quic::{self, QuicLimits, QuicNet};
use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Net, real};
use alba_core::net::rpc::{RpcConnection, ServerLimits, serve};
use alba_core::wire::rpc::SessionId;
use alba_core::wire::rpc::abm::{GroupRecord, NamespaceRecord, NamespaceState};
use alba_core::wire::rpc::admin::{AdminReply, AdminRequest, GroupStatus};

use super::*;
use crate::raft::RaftLimits;
use crate::raft::tests::cluster::Place;

struct Server {
    address: SocketAddr,
    places: BTreeMap<GroupId, Place>,
    running: Option<(Arc<Node>, AbortOnDrop)>,
}

struct World {
    env: Env,
    servers: Vec<Server>,
}

fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

impl World {
    /// All speak over `net`, or plain TCP.
    async fn start(net: Option<Arc<dyn Net>>) -> Self {
        let env = real::env();
        let mut addresses = BTreeSet::new();
        while addresses.len() < 3 {
            let listener = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            addresses.insert(listener.local_addr().unwrap());
        }
        let place = |n: usize, name: &str| {
            let seed = u64::try_from(n * 10 + name.len()).unwrap();
            (group(name), Place::new(seed))
        };
        let servers = addresses.into_iter().enumerate().map(|(n, address)| Server {
            address,
            places: [place(n, "abm"), place(n, "nsm-0")].into(),
            running: None,
        });
        let env = match net {
            Some(net) => Env { net, ..env },
            None => env,
        };
        let mut world = Self { env, servers: servers.collect() };
        for n in 0..3 {
            world.boot(n).await;
        }
        world
    }

    async fn boot(&mut self, n: usize) {
        let peers: Vec<String> = self.servers.iter().map(|server| server.address.to_string()).collect();
        let server = &self.servers[n];
        let replicated = server.places.iter().map(|(group, place)| {
            let limits = RaftLimits {
                heartbeat: Duration::from_millis(100),
                lease: Duration::from_millis(600),
                ..RaftLimits::default()
            };
            let config = RaftConfig {
                group: group.clone(),
                address: server.address.to_string(),
                peers: peers.clone(),
                limits,
            };
            Replicated { config, home: place.home() }
        });
        let config = NodeConfig {
            groups: BTreeMap::new(),
            advertise: server.address.to_string(),
            limits: LocalLimits::default(),
        };
        let devices = Arc::new(AsdDevices::new(self.env.clone()));
        let node = Node::start_with(self.env.clone(), config, replicated.collect(), devices).await.unwrap();
        let until = self.env.deadline_in(Duration::from_secs(20));
        let listener = loop {
            match self.env.net.listen(server.address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(!until.left(self.env.clock.as_ref()).is_zero(), "{error}"),
            }
            self.pause().await;
        };
        let serving = serve(self.env.clone(), listener, node.clone(), ServerLimits::default());
        let task = async move {
            serving.await;
        };
        let task = self.env.spawn.spawn("server", Box::pin(task)).abort_on_drop();
        self.servers[n].running = Some((node, task));
    }

    async fn pause(&self) {
        self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(20))).await;
    }

    async fn ask(&self, n: usize, request: &Request) -> Option<Reply> {
        let deadline = self.env.deadline_in(Duration::from_secs(8));
        let connection = RpcConnection::open(&self.env, self.servers[n].address, deadline).await.ok()?;
        connection.call(request, deadline).await.ok().map(|answer| answer.reply)
    }

    /// Asks all in turn until one gives what is wanted.
    async fn until<T>(&self, what: &str, request: &Request, wanted: impl Fn(usize, Reply) -> Option<T>) -> T {
        let until = self.env.deadline_in(Duration::from_secs(60));
        loop {
            let mut seen = Vec::new();
            for n in 0..self.servers.len() {
                if self.servers[n].running.is_none() {
                    continue;
                }
                if let Some(reply) = self.ask(n, request).await {
                    seen.push(format!("{reply:?}"));
                    if let Some(found) = wanted(n, reply) {
                        return found;
                    }
                }
            }
            assert!(!until.left(self.env.clock.as_ref()).is_zero(), "never: {what}: {seen:?}");
            self.pause().await;
        }
    }

    async fn leader(&self, name: &str) -> (usize, AlbaId) {
        let name = group(name);
        self.until("a leader", &Request::Hello, |n, reply| match reply {
            Reply::Hello { alba_id, groups, .. } if groups.contains(&name) => Some((n, alba_id)),
            _ => None,
        })
        .await
    }

    async fn session(&self) -> SessionId {
        let open = Request::OpenSession {
            group: group("abm"),
            nonce: self.env.rng.bytes32()[..16].try_into().unwrap(),
        };
        self.until("a session", &open, |_, reply| match reply {
            Reply::Session(session) => Some(session),
            _ => None,
        })
        .await
    }

    async fn create(&self, session: SessionId, sequence: u64, name: &str) -> NamespaceRecord {
        let id = RequestId { session, sequence, lowest_unacknowledged: sequence };
        let name = NamespaceName::new(name).unwrap();
        let command = Request::Abm(id, AbmCommand::CreateNamespace { name, preset: None, group: None });
        self.until("a namespace", &command, |_, reply| match reply {
            Reply::Abm(Ok(AbmOutcome::Namespace(record))) => Some(record),
            Reply::Abm(other) => panic!("{other:?}"),
            _ => None,
        })
        .await
    }

    async fn active(&self, record: &NamespaceRecord) {
        let query = AbmQuery::Namespace(record.name.clone());
        let query = Request::AbmQuery(Consistency::Linearizable, query);
        self.until("delivered to the NSM group", &query, |_, reply| match reply {
            Reply::AbmAnswer(Ok(AbmAnswer::Namespace(Some(record)))) => {
                (record.state == NamespaceState::Active).then_some(())
            }
            _ => None,
        })
        .await;
    }

    async fn groups(&self, wanted: impl Fn(&[GroupRecord]) -> bool) {
        let query = Request::AbmQuery(Consistency::Linearizable, AbmQuery::Groups);
        self.until("the groups are registered", &query, |_, reply| match reply {
            Reply::AbmAnswer(Ok(AbmAnswer::Groups(groups))) => wanted(&groups).then_some(()),
            _ => None,
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_are_one_backend_whoever_leads() {
    let mut world = World::start(None).await;
    let (_, alba_id) = world.leader("abm").await;
    let session = world.session().await;
    let servers: Vec<String> = world.servers.iter().map(|server| server.address.to_string()).collect();
    world.groups(|groups| groups.len() == 1 && groups[0].servers == servers).await;
    let first = world.create(session, 1, "one").await;
    world.active(&first).await;
    for round in 0..2 {
        let (leader, id) = world.leader("abm").await;
        assert_eq!(id, alba_id, "there is one backend, made once");
        world.servers[leader].running = None;
        // The next leader delivers, wherever the NSM group is led.
        let record = world.create(session, 2 + round, &format!("more {round}")).await;
        world.active(&record).await;
        assert_ne!(record.id, first.id);
        world.boot(leader).await;
        world
            .until("it follows again", &Request::Hello, |n, reply| {
                (n == leader && matches!(&reply, Reply::Hello { alba_id: id, .. } if *id == alba_id))
                    .then_some(())
            })
            .await;
    }
    let (leader, _) = world.leader("nsm-0").await;
    let ask = Request::Admin(group("nsm-0"), AdminRequest::Status);
    let status: GroupStatus = world
        .until("the leader's view", &ask, |_, reply| match reply {
            Reply::Admin(Ok(AdminReply::Status(status))) => {
                (status.leader == Some(status.replica)).then_some(status)
            }
            _ => None,
        })
        .await;
    assert_eq!(status.members.len(), 3);
    assert!(status.members.iter().all(|member| member.voter && member.lag.is_some()));
    let formats = Request::Admin(group("nsm-0"), AdminRequest::Status);
    world
        .until("the members were asked for their format", &formats, |_, reply| match reply {
            Reply::Admin(Ok(AdminReply::Status(status))) => {
                (status.format == crate::raft::PAYLOAD_FORMAT).then_some(())
            }
            _ => None,
        })
        .await;
    // Nobody but the leader changes the members.
    let unknown = Request::Admin(group("nsm-0"), AdminRequest::RemoveReplica { replica: 1 });
    world
        .until("a follower tells who leads", &unknown, |n, reply| match reply {
            Reply::Refused(Refusal::NotLeader { leader: Some(_) }) if n != leader => Some(()),
            _ => None,
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_tell_of_changes_and_one_without_a_leader_sends_its_waiters_away() {
    use alba_core::wire::rpc::watch::{Seen, Topic, WatchReply, WatchRequest};
    let mut world = World::start(None).await;
    let session = world.session().await;
    world.groups(|groups| groups.len() == 1).await;
    let record = world.create(session, 1, "one").await;
    world.active(&record).await;
    let (leader, _) = world.leader("abm").await;
    let follower = (leader + 1) % 3;
    let watch = |known: &Seen, wait_ms| Request::Watch(WatchRequest { known: known.clone(), wait_ms });
    let first = watch(&Seen::nothing(&[Topic::NAMESPACES]), 1000);
    let news = |reply| match reply {
        Reply::Watch(WatchReply::News(seen)) => Some(seen),
        _ => None,
    };
    let known =
        world.until("the follower tells", &first, |n, reply| news(reply).filter(|_| n == follower)).await;
    // The follower is asked; the leader is told of the change. The answer comes before its time is over.
    let deadline = world.env.deadline_in(Duration::from_secs(40));
    let connection =
        RpcConnection::open(&world.env, world.servers[follower].address, deadline).await.unwrap();
    let waits = watch(&known, 30_000);
    let told = async {
        loop {
            let answer = connection.call(&waits, deadline).await.unwrap();
            // On a busy machine it may miss its leader for a moment.
            if answer.reply != Reply::Refused(Refusal::Behind) {
                return answer;
            }
            world.pause().await;
        }
    };
    let (told, record) = tokio::join!(told, world.create(session, 2, "two"));
    let index = told.index;
    let seen = news(told.reply).expect("a change");
    assert_ne!(seen.of(Topic::NAMESPACES), known.of(Topic::NAMESPACES));
    assert_eq!(seen.lineage, known.lineage);
    // Whatever is read at least as new as the answer has what it told of.
    assert!(index > 0);
    let query = AbmQuery::Namespace(record.name.clone());
    let query = Request::AbmQuery(Consistency::AtLeast(index), query);
    world
        .until("read from a follower", &query, |n, reply| match reply {
            Reply::AbmAnswer(Ok(AbmAnswer::Namespace(found))) if n == follower => Some(found.unwrap()),
            _ => None,
        })
        .await;
    // Alone it would not hear of changes, and says so to those who wait as soon as it knows.
    for n in (0..3).filter(|n| *n != follower) {
        world.servers[n].running = None;
    }
    let gone = watch(&seen, 30_000);
    world
        .until("sent away", &gone, |_, reply| matches!(reply, Reply::Refused(Refusal::Behind)).then_some(()))
        .await;
}

/// One certificate for all: who a server is, is not told by it.
fn identity() -> quic::Identity {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![quic::SERVER_NAME.to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    quic::Identity::from_pem(authority.as_bytes(), certificate.as_bytes(), key.serialize_pem().as_bytes())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_speak_quic_with_certificates() {
    let clock = real::env().clock;
    let net = QuicNet::new(clock, identity(), quic::METADATA, QuicLimits::default()).unwrap();
    let mut world = World::start(Some(Arc::new(net))).await;
    let session = world.session().await;
    world.groups(|groups| groups.len() == 1).await;
    let first = world.create(session, 1, "one").await;
    world.active(&first).await;
    let (leader, _) = world.leader("abm").await;
    world.servers[leader].running = None;
    let second = world.create(session, 2, "two").await;
    world.active(&second).await;
}
