//! Bad input at the doors of the processes: a clear error, at most that connection closed, memory bounded.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Output;
use std::time::{Duration, Instant};

use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::{content, process};

/// Growth of a daemon's memory that a handful of bad connections may cause.
const GROWTH: u64 = 48 << 20;

/// Prologue of the proxy protocol: magic, version 1.
const PROXY_PROLOGUE: [u8; 8] = [0x1b, 0xde, 0x79, 0x44, 1, 0, 0, 0];

/// Prologue of the ASD protocol: magic, version 1, any long id.
const ASD_PROLOGUE: [u8; 9] = [b'a', b'L', b'b', b'A', 1, 0, 0, 0, 0];

fn options() -> Options {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    // Nothing here needs more.
    options.nodes = 2;
    options.osds_per_node = 2;
    options
}

/// What a server did with a connection.
#[derive(Debug)]
struct Reaction {
    answer: Vec<u8>,
    closed: bool,
}

/// Sends `bytes`, ends the sending side when `end`, and reads until the server closes or is silent for a second.
fn send(to: SocketAddr, bytes: &[u8], end: bool) -> Reaction {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // A server that has seen enough may close before it has read everything.
    let sent = stream.write_all(bytes);
    if end && sent.is_ok() {
        drop(stream.shutdown(std::net::Shutdown::Write));
    }
    let mut answer = Vec::new();
    let closed = match stream.read_to_end(&mut answer) {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(_) => true,
    };
    Reaction { answer, closed }
}

fn frame(length: u32, body: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), body].concat()
}

/// A string of the original protocols.
fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
}

fn honest_frame(body: &[u8]) -> Vec<u8> {
    frame(u32::try_from(body.len()).unwrap(), body)
}

/// The servers of a cluster by name, with their process.
fn doors(cluster: &Cluster) -> Vec<(&'static str, SocketAddr, u32)> {
    let asd = SocketAddr::from(([127, 0, 0, 1], cluster.ready.osds[0].port));
    vec![
        ("proxy", cluster.proxy(), cluster.pid("proxy-0")),
        ("asd", asd, cluster.ready.osds[0].pid),
        ("metadata", cluster.ready.metadata[0], cluster.pid("metadata-0")),
    ]
}

