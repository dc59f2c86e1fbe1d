//! The keys of presets, opened with the cluster's key when they are first needed.
//!
//! Known by their hash, so that a manifest of an older key could still be read while it is kept. Keys are in this process's memory
//! only: never in a log, an error or an answer to anybody but the proxy's own clients.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::encryption::{ClusterKey, FragmentKey, KeyError};
use alba_core::env::Deadline;
use alba_core::ids::NamespaceName;
use alba_core::manifest::{CipherMode, EncryptInfo};
use alba_core::preset::FragmentEncryption;

use crate::ClientError;
use crate::engine::Engine;
use crate::watch::Fresh;

/// Keys kept; there is one for each preset that encrypts.
const KEPT: usize = 1024;

/// How old what is known of a namespace's preset may be: a preset's key is for life.
const FRESH: Duration = Duration::from_secs(600);

/// See the module.
pub(crate) struct Keys {
    /// Where the cluster's key is, if this client has it.
    cluster: Option<PathBuf>,
    known: Mutex<BTreeMap<[u8; 32], FragmentKey>>,
}

fn digits(hash: &[u8; 32]) -> String {
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

impl Keys {
    pub(crate) fn new(cluster: Option<PathBuf>) -> Self {
        Self { cluster, known: Mutex::default() }
    }

    /// Is the cluster's key there, if one is configured?
    pub(crate) fn check(&self) -> Result<(), KeyError> {
        self.cluster.as_deref().map_or(Ok(()), |path| ClusterKey::read(path).map(drop))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], FragmentKey>> {
        // Nothing that can panic runs while it is half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of a preset that encrypts.
    pub(crate) fn of_preset(&self, encryption: &FragmentEncryption) -> Result<Option<FragmentKey>, KeyError> {
        let FragmentEncryption::Aes256Ctr { key_sha256, key: wrapped } = encryption else { return Ok(None) };
        if let Some(key) = self.known().get(key_sha256) {
            return Ok(Some(key.clone()));
        }
        let path = self.cluster.as_deref().ok_or(KeyError::NoClusterKey)?;
        let key = ClusterKey::read(path)?.unwrap(wrapped)?;
        let found = key.sha256();
        if found != *key_sha256 {
            return Err(KeyError::OtherKey { expected: digits(key_sha256), found: digits(&found) });
        }
        let mut known = self.known();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(found, key.clone());
        Ok(Some(key))
    }

    /// The key of an object of a namespace; none when it is not encrypted.
    pub(crate) async fn of_object(
        engine: &Engine,
        namespace: &NamespaceName,
        encryption: &EncryptInfo,
        deadline: Deadline,
    ) -> Result<Option<Arc<FragmentKey>>, ClientError> {
        let hash = match encryption {
            EncryptInfo::None => return Ok(None),
            EncryptInfo::Aes256 { mode: CipherMode::Cbc, .. } => return Err(KeyError::Cbc.into()),
            EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256 } => key_sha256,
        };
        if let Some(key) = engine.keys.known().get(hash) {
            return Ok(Some(Arc::new(key.clone())));
        }
        let namespace = engine.namespaces.resolve(namespace, deadline).await?;
        let info = engine.namespaces.info(&namespace, Fresh::within(FRESH), deadline).await?;
        match engine.keys.of_preset(&info.preset.fragment_encryption)? {
            Some(key) if key.sha256() == *hash => Ok(Some(Arc::new(key))),
            key => {
                let expected = key.map_or_else(|| "none".to_owned(), |key| digits(&key.sha256()));
                Err(KeyError::OtherKey { expected, found: digits(hash) }.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use alba_core::env::files;

    use super::*;

    #[test]
    fn a_key_is_opened_once_and_needs_the_clusters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        let (cluster, key) = (ClusterKey::new([1; 32]), FragmentKey::new([2; 32]));
        let encryption = FragmentEncryption::aes_256_ctr(&key, &cluster);
        assert!(Keys::new(None).of_preset(&FragmentEncryption::None).unwrap().is_none());
        assert_eq!(Keys::new(None).of_preset(&encryption).unwrap_err(), KeyError::NoClusterKey);
        let keys = Keys::new(Some(path.clone()));
        assert!(matches!(keys.check(), Err(KeyError::File { .. })));
        let write = |key: &ClusterKey| {
            files::replace(&path, key.to_text().as_bytes()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write(&ClusterKey::new([3; 32]));
        assert_eq!(keys.of_preset(&encryption).unwrap_err(), KeyError::WrongClusterKey);
        write(&cluster);
        assert_eq!(keys.check(), Ok(()));
        assert_eq!(keys.of_preset(&encryption).unwrap().unwrap().expose(), key.expose());
        // A hash that is not the key's: the record is damaged.
        let FragmentEncryption::Aes256Ctr { key: wrapped, .. } = encryption else { panic!() };
        let damaged = FragmentEncryption::Aes256Ctr { key_sha256: [0; 32], key: wrapped };
        assert!(matches!(keys.of_preset(&damaged), Err(KeyError::OtherKey { .. })));
        files::remove_file(&path).unwrap();
        assert!(keys.of_preset(&encryption).unwrap().is_some(), "known by now");
    }
}
