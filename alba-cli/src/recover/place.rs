//! The work directory of a recovery: how far it is, and the report of what was not restored.
//!
//! Both are of one moment: the progress names the length of the report that belongs to it, and what is behind that is cut
//! off when the recovery goes on. The group itself takes every object any number of times, so a progress that is lost or old
//! costs time and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use alba_core::env::files;
use alba_core::ids::ObjectId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::CliError;

/// What came of the objects of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Looked at.
    pub(super) seen: u64,
    /// There again, now or since an earlier run.
    pub(super) restored: u64,
    /// Listed apart: an operator decides.
    pub(super) apart: u64,
    /// Deleted before the backup, for certain; not restored.
    pub(super) deleted: u64,
    /// In the backup, and nothing is left of them on OSDs that answer: deleted since, or lost.
    pub(super) gone: u64,
    /// Cannot be put together from what answers.
    pub(super) incomplete: u64,
    /// In the backup with their bytes, which only the lost group had since.
    pub(super) inline: u64,
    /// The group does not take them.
    pub(super) refused: u64,
}

/// How far a namespace is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Every object up to this one was dealt with (hexadecimal); none at first.
    pub(super) after: Option<String>,
    /// All were.
    pub(super) scanned: bool,
    /// OSDs that did not answer (long ids): with others the scan begins again.
    pub(super) absent: BTreeSet<String>,
    /// So far.
    pub(super) counts: Counts,
    /// The highest epoch of any gc tag or of the backup.
    pub(super) epoch: u64,
    /// It is served again.
    pub(super) finished: bool,
}

impl Progress {
    /// The last object that was dealt with.
    pub(super) fn position(&self) -> Option<ObjectId> {
        let bytes = hex::decode(self.after.as_ref()?).ok()?;
        ObjectId::try_from(bytes.as_slice()).ok()
    }
}

/// The file `progress.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// What is recovered, from what: another task has another directory.
    task: String,
    /// Bytes of the report that count.
    report: u64,
    /// By the namespace's id.
    namespaces: BTreeMap<u64, Progress>,
}

/// The directory, locked.
pub(super) struct Place {
    directory: PathBuf,
    stored: Stored,
    report: File,
    _lock: File,
}