/// Nonsense over UDP: plain noise, and noise that begins like a QUIC handshake. What is inside is only for members, whose
/// garbage the tests of the RPC server send.
fn datagrams(to: SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for round in 0..1000_usize {
        let mut bytes = content::bytes(&format!("datagram {round}"), 1 + round % 1400);
        if round % 2 == 0 {
            // A long header of version 1, as the first packet of a handshake has it.
            bytes.splice(..bytes.len().min(5), [0xc3, 0, 0, 0, 1]);
        }
        socket.send_to(&bytes, to).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_a_port_costs_its_connection_and_no_memory() {
    let cluster = Cluster::start("garbage", options());
    let file = cluster.scratch().join("file");
    content::write_file(&file, "good", 100_000).unwrap();
    let mut user = User::new(cluster.proxy(), "demo");
    user.upload("before", &file, false).await.unwrap();

    for (name, address, pid) in doors(&cluster) {
        let before = process::memory(pid).now;
        if name == "metadata" {
            datagrams(address);
            let after = process::memory(pid).now;
            assert!(after < before + GROWTH, "{name}: from {} to {} MiB", before >> 20, after >> 20);
            continue;
        }
        let prologue: &[u8] = match name {
            "proxy" => &PROXY_PROLOGUE,
            _ => &ASD_PROLOGUE,
        };

        // A stranger.
        let stranger = send(address, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", true);
        assert!(stranger.closed, "{name}: a wrong magic: {stranger:?}");

        // A version from the future is told which one is spoken here.
        let mut future = prologue.to_vec();
        future[4] = 66;
        let reaction = send(address, &future, true);
        let said = String::from_utf8_lossy(&reaction.answer).into_owned();
        assert!(reaction.closed && said.contains("66"), "{name}: {said:?}");

        // Lengths that nobody should believe.
        for length in [0x7fff_ffff_u32, 0x8000_0000, 0xffff_ffff] {
            let bytes = [prologue, &frame(length, b"only this")].concat();
            let reaction = send(address, &bytes, false);
            assert!(reaction.closed, "{name}: a frame of {length} bytes: {reaction:?}");
        }

        // Half a frame, then nothing.
        let reaction = send(address, &[prologue, &frame(100, b"half")].concat(), true);
        assert!(reaction.closed, "{name}: half a frame: {reaction:?}");

        // Random bytes behind a good prologue, in honest frames.
        for round in 0..50 {
            let body = content::bytes(&format!("{name} {round}"), 1 + round * 7);
            let reaction = send(address, &[prologue, &honest_frame(&body)].concat(), true);
            assert!(reaction.closed, "{name}: nonsense: {reaction:?}");
        }

        // Many that say nothing.
        let idle: Vec<TcpStream> = (0..100).filter_map(|_| TcpStream::connect(address).ok()).collect();
        drop(idle);

        let after = process::memory(pid).now;
        assert!(after < before + GROWTH, "{name}: from {} to {} MiB", before >> 20, after >> 20);
    }

    // The connection from before still works, and so does a new one.
    let back = cluster.scratch().join("back");
    user.download("before", &back).await.unwrap();
    content::check_file(&back, "good", 100_000).unwrap();
    let mut other = User::new(cluster.proxy(), "demo");
    other.upload("after", &file, false).await.unwrap();
    let alive: Vec<&str> = doors(&cluster)
        .iter()
        .filter(|(_, _, pid)| std::fs::exists(format!("/proc/{pid}")).unwrap())
        .map(|(name, _, _)| *name)
        .collect();
    assert_eq!(alive, ["proxy", "asd", "metadata"]);
}

/// Reads one framed answer of the original protocols: status and the text behind it.
fn answer(stream: &mut TcpStream) -> (u32, Vec<u8>) {
    let mut word = [0; 4];
    stream.read_exact(&mut word).unwrap();
    let length = u32::from_le_bytes(word);
    assert!((4..1 << 20).contains(&length), "an answer of {length} bytes");
    let mut body = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut body).unwrap();
    let status = u32::from_le_bytes(body[..4].try_into().unwrap());
    (status, body.split_off(4))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_of_64_kib_is_refused_in_words_and_the_connection_goes_on() {
    let cluster = Cluster::start("long-name", options());
    let mut stream = TcpStream::connect(cluster.proxy()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&PROXY_PROLOGUE).unwrap();

    let long = vec![b'n'; 64 << 10];
    // 9 GetObjectInfo: namespace, name, consistent read, should cache.
    let get = [&9_u32.to_le_bytes()[..], &string(b"demo"), &string(&long), &[1, 1]].concat();
    stream.write_all(&honest_frame(&get)).unwrap();
    let (status, text) = answer(&mut stream);
    assert_ne!(status, 0);
    assert!(text.len() < 4096, "the error does not repeat the name: {} bytes", text.len());

    // An unknown command, and one whose arguments end early: both are refused, and the connection stays.
    stream.write_all(&honest_frame(&9999_u32.to_le_bytes())).unwrap();
    assert_eq!(answer(&mut stream).0, 13);
    stream.write_all(&honest_frame(&9_u32.to_le_bytes())).unwrap();
    assert_eq!(answer(&mut stream).0, 1);

    // 2 NamespaceExists works on the same connection.
    let exists = [&2_u32.to_le_bytes()[..], &string(b"demo")].concat();
    stream.write_all(&honest_frame(&exists)).unwrap();
    let (status, found) = answer(&mut stream);
    assert_eq!((status, found.as_slice()), (0, &[1][..]));

    // The command line says it in words as well.
    let name = "n".repeat(64 << 10);
    let error = cluster.alba(&["show-object", "demo", &name]).unwrap_err();
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
}

/// Standard error of a command that must have failed with exit code 2, or 1.
fn complaint(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_say_what_is_wrong_and_what_to_do() {
    let cluster = Cluster::start("complaints", options());
    let scratch = cluster.scratch().to_owned();

    // A key that does not exist, in every daemon: named, with its line.
    for daemon in ["asd-server", "metadata", "proxy"] {
        let file = scratch.join(format!("{daemon}.toml"));
        std::fs::write(&file, "# a comment\nno_such_key = 1\n").unwrap();
        let mut command = cluster.command();
        command.arg(daemon).arg("--config").arg(&file);
        let text = complaint(&alba_tests::cluster::output_within(command, Duration::from_secs(30)), 2);
        assert!(text.contains("no_such_key") && text.contains('2'), "{daemon}: {text}");
        // A kernel that does not exist: whoever forces one must not run another.
        let mut command = cluster.command();
        command.arg(daemon).env("ALBA_ERASURE_KERNEL", "avx3");
        let text = complaint(&alba_tests::cluster::output_within(command, Duration::from_secs(30)), 2);
        assert!(text.contains("avx3") && text.contains("gfni-avx512"), "{daemon}: {text}");
    }

    // Configurations that cannot be read.
    for missing in ["does-not-exist.toml", "."] {
        let mut command = cluster.command();
        command.args(["list-namespaces", "--config"]).arg(scratch.join(missing));
        let text = complaint(&alba_tests::cluster::output_within(command, Duration::from_secs(30)), 2);
        assert!(!text.is_empty());
    }

    // A taken port is named, before anything starts.
    let mut command = cluster.command();
    let mut arguments = cluster.up_arguments();
    let at = arguments.iter().position(|argument| argument == "--data-dir").unwrap();
    arguments[at + 1] = scratch.join("other").to_string_lossy().into_owned();
    command.args(arguments);
    let started = Instant::now();
    let output = alba_tests::cluster::output_within(command, Duration::from_secs(60));
    assert!(!output.status.success());
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut taken =
        vec![cluster.proxy().port(), cluster.ready.metadata[0].port(), cluster.ready.osds[0].port];
    taken.extend(cluster.ready.processes.iter().map(|process| process.metrics.port()));
    assert!(taken.iter().any(|port| said.contains(&port.to_string())), "{said}");
    assert!(started.elapsed() < Duration::from_secs(30));

    // Presets that break the rules.
    for (name, preset) in [
        ("no JSON", "{"),
        ("m of -1", r#"{"policies": [[5, -1, 5, 3]], "osds": ["all"]}"#),
        ("more to write than there are", r#"{"policies": [[5, 4, 10, 3]]}"#),
    ] {
        let file = scratch.join("preset.json");
        std::fs::write(&file, preset).unwrap();
        let error =
            cluster.alba(&["create-preset", "bad", "--input-url", file.to_str().unwrap()]).unwrap_err();
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{name}: {error}");
    }

    // Files that are not there.
    let error = cluster.alba(&["upload-object", "demo", "/no/such/file", "name"]).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("/no/such/file"), "{error}");
    let error = cluster.alba(&["download-object", "demo", "no such object", "/dev/null"]).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("no such object"), "{error}");

    // Nonsense on the command line.
    for arguments in [&["no-such-command"][..], &["up", "--no-such-option"], &["upload-object", "demo"]] {
        let mut command = cluster.command();
        command.args(arguments);
        complaint(&alba_tests::cluster::output_within(command, Duration::from_secs(30)), 2);
    }
}
