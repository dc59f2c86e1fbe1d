//! Waiting until the processes of a cluster can serve.

use std::net::SocketAddr;
use std::time::Duration;

use alba_core::env::{Clock, Deadline, Env, Moment, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::CliError;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest answer that is read: a health page is some hundred bytes.
const LONGEST: u64 = 64 << 10;

/// Waits until the process whose metrics are at `metrics` says it is ready.
pub(super) async fn wait(
    env: &Env,
    name: &str,
    metrics: SocketAddr,
    deadline: Deadline,
) -> Result<(), CliError> {
    let clock = env.clock.as_ref();
    let mut last = "it was not asked".to_owned();
    while deadline.left(clock) > Duration::ZERO {
        let step = deadline.capped(clock, Duration::from_secs(2));
        last = match within(clock, step, ask(env, metrics, step)).await {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(Ok(answer)) => answer.lines().last().unwrap_or_default().to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(late) => late.to_string(),
        };
        pause(clock, deadline.0).await;
    }
    Err(CliError::failure(format!("{name} is not ready in time; last it said: {last}")))
}

/// A short pause, not beyond `end`.
pub(super) async fn pause(clock: &dyn Clock, end: Moment) {
    clock.sleep_until(clock.now().plus(PAUSE).min(end)).await;
}

/// The answer of its health page as it came.
async fn ask(env: &Env, at: SocketAddr, deadline: Deadline) -> std::io::Result<String> {
    let mut stream = env.net.connect(at, deadline).await?;
    let request = format!("GET /health/ready HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
