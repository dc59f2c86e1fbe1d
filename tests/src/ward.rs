//! A cluster whose agents are run by the test: few small objects, a policy of three nodes, and what is done to them.

use std::time::Duration;

use alba_client::{Client, Consistency, StoredObject};
use alba_core::env::osd::{OsdKey, OsdUpdate, StoredValue};
use alba_core::env::{Deadline, real};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, NamespaceName, ObjectName, OsdId};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::agents::Once;
use crate::cluster::{Cluster, Options};
use crate::device::Device;
use crate::upkeep::{PATIENCE, Stored, assert_whole, client, fsck, is_clean};
use crate::{process, wait};

/// The namespace.
pub const NS: &str = "ward";

/// Sizes of some objects, of one chunk and of several.
pub const SIZES: [u64; 6] = [100_000, 600_000, 100_001, 1_200_000, 40_000, 600_001];

/// 2 + 1 fragments, each on a node of its own.
const POLICY: [u32; 4] = [2, 1, 3, 1];

/// What an object is called.
pub fn name(object: usize) -> String {
    format!("object-{object}")
}

/// See the module.
pub struct Ward {
    /// Its processes, without agents.
    pub cluster: Cluster,
    /// A client of the test's own.
    pub client: Client,
    /// Its id.
    pub namespace: NamespaceId,
    stored: Mutex<Stored>,
}

impl Ward {
    /// For one with so many nodes and OSDs on each.
    pub fn options(program: &str, nodes: u16, osds_per_node: u16) -> Options {
        let mut options = Options::new(program);
        (options.nodes, options.osds_per_node) = (nodes, osds_per_node);
        let mut set = |key: &str, value: &str| options.env.push((format!("ALBA_{key}"), value.to_owned()));
        set("MAINTENANCE__GC_GRACE", "1s");
        for agent in ["MAINTENANCE", "REBALANCER"] {
            set(&format!("{agent}__LEASE"), "2s");
            set(&format!("{agent}__ADAPT_TO_CLIENTS"), "false");
        }
        for task in ["GC", "CLEANUP", "SCRUB", "PRESETS"] {
            set(&format!("MAINTENANCE__TASKS__{task}__AT_ONCE"), "16");
        }
        options
    }

