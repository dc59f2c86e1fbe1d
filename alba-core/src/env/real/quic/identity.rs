//! Who a process is to the others of its cluster: a certificate with its key, and the authority that all trust.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use thiserror::Error;

use super::provider;

/// A certificate with its key, and the authority.
pub struct Identity {
    authority: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Why PEM texts are no [`Identity`].
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Not PEM, or not of the right kind.
    #[error("{what}: {error}")]
    Pem {
        /// Of the three.
        what: &'static str,
        /// Why.
        error: rustls::pki_types::pem::Error,
    },
    /// No certificate where one is needed.
    #[error("{0} has no certificate")]
    Empty(&'static str),
    /// Certificate, key or authority do not fit together, or are of an unknown kind.
    #[error("certificates cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The authority cannot be one.
    #[error("the authority cannot verify clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// TLS 1.3 with a cipher of QUIC is not there.
    #[error(transparent)]
    Cipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

impl Identity {
    /// From PEM texts: the authority's certificates, the own certificate with what leads to the authority, and its key.
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        for root in certificates("the authority", authority)? {
            roots.add(root)?;
        }
        let chain = certificates("the certificate", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| IdentityError::Pem { what: "the key", error })?;
        let identity = Self { authority: Arc::new(roots), chain, key };
        // That key and certificate fit is found now, not with the first connection.
        identity.server(b"")?;
        identity.client(b"")?;
        Ok(identity)
    }

    /// From PEM files. Blocks: for the start of a process.
    pub fn read(authority: &Path, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| IdentityError::Read { path: path.to_owned(), error })
        };
        Self::from_pem(&read(authority)?, &read(certificate)?, &read(key)?)
    }

    /// As a server that takes clients of the authority only.
    pub(super) fn server(
        &self,
        protocol: &[u8],
    ) -> Result<quinn::crypto::rustls::QuicServerConfig, IdentityError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.authority.clone(), provider()).build()?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![protocol.to_vec()];
        Ok(tls.try_into()?)
    }

    /// As a client that takes servers of the authority only.
    pub(super) fn client(
        &self,
        protocol: &[u8],
    ) -> Result<quinn::crypto::rustls::QuicClientConfig, IdentityError> {
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.authority.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![protocol.to_vec()];
        Ok(tls.try_into()?)
    }

    /// A key that stays the same over restarts and that nobody else knows.
    pub(super) fn derived_key(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, self.key.secret_der())
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(IdentityError::Empty(what)),
        other => other.map_err(|error| IdentityError::Pem { what, error }),
    }
}
