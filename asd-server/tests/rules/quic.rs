//! The same protocol over QUIC, for who has a certificate of the cluster.

use std::process::Child;
use std::sync::Arc;

use alba_core::env::net::Endpoint;
use alba_core::env::real::quic::{ASD, Identity, QuicConnector, QuicLimits, SERVER_NAME};
use alba_core::env::{OsdError, osd_conformance, within};
use alba_core::ids::{LongId, NodeId, Place};
use alba_core::net::asd::{AsdClient, AsdClientConfig, OsdTransport, Reach};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{OsdEndpoint, OsdInfo, OsdPorts};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}

fn member(issuer: &Issuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// A cluster with one member, and what an ASD is configured with to serve it at a free address.
struct Secured {
    ca: String,
    certificate: String,
    key: String,
    at: SocketAddr,
    set: Vec<String>,
}

impl Secured {
    fn new(directory: &Path) -> Self {
        let (ca, issuer) = authority();
        let (certificate, key) = member(&issuer);
        let mut set = Vec::new();
        for (name, pem) in [("tls_ca", &ca), ("tls_cert", &certificate), ("tls_key", &key)] {
            let path = directory.join(name);
            files::replace(&path, pem.as_bytes()).unwrap();
            set.push(format!("{name}={:?}", path.to_str().unwrap()));
        }
        let at = free_address();
        set.push(format!("quic_listen=\"{at}\""));
        Self { ca, certificate, key, at, set }
    }

    fn set(&self) -> Vec<&str> {
        self.set.iter().map(String::as_str).collect()
    }

    fn identity(&self) -> Identity {
        let (ca, certificate) = (self.ca.as_bytes(), self.certificate.as_bytes());
        Identity::from_pem(ca, certificate, self.key.as_bytes()).unwrap()
    }

    fn connector(&self, env: &Env, identity: &Identity) -> Arc<QuicConnector> {
        let limits = QuicLimits::default();
        Arc::new(QuicConnector::new(env.clock.clone(), identity, ASD, &limits).unwrap())
    }

    /// As clients reach the OSD of a record: by the port of QUIC that it has.
    fn reach(&self, env: &Env) -> Reach {
        let connector = self.connector(env, &self.identity());
        Reach::new(env.clone(), Some(connector), OsdTransport::Auto)
    }

    fn info(&self) -> OsdInfo {
        OsdInfo {
            long_id: LongId::new(LONG_ID).unwrap(),
            place: Place::of_node(NodeId::new("node-0").unwrap()),
            endpoint: OsdEndpoint { ips: vec![self.at.ip()], ports: OsdPorts::Quic(self.at.port()) },
            capacity: ByteCount(0),
            used: ByteCount(0),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_quic_it_is_the_same_osd() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let secured = Secured::new(directory.path());
    // Values of 4 MiB are among what is asked of it.
    let set = [&secured.set()[..], &["segment_bytes=16777216"]].concat();
    let _asd = start(&env, &directory.path().join("disk"), free_address(), &set).await;
    let reach = secured.reach(&env);
    let who = reach.probe(Endpoint::Quic(secured.at), env.deadline_in(WAIT)).await.unwrap();
    assert_eq!(who.as_str(), LONG_ID);
    let nobody = reach.probe(Endpoint::Quic(free_address()), env.deadline_in(WAIT)).await;
    assert!(matches!(nobody, Err(OsdError::Connection(_))), "{nobody:?}");
    let osd = reach.client(&secured.info(), AsdClientConfig::default());
    osd_conformance::run(osd.clone(), env.clock.clone()).await;
    // Who has no certificate cannot even try.
    let without = Reach::without_certificate(env.clone());
    let refused = without.client(&secured.info(), AsdClientConfig::default());
    assert!(matches!(refused.version(env.deadline_in(WAIT)).await, Err(OsdError::Connection(_))));
    let elsewhere = LongId::new("another").unwrap();
    let wrong =
        reach.client(&OsdInfo { long_id: elsewhere.clone(), ..secured.info() }, AsdClientConfig::default());
    let found = wrong.version(env.deadline_in(WAIT)).await.unwrap_err();
    assert_eq!(found, OsdError::WrongOsd { expected: elsewhere, found: LONG_ID.to_owned() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_quic_deadlines_hold_and_what_is_given_up_holds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let secured = Secured::new(directory.path());
    let (disk, plain) = (directory.path().join("disk"), free_address());
    let mut asd = start(&env, &disk, plain, &secured.set()).await;
    let config = AsdClientConfig { max_streams: 2, ..AsdClientConfig::default() };
    let osd = secured.reach(&env).client(&secured.info(), config);
    osd.apply(small(), Priority::High, env.deadline_in(WAIT)).await.unwrap();
    let read = async |within: Duration| {
        osd.multi_get(vec!["k".into()], Priority::High, env.deadline_in(within)).await
    };
    // It hangs: calls end at their deadlines, and one that finds no stream free says so.
    signal(&asd.0, Signal::STOP);
    let hurry = Duration::from_millis(300);
    let (one, other, third) = tokio::join!(read(2 * hurry), read(2 * hurry), read(hurry));
    assert_eq!((one.err(), other.err()), (Some(OsdError::Timeout), Some(OsdError::Timeout)));
    assert!(matches!(third, Err(OsdError::Overloaded(_))), "{third:?}");
    // Far more than there are streams in this client were given up by now, by dropping them.
    for _ in 0..20 {
        let call = read(WAIT);
        let given_up = within(env.clock.as_ref(), env.deadline_in(Duration::from_millis(20)), call).await;
        given_up.unwrap_err();
    }
    signal(&asd.0, Signal::CONT);
    assert!(read(WAIT).await.unwrap()[0].is_some());
    // It dies: what is asked meanwhile fails, as a broken connection or at its deadline; once it is back, the same client goes on.
    asd.0.kill().unwrap();
    asd.0.wait().unwrap();
    let dead = read(Duration::from_secs(2)).await;
    assert!(matches!(dead, Err(OsdError::Timeout | OsdError::Connection(_))), "{dead:?}");
    let _asd = start(&env, &disk, plain, &secured.set()).await;
    assert!(read(Duration::from_secs(10)).await.unwrap()[0].is_some());
    osd.apply(small(), Priority::High, env.deadline_in(WAIT)).await.unwrap();
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_the_cluster_are_served_over_quic_many_at_once_and_strangers_not() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let secured = Secured::new(directory.path());
    let _asd = start(&env, &directory.path().join("disk"), free_address(), &secured.set()).await;
    let client = |identity: &Identity| {
        AsdClient::over(
            env.clone(),
            Some(secured.connector(&env, identity)),
            vec![Endpoint::Quic(secured.at)],
            LongId::new(LONG_ID).unwrap(),
            AsdClientConfig::default(),
        )
    };
    let osd = client(&secured.identity());
    osd.apply(small(), Priority::High, env.deadline_in(WAIT)).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (osd, env) = (osd.clone(), env.clone());
        calls.spawn(async move {
            let slices = vec![ValueSlice { offset: 1, len: 3 }];
            let found =
                osd.partial_get("k".into(), slices, Priority::High, env.deadline_in(WAIT)).await.unwrap();
            assert_eq!(found.unwrap(), [&b"alu"[..]]);
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let (_, other) = authority();
    let (certificate, key) = member(&other);
    let stranger = Identity::from_pem(secured.ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap();
    client(&stranger).version(env.deadline_in(WAIT)).await.unwrap_err();
}
