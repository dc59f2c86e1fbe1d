//! The file of the cluster's key, which opens the keys of presets that encrypt. Made once, never replaced: without it everything
//! that was encrypted is lost.

use std::io::{ErrorKind, Write};
use std::path::Path;

use alba_core::encryption::ClusterKey;
use alba_core::env::{Rng, files};

use crate::error::CliError;

/// Makes sure that the file is there; what it holds is kept.
pub(crate) fn ensure(path: &Path, rng: &dyn Rng) -> Result<(), CliError> {
    if path.exists() {
        return ClusterKey::read(path).map(drop).map_err(|error| CliError::failure(error.to_string()));
    }
    let write = || {
        // Whole or not at all under its name: half a key would be refused for ever.
        let fresh = path.with_extension("key.new");
        let mut file = files::create_with_mode(&fresh, 0o600)?;
        file.write_all(ClusterKey::new(rng.bytes32()).to_text().as_bytes())?;
        file.sync_all()?;
        if path.exists() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        files::rename_durably(&fresh, path)
    };
    write().map_err(|error| CliError::file("write", path, &error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use alba_core::env::real;

    use super::*;

    #[test]
    fn it_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        ensure(&path, &*real::env().rng).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        ensure(&path, &*real::env().rng).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        files::create_with_mode(&path, 0o600).unwrap().write_all(b"half").unwrap();
        assert!(ensure(&path, &*real::env().rng).unwrap_err().message.contains("64 hexadecimal digits"));
    }
}
