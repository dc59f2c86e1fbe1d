//! Processes of a test: how they are found, killed, measured, and end when their test does.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Set for every process of a fixture and inherited by its children: `<pid of the test>:<its start>:<fixture>`.
pub const OWNER: &str = "ALBA_TEST_OWNER";

/// How often a process looks whether its test still lives.
const LOOK: Duration = Duration::from_millis(300);

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its arguments, its own name first.
    pub args: Vec<String>,
}

impl Process {
    /// Sends a signal; one that is gone already is fine.
    pub fn signal(&self, signal: Signal) {
        signal_pid(self.pid, signal);
    }
}

/// Sends a signal to a process; one that is gone already is fine.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The value of [`OWNER`] for a fixture of this process.
pub fn owner(fixture: &str) -> String {
    let pid = std::process::id();
    format!("{pid}:{}:{fixture}", start_of(pid).unwrap_or_default())
}

/// All processes started by the fixture with this [`OWNER`], zombies left out, sorted.
pub fn owned(owner: &str) -> Vec<Process> {
    let entry = format!("{OWNER}={owner}");
    let mut found: Vec<Process> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|file| file.file_name().to_str()?.parse().ok())
        .filter(|pid| has_entry(*pid, entry.as_bytes()))
        .filter_map(|pid| Some(Process { pid, args: arguments(pid)? }))
        .collect();
    found.sort();
    found
}

fn has_entry(pid: u32, entry: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|found| found == entry)
}

/// A zombie has none.
fn arguments(pid: u32) -> Option<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty())?;
    let line = line.strip_suffix(&[0]).unwrap_or(&line);
    Some(line.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect())
}

/// When a process started, in clock ticks since boot: with the pid it names a process for ever.
fn start_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything; field 22 is the 20th behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// Does a process stand still after SIGSTOP?
pub fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
}

/// Is a thread of process `pid` left? Its first one may be dead long before the others, which keep its ports: on a busy machine those that
/// give way to others take their time.
pub fn has_threads(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state is behind the name in parentheses.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
    })
}

/// In a process that a fixture started: ends it soon after the test's process is gone, however that ended.
pub fn end_with_owner() {
    let Ok(owner) = std::env::var(OWNER) else { return };
    let mut parts = owner.split(':');
    let (Some(pid), Some(start)) = (parts.next().and_then(|pid| pid.parse().ok()), parts.next()) else {
        return;
    };
    let start = start.to_owned();
    std::thread::spawn(move || {
        while start_of(pid).as_deref() == Some(&start) {
            std::thread::sleep(LOOK);
        }
        std::process::exit(1);
    });
}

/// Memory of a process in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub now: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

/// How much memory a process has and had.
pub fn memory(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    };
    Memory { now: kib("VmRSS:") * 1024, peak: kib("VmHWM:") * 1024 }
}

/// File descriptors that a process has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Whether a directory may be removed without asking: it is one that we made.
pub fn remove_test_directory(path: &Path) {
    drop(fs::remove_dir_all(path));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn finds_and_kills_what_a_fixture_started() {
        let owner = owner("unit test");
        let mut child = Command::new("sleep").arg("1000").env(OWNER, &owner).spawn().unwrap();
        // Between fork and exec the environment is still ours.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let found = loop {
            let found = owned(&owner);
            if !found.is_empty() || std::time::Instant::now() > deadline {
                break found;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(found, [Process { pid: child.id(), args: vec!["sleep".into(), "1000".into()] }]);
        assert!(memory(child.id()).peak > 0);
        assert!(descriptors(child.id()) >= 3);
        found[0].signal(Signal::KILL);
        child.wait().unwrap();
        assert_eq!(owned(&owner), []);
    }
}