impl Place {
    /// Opens or makes it. `task` says what is done there, for people.
    ///
    /// # Errors
    /// Another process works there, or it is of another task.
    pub(super) fn open(directory: &Path, task: &str) -> Result<Self, CliError> {
        let failed = |what: &str, error: &std::io::Error| CliError::file(what, directory, error);
        files::create_dir_all(directory).map_err(|error| failed("create", &error))?;
        let lock = files::try_lock(&directory.join("LOCK")).map_err(|error| failed("lock", &error))?;
        let Some(lock) = lock else {
            return Err(CliError::failure(format!("another process works in {}", directory.display())));
        };
        let path = directory.join("progress.json");
        let stored: Stored = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                CliError::failure(format!("{}: {error}; remove it to begin again", path.display()))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Stored { task: task.to_owned(), ..Stored::default() }
            }
            Err(error) => return Err(CliError::file("read", &path, &error)),
        };
        if stored.task != task {
            return Err(CliError::failure(format!(
                "{} is of another recovery ({}); name another directory with --work-dir",
                directory.display(),
                stored.task
            )));
        }
        let path = directory.join("report.jsonl");
        let mut report =
            files::open_or_create(&path).map_err(|error| CliError::file("open", &path, &error))?;
        report
            .set_len(stored.report)
            .and_then(|()| report.seek(SeekFrom::End(0)))
            .map_err(|error| CliError::file("cut", &path, &error))?;
        Ok(Self { directory: directory.to_owned(), stored, report, _lock: lock })
    }

    /// Something below it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Of a namespace.
    pub(super) fn progress(&self, namespace: u64) -> Progress {
        self.stored.namespaces.get(&namespace).cloned().unwrap_or_default()
    }

    /// The scan of a namespace begins again: what the report says of it goes. In this order: the progress is forgotten, then the
    /// lines; cut off between the two, some lines stay that say what was.
    pub(super) fn begin_again(&mut self, namespace: u64, name: &str) -> Result<(), CliError> {
        if self.stored.namespaces.remove(&namespace).is_none() {
            return Ok(());
        }
        let path = self.path("report.jsonl");
        let failed = |error: std::io::Error| CliError::file("write", &path, &error);
        let new = self.path("report.new");
        let mut kept = BufWriter::new(files::create(&new).map_err(failed)?);
        let mut length = 0_u64;
        for line in BufReader::new(File::open(&path).map_err(failed)?).lines() {
            let line = line.map_err(failed)?;
            let of = serde_json::from_str::<Value>(&line).ok().map(|line| line["namespace"] == name);
            if of == Some(false) {
                length += u64::try_from(line.len() + 1).unwrap_or(0);
                writeln!(kept, "{line}").map_err(failed)?;
            }
        }
        kept.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
        self.stored.report = 0;
        self.save()?;
        files::rename_durably(&new, &path).map_err(failed)?;
        self.report = files::open_or_create(&path).map_err(failed)?;
        self.report.seek(SeekFrom::End(0)).map_err(failed)?;
        self.stored.report = length;
        self.save()
    }

    /// Adds to the report, and takes the progress on. In this order: the lines are safe, then the progress names them.
    pub(super) fn advance(
        &mut self,
        namespace: u64,
        progress: &Progress,
        lines: &[Value],
    ) -> Result<(), CliError> {
        let path = self.path("report.jsonl");
        let mut text = String::new();
        for line in lines {
            text.push_str(&line.to_string());
            text.push('\n');
        }
        if !text.is_empty() {
            self.report
                .write_all(text.as_bytes())
                .and_then(|()| self.report.sync_data())
                .map_err(|error| CliError::file("write", &path, &error))?;
        }
        self.stored.report += u64::try_from(text.len()).unwrap_or(0);
        self.stored.namespaces.insert(namespace, progress.clone());
        self.save()
    }

    fn save(&self) -> Result<(), CliError> {
        let path = self.path("progress.json");
        let bytes = serde_json::to_vec_pretty(&self.stored)
            .map_err(|error| CliError::failure(format!("progress: {error}")))?;
        files::replace(&path, &bytes).map_err(|error| CliError::file("write", &path, &error))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_cut_back_to_its_progress() {
        let directory = tempfile::tempdir().unwrap();
        let mut place = Place::open(directory.path(), "a").unwrap();
        let progress = Progress { after: Some(hex::encode([7; 32])), ..Progress::default() };
        place.advance(3, &progress, &[json!({"n": 1})]).unwrap();
        // Cut off between the two steps of the next one.
        place.report.write_all(b"{\"n\": 2}\nhalf a li").unwrap();
        assert!(Place::open(directory.path(), "a").is_err(), "locked");
        drop(place);
        assert!(Place::open(directory.path(), "b").is_err(), "another task");
        let mut place = Place::open(directory.path(), "a").unwrap();
        assert_eq!(place.progress(3), progress);
        assert_eq!(place.progress(3).position(), Some(ObjectId::new([7; 32])));
        assert_eq!(place.progress(4), Progress::default());
        place.advance(3, &progress, &[json!({"n": 3})]).unwrap();
        let text = std::fs::read_to_string(directory.path().join("report.jsonl")).unwrap();
        assert_eq!(text, "{\"n\":1}\n{\"n\":3}\n");
    }

    #[test]
    fn what_is_scanned_again_is_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let report = || std::fs::read_to_string(directory.path().join("report.jsonl")).unwrap();
        let mut place = Place::open(directory.path(), "a").unwrap();
        let progress = Progress { scanned: true, ..Progress::default() };
        place.advance(3, &progress, &[json!({"namespace": "x", "n": 1})]).unwrap();
        place.advance(4, &progress, &[json!({"namespace": "y", "n": 2})]).unwrap();
        place.begin_again(3, "x").unwrap();
        place.begin_again(5, "y").unwrap();
        place.advance(3, &progress, &[json!({"namespace": "x", "n": 3})]).unwrap();
        let text = "{\"n\":2,\"namespace\":\"y\"}\n{\"n\":3,\"namespace\":\"x\"}\n";
        assert_eq!(report(), text);
        drop(place);
        let place = Place::open(directory.path(), "a").unwrap();
        assert_eq!((report().as_str(), place.progress(4)), (text, progress));
    }
}
