//! A cluster whose metadata groups can be lost, and what a user knows of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use alba_client::{BytesSource, Client, ClientConfig, Consistency, MemorySink, UploadOptions};
use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::osd::{OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::env::{Deadline, Env, Osd, real};
use alba_core::ids::{
    ChunkIndex, FragmentIndex, GcEpoch, GroupId, NamespaceId, NamespaceName, ObjectId, ObjectName,
    ObjectVersion, OsdId, PresetName,
};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::policy::CodeShape;
use alba_core::preset::Compression;
use alba_core::range::RangeQuery;
use alba_core::wire::recovery::{RecoveryInfo, RecoveryMatrix, RecoveryObject, RecoveryScheme};
use alba_core::wire::rpc::abm::{AbmCommand, NamespaceState};
use alba_tests::cluster::{Cluster, Options};
use alba_tests::wait;
use bytes::Bytes;
use rustix::process::Signal;
use serde_json::Value;

pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// What the user knows: the content of each name.
pub(super) type Truth = BTreeMap<String, Bytes>;

/// One cluster at a time: they share the machine.
pub(super) static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) env: Env,
    /// Started by the test itself: they live in its cluster, and end with it.
    children: Vec<Child>,
}

impl World {
    pub(super) fn start(name: &str) -> Self {
        let options = Options {
            osds_per_node: 1,
            more: vec!["--nsm-groups".to_owned(), "2".to_owned()],
            ..Options::new(env!("CARGO_BIN_EXE_alba-under-test"))
        };
        Self { cluster: Cluster::start(name, options), env: real::env(), children: Vec::new() }
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.env.deadline_in(PATIENCE)
    }

    pub(super) async fn client(&self) -> Client {
        let text = std::fs::read_to_string(&self.cluster.ready.config).unwrap();
        let mut table: toml::Table = text.parse().unwrap();
        table.remove("proxies");
        let config: ClientConfig = table.try_into().unwrap();
        wait::until_async("a client connects", PATIENCE, || async {
            Client::connect(self.env.clone(), config.clone()).await.map_err(|error| error.to_string())
        })
        .await
    }

    pub(super) fn config(&self, process: &str) -> PathBuf {
        self.cluster.data_dir().join(format!("config/{process}.toml"))
    }

    pub(super) fn kill(&self, process: &str) {
        let file = format!("/{process}.toml");
        let of = |p: &alba_tests::process::Process| p.args.iter().any(|arg| arg.ends_with(&file));
        wait::until("it is dead", PATIENCE, || {
            let alive: Vec<_> = self.cluster.processes().into_iter().filter(of).collect();
            alive.iter().for_each(|process| process.signal(Signal::KILL));
            if alive.is_empty() { Ok(()) } else { Err(format!("{alive:?}")) }
        });
    }

