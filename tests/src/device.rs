//! What is stored on one of a cluster's OSDs, spoken to directly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{Osd as _, OsdBatch, OsdKey, OsdUpdate, Priority, StoredValue};
use alba_core::env::{Deadline, Env, real};
use alba_core::ids::{LongId, NamespaceId};
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use alba_core::osd_keys::{self, FragmentAddress, Parsed};
use alba_core::range::{RangeQuery, next_prefix};
use bytes::Bytes;

use crate::cluster::Cluster;

/// A connection to one OSD.
pub struct Device {
    env: Env,
    client: Arc<AsdClient>,
}

impl Device {
    /// That of the cluster's OSD number `index`.
    pub fn of(cluster: &Cluster, index: usize) -> Self {
        let osd = &cluster.ready.osds[index];
        let env = real::env();
        let address = SocketAddr::from(([127, 0, 0, 1], osd.port));
        let long_id = LongId::new(osd.long_id.clone()).unwrap();
        let client = AsdClient::new(env.clone(), vec![address], long_id, AsdClientConfig::default());
        Self { env, client }
    }

    fn deadline(&self) -> Deadline {
        self.env.deadline_in(Duration::from_secs(20))
    }

    /// All fragments of a namespace that it has.
    pub async fn fragments(&self, namespace: NamespaceId) -> Vec<(OsdKey, FragmentAddress)> {
        let prefix = osd_keys::fragments(namespace);
        let mut range = RangeQuery {
            first: prefix.to_vec(),
            last: next_prefix(&prefix).map(|end| (end, false)),
            ..RangeQuery::all()
        };
        let mut found = Vec::new();
        loop {
            let page = self.client.range(range.clone(), Priority::High, self.deadline()).await.unwrap();
            for key in &page.items {
                let Ok(Parsed::Fragment(_, address)) = osd_keys::parse(key) else { panic!("{key:?}") };
                found.push((key.clone(), address));
            }
            match page.items.last() {
                Some(last) if page.has_more => range = range.after(last),
                _ => return found,
            }
        }
    }

    /// What is under a key.
    pub async fn get(&self, key: OsdKey) -> Option<StoredValue> {
        let values = self.client.multi_get(vec![key], Priority::High, self.deadline()).await.unwrap();
        values.into_iter().next().flatten()
    }

    /// Changes it.
    pub async fn apply(&self, update: OsdUpdate) {
        let batch = OsdBatch { asserts: Vec::new(), updates: vec![update] };
        self.client.apply(batch, Priority::High, self.deadline()).await.unwrap();
    }

    /// Puts other bytes in place of a fragment's.
    pub async fn spoil(&self, key: OsdKey) {
        let value = StoredValue { value: Bytes::from_static(b"rot"), checksum: Checksum::None };
        self.apply(OsdUpdate::Set(key, value)).await;
    }
}
