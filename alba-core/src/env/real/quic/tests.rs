//! Over loopback, with certificates made here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::env::net::{Connector, Endpoint, Listener, Net, Stream};
use crate::env::osd::{OsdBatch, OsdUpdate, Priority, StoredValue};
use crate::env::sim::memory_osd::MemoryOsd;
use crate::env::{Deadline, Env, Osd, OsdError, real, within};
use crate::ids::LongId;
use crate::net::asd::{AsdClient, AsdClientConfig, serve_prologue};
use crate::net::frame::{FrameReader, write_message};
use crate::wire::asd::{Request, Response, encode_answer};
use crate::wire::common::Version;

/// An authority of a cluster.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key.
    fn member(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn identity(&self) -> Identity {
        let (certificate, key) = self.member(SERVER_NAME);
        Identity::from_pem(self.pem.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap()
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn soon(env: &Env) -> Deadline {
    env.deadline_in(Duration::from_secs(20))
}

async fn listener(env: &Env, identity: &Identity, at: SocketAddr) -> Box<dyn Listener> {
    listen(env.clock.clone(), identity, at, ASD, &QuicLimits::default()).await.unwrap()
}

fn connector(env: &Env, identity: &Identity) -> QuicConnector {
    QuicConnector::new(env.clock.clone(), identity, ASD, &QuicLimits::default()).unwrap()
}

/// How often a stream was accepted, and from whom.
#[derive(Default)]
struct Seen {
    streams: AtomicUsize,
    peers: std::sync::Mutex<std::collections::BTreeSet<SocketAddr>>,
}

/// Sends back what comes in, until the listener is dropped.
async fn echo(mut listener: Box<dyn Listener>, seen: Arc<Seen>) {
    while let Ok((mut stream, peer)) = listener.accept().await {
        seen.streams.fetch_add(1, Ordering::SeqCst);
        seen.peers.lock().unwrap().insert(peer);
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await?;
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        });
    }
}

async fn ask(stream: io::Result<Stream>, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = stream?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn many_streams_at_once_share_one_connection() {
    many_streams().await;
}

#[tokio::test]
async fn connections_on_threads_of_their_own_are_the_same() {
    // The test, its tasks and the endpoints that they make have one thread.
    threads::ALWAYS.set(true);
    many_streams().await;
    threads::ALWAYS.set(false);
}

async fn many_streams() {
    let (env, authority) = (real::env(), Authority::new());
    let listener = listener(&env, &authority.identity(), any_port()).await;
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let server = tokio::spawn(echo(listener, seen.clone()));
    let connector = Arc::new(connector(&env, &authority.identity()));
    // More than may be open at once, some larger than all windows.
    let mut calls = tokio::task::JoinSet::new();
    for call in 0..400_usize {
        let (connector, env) = (connector.clone(), env.clone());
        calls.spawn(async move {
            let len = if call % 100 == 0 { 10 << 20 } else { call * 10 };
            let sent = vec![u8::try_from(call % 256).unwrap(); len];
            let answer = ask(connector.open(address, soon(&env)).await, &sent).await.unwrap();
            assert!(answer == sent, "call {call}");
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    assert_eq!(seen.streams.load(Ordering::SeqCst), 400);
    assert_eq!(seen.peers.lock().unwrap().len(), 1, "one connection");
    if threads::ALWAYS.get() {
        // Two endpoints, two sides of the connection, and who accepts.
        assert!(threads::tasks() >= 5, "{}", threads::tasks());
    }
    server.abort();
}

#[tokio::test]
async fn strangers_are_refused() {
    let (env, authority, stranger) = (real::env(), Authority::new(), Authority::new());
    let listener = listener(&env, &authority.identity(), any_port()).await;
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let server = tokio::spawn(echo(listener, seen.clone()));
    let refused = async |connector: QuicConnector, why: &str| {
        let talk = async { ask(connector.open(address, soon(&env)).await, b"hello").await };
        let answer = within(env.clock.as_ref(), soon(&env), talk).await.expect("refused, not ignored");
        assert!(answer.is_err(), "{why}: {answer:?}");
    };
    let with = |authority: &Authority, member: &Authority, name: &str| {
        let (certificate, key) = member.member(name);
        Identity::from_pem(authority.pem.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap()
    };
    // The client does not trust the server; the server does not trust the client.
    refused(connector(&env, &stranger.identity()), "another cluster").await;
    refused(connector(&env, &with(&authority, &stranger, SERVER_NAME)), "certified by another").await;
    // Trusts the server, and has no certificate of its own.
    let mut roots = rustls::RootCertStore::empty();
    let pem = rustls::pki_types::CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap();
    roots.add(pem).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ASD.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let nameless = connector(&env, &authority.identity()).with_crypto(Arc::new(crypto));
    refused(nameless, "no certificate").await;
    // A member that speaks something else.
    let other =
        QuicConnector::new(env.clock.clone(), &authority.identity(), b"other/1", &QuicLimits::default());
    refused(other.unwrap(), "another protocol").await;
    assert_eq!(seen.streams.load(Ordering::SeqCst), 0, "no stream was ever accepted");
    // The same way, a member is served.
    let member = connector(&env, &with(&authority, &authority, "anything"));
    assert_eq!(ask(member.open(address, soon(&env)).await, b"hello").await.unwrap(), b"hello");
    server.abort();
}

#[tokio::test]
async fn a_server_needs_the_name_of_servers() {
    let (env, authority) = (real::env(), Authority::new());
    let (certificate, key) = authority.member("client");
    let identity =
        Identity::from_pem(authority.pem.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap();
    let listener = listener(&env, &identity, any_port()).await;
    let client = connector(&env, &authority.identity());
    let refused = client.open(listener.local_addr().unwrap(), soon(&env)).await;
    assert!(refused.err().unwrap().to_string().contains("certificate"));
}

#[tokio::test]
async fn identities_that_do_not_fit_are_refused_when_read() {
    let (one, other) = (Authority::new(), Authority::new());
    let (certificate, key) = one.member("a");
    let (_, other_key) = other.member("b");
    let from = |authority: &str, certificate: &str, key: &str| {
        Identity::from_pem(authority.as_bytes(), certificate.as_bytes(), key.as_bytes()).err().unwrap()
    };
    assert!(matches!(from("", &certificate, &key), IdentityError::Empty("the authority")));
    assert!(matches!(from(&one.pem, "", &key), IdentityError::Empty("the certificate")));
    assert!(matches!(from(&one.pem, &certificate, ""), IdentityError::Pem { what: "the key", .. }));
    assert!(matches!(from(&one.pem, &certificate, &other_key), IdentityError::Tls(_)));
    let missing = std::path::Path::new("/nonexistent/pem");
    assert!(matches!(Identity::read(missing, missing, missing), Err(IdentityError::Read { .. })));
}

/// An ASD of the simplest kind, the way a real one serves: prologue, then requests until the end.
async fn asd(mut listener: Box<dyn Listener>, osd: Arc<MemoryOsd>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let osd = osd.clone();
        tokio::spawn(async move {
            let env = real::env();
            let mut reader = FrameReader::new();
            let id = LongId::new("asd_0").unwrap();
            if serve_prologue(&mut stream, &mut reader, &id).await.is_err() {
                return;
            }
            while reader.begin(&mut stream).await.unwrap_or(false) {
                let Ok(frame) = reader.frame(&mut stream, 64 << 20).await else { return };
                let request = Request::decode(frame).unwrap();
                let command = request.command();
                let answer = match request {
                    Request::GetVersion => {
                        Ok(Response::Version(Version { major: 1, minor: 0, patch: 0, revision: "".into() }))
                    }
                    Request::Apply { batch, priority } => {
                        osd.apply(batch, priority, soon(&env)).await.map(|()| Response::Applied(Vec::new()))
                    }
                    Request::MultiGet { keys, priority } => {
                        osd.multi_get(keys, priority, soon(&env)).await.map(Response::Values)
                    }
                    Request::ProvenGet { key, slice, priority } => {
                        osd.proven_get(key, slice, priority, soon(&env)).await.map(Response::Proven)
                    }
                    _ => Err(OsdError::UnknownOperation),
                };
                let message = encode_answer(command, &answer.map_err(Into::into)).unwrap();
                if write_message(&mut stream, &message).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn asd_client(env: &Env, identity: &Identity, address: SocketAddr) -> Arc<AsdClient> {
    AsdClient::over(
        env.clone(),
        Some(Arc::new(connector(env, identity))),
        vec![Endpoint::Quic(address)],
        LongId::new("asd_0").unwrap(),
        // The first datagrams to a port that is just being opened again may be lost.
        AsdClientConfig { connect_timeout: Duration::from_secs(10), ..AsdClientConfig::default() },
    )
}

fn value(round: u8) -> StoredValue {
    let value: Bytes = vec![round; 100_000].into();
    StoredValue { checksum: crate::checksum::ChecksumAlgorithm::Blake3.of(&value), value }
}

fn set(round: u8) -> OsdBatch {
    OsdBatch { asserts: Vec::new(), updates: vec![OsdUpdate::Set("k".into(), value(round))] }
}

#[tokio::test]
async fn an_asd_is_served_by_streams() {
    let (env, authority) = (real::env(), Authority::new());
    let listener = listener(&env, &authority.identity(), any_port()).await;
    let address = listener.local_addr().unwrap();
    let osd = Arc::new(MemoryOsd::new(ByteCount::mib(1024)));
    let server = tokio::spawn(asd(listener, osd));
    let client = asd_client(&env, &authority.identity(), address);
    client.apply(set(7), Priority::High, soon(&env)).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (client, env) = (client.clone(), env.clone());
        calls.spawn(async move {
            let slice = crate::env::osd::ValueSlice { offset: 50_000, len: 4_096 };
            let proven =
                client.proven_get("k".into(), slice, Priority::High, soon(&env)).await.unwrap().unwrap();
            let crate::checksum::Checksum::Blake3(root) = value(7).checksum else { unreachable!("made so") };
            let verified = crate::blake3_tree::verify(root, 100_000, slice, &proven).unwrap();
            assert_eq!(verified.into_bytes(), vec![7; 4_096]);
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    server.abort();
}

/// A server in a runtime of its own, so that it can vanish without a word, as if it were killed.
fn vanishing(
    identity: Arc<Identity>,
    at: SocketAddr,
    osd: Arc<MemoryOsd>,
) -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = runtime.block_on(async {
        let env = real::env();
        // The port is free when the runtime before is gone.
        let listener = loop {
            match listen(env.clock.clone(), &identity, at, ASD, &QuicLimits::default()).await {
                Ok(listener) => break listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        let address = listener.local_addr().unwrap();
        tokio::spawn(asd(listener, osd));
        address
    });
    (runtime, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn after_a_restart_of_the_server_calls_go_on() {
    let (env, authority) = (real::env(), Authority::new());
    let identity = Arc::new(authority.identity());
    let osd = Arc::new(MemoryOsd::new(ByteCount::mib(1024)));
    let start = async |at: SocketAddr| {
        let (identity, osd) = (identity.clone(), osd.clone());
        tokio::task::spawn_blocking(move || vanishing(identity, at, osd)).await.unwrap()
    };
    let (mut runtime, address) = start(any_port()).await;
    let client = asd_client(&env, &identity, address);
    client.apply(set(0), Priority::High, soon(&env)).await.unwrap();
    for round in 1..4_u8 {
        runtime.shutdown_background();
        runtime = start(address).await.0;
        // Sent into the connection of before, answered with a reset, repeated in a new one: well before the idle time of
        // the old one, which is longer than this deadline.
        let quick = env.deadline_in(Duration::from_secs(10));
        let found = client.multi_get(vec!["k".into()], Priority::High, quick).await.unwrap();
        assert_eq!(found, [Some(value(round - 1))]);
        client.apply(set(round), Priority::High, soon(&env)).await.unwrap();
    }
    runtime.shutdown_background();
}

#[tokio::test]
async fn a_listener_that_is_dropped_closes_its_connections() {
    let (env, authority) = (real::env(), Authority::new());
    let mut listener = listener(&env, &authority.identity(), any_port()).await;
    let address = listener.local_addr().unwrap();
    let client = connector(&env, &authority.identity());
    let mut near = client.open(address, soon(&env)).await.unwrap();
    near.write_all(b"x").await.unwrap();
    let (mut far, _) = within(env.clock.as_ref(), soon(&env), listener.accept()).await.unwrap().unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
    drop(listener);
    let read = within(env.clock.as_ref(), soon(&env), near.read_u8()).await.expect("hears of it");
    assert!(read.is_err());
}

/// As after the renewal of a certificate: resets of the next process are signed with another key, so that nobody heeds them.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_ends_in_order_tells_its_clients_so_that_another_key_costs_them_no_idle_time() {
    let (env, authority) = (real::env(), Authority::new());
    let client = connector(&env, &authority.identity());
    let seen = Arc::new(Seen::default());
    let mut at = any_port();
    for round in 0..3_u8 {
        let (identity, seen) = (authority.identity(), seen.clone());
        let start = move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let (net, listener) = runtime.block_on(async {
                let net = QuicNet::new(real::env().clock, identity, ASD, QuicLimits::default()).unwrap();
                // The port is free when the runtime before is gone.
                loop {
                    match net.listen(at).await {
                        Ok(listener) => break (net, listener),
                        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                            tokio::task::yield_now().await
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            (runtime, net, listener)
        };
        let (runtime, net, listener) = tokio::task::spawn_blocking(start).await.unwrap();
        at = listener.local_addr().unwrap();
        let serving = runtime.spawn(echo(listener, seen));
        // Shorter than the idle time of the connection of before.
        let quick = env.deadline_in(Duration::from_secs(10));
        let asked =
            within(env.clock.as_ref(), quick, async { ask(client.open(at, quick).await, &[round]).await });
        assert_eq!(asked.await.expect("in time").unwrap(), [round]);
        serving.abort();
        drop(serving.await);
        net.told(soon(&env)).await;
        drop(net);
        runtime.shutdown_background();
    }
}

#[tokio::test]
async fn a_port_in_use_is_named_and_a_full_server_refuses() {
    let (env, authority) = (real::env(), Authority::new());
    let identity = authority.identity();
    let limits = QuicLimits { connections: 1, ..QuicLimits::default() };
    let listener = listen(env.clock.clone(), &identity, any_port(), ASD, &limits).await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = listen(env.clock.clone(), &identity, address, ASD, &limits).await.err().unwrap();
    assert!(taken.to_string().contains(&address.to_string()), "{taken}");
    let (one, two) = (connector(&env, &identity), connector(&env, &identity));
    let kept = one.open(address, soon(&env)).await.unwrap();
    assert!(two.open(address, soon(&env)).await.is_err());
    drop(kept);
}