    /// Starts one, stores objects of these sizes, and ends the agents.
    pub async fn start(label: &str, options: Options, sizes: &[u64]) -> Self {
        let cluster = Cluster::start(label, options);
        for agent in ["maintenance-0", "rebalancer-0"] {
            process::signal_pid(cluster.pid(agent), Signal::KILL);
        }
        let preset = cluster.scratch().join("preset.json");
        let text = json!({
            "policies": [POLICY], "fragment_size": 256 << 10, "osds": ["all"], "compression": "none",
            "fragment_checksum": ["blake3"], "fragment_encryption": ["none"],
            "object_checksum": { "allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
        });
        std::fs::write(&preset, text.to_string()).unwrap();
        cluster.alba(&["create-preset", "ward", "--input-url", preset.to_str().unwrap()]).unwrap();
        cluster.alba(&["create-namespace", NS, "ward"]).unwrap();
        // Its preset asks for more nodes than there are; and not into the trash, where it would still be held.
        cluster.alba(&["update-maintenance-config", "--auto-cleanup-deleted-namespaces", "0"]).unwrap();
        cluster.alba(&["delete-namespace", "demo"]).unwrap();
        let client = client(&cluster).await;
        let deadline = real::env().deadline_in(PATIENCE);
        let namespace =
            client.namespace(&NamespaceName::new(NS).unwrap(), deadline).await.unwrap().unwrap().id;
        let stored = Mutex::new(Stored::new(&cluster, NS));
        let ward = Self { cluster, client, namespace, stored };
        ward.only_namespace();
        let all: Vec<OsdId> = ward.osds().into_iter().map(|(id, _)| id).collect();
        for osd in all {
            ward.wait_active(osd).await;
        }
        for (object, size) in sizes.iter().enumerate() {
            ward.stored.lock().await.put(&name(object), *size).await;
        }
        for task in ["repair", "work"] {
            Once::maintenance(&ward.cluster, task).whole(&ward.cluster);
        }
        ward
    }

    /// For one call.
    pub fn deadline(&self) -> Deadline {
        real::env().deadline_in(PATIENCE)
    }

    /// Waits until no other namespace is there.
    pub fn only_namespace(&self) {
        wait::until("no other namespace is left", PATIENCE, || {
            let left = self.cluster.alba(&["list-namespaces"]).unwrap();
            if left.as_array().unwrap().len() == 1 { Ok(()) } else { Err(left.to_string()) }
        });
    }

    /// Silent OSDs count as dead after so long.
    pub fn auto_repair_after(&self, timeout: Duration) {
        let seconds = timeout.as_secs().to_string();
        let command = ["update-maintenance-config", "--auto-repair-timeout-seconds", &seconds];
        self.cluster.alba(&command).unwrap();
    }

    /// The OSDs: ids, and their numbers in the cluster.
    pub fn osds(&self) -> Vec<(OsdId, usize)> {
        let listed = self.cluster.alba(&["list-osds"]).unwrap();
        let of = |osd: &Value| {
            let id = OsdId::new(osd["id"].as_u64().unwrap()).unwrap();
            let mut all = self.cluster.ready.osds.iter();
            (id, all.position(|ready| osd["long_id"] == json!(ready.long_id)).unwrap())
        };
        listed.as_array().unwrap().iter().map(of).collect()
    }

    /// The number of an OSD in the cluster.
    pub fn index(&self, osd: OsdId) -> usize {
        self.osds().into_iter().find(|(id, _)| *id == osd).unwrap().1
    }

    /// An object as the group has it.
    pub async fn stored_object(&self, name: &str) -> StoredObject {
        let (namespace, object) = (NamespaceName::new(NS).unwrap(), ObjectName::new(name).unwrap());
        let found = self.client.manifest(&namespace, &object, Consistency::Consistent, self.deadline()).await;
        found.unwrap().unwrap()
    }

    /// Waits until the namespace's group sends fragments to an OSD.
    async fn wait_active(&self, osd: OsdId) {
        wait::until_async("the OSD takes fragments", PATIENCE, async || {
            let name = NamespaceName::new(NS).unwrap();
            let record = self.client.namespace(&name, self.deadline()).await.unwrap().unwrap();
            let query = NsmQuery::Namespace(record.id);
            let answer = self.client.namespace_store().query(&record.group, query, self.deadline()).await;
            match answer {
                Ok(NsmAnswer::Namespace(info)) if info.active_osds.iter().any(|(id, _)| *id == osd) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Where the fragments of the first chunk are.
    async fn places(&self, name: &str) -> Vec<(OsdId, FragmentAddress)> {
        let stored = self.stored_object(name).await;
        let manifest = &stored.manifest;
        let of_chunk = manifest.fragments().filter(|(chunk, _, _)| *chunk == ChunkIndex(0));
        of_chunk
            .filter_map(|(chunk, fragment, entry)| {
                let (object_id, version) = (manifest.object_id, entry.version);
                Some((entry.location?, FragmentAddress { object_id, chunk, fragment, version }))
            })
            .collect()
    }

    /// Of the first node's two OSDs, the one that has the first object's fragment is drained, and only that one. Gives it.
    pub async fn drain_the_first_object(&self) -> OsdId {
        let node = self.cluster.ready.osds[0].node_id.clone();
        let is_there = |index: usize| self.cluster.ready.osds[index].node_id == node;
        let osds = self.osds();
        let here: Vec<(OsdId, usize)> = osds.into_iter().filter(|(_, index)| is_there(*index)).collect();
        let places = self.places(&name(0)).await;
        let holds = |osd: OsdId| places.iter().any(|(place, _)| *place == osd);
        let (drained, other): (Vec<_>, Vec<_>) = here.into_iter().partition(|(id, _)| holds(*id));
        let ([(drained, index)], [(other, sibling)]) = (&drained[..], &other[..]) else {
            panic!("{drained:?} and {other:?} of {places:?}")
        };
        let long_id = |index: usize| &self.cluster.ready.osds[index].long_id;
        let draining = self.cluster.alba(&["list-draining-osds"]).unwrap().to_string();
        if draining.contains(long_id(*sibling)) {
            self.cluster.alba(&["drain-osd", long_id(*sibling), "--cancel"]).unwrap();
        }
        self.wait_active(*other).await;
        if !draining.contains(long_id(*index)) {
            self.cluster.alba(&["drain-osd", long_id(*index)]).unwrap();
        }
        *drained
    }

    /// Empties the OSD that has the first object's fragment, and has it take fragments again. Gives it.
    pub async fn empty_the_first_object(&self) -> OsdId {
        let emptied = self.drain_the_first_object().await;
        Once::maintenance(&self.cluster, "repair").whole(&self.cluster);
        let long_id = &self.cluster.ready.osds[self.index(emptied)].long_id;
        self.cluster.alba(&["drain-osd", long_id, "--cancel"]).unwrap();
        self.wait_active(emptied).await;
        emptied
    }

    /// Takes fragments of an object away, `first`'s before others. Gives what puts them back.
    pub async fn take_fragments(
        &self,
        name: &str,
        first: OsdId,
        count: usize,
    ) -> Vec<(Device, OsdKey, StoredValue)> {
        let mut places = self.places(name).await;
        places.sort_by_key(|(osd, _)| *osd != first);
        let mut taken = Vec::new();
        for (osd, address) in places.into_iter().take(count) {
            for key in [
                osd_keys::fragment(self.namespace, &address),
                osd_keys::recovery_info(self.namespace, &address),
            ] {
                let device = Device::of(&self.cluster, self.index(osd));
                if let Some(value) = device.get(key.clone()).await {
                    device.apply(OsdUpdate::Delete(key.clone())).await;
                    taken.push((device, key, value));
                }
            }
        }
        taken
    }

    /// Other bytes in place of the object's first fragment.
    pub async fn spoil_a_fragment(&self, name: &str) {
        let places = self.places(name).await;
        let (osd, address) = places.iter().find(|(_, address)| address.fragment == FragmentIndex(0)).unwrap();
        let key = osd_keys::fragment(self.namespace, address);
        Device::of(&self.cluster, self.index(*osd)).spoil(key).await;
    }

    /// Looks at every fragment; what was counted.
    pub fn verify(&self, job: &str) -> Value {
        self.cluster.alba(&["verify-namespace", NS, "--job-name", job, "--factor", "1"]).unwrap();
        wait::until("the job is finished", PATIENCE, || {
            Once::maintenance(&self.cluster, "work").run(&self.cluster);
            let progress = self.cluster.alba(&["show-job-progress", job]).unwrap();
            if progress["finished"] == json!(true) { Ok(progress) } else { Err(progress.to_string()) }
        })
    }

    /// Nothing is lost, nothing is leaked, and every object is equal and has all of its fragments.
    pub async fn check(&self, when: &str) {
        assert_whole(&self.cluster, when);
        let mut stored = self.stored.lock().await;
        stored.check().await;
        let names = stored.names();
        for name in names {
            let places = self.places(&name).await;
            assert_eq!(places.len(), 3, "{when}: {name} is at {places:?}");
        }
    }

    /// In the end OSDs hold what manifests name, and nothing else.
    pub async fn end(self) {
        wait::until("everything that is not needed is gone", PATIENCE, || {
            for task in ["gc", "cleanup"] {
                Once::maintenance(&self.cluster, task).whole(&self.cluster);
            }
            let found = fsck(&self.cluster);
            if is_clean(&found) { Ok(()) } else { Err(found.to_string()) }
        });
        self.check("in the end").await;
    }
}
