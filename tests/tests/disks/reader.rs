//! A client of a cluster inside the test's process: it sees what the engine counts, and sets every deadline.

use std::time::Duration;

use alba_client::{
    BytesSource, Client, ClientConfig, ClientError, Consistency, MemorySink, Slice, StoredObject,
    UploadOptions,
};
use alba_core::env::{Env, real};
use alba_core::ids::{LongId, NamespaceName, ObjectName, OsdId};
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, OsdFilter};
use alba_tests::cluster::Cluster;
use alba_tests::{content, wait};

/// For what is not measured.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Reader {
    pub client: Client,
    pub env: Env,
    namespace: NamespaceName,
}

impl Reader {
    /// A new client, which knows nothing yet of how OSDs are doing.
    pub async fn connect(cluster: &Cluster, change: impl FnOnce(&mut ClientConfig)) -> Self {
        // That of the command line, which also says where proxies are.
        let text = std::fs::read_to_string(&cluster.ready.config).unwrap();
        let mut table: toml::Table = text.parse().unwrap();
        table.remove("proxies");
        let mut config: ClientConfig = table.try_into().unwrap();
        change(&mut config);
        let env = real::env();
        let client = Client::connect(env.clone(), config).await.unwrap();
        Self { client, env, namespace: NamespaceName::new("disks").unwrap() }
    }

    /// Creates the namespace, and waits until objects are stored as 5 + 4 fragments: it can be written to sooner.
    pub async fn create_namespace(&self) {
        let deadline = self.env.deadline_in(PATIENCE);
        self.client.create_namespace(&self.namespace, None, deadline).await.unwrap();
        wait::until_async("all OSDs have the namespace", PATIENCE, async || {
            self.put("first", 1).await.map_err(|error| error.to_string())?;
            let total = self.stored("first").await.manifest.scheme.shape.total();
            if total == 9 { Ok(()) } else { Err(format!("{total} fragments")) }
        })
        .await;
    }

    async fn stored(&self, name: &str) -> StoredObject {
        let deadline = self.env.deadline_in(PATIENCE);
        let object = ObjectName::new(name).unwrap();
        let found = self.client.manifest(&self.namespace, &object, Consistency::Consistent, deadline).await;
        found.unwrap().unwrap()
    }

    /// Stores an object of `size` bytes that tell their place.
    pub async fn put(&self, name: &str, size: usize) -> Result<(), ClientError> {
        let mut source = BytesSource::new(content::bytes(name, size));
        let deadline = self.env.deadline_in(PATIENCE);
        let options = UploadOptions::default();
        let object = ObjectName::new(name).unwrap();
        self.client.upload(&self.namespace, &object, &mut source, options, deadline).await.map(drop)
    }

    /// Reads a slice and compares it.
    pub async fn slice(
        &self,
        name: &str,
        offset: u64,
        len: usize,
        within: Duration,
    ) -> Result<(), ClientError> {
        let slice = Slice { offset: i64::try_from(offset).unwrap(), length: i32::try_from(len).unwrap() };
        let requests = vec![(ObjectName::new(name).unwrap(), vec![slice])];
        let deadline = self.env.deadline_in(within);
        let read = self.client.read_slices(&self.namespace, requests, Consistency::Cached, deadline).await?;
        assert!(read.data.concat() == content::slice(name, offset, len), "{name} from {offset} differs");
        Ok(())
    }

    /// Reads an object and compares it.
    pub async fn whole(&self, name: &str, size: usize, within: Duration) -> Result<(), ClientError> {
        let mut sink = MemorySink::new();
        let deadline = self.env.deadline_in(within);
        let object = ObjectName::new(name).unwrap();
        self.client.download(&self.namespace, &object, Consistency::Cached, &mut sink, deadline).await?;
        assert!(sink.into_bytes() == content::bytes(name, size), "{name} differs");
        Ok(())
    }

    /// Which of the cluster's OSDs has a fragment of the object's first chunk.
    pub async fn osd_of(&self, cluster: &Cluster, name: &str, fragment: usize) -> usize {
        let stored = self.stored(name).await;
        let id = stored.manifest.chunks[0].fragments[fragment].location.unwrap();
        let long_id = self.long_id(id).await;
        cluster.ready.osds.iter().position(|osd| osd.long_id == long_id.as_str()).unwrap()
    }

    async fn long_id(&self, id: OsdId) -> LongId {
        let query = AbmQuery::Osds { filter: OsdFilter::Claimed, range: RangeQuery::all() };
        match self.client.directory().query(query, self.env.deadline_in(PATIENCE)).await.unwrap() {
            AbmAnswer::Osds(page) => {
                page.items.into_iter().find(|record| record.osd_id == Some(id)).unwrap().info.long_id
            }
            other => panic!("{other:?}"),
        }
    }

    /// A connection to one of the cluster's OSDs, for what tests do to them.
    pub fn osd(&self, cluster: &Cluster, index: usize) -> std::sync::Arc<AsdClient> {
        let osd = &cluster.ready.osds[index];
        let long_id = LongId::new(osd.long_id.clone()).unwrap();
        let address = ([127, 0, 0, 1], osd.port).into();
        AsdClient::new(self.env.clone(), vec![address], long_id, AsdClientConfig::default())
    }
}
