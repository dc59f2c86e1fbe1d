//! The proxy protocol against real daemons, byte by byte: every command, error and corner, and direct reads from the storage
//! daemons by nothing but the proxy's answers. The client (`alba_tests::bytes`) is made from the protocol's description.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

#[path = "proxy_protocol/backend.rs"]
mod backend;
#[path = "proxy_protocol/command_line.rs"]
mod command_line;
#[path = "proxy_protocol/direct.rs"]
mod direct;
#[path = "proxy_protocol/objects.rs"]
mod objects;
#[path = "proxy_protocol/sockets.rs"]
mod sockets;

use std::path::PathBuf;

use alba_tests::bytes::{Connection, Request, request};
use alba_tests::cluster::{Cluster, Options};

/// What all connections to a proxy find, and the proxy's working directory.
struct World {
    cluster: Cluster,
    directory: PathBuf,
}

impl World {
    fn start(name: &str, nodes: u16, osds_per_node: u16, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
        (options.nodes, options.osds_per_node) = (nodes, osds_per_node);
        // Relative to the proxy's working directory.
        options.env.push(("ALBA_PROXY__LISTEN_UNIX".to_owned(), "proxy.sock".to_owned()));
        change(&mut options);
        let cluster = Cluster::start(name, options);
        let directory = std::fs::read_link(format!("/proc/{}/cwd", cluster.pid("proxy-0"))).unwrap();
        Self { cluster, directory }
    }

    fn connect(&self) -> Connection {
        Connection::tcp(self.cluster.proxy())
    }

    /// A preset with these fields; what is not said is without compression, encryption and checks.
    fn create_preset(&self, name: &str, policy: [u32; 4], more: &str) {
        let [k, m, least, per_node] = policy;
        let mut preset: serde_json::Value = serde_json::from_str(
            r#"{ "fragment_size": 65536, "osds": ["all"], "compression": "none",
                 "fragment_checksum": ["crc-32c"], "fragment_encryption": ["none"],
                 "object_checksum": {"allowed": [["none"], ["sha-1"], ["crc-32c"]], "default": ["crc-32c"],
                                     "verify_upload": true} }"#,
        )
        .unwrap();
        preset["policies"] = serde_json::json!([[k, m, least, per_node]]);
        let more: serde_json::Value = serde_json::from_str(more).unwrap();
        for (key, value) in more.as_object().unwrap() {
            preset[key] = value.clone();
        }
        let file = self.cluster.scratch().join(format!("{name}.json"));
        std::fs::write(&file, preset.to_string()).unwrap();
        self.cluster.alba(&["create-preset", name, "--input-url", file.to_str().unwrap()]).unwrap();
    }
}

/// An error of a code, with the beginning of the text that operators of the original know.
#[track_caller]
fn refused(connection: &mut Connection, request: Request, code: u32, name: &str) {
    let command = request.0[0];
    let (found, text) = connection.err(request);
    assert_eq!(found, code, "command {command}: {text}");
    let known = format!("Proxy_protocol.Protocol.Error.{name}");
    assert!(text.starts_with(&known), "command {command}: {text}");
}

/// The CRC-32C of bytes, bit by bit (wire-protocol §1.6).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// ApplySequence with uploads by value and nothing else.
fn upload(namespace: &str, objects: &[(&str, &[u8])]) -> Request {
    let update = |r: Request, (name, data): &(&str, &[u8])| r.byte(2).str(name).str(data).byte(0);
    request(24).str(namespace).bool(false).i32(0).list(objects, update)
}

/// UpdateSession: manifests of version 2 from now on.
fn use_ser_2(connection: &mut Connection) {
    let mut agreed = connection.ok(request(32).i32(1).str("manifest_ser").byte(1).str([2]));
    assert_eq!(agreed.list(|r| (r.text(), r.str())), [("manifest_ser".to_owned(), vec![2])]);
    agreed.end();
}

#[test]
fn checksums_here_are_those_of_the_description() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}

/// All commands, errors and corners on one cluster.
#[test]
fn every_command_error_and_corner_is_as_described() {
    let world = World::start("protocol", 2, 2, |_| {});
    sockets::prologues(&world);
    backend::versions_and_sessions(&world);
    backend::namespaces(&world);
    backend::osds(&world);
    objects::files(&world);
    objects::sequences(&world);
    objects::slices_and_their_errors(&world);
    objects::whole_objects(&world);
    objects::listings(&world);
    command_line::commands(&world);
    backend::statistics(&world);
    sockets::pings_and_cut_off_clients(&world);
    sockets::frames(&world);
}

#[test]
fn the_socket_file_serves_the_same_and_survives_crashes() {
    let mut world = World::start("socket-file", 2, 2, |options| options.restart = true);
    sockets::socket_file(&mut world);
}

#[test]
fn fragments_are_read_from_the_storage_daemons_by_the_answers_alone() {
    let world = World::start("direct", 4, 3, |_| {});
    direct::every_policy(&world);
    direct::encrypted(&world);
    direct::checksums_and_compressions_that_old_clients_do_not_know(&world);
    direct::dead_osds(&world);
}
