//! The data directory: who it belongs to, and that only one process uses it.
//!
//! The identity is written once, by `asd-server format` or at the first start. It must never be made anew over data: an ASD that comes back under
//! another name would hide what it holds, one that comes back empty under the old name would be taken for whole.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use alba_core::env::{Rng, files};
use alba_core::ids::{LongId, Place};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::engine::StoreId;

/// Version of the directory's layout.
const FORMAT: u32 = 1;

/// The file that says who a directory belongs to.
const IDENTITY: &str = "identity.toml";

/// Why a directory cannot be used. Every text says what to do.
#[derive(Debug, Error)]
pub enum HomeError {
    /// Another process has it.
    #[error("{0} is in use by a running ASD: stop that one first, or give this one a directory of its own")]
    InUse(PathBuf),
    /// It belongs to another device, or stands elsewhere.
    #[error(
        "{directory} belongs to the ASD with {what} {found}, but the configuration says {wanted}: \
             correct the configuration, or use another directory"
    )]
    Mismatch {
        /// Which directory.
        directory: PathBuf,
        /// What differs.
        what: &'static str,
        /// On the disk.
        found: String,
        /// In the configuration.
        wanted: String,
    },
    /// Data without an identity.
    #[error(
        "{0} holds segments or an index but no identity.toml: restore that file; nothing is formatted over data"
    )]
    Orphaned(PathBuf),
    /// Nothing was formatted there, and it must not be done unasked.
    #[error(
        "{0} is not formatted: if it is the right directory (is the disk mounted?), run asd-server format, \
             or set asd.auto_format = true"
    )]
    Unformatted(PathBuf),
    /// It was formatted before.
    #[error("{directory} belongs to the ASD {long_id} already: nothing is formatted over it")]
    Formatted {
        /// Which directory.
        directory: PathBuf,
        /// Whose.
        long_id: LongId,
    },
    /// Something else is there.
    #[error("{directory} holds {found}: an ASD needs a directory of its own, empty at first")]
    Occupied {
        /// Which directory.
        directory: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The identity does not parse.
    #[error("{path}: {reason}")]
    Identity {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system refused.
    #[error("{path}: {error}")]
    Io {
        /// What was used.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Who a directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    format: u32,
    /// The device's globally unique name.
    pub long_id: LongId,
    /// Where it stands.
    pub place: Place,
    store_id: String,
}

impl Identity {
    /// What its segments are marked with.
    pub fn store(&self) -> Option<StoreId> {
        let bytes = hex::decode(&self.store_id).ok()?;
        bytes.try_into().ok().map(StoreId)
    }
}

/// A data directory that this process has for itself.
pub struct Home {
    directory: PathBuf,
    /// Who it belongs to.
    pub identity: Identity,
    /// What its segments are marked with.
    pub store: StoreId,
    /// Held open for its lock.
    _lock: File,
}

impl Home {
    /// Formats an empty or new directory: fixes who it belongs to, for ever.
    pub fn format(
        directory: &Path,
        long_id: Option<&LongId>,
        place: &Place,
        rng: &dyn Rng,
    ) -> Result<Self, HomeError> {
        files::create_dir_all(directory).map_err(fail(directory))?;
        let lock = lock(directory)?;
        let path = directory.join(IDENTITY);
        if path.try_exists().map_err(fail(&path))? {
            let Self { identity, .. } = Self::read(directory, lock)?;
            return Err(HomeError::Formatted { directory: directory.to_owned(), long_id: identity.long_id });
        }
        for entry in std::fs::read_dir(directory).map_err(fail(directory))? {
            let name = entry.map_err(fail(directory))?.file_name();
            if name == "segments" || name == "index" {
                refuse_data(directory)?;
            } else if name != "lock" && name != "lost+found" {
                let found = name.to_string_lossy().into_owned();
                return Err(HomeError::Occupied { directory: directory.to_owned(), found });
            }
        }
        write_identity(directory, long_id, place, rng)?;
        Self::read(directory, lock)
    }

    /// Opens the directory of a daemon; with `auto_format` a new one is formatted. `long_id` and `place` must be those
    /// it was formatted with.
    pub fn open(
        directory: &Path,
        long_id: Option<&LongId>,
        place: &Place,
        auto_format: bool,
        rng: &dyn Rng,
    ) -> Result<Self, HomeError> {
        let path = directory.join(IDENTITY);
        if !auto_format && !path.try_exists().map_err(fail(&path))? {
            refuse_data(directory)?;
            return Err(HomeError::Unformatted(directory.to_owned()));
        }
        files::create_dir_all(directory).map_err(fail(directory))?;
        let lock = lock(directory)?;
        if !path.try_exists().map_err(fail(&path))? {
            refuse_data(directory)?;
            write_identity(directory, long_id, place, rng)?;
        }
        let home = Self::read(directory, lock)?;
        let mismatch = |what, found: &dyn ToString, wanted: &dyn ToString| HomeError::Mismatch {
            directory: directory.to_owned(),
            what,
            found: found.to_string(),
            wanted: wanted.to_string(),
        };
        if let Some(wanted) = long_id.filter(|wanted| **wanted != home.identity.long_id) {
            return Err(mismatch("long id", &home.identity.long_id, wanted));
        }
        if *place != home.identity.place {
            return Err(mismatch("place", &home.identity.place, place));
        }
        Ok(home)
    }

    /// Opens a directory that was formatted before.
    pub fn open_existing(directory: &Path) -> Result<Self, HomeError> {
        let path = directory.join(IDENTITY);
        if path.try_exists().map_err(fail(&path))? {
            Self::read(directory, lock(directory)?)
        } else {
            Err(HomeError::Unformatted(directory.to_owned()))
        }
    }

    fn read(directory: &Path, lock: File) -> Result<Self, HomeError> {
        let path = directory.join(IDENTITY);
        let text =
            std::fs::read_to_string(&path).map_err(|error| HomeError::Io { path: path.clone(), error })?;
        let broken = |reason: String| HomeError::Identity { path: path.clone(), reason };
        let identity: Identity = toml::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if identity.format != FORMAT {
            return Err(broken(format!("format {}, this program knows {FORMAT}", identity.format)));
        }
        let store = identity.store().ok_or_else(|| broken("store_id is not 32 hex digits".into()))?;
        Ok(Self { directory: directory.to_owned(), identity, store, _lock: lock })
    }

    /// Where the segments are.
    pub fn segments(&self) -> PathBuf {
        self.directory.join("segments")
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the registered peers are kept.
    pub fn peers(&self) -> PathBuf {
        self.directory.join("peers.json")
    }

    /// Where the index is.
    pub fn index(&self) -> PathBuf {
        self.directory.join("index")
    }
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> HomeError + use<> {
    let path = path.to_owned();
    move |error| HomeError::Io { path, error }
}

/// Segments without an identity are somebody's data.
fn refuse_data(directory: &Path) -> Result<(), HomeError> {
    for part in ["segments", "index"] {
        let mut held = std::fs::read_dir(directory.join(part)).into_iter().flatten();
        if held.next().is_some() {
            return Err(HomeError::Orphaned(directory.to_owned()));
        }
    }
    Ok(())
}

fn write_identity(
    directory: &Path,
    long_id: Option<&LongId>,
    place: &Place,
    rng: &dyn Rng,
) -> Result<(), HomeError> {
    let path = directory.join(IDENTITY);
    let segments = directory.join("segments");
    files::create_dir_all(&segments).map_err(fail(&segments))?;
    let fresh = Identity {
        format: FORMAT,
        long_id: match long_id {
            Some(given) => given.clone(),
            None => random_id(rng, &path)?,
        },
        place: place.clone(),
        store_id: hex::encode(&rng.bytes32()[..16]),
    };
    let text = toml::to_string(&fresh)
        .map_err(|error| HomeError::Identity { path: path.clone(), reason: error.to_string() })?;
    files::replace(&path, text.as_bytes()).map_err(fail(&path))
}

fn random_id(rng: &dyn Rng, path: &Path) -> Result<LongId, HomeError> {
    LongId::new(hex::encode(&rng.bytes32()[..16]))
        .map_err(|error| HomeError::Identity { path: path.to_owned(), reason: error.to_string() })
}

/// The lock is the kernel's: it ends with the process, however that ends.
fn lock(directory: &Path) -> Result<File, HomeError> {
    let path = directory.join("lock");
    let file = files::create(&path).map_err(|error| HomeError::Io { path: path.clone(), error })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(HomeError::InUse(directory.to_owned())),
        Err(error) => Err(HomeError::Io { path, error: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use alba_core::env::real::OsRandom;

    use super::*;

    fn open(directory: &Path, long_id: Option<&str>, place: &str) -> Result<Home, HomeError> {
        let long_id = long_id.map(|id| LongId::new(id).unwrap());
        Home::open(directory, long_id.as_ref(), &place.parse().unwrap(), true, &OsRandom)
    }

    #[test]
    fn identity_is_fixed_at_the_first_start() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("new/disk");
        let first = open(&directory, None, "node-0").unwrap();
        let (identity, store) = (first.identity.clone(), first.store);
        drop(first);
        let again = open(&directory, Some(identity.long_id.as_str()), "node-0").unwrap();
        assert_eq!((&again.identity, again.store), (&identity, store));
        drop(again);
        assert!(matches!(
            open(&directory, Some("other"), "node-0"),
            Err(HomeError::Mismatch { what: "long id", .. })
        ));
        assert!(matches!(open(&directory, None, "node-1"), Err(HomeError::Mismatch { what: "place", .. })));
        assert_eq!(Home::open_existing(&directory).unwrap().identity, identity);
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let held = open(directory.path(), None, "node-0").unwrap();
        assert!(matches!(open(directory.path(), None, "node-0"), Err(HomeError::InUse(_))));
        drop(held);
        open(directory.path(), None, "node-0").unwrap();
    }

    #[test]
    fn nothing_is_formatted_over_data() {
        let directory = tempfile::tempdir().unwrap();
        drop(open(directory.path(), None, "node-0").unwrap());
        files::replace(&directory.path().join("segments/segment-0000000000000000"), b"x").unwrap();
        files::remove_file(&directory.path().join("identity.toml")).unwrap();
        assert!(matches!(open(directory.path(), None, "node-0"), Err(HomeError::Orphaned(_))));
        files::replace(&directory.path().join("identity.toml"), b"format = 1\n").unwrap();
        assert!(matches!(open(directory.path(), None, "node-0"), Err(HomeError::Identity { .. })));
    }

    #[test]
    fn formatting_fixes_the_identity_of_an_empty_directory_once() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        let place: Place = "rack/node-0".parse().unwrap();
        let closed = |place: &Place| Home::open(&disk, None, place, false, &OsRandom);
        assert!(matches!(closed(&place), Err(HomeError::Unformatted(_))));
        assert!(!disk.exists(), "a disk that is not mounted leaves no trace");
        // What a fresh file system holds is not in the way; anything else is.
        files::create_dir_all(&disk.join("lost+found")).unwrap();
        files::replace(&disk.join("thesis.tex"), b"x").unwrap();
        let format = |id: &str| Home::format(&disk, Some(&LongId::new(id).unwrap()), &place, &OsRandom);
        assert!(matches!(format("mine"), Err(HomeError::Occupied { found, .. }) if found == "thesis.tex"));
        files::remove_file(&disk.join("thesis.tex")).unwrap();
        let home = format("mine").unwrap();
        assert!(matches!(format("mine"), Err(HomeError::InUse(_))));
        drop(home);
        assert!(
            matches!(format("other"), Err(HomeError::Formatted { long_id, .. }) if long_id.as_str() == "mine")
        );
        assert_eq!(closed(&place).unwrap().identity.long_id.as_str(), "mine");
        let elsewhere = "rack/node-1".parse().unwrap();
        assert!(matches!(closed(&elsewhere), Err(HomeError::Mismatch { what: "place", .. })));
        // Segments without an identity are not formatted over.
        files::replace(&disk.join("segments/segment-0000000000000000"), b"x").unwrap();
        files::remove_file(&disk.join(IDENTITY)).unwrap();
        assert!(matches!(format("mine"), Err(HomeError::Orphaned(_))));
        assert!(matches!(closed(&place), Err(HomeError::Orphaned(_))));
    }
}
