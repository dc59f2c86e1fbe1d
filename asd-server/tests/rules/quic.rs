//! The same protocol over QUIC, for who has a certificate of the cluster.

use std::sync::Arc;

use alba_core::env::net::Endpoint;
use alba_core::env::real::quic::{ASD, Identity, QuicConnector, QuicLimits, SERVER_NAME};
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_the_cluster_are_served_over_quic_many_at_once_and_strangers_not() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let (ca, issuer) = authority();
    let (certificate, key) = member(&issuer);
    let mut set = Vec::new();
    for (name, pem) in [("tls_ca", &ca), ("tls_cert", &certificate), ("tls_key", &key)] {
        let path = directory.path().join(name);
        files::replace(&path, pem.as_bytes()).unwrap();
        set.push(format!("{name}={:?}", path.to_str().unwrap()));
    }
    let secure = free_address();
    set.push(format!("quic_listen=\"{secure}\""));
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let _asd = start(&env, &directory.path().join("disk"), free_address(), &set).await;
    let client = |identity: &Identity| {
        let limits = QuicLimits::default();
        let connector = QuicConnector::new(env.clock.clone(), identity, ASD, &limits).unwrap();
        AsdClient::over(
            env.clone(),
            Some(Arc::new(connector)),
            vec![Endpoint::Quic(secure)],
            alba_core::ids::LongId::new(LONG_ID).unwrap(),
            AsdClientConfig::default(),
        )
    };
    let osd = client(&Identity::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap());
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
    let stranger = Identity::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap();
    client(&stranger).version(env.deadline_in(WAIT)).await.unwrap_err();
}
