//! A cluster's certificate authority: who has a certificate of it is a member, everyone else is not.
//!
//! Its private key signs members and does nothing else; it is read only to do that, never printed, and readable for its
//! owner alone. Certificates do not expire: a cluster must not stop because nobody thought of a date. A member whose key got
//! into wrong hands is shut out by a new authority.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use alba_core::env::files;
use alba_core::env::real::quic::SERVER_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::error::CliError;

/// The authority's name in all its certificates.
const NAME: &str = "ALBA cluster authority";

/// The authority of the directory that holds `ca.pem` and `ca.key`.
pub(crate) struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// Files of one member: what its configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberFiles {
    /// The authority's certificate.
    pub(crate) ca: PathBuf,
    /// The member's certificate.
    pub(crate) cert: PathBuf,
    /// The member's private key.
    pub(crate) key: PathBuf,
}

fn trouble(error: &rcgen::Error) -> CliError {
    CliError::failure(format!("cannot make a certificate: {error}"))
}

/// The same every time: an issuer made again from its key signs as the first one did.
fn params() -> Result<CertificateParams, CliError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(|error| trouble(&error))?;
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn read(path: &Path) -> Result<Option<String>, CliError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CliError::file("read", path, &error)),
    }
}

/// Writes a private key that only its owner can read.
fn write_key(path: &Path, pem: &str) -> Result<(), CliError> {
    let write = || {
        let mut file = files::create_with_mode(path, 0o600)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| CliError::file("write", path, &error))
}

fn write_certificate(path: &Path, pem: &str) -> Result<(), CliError> {
    files::replace(path, pem.as_bytes()).map_err(|error| CliError::file("write", path, &error))
}

impl Authority {
    /// The one of `dir`; made there when there is none.
    pub(crate) fn open_or_create(dir: &Path) -> Result<Self, CliError> {
        match Self::open(dir)? {
            Some(authority) => Ok(authority),
            None => Self::create(dir),
        }
    }

    /// A new one in `dir`, which must hold none.
    pub(crate) fn create(dir: &Path) -> Result<Self, CliError> {
        files::create_dir_all(dir).map_err(|error| CliError::file("create", dir, &error))?;
        let (certificate, key_file) = (dir.join("ca.pem"), dir.join("ca.key"));
        if certificate.exists() {
            return Err(CliError::failure(format!(
                "{} exists: a new authority would shut out everyone who trusts that one; name another directory",
                certificate.display()
            )));
        }
        let key = KeyPair::generate().map_err(|error| trouble(&error))?;
        let pem = params()?.self_signed(&key).map_err(|error| trouble(&error))?.pem();
        // The certificate last: where it is, the key is.
        write_key(&key_file, &key.serialize_pem())?;
        write_certificate(&certificate, &pem)?;
        Ok(Self { dir: dir.to_owned(), issuer: Issuer::new(params()?, key) })
    }

    /// The one of `dir`, if there is one.
    pub(crate) fn open(dir: &Path) -> Result<Option<Self>, CliError> {
        let key_file = dir.join("ca.key");
        if read(&dir.join("ca.pem"))?.is_none() {
            return Ok(None);
        }
        let Some(pem) = read(&key_file)? else {
            return Err(CliError::failure(format!(
                "{} is missing: certificates can only be made where the authority's key is",
                key_file.display()
            )));
        };
        let key = KeyPair::from_pem(&pem).map_err(|error| {
            CliError::failure(format!("{} holds no private key: {error}", key_file.display()))
        })?;
        Ok(Some(Self { dir: dir.to_owned(), issuer: Issuer::new(params()?, key) }))
    }

    /// Certificate and key of the member `name`, in files of that name in `out`. What is there is used again.
    pub(crate) fn member(&self, name: &str, out: &Path) -> Result<MemberFiles, CliError> {
        files::create_dir_all(out).map_err(|error| CliError::file("create", out, &error))?;
        let found = MemberFiles {
            ca: out.join("ca.pem"),
            cert: out.join(format!("{name}.pem")),
            key: out.join(format!("{name}.key")),
        };
        let authority = self.dir.join("ca.pem");
        if found.ca != authority
            && let Some(pem) = read(&authority)?
            && read(&found.ca)?.as_ref() != Some(&pem)
        {
            write_certificate(&found.ca, &pem)?;
        }
        if found.cert.exists() && found.key.exists() {
            return Ok(found);
        }
        let key = KeyPair::generate().map_err(|error| trouble(&error))?;
        let mut params =
            CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(|error| trouble(&error))?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let pem = params.signed_by(&key, &self.issuer).map_err(|error| trouble(&error))?.pem();
        write_key(&found.key, &key.serialize_pem())?;
        write_certificate(&found.cert, &pem)?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use alba_core::env::real::quic::Identity;

    use super::*;

    #[test]
    fn members_of_an_authority_opened_again_trust_each_other_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::create(dir.path()).unwrap().member("one", dir.path()).unwrap();
        let out = dir.path().join("other");
        let second = Authority::open(dir.path()).unwrap().unwrap().member("two", &out).unwrap();
        for files in [&first, &second] {
            Identity::read(&files.ca, &files.cert, &files.key).unwrap();
        }
        for key in [&first.key, &second.key, &dir.path().join("ca.key")] {
            assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600, "{key:?}");
        }
        // Asked for again, a member keeps its certificate.
        let before = std::fs::read(&second.cert).unwrap();
        assert_eq!(Authority::open(dir.path()).unwrap().unwrap().member("two", &out).unwrap(), second);
        assert_eq!(std::fs::read(&second.cert).unwrap(), before);
    }

    #[test]
    fn an_authority_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path()).unwrap();
        let refused = Authority::create(dir.path()).map(drop).unwrap_err();
        assert!(refused.message.contains("ca.pem"), "{refused}");
        files::remove_file(&dir.path().join("ca.key")).unwrap();
        let refused = Authority::open(dir.path()).map(drop).unwrap_err();
        assert!(refused.message.contains("ca.key"), "{refused}");
    }
}
