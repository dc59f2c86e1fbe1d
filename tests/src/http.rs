//! What daemons serve over HTTP: metrics, health, pages.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A page as it is served, head included; none when it cannot be had.
pub fn get(at: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The first metric of a process that begins with `name` and has the text `label` in its line; none when it cannot be had.
pub fn metric(at: SocketAddr, name: &str, label: &str) -> Option<f64> {
    let page = get(at, "/metrics")?;
    let line = page.lines().find(|line| line.starts_with(name) && line.contains(label))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// What a daemon says of itself: whether it is ready, why not, and details.
pub fn health(at: SocketAddr) -> Option<serde_json::Value> {
    let page = get(at, "/health/ready")?;
    let (_, body) = page.split_once("\r\n\r\n")?;
    serde_json::from_str(body.get(body.find('{')?..=body.rfind('}')?)?).ok()
}