    /// Starts a daemon on its data as it is.
    pub(super) fn start_daemon(&mut self, kind: &str, process: &str) {
        let log = self.cluster.scratch().join(format!("{process}-again.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = self.cluster.command();
        command.arg(kind).arg("--config").arg(self.config(process));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.children.push(command.spawn().unwrap());
    }

    /// The group's data is gone; the server comes up with an empty one.
    pub(super) fn lose_group(&mut self, group: &str) {
        self.kill("metadata-0");
        let directory = self.cluster.data_dir().join("data/metadata-0").join(group);
        assert!(directory.is_dir(), "{}", directory.display());
        std::fs::remove_dir_all(directory).unwrap();
        self.start_daemon("metadata", "metadata-0");
    }

    pub(super) fn backup(&self, group: &str, file: &str) -> PathBuf {
        let path = self.cluster.scratch().join(file);
        let mut command = self.cluster.command();
        command.args(["metadata", "backup", "--group", group, "--config"]);
        command.arg(self.config("metadata-0")).arg(&path);
        let output = alba_tests::cluster::output_within(command, PATIENCE);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        path
    }

    /// `alba ... --to-json`, whatever its exit code.
    pub(super) fn alba(&self, arguments: &[&str]) -> (i32, Value) {
        let mut all = arguments.to_vec();
        all.push("--to-json");
        let output = self.cluster.run(&all);
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = serde_json::from_str(text.trim()).unwrap_or_else(|error| {
            panic!("{arguments:?}: {error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        });
        (output.status.code().unwrap(), answer)
    }

    pub(super) fn well(&self, arguments: &[&str]) -> Value {
        let (code, answer) = self.alba(arguments);
        assert_eq!(code, 0, "{arguments:?}: {answer}");
        answer["result"].clone()
    }

    pub(super) async fn namespace(
        &self,
        client: &Client,
        name: &str,
        preset: &str,
    ) -> (NamespaceName, NamespaceId) {
        self.namespace_in(client, "nsm-0", name, preset, r#"["none"]"#).await
    }

    /// One of which nothing on the OSDs can be read without its key.
    pub(super) async fn sealed(
        &self,
        client: &Client,
        name: &str,
        preset: &str,
    ) -> (NamespaceName, NamespaceId) {
        use std::os::unix::fs::PermissionsExt;
        let key = self.cluster.scratch().join(format!("{name}.key"));
        std::fs::write(&key, [7; 32]).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let encryption = format!(r#"["aes-ctr-256", {key:?}]"#);
        self.namespace_in(client, "nsm-0", name, preset, &encryption).await
    }

    pub(super) async fn namespace_in(
        &self,
        client: &Client,
        group: &str,
        name: &str,
        preset: &str,
        encryption: &str,
    ) -> (NamespaceName, NamespaceId) {
        let json = format!(
            r#"{{"policies": [{preset}], "fragment_size": 65536, "osds": ["all"], "compression": "none",
                "fragment_checksum": ["blake3"], "object_checksum": {{"allowed": [["crc-32c"]], "default": ["crc-32c"],
                "verify_upload": true}}, "fragment_encryption": {encryption}}}"#
        );
        let file = self.cluster.scratch().join(format!("{name}.json"));
        std::fs::write(&file, json).unwrap();
        self.well(&["create-preset", name, "--input-url", &file.to_string_lossy()]);
        let namespace = NamespaceName::new(name).unwrap();
        let create = AbmCommand::CreateNamespace {
            name: namespace.clone(),
            preset: Some(PresetName::new(name).unwrap()),
            group: Some(GroupId::new(group).unwrap()),
        };
        client.directory().command(create, self.deadline()).await.unwrap();
        let record = wait::until_async("a namespace is active", PATIENCE, || async {
            let record = client.namespace(&namespace, self.deadline()).await.map_err(|e| e.to_string())?;
            match record {
                Some(record) if record.state == NamespaceState::Active => Ok(record),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        (namespace, record.id)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

pub(super) fn object(name: &str) -> ObjectName {
    ObjectName::new(name).unwrap()
}

pub(super) fn content(name: &str, generation: u32) -> Bytes {
    Bytes::from(format!("{name} of generation {generation}; ").repeat(6))
}

pub(super) async fn put(
    world: &World,
    client: &Client,
    namespace: &NamespaceName,
    name: &str,
    generation: u32,
) -> Bytes {
    let bytes = content(name, generation);
    let mut source = BytesSource::new(bytes.clone());
    client
        .upload(namespace, &object(name), &mut source, UploadOptions::default(), world.deadline())
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    bytes
}

pub(super) async fn delete(world: &World, client: &Client, namespace: &NamespaceName, name: &str) {
    client.delete_object(namespace, &object(name), true, world.deadline()).await.unwrap();
}

pub(super) async fn read(world: &World, client: &Client, namespace: &NamespaceName, name: &str) -> Bytes {
    let mut sink = MemorySink::default();
    client
        .download(namespace, &object(name), Consistency::Consistent, &mut sink, world.deadline())
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    sink.into_bytes()
}

pub(super) async fn names(world: &World, client: &Client, namespace: &NamespaceName) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut range = RangeQuery::all();
    loop {
        let page = client.list_objects(namespace, range.clone(), world.deadline()).await.unwrap();
        for name in &page.items {
            found.insert(String::from_utf8(name.as_bytes().to_vec()).unwrap());
        }
        match page.items.last() {
            Some(last) if page.has_more => range = range.after(last.as_bytes()),
            _ => return found,
        }
    }
}

/// An object of two copies that is written by hand, many at a time.
pub(super) struct ByHand {
    pub(super) manifest: Manifest,
    pub(super) bytes: Bytes,
    recovery: Bytes,
}

impl ByHand {
    pub(super) fn new(name: &str, osds: &[OsdId], number: usize) -> Self {
        let bytes = content(name, 0);
        let checksum = ChecksumAlgorithm::Blake3.of(&bytes);
        let packed_len = u32::try_from(bytes.len()).unwrap();
        let fragment = |copy: usize| Fragment {
            location: Some(osds[(number + copy) % osds.len()]),
            version: ObjectVersion(0),
            checksum,
            packed_len,
            ctr: None,
        };
        let manifest = Manifest {
            name: object(name),
            object_id: ObjectId::new(*blake3::hash(name.as_bytes()).as_bytes()),
            size: u64::from(packed_len),
            checksum: ChecksumAlgorithm::Crc32c.of(&bytes),
            scheme: Scheme {
                shape: CodeShape::new(1, 1).unwrap(),
                matrix: CodingMatrix::VandermondeSystematic,
                compression: Compression::None,
            },
            encryption: EncryptInfo::None,
            chunks: vec![Chunk { size: packed_len, fragments: vec![fragment(0), fragment(1)] }],
            version: ObjectVersion(0),
            max_disks_per_node: 1,
            timestamp: Timestamp(0),
        };
        let recovery = RecoveryInfo {
            name: object(name),
            chunk_size: packed_len,
            fragments: vec![(packed_len, checksum); 2],
            object: Some(RecoveryObject {
                scheme: RecoveryScheme {
                    k: 1,
                    m: 1,
                    matrix: RecoveryMatrix::Ours(CodingMatrix::VandermondeSystematic),
                    compression: Compression::None,
                },
                size: u64::from(packed_len),
                checksum: manifest.checksum,
                timestamp: 1.0,
            }),
            ctr: None,
        };
        Self { manifest, bytes, recovery: recovery.encode().unwrap() }
    }

    pub(super) fn address(&self, copy: u32) -> FragmentAddress {
        FragmentAddress {
            object_id: self.manifest.object_id,
            chunk: ChunkIndex(0),
            fragment: FragmentIndex(copy),
            version: ObjectVersion(0),
        }
    }
}

/// Writes objects as a client would, but many in a batch. With a tag it leaves them as an upload does that was never
/// completed.
pub(super) async fn write_by_hand(
    world: &World,
    osds: &BTreeMap<OsdId, Arc<dyn Osd>>,
    namespace: NamespaceId,
    objects: &[ByHand],
    tagged: bool,
) {
    let bare = |value: Bytes| StoredValue { value, checksum: alba_core::checksum::Checksum::None };
    for (id, osd) in osds {
        let mut updates = Vec::new();
        for object in objects {
            for (_, fragment, entry) in object.manifest.fragments() {
                if entry.location != Some(*id) {
                    continue;
                }
                let address = object.address(fragment.0);
                let value = StoredValue { value: object.bytes.clone(), checksum: entry.checksum };
                updates.push(OsdUpdate::Set(osd_keys::fragment(namespace, &address), value));
                let recovery = osd_keys::recovery_info(namespace, &address);
                updates.push(OsdUpdate::Set(recovery, bare(object.recovery.clone())));
                if tagged {
                    let tag = osd_keys::gc_tag(namespace, GcEpoch::from_u32(0), &address);
                    updates.push(OsdUpdate::Set(tag, bare(Bytes::new())));
                }
            }
        }
        let batch = OsdBatch { asserts: Vec::new(), updates };
        osd.apply(batch, Priority::High, world.deadline()).await.unwrap();
    }
}

pub(super) async fn all_osds(world: &World, client: &Client) -> BTreeMap<OsdId, Arc<dyn Osd>> {
    let mut osds = BTreeMap::new();
    for id in 0..4 {
        let id = OsdId::from_u32(id);
        osds.insert(id, client.osd(id, world.deadline()).await.unwrap());
    }
    osds
}

pub(super) fn count(result: &Value, namespace: &str, what: &str) -> u64 {
    let found = result["namespaces"].as_array().unwrap().iter().find(|one| one["namespace"] == namespace);
    found.unwrap_or_else(|| panic!("{namespace} in {result}"))["counts"][what].as_u64().unwrap()
}

pub(super) fn report(result: &Value) -> Vec<Value> {
    let text = std::fs::read_to_string(result["report"].as_str().unwrap()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(super) fn reported(result: &Value, namespace: &str, what: &str) -> BTreeSet<String> {
    let lines = report(result).into_iter();
    lines
        .filter(|line| line["namespace"] == namespace && line["what"] == what)
        .map(|line| line["name"].as_str().unwrap().to_owned())
        .collect()
}

pub(super) fn set(names: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    names.into_iter().collect()
}
