//! What tests of maintenance share: the checker's word, data that has to stay equal, a client of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use alba_client::{Client, ClientConfig};
use alba_core::env::real;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::proxy::User;
use crate::{content, wait};

/// How long something may take that does not take long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What `alba fsck` says.
pub fn fsck(cluster: &Cluster) -> Value {
    let output = cluster.run(&["fsck", "--to-json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let answer: Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(answer["success"], true, "{answer}");
    assert_eq!(answer["result"]["whole"], output.status.success(), "the exit code says it, too");
    answer["result"].clone()
}

/// Nothing is missing and nothing is leaked, whatever waits to be deleted.
pub fn assert_whole(cluster: &Cluster, when: &str) -> Value {
    let found = fsck(cluster);
    assert_eq!(found["whole"], true, "{when}: {found}");
    found
}

/// What OSDs hold is exactly what manifests name.
pub fn is_clean(found: &Value) -> bool {
    found["whole"] == true
        && found["fragments_held"] == found["fragments_named"]
        && found["fragments_tagged"] == 0
        && found["fragments_queued"] == 0
        && found["lone_tags"] == 0
}

/// Waits until it is so.
pub fn wait_clean(cluster: &Cluster, what: &str) -> Value {
    wait::until(what, PATIENCE, || {
        let found = fsck(cluster);
        if is_clean(&found) { Ok(found) } else { Err(found.to_string()) }
    })
}

/// Objects of a namespace, and what they are to hold.
pub struct Stored {
    /// Who stores and reads them.
    pub user: User,
    directory: PathBuf,
    /// What each name holds: the name of the content, and its size.
    objects: BTreeMap<String, (String, u64)>,
}

impl Stored {
    /// None so far.
    pub fn new(cluster: &Cluster, namespace: &str) -> Self {
        let user = User::new(cluster.proxy(), namespace);
        Self { user, directory: cluster.scratch().to_owned(), objects: BTreeMap::new() }
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.objects.keys().cloned().collect()
    }

    /// Stores one, in place of another where there is one.
    pub async fn put(&mut self, name: &str, size: u64) {
        let text = format!("{name} {size}");
        let file = self.directory.join("to-store");
        content::write_file(&file, &text, size).unwrap();
        self.user.upload(name, &file, true).await.unwrap();
        self.objects.insert(name.to_owned(), (text, size));
    }

    /// Deletes one.
    pub async fn delete(&mut self, name: &str) {
        self.user.delete(name).await.unwrap();
        self.objects.remove(name);
    }

    /// Reads all: equal, and no others are there.
    pub async fn check(&mut self) {
        let file = self.directory.join("read-back");
        for (name, (text, size)) in &self.objects {
            self.user.download(name, &file).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            content::check_file(&file, text, *size).unwrap();
        }
        assert_eq!(self.user.list().await.unwrap(), self.names());
    }
}

/// A client inside the test's process.
pub async fn client(cluster: &Cluster) -> Client {
    let text = std::fs::read_to_string(&cluster.ready.config).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    table.remove("proxies");
    let config: ClientConfig = table.try_into().unwrap();
    Client::connect(real::env(), config).await.unwrap()
}
