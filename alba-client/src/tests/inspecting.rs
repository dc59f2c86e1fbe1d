//! What a client tells of OSDs, keys and lookups.

use std::sync::{Arc, Mutex};

use alba_core::encryption::{ClusterKey, FragmentKey};
use alba_core::env::files;
use alba_core::ids::{NamespaceId, NamespaceName};
use alba_core::preset::{Compression, FragmentEncryption, Preset};
use alba_core::wire::rpc::abm::{NamespaceRecord, NamespaceState};

use super::backend::{NS, preset, record};
use super::*;
use crate::{ClientConfig, ManifestCounts, NamespaceKey, ReadObserver};

fn plain() -> Preset {
    preset(&[[2, 2, 3, 4]], 1024, Compression::None)
}

#[test]
fn all_osds_are_told_of_with_their_health() {
    let fixture = Fixture::new(12, 12, plain());
    fixture.run(async {
        let told = fixture.client.osd_readings(fixture.deadline()).await.unwrap();
        let ids: Vec<_> = told.iter().map(|reading| reading.record.osd_id.unwrap()).collect();
        assert_eq!(ids, (0..12).map(osd).collect::<Vec<_>>(), "over several pages");
        assert!(told.iter().all(|reading| reading.opinion.is_none()), "none was used yet");
        // As the backend of these tests has it.
        for reading in &told {
            assert_eq!(reading.health.seen, [reading.record.osd_id.unwrap().get()]);
        }

        let dead = fixture.backend.osd(osd(4));
        dead.set(|faults| faults.dead = true);
        for round in 0..20 {
            put(&fixture, &format!("o{round}"), &data(100)).await.unwrap();
        }
        let told = fixture.client.osd_readings(fixture.deadline()).await.unwrap();
        for reading in told {
            let opinion = reading.opinion.unwrap();
            assert_eq!(opinion.disqualified, reading.record.osd_id == Some(osd(4)));
        }
    });
}

fn is_key(found: &NamespaceKey, expected: [u8; 32]) -> bool {
    matches!(found, NamespaceKey::Key(key) if *key.expose() == expected)
}

#[test]
fn a_namespace_is_found_by_its_number_whatever_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cluster) = (dir.path().join("cluster.key"), ClusterKey::new([6; 32]));
    files::replace(&path, cluster.to_text().as_bytes()).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let fragment_encryption = FragmentEncryption::aes_256_ctr(&FragmentKey::new([5; 32]), &cluster);
    let config = ClientConfig { cluster_key: Some(path), ..ClientConfig::default() };
    let sealed = Fixture::with_config(4, 4, Preset { fragment_encryption, ..plain() }, config);
    sealed.run(async {
        // Behind others, on the second page; one of them only looks like it.
        let named = |name: &str, id, state| NamespaceRecord {
            id: NamespaceId::from_u32(id),
            name: NamespaceName::new(name).unwrap(),
            state,
            ..record()
        };
        let mut listed: Vec<_> =
            (0..9).map(|n| named(&format!("a{n}"), 100 + n, NamespaceState::Active)).collect();
        listed.push(named("gone", 55, NamespaceState::Removing));
        listed.push(record());
        sealed.backend.group.lock().unwrap().listed = listed;
        let client = &sealed.client;
        let key = async |id| client.namespace_key(id, sealed.deadline()).await.unwrap();
        assert!(matches!(key(NamespaceId::from_u32(54)).await, NamespaceKey::UnknownNamespace));
        assert!(matches!(key(NamespaceId::from_u32(55)).await, NamespaceKey::UnknownNamespace));
        assert!(is_key(&key(NS).await, [5; 32]));
        // Known by now: the list is not needed any more.
        sealed.backend.group.lock().unwrap().listed.clear();
        assert!(is_key(&key(NS).await, [5; 32]));
    });
    let open = Fixture::new(4, 4, plain());
    open.run(async {
        open.backend.group.lock().unwrap().listed = vec![record()];
        let found = open.client.namespace_key(NS, open.deadline()).await.unwrap();
        assert!(matches!(found, NamespaceKey::NotEncrypted));
    });
}

#[derive(Default)]
struct Counted(Mutex<ManifestCounts>);

impl ReadObserver for Counted {
    fn manifests(&self, namespace: &NamespaceName, counts: ManifestCounts) {
        assert_eq!(*namespace, ns());
        let mut sum = self.0.lock().unwrap();
        sum.cached += counts.cached;
        sum.fetched += counts.fetched;
        sum.stale += counts.stale;
    }
}

#[test]
fn an_observer_is_told_where_manifests_came_from() {
    let fixture = Fixture::new(4, 4, plain());
    let counted = Arc::new(Counted::default());
    fixture.client.observe(counted.clone());
    let other = Arc::new(Counted::default());
    fixture.client.observe(other.clone());
    let counts = || *counted.0.lock().unwrap();
    fixture.run(async {
        put(&fixture, "a", &data(3000)).await.unwrap();
        let names = [name("a"), name("none")];
        let find = async |consistency| {
            fixture.client.manifests(&ns(), &names, consistency, fixture.deadline()).await.unwrap()
        };
        let found = find(Consistency::Consistent).await;
        assert!(found[0].is_some() && found[1].is_none());
        assert_eq!(counts(), ManifestCounts { cached: 0, fetched: 1, stale: 0 });
        find(Consistency::Cached).await;
        assert_eq!(counts(), ManifestCounts { cached: 1, fetched: 1, stale: 0 });

        // Another client replaces the object, and maintenance deletes the old fragments: what is cached proves wrong.
        let id = fixture.backend.stored(&name("a")).unwrap().object_id;
        let another = fixture.second_client();
        let mut source = BytesSource::new(data(2000));
        another
            .upload(&ns(), &name("a"), &mut source, UploadOptions::default(), fixture.deadline())
            .await
            .unwrap();
        for osd in fixture.backend.all() {
            osd.remove_object(id).await;
        }
        let read = get_by(&fixture, &fixture.client, "a", Consistency::Cached).await.unwrap();
        assert_eq!(read, data(2000));
        assert_eq!(counts(), ManifestCounts { cached: 2, fetched: 2, stale: 1 });
    });
    assert_eq!(*other.0.lock().unwrap(), ManifestCounts::default(), "the first one stays");
}
