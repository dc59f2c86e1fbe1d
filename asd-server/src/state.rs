//! How an ASD feels and why: one judgement for `/health/ready`, for the operation Health and for the logs.
//!
//! It is made anew each second from what the engine, the file system and the server say at that moment, so it goes back to
//! normal by itself when they do.

use std::path::Path;

use serde::Serialize;

use crate::engine::EngineStatus;

/// Something that keeps an ASD from doing all it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "condition", content = "why", rename_all = "snake_case")]
pub enum Condition {
    /// No engine yet, or none any more.
    NotServing(String),
    /// It takes no more data; reads and deletes work.
    Full(String),
    /// The file system has no space left for segments; reads work, deletes may.
    NoSpace(String),
    /// The file system is mounted read-only; reads work.
    ReadOnly(String),
    /// Writes fail; reads may work.
    WritingFails(String),
    /// The device failed to read something since the last write that worked.
    ReadingFails(String),
    /// The index is not available: it is opened again, or made again from the segments.
    IndexFails(String),
    /// Values were lost, or found damaged.
    Damage(String),
}

impl Condition {
    /// Does it serve reads and writes nevertheless? What is damaged is reported and repaired from elsewhere; the rest of the
    /// disk is of use meanwhile.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::ReadingFails(_) | Self::Damage(_))
    }

    /// Its name, as metrics and JSON call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotServing(_) => "not_serving",
            Self::Full(_) => "full",
            Self::NoSpace(_) => "no_space",
            Self::ReadOnly(_) => "read_only",
            Self::WritingFails(_) => "writing_fails",
            Self::ReadingFails(_) => "reading_fails",
            Self::IndexFails(_) => "index_fails",
            Self::Damage(_) => "damage",
        }
    }

    /// Why, for people.
    pub fn why(&self) -> &str {
        match self {
            Self::NotServing(why)
            | Self::Full(why)
            | Self::NoSpace(why)
            | Self::ReadOnly(why)
            | Self::WritingFails(why)
            | Self::ReadingFails(why)
            | Self::IndexFails(why)
            | Self::Damage(why) => why,
        }
    }

    /// The names of all, for metrics that should say 0.
    pub const NAMES: [&'static str; 8] = [
        "not_serving",
        "full",
        "no_space",
        "read_only",
        "writing_fails",
        "reading_fails",
        "index_fails",
        "damage",
    ];
}

/// What the file system of the data directory says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// Mounted read-only, also by the kernel after errors.
    pub read_only: bool,
    /// Bytes free to us.
    pub free_bytes: u64,
    /// Its size in bytes.
    pub total_bytes: u64,
}

impl FileSystem {
    /// Asks it.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let found = rustix::fs::statvfs(path)?;
        Ok(Self {
            read_only: found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }
}

/// What the judgement is made of.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Why there is no engine.
    pub absent: Option<String>,
    /// What the engine says.
    pub engine: EngineStatus,
    /// It refuses data for its limit or because it was told to.
    pub full: bool,
    /// Sum of value sizes.
    pub used_bytes: u64,
    /// What it may hold.
    pub capacity_bytes: u64,
    /// Size of a new segment.
    pub segment_bytes: u64,
    /// What the file system says; none when it does not answer.
    pub file_system: Option<FileSystem>,
}

/// Judges. The worst comes first.
pub fn judge(observed: &Observed) -> Vec<Condition> {
    let mut found = Vec::new();
    let engine = &observed.engine;
    found.extend(observed.absent.clone().map(Condition::NotServing));
    found.extend(
        engine.index.as_ref().map(|error| Condition::IndexFails(format!("the index fails: {error}"))),
    );
    if observed.file_system.is_some_and(|fs| fs.read_only) {
        found.push(Condition::ReadOnly(
            "the file system is mounted read-only: look for I/O errors in the kernel's log, then remount it"
                .into(),
        ));
    }
    found.extend(
        engine.writing.as_ref().map(|error| Condition::WritingFails(format!("writing fails: {error}"))),
    );
    if observed.full {
        found.push(Condition::Full(format!(
            "full: {} of {} bytes are used; it takes no more data, reads and deletes work",
            observed.used_bytes, observed.capacity_bytes
        )));
    }
    let short = observed.file_system.filter(|fs| !fs.read_only && fs.free_bytes < observed.segment_bytes);
    found.extend(short.map(|fs| {
        Condition::NoSpace(format!(
            "the file system has {} bytes left, less than a segment: others use it, or the capacity is too large",
            fs.free_bytes
        ))
    }));
    if !engine.damage.is_empty() {
        let lines = engine.damage.join("; ");
        found.push(Condition::Damage(format!("data was lost before the start: {lines}")));
    }
    if engine.damaged_reads > 0 {
        found.push(Condition::Damage(format!(
            "{} reads met damaged values since the start",
            engine.damaged_reads
        )));
    }
    found.extend(
        engine.reading.as_ref().map(|error| Condition::ReadingFails(format!("reading fails: {error}"))),
    );
    found
}

/// Is any of them a reason not to be ready?
pub fn is_ready(conditions: &[Condition]) -> bool {
    conditions.iter().all(Condition::is_ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(observed: &Observed) -> Vec<&'static str> {
        judge(observed).iter().map(Condition::name).collect()
    }

    #[test]
    fn each_state_is_named_and_gone_when_its_cause_is() {
        let well = Observed {
            capacity_bytes: 1000,
            segment_bytes: 64,
            file_system: Some(FileSystem { read_only: false, free_bytes: 100, total_bytes: 1000 }),
            ..Observed::default()
        };
        assert_eq!(names(&well), [""; 0]);
        let mut ill = well.clone();
        ill.engine.writing = Some("Input/output error (os error 5)".into());
        ill.full = true;
        assert_eq!(names(&ill), ["writing_fails", "full"]);
        let said = serde_json::to_value(judge(&ill)).unwrap();
        assert_eq!(said[0]["condition"], "writing_fails");
        assert!(said[0]["why"].as_str().unwrap().contains("os error 5"));
        ill.file_system = Some(FileSystem { read_only: true, free_bytes: 1, total_bytes: 1000 });
        assert_eq!(names(&ill), ["read_only", "writing_fails", "full"]);
        let mut short = well.clone();
        short.file_system = Some(FileSystem { read_only: false, free_bytes: 63, total_bytes: 1000 });
        assert_eq!(names(&short), ["no_space"]);
        let mut hurt = well.clone();
        hurt.engine.damage = vec!["segment 7".into()];
        hurt.engine.index = Some("gone".into());
        hurt.absent = Some("the store does not open".into());
        assert_eq!(names(&hurt), ["not_serving", "index_fails", "damage"]);
        assert!(names(&hurt).iter().all(|name| Condition::NAMES.contains(name)));
        assert!(!is_ready(&judge(&hurt)));
        let mut once = well;
        once.engine.reading = Some("bad sector".into());
        assert_eq!((names(&once), is_ready(&judge(&once))), (vec!["reading_fails"], true));
    }
}
