//! The processes of a running cluster, as they are kept in its data directory: for `alba down`, for whoever resumes after
//! the supervisor was killed, and for tests that kill processes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use alba_core::env::files;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// A process, told apart from a later one of the same number by when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its number.
    pub(crate) pid: u32,
    /// In the kernel's ticks since boot; none where the kernel does not say.
    pub(crate) started: Option<u64>,
}

impl Identity {
    /// Of the process `pid`, as it is now.
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid, started: start_time(pid) }
    }

    /// Is this very process still there? (A zombie is not.)
    pub(crate) fn is_alive(self) -> bool {
        let there = self.rustix().is_some_and(|pid| test_kill_process(pid).is_ok());
        there && (self.started.is_none() || start_time(self.pid) == self.started)
    }

    /// Sends a signal, if it is still there.
    pub(crate) fn signal(self, signal: Signal) {
        if let Some(pid) = self.rustix().filter(|_| self.is_alive()) {
            // It may have ended just now.
            let _ = kill_process(pid, signal);
        }
    }

    fn rustix(self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.pid).ok()?)
    }
}

/// Field 22 of `/proc/PID/stat`; none for zombies, which only wait to be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, with any characters in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// Which process.
    #[serde(flatten)]
    pub(crate) identity: Identity,
    /// Where its metrics are; none: it has none.
    pub(crate) metrics: Option<SocketAddr>,
}

/// All rows by name; the supervisor's is `up`.
pub(crate) type Processes = BTreeMap<String, Running>;

/// The supervisor's row.
pub(crate) const SUPERVISOR: &str = "up";

const FILE: &str = "processes.json";

/// Keeps the table.
pub(crate) fn write(dir: &Path, processes: &Processes) -> Result<(), CliError> {
    let path = dir.join(FILE);
    let text = serde_json::to_vec_pretty(processes).map_err(|error| CliError::failure(error.to_string()))?;
    files::replace(&path, &text).map_err(|error| CliError::file("write", &path, &error))
}

/// The table as it was last kept; empty when there is none.
pub(crate) fn read(dir: &Path) -> Result<Processes, CliError> {
    let path = dir.join(FILE);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| CliError::failure(format!("{} is damaged: {error}; remove it", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Processes::new()),
        Err(error) => Err(CliError::file("read", &path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let me = Identity::of(std::process::id());
        assert!(me.started.is_some() && me.is_alive());
        let other = Identity { started: me.started.map(|at| at + 1), ..me };
        assert!(!other.is_alive());
        assert!(!Identity { pid: 0, started: None }.is_alive());
    }

    #[test]
    fn the_table_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), Ok(Processes::new()));
        let running = Running { identity: Identity::of(std::process::id()), metrics: None };
        let table = Processes::from([("asd-0".to_owned(), running)]);
        write(dir.path(), &table).unwrap();
        assert_eq!(read(dir.path()), Ok(table));
    }
}
