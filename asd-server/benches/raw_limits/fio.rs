//! The same with fio, to know that our own figures are the machine's.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Is there a fio?
pub(crate) fn available() -> bool {
    Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Runs `fio/<job>.fio` of this package; MB/s (10^6 bytes) of all its threads. `target` is the file or directory it
/// works on.
pub(crate) fn run(job: &str, target: &Path, threads: usize, block: usize, time: Duration) -> io::Result<f64> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/fio").join(format!("{job}.fio"));
    let output = Command::new("fio")
        .arg("--output-format=json")
        .arg(file)
        .env("ALBA_FIO_FILE", target)
        .env("ALBA_FIO_DIRECTORY", target)
        .env("ALBA_FIO_BLOCK", block.to_string())
        .env("ALBA_FIO_THREADS", threads.to_string())
        .env("ALBA_FIO_SECONDS", time.as_secs().to_string())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = || {
        // Warnings may come before.
        let found: serde_json::Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
        let job = found.get("jobs")?.get(0)?;
        ["write", "read"]
            .iter()
            .find_map(|kind| job.get(kind)?.get("bw_bytes")?.as_f64().filter(|bw| *bw > 0.0))
    };
    match rate() {
        Some(rate) if output.status.success() => Ok(rate / 1e6),
        _ => Err(io::Error::other(format!("fio: {text} {}", String::from_utf8_lossy(&output.stderr)))),
    }
}
