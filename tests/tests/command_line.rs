//! The `alba` command against a real cluster, as its users and their scripts see it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::time::Duration;

use alba_tests::cluster::{Cluster, Options, output_within};
use alba_tests::{content, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

fn options() -> Options {
    Options::new(env!("CARGO_BIN_EXE_alba-under-test"))
}

fn strings(list: &Value, field: &str) -> Vec<String> {
    list.as_array()
        .unwrap_or_else(|| panic!("no list: {list}"))
        .iter()
        .map(|item| item[field].as_str().unwrap_or_else(|| panic!("no {field} in {item}")).to_owned())
        .collect()
}

/// `alba status`: its exit code and what it printed.
fn status(cluster: &Cluster) -> (Option<i32>, String) {
    let output = cluster.run(&["status"]);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn wait_for_status(cluster: &Cluster, code: i32, patience: Duration) {
    wait::until(&format!("alba status exits with {code}"), patience, || match status(cluster) {
        (Some(found), _) if found == code => Ok(()),
        (found, text) => Err(format!("{found:?}: {text}")),
    });
}

#[test]
fn objects_namespaces_presets_and_osds_can_be_managed() {
    let cluster = Cluster::start("commands", options());
    let file = cluster.scratch().join("file");
    let back = cluster.scratch().join("back");
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    content::write_file(&file, "content", 3_000_000).unwrap();

    let osds = cluster.alba(&["list-osds"]).unwrap();
    assert_eq!(osds.as_array().unwrap().len(), 12);
    let nodes: std::collections::BTreeSet<String> = strings(&osds, "node_id").into_iter().collect();
    assert_eq!(nodes.into_iter().collect::<Vec<_>>(), ["node-0", "node-1", "node-2", "node-3"]);

    let preset = cluster.scratch().join("preset.json");
    let text = r#"{ // two copies
        "policies": [[1, 1, 2, 1]], "fragment_size": 1048576, "osds": ["all"], "compression": "zstd",
        "fragment_checksum": ["blake3"], "fragment_encryption": ["none"],
        "object_checksum": {"allowed": [["none"], ["crc-32c"]], "default": ["crc-32c"], "verify_upload": true}
    }"#;
    std::fs::write(&preset, text).unwrap();
    cluster.alba(&["create-preset", "mirror", "--input-url", &path(&preset)]).unwrap();
    assert!(strings(&cluster.alba(&["list-presets"]).unwrap(), "name").contains(&"mirror".to_owned()));

    cluster.alba(&["create-namespace", "mine", "mirror"]).unwrap();
    let namespaces = strings(&cluster.alba(&["list-namespaces"]).unwrap(), "name");
    assert_eq!(namespaces, ["demo", "mine"]);

    // Directly, then through the proxy; each sees what the other stored.
    cluster.alba(&["upload-object", "mine", &path(&file), "direct"]).unwrap();
    let proxy = cluster.proxy();
    let (host, port) = (proxy.ip().to_string(), proxy.port().to_string());
    let through = |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(["-h", host.as_str(), "-p", port.as_str()]);
        cluster.alba(&all)
    };
    through(&["proxy-upload-object", "mine", &path(&file), "proxied"]).unwrap();
    for (name, proxied) in [("direct", true), ("proxied", false)] {
        if proxied {
            through(&["proxy-download-object", "mine", name, &path(&back)]).unwrap();
        } else {
            cluster.alba(&["download-object", "mine", name, &path(&back)]).unwrap();
        }
        content::check_file(&back, "content", 3_000_000).unwrap();
    }
    assert_eq!(cluster.alba(&["list-objects", "mine"]).unwrap(), json!(["direct", "proxied"]));
    let shown = cluster.alba(&["show-object", "mine", "direct"]).unwrap();
    assert_eq!(shown["size"], json!(3_000_000), "{shown}");

    cluster.alba(&["delete-object", "mine", "direct"]).unwrap();
    let error = cluster.alba(&["show-object", "mine", "direct"]).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("direct"), "{error}");
    for field in ["exception_type", "exception_code"] {
        assert!(!error[field].is_null(), "{error}");
    }
    cluster.alba(&["delete-namespace", "mine"]).unwrap();
    assert_eq!(strings(&cluster.alba(&["list-namespaces"]).unwrap(), "name"), ["demo"]);

    // It comes back with what it had, also when its name was given away; and goes for good when that is asked for.
    let trash = || strings(&cluster.alba(&["list-namespaces", "--trash"]).unwrap(), "name");
    assert_eq!(trash(), ["mine"]);
    assert!(cluster.alba(&["show-namespace", "mine"]).is_err());
    let again = cluster.alba(&["create-namespace", "mine"]).unwrap();
    let aside = trash().remove(0);
    assert!(aside.starts_with("mine~"), "{aside} beside {again}");
    let back = cluster.alba(&["undelete-namespace", &aside]).unwrap();
    assert_eq!((&back["name"], &back["state"]), (&json!(aside), &json!("active")));
    wait::until("its group serves it again", Duration::from_secs(20), || {
        match cluster.alba(&["list-objects", &aside]) {
            Ok(names) if names == json!(["proxied"]) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.alba(&["delete-namespace", &aside, "--now"]).unwrap();
    cluster.alba(&["delete-namespace", "mine"]).unwrap();
    assert_eq!(trash(), ["mine"]);
}

#[test]
fn status_tells_healthy_from_degraded_and_from_unreachable() {
    let mut cluster = Cluster::start("status", options());
    let file = cluster.scratch().join("file");
    content::write_file(&file, "content", 100_000).unwrap();
    cluster.alba(&["upload-object", "demo", file.to_str().unwrap(), "name"]).unwrap();
    wait_for_status(&cluster, 0, Duration::from_secs(10));
    cluster.kill_osd(5);
    // A fault shows within 5 s; a debug build on a busy machine gets some more.
    wait_for_status(&cluster, 1, Duration::from_secs(15));
    let pid = cluster.pid("metadata-0");
    alba_tests::process::signal_pid(pid, Signal::KILL);
    wait_for_status(&cluster, 3, Duration::from_secs(60));
    cluster.kill_everything(|_| {});
}

#[test]
fn a_cluster_stops_in_order_resumes_and_grows() {
    let mut options = options();
    options.nodes = 3;
    let mut cluster = Cluster::start("resume", options);
    let file = cluster.scratch().join("file");
    let back = cluster.scratch().join("back");
    content::write_file(&file, "content", 5_000_000).unwrap();
    cluster.alba(&["upload-object", "demo", file.to_str().unwrap(), "name"]).unwrap();

    let data_dir = cluster.data_dir();
    let mut down = cluster.command();
    down.args(["down", "--data-dir"]).arg(&data_dir);
    let output = output_within(down, Duration::from_secs(60));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait::until("alba down has stopped everything", Duration::from_secs(5), || {
        let left = cluster.processes();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    // None waited for another that was stopping, too, until its time was over.
    for (daemon, log) in cluster.logs() {
        assert!(!log.contains("not drained in time"), "{daemon}: {log}");
    }

    cluster.kill_everything(|_| {});
    cluster.set_nodes(4);
    cluster.up();
    cluster.alba(&["download-object", "demo", "name", back.to_str().unwrap()]).unwrap();
    content::check_file(&back, "content", 5_000_000).unwrap();
    assert_eq!(cluster.ready.osds.len(), 12);
    assert_eq!(cluster.alba(&["list-osds"]).unwrap().as_array().unwrap().len(), 12);

    // Fewer nodes than there were would lose data.
    cluster.kill_everything(|_| {});
    cluster.set_nodes(2);
    let mut command = cluster.command();
    command.args(cluster.up_arguments());
    let output = output_within(command, Duration::from_secs(60));
    assert!(!output.status.success());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["success"], json!(false), "{answer}");
}

#[test]
fn the_demo_ends_well_and_leaves_nothing() {
    let cluster = Cluster::start("beside-demo", options());
    let mut command = cluster.command();
    command.args(["demo", "--to-json"]).env("TMPDIR", cluster.scratch());
    let output = output_within(command, Duration::from_secs(300));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(answer["success"], json!(true), "{answer}");
    let left: Vec<_> = std::fs::read_dir(cluster.scratch())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("alba-demo"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
