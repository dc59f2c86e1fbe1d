//! A cluster with three metadata servers: any one of them may be killed while a user goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::time::Duration;

use alba_core::env::files;
use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::{content, wait};
use rustix::process::Signal;
use serde_json::Value;

const SIZE: u64 = 300_000;

/// Where each group's leader is, and every replica with what it lacks.
fn replicas(cluster: &Cluster) -> Result<Vec<Value>, String> {
    let answer = cluster.alba(&["list-metadata-nodes"]).map_err(|error| error.to_string())?;
    Ok(answer.as_array().unwrap().clone())
}

fn leader(cluster: &Cluster, group: &str) -> String {
    wait::until("a leader is known", Duration::from_secs(60), || {
        let all = replicas(cluster)?;
        let found = all.iter().find(|replica| replica["group"] == group && replica["leader"] == true);
        found.map(|replica| replica["address"].as_str().unwrap().to_owned()).ok_or_else(|| format!("{all:?}"))
    })
}

/// The name of the metadata server at an address.
fn name_at(cluster: &Cluster, address: &str) -> String {
    let at = cluster.ready.metadata.iter().position(|server| server.to_string() == address).unwrap();
    format!("metadata-{at}")
}

/// Kills the process that runs under a name now: it may have been restarted since the cluster became ready.
fn kill(cluster: &Cluster, name: &str) {
    let config = format!("{name}.toml");
    let running = cluster.daemons("metadata");
    let process = running.iter().find(|process| process.args.iter().any(|part| part.ends_with(&config)));
    process.unwrap_or_else(|| panic!("no {name} among {running:?}")).signal(Signal::KILL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_goes_on_while_metadata_servers_are_killed_and_come_back() {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    options.restart = true;
    options.more = ["--metadata-nodes", "3", "--nsm-groups", "2"].map(str::to_owned).into();
    let mut cluster = Cluster::start("replicated", options);
    assert_eq!(cluster.ready.metadata.len(), 3);
    let groups: std::collections::BTreeSet<_> = replicas(&cluster)
        .unwrap()
        .iter()
        .map(|replica| replica["group"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(groups.into_iter().collect::<Vec<_>>(), ["abm", "nsm-0", "nsm-1"]);

    let mut user = User::new(cluster.proxy(), "demo");
    let file = cluster.scratch().join("file");
    let mut stored = Vec::new();
    for round in 0..3 {
        // Whoever leads now dies: of the namespaces' group twice, of the backend's group once.
        let group = if round == 1 { "abm" } else { "nsm-0" };
        let victim = name_at(&cluster, &leader(&cluster, group));
        kill(&cluster, &victim);
        for object in 0..3 {
            let name = format!("object {round} {object}");
            content::write_file(&file, &name, SIZE).unwrap();
            user.upload(&name, &file, false).await.unwrap();
            stored.push(name);
        }
        // Restarted by its supervisor; before the next one dies the groups are whole again.
        wait::until("all replicas follow", Duration::from_secs(90), || {
            let all = replicas(&cluster)?;
            let behind = |replica: &Value| replica["lag"].as_u64().is_none_or(|lag| lag > 5);
            if all.len() == 9 && !all.iter().any(behind) { Ok(()) } else { Err(format!("{all:?}")) }
        });
    }

    // Its metadata moves to the other group, which nobody who reads or writes has to know.
    cluster.alba(&["move-namespace", "demo", "nsm-1"]).unwrap();
    content::write_file(&file, "after the move", SIZE).unwrap();
    user.upload("after the move", &file, false).await.unwrap();
    stored.push("after the move".to_owned());
    user.download(&stored[0], &file).await.unwrap();
    content::check_file(&file, &stored[0], SIZE).unwrap();

    // A preset that encrypts and keeps small objects in the metadata, which three replicas are safe enough for.
    let key = cluster.scratch().join("key");
    std::io::Write::write_all(&mut files::create_with_mode(&key, 0o600).unwrap(), &[7; 32]).unwrap();
    let preset = cluster.scratch().join("sealed.json");
    let json = serde_json::json!({
        "policies": [[2, 2, 3, 4]], "fragment_size": 65536, "osds": ["all"], "compression": "zstd",
        "fragment_checksum": ["blake3"], "fragment_encryption": ["aes-ctr-256", key], "inline_limit": 4096,
        "object_checksum": { "allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
    });
    std::fs::write(&preset, json.to_string()).unwrap();
    cluster.alba(&["create-preset", "sealed", "--input-url", preset.to_str().unwrap()]).unwrap();
    cluster.alba(&["create-namespace", "sealed", "sealed"]).unwrap();
    std::fs::remove_file(&key).unwrap();
    let mut sealed = User::new(cluster.proxy(), "sealed");
    for (name, size, chunks) in [("small", 1000, 0), ("large", SIZE, 3)] {
        content::write_file(&file, name, size).unwrap();
        sealed.upload(name, &file, false).await.unwrap();
        let shown = cluster.alba(&["show-object", "sealed", name]).unwrap();
        assert_eq!(shown["chunk_sizes"].as_array().unwrap().len(), chunks, "{shown}");
    }

    // All at once, and from the disk.
    // The supervisor first, whatever its number is: it would start others again while they are being killed.
    cluster.kill_everything(|all| {
        all.sort_by_key(|process| process.args.get(1).is_none_or(|command| command != "up"));
    });
    cluster.up();
    let mut user = User::new(cluster.proxy(), "demo");
    for name in &stored {
        user.download(name, &file).await.unwrap();
        content::check_file(&file, name, SIZE).unwrap();
    }
    let mut sealed = User::new(cluster.proxy(), "sealed");
    for (name, size) in [("small", 1000), ("large", SIZE)] {
        sealed.download(name, &file).await.unwrap();
        content::check_file(&file, name, size).unwrap();
    }
}
