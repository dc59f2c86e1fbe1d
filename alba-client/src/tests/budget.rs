//! A request's time is passed down and shrinks, and what it held is given back however it ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::env::osd::{DiskUsage, OsdBatch, OsdKey, Priority, StoredValue, ValueSlice};
use alba_core::env::{Deadline, Directory, MetaError, NamespaceStore, Osd, OsdError};
use alba_core::ids::GroupId;
use alba_core::preset::Compression;
use alba_core::range::{Page, RangeQuery};
use alba_core::request::Request;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmOutcome, AbmQuery, OsdInfo};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmOutcome, NsmQuery};
use alba_core::wire::rpc::watch::{WatchReply, WatchRequest};
use async_trait::async_trait;

use super::backend::{Backend, Fixture, preset};
use super::*;
use crate::{ClientConfig, OsdConnector, Slice};

type Seen = Arc<Mutex<Vec<(&'static str, Deadline)>>>;

/// Notes every deadline that comes through it.
#[derive(Clone)]
struct Noting<T: ?Sized> {
    inner: Arc<T>,
    seen: Seen,
}

impl<T: ?Sized> Noting<T> {
    fn note(&self, what: &'static str, deadline: Deadline) {
        self.seen.lock().unwrap().push((what, deadline));
    }
}

#[async_trait]
impl Directory for Noting<Backend> {
    async fn command(&self, command: AbmCommand, deadline: Deadline) -> Result<AbmOutcome, MetaError> {
        self.note("abm", deadline);
        Directory::command(&*self.inner, command, deadline).await
    }

    async fn query(&self, query: AbmQuery, deadline: Deadline) -> Result<AbmAnswer, MetaError> {
        // Following changes goes on beside the requests.
        if !matches!(query, AbmQuery::Revisions) {
            self.note("abm", deadline);
        }
        Directory::query(&*self.inner, query, deadline).await
    }

    // No request's: it goes on beside them.
    async fn watch(&self, request: WatchRequest, deadline: Deadline) -> Result<WatchReply, MetaError> {
        self.inner.watch(request, deadline).await
    }
}

#[async_trait]
impl NamespaceStore for Noting<Backend> {
    async fn command(
        &self,
        group: &GroupId,
        command: NsmCommand,
        deadline: Deadline,
    ) -> Result<NsmOutcome, MetaError> {
        self.note("nsm", deadline);
        NamespaceStore::command(&*self.inner, group, command, deadline).await
    }

    async fn query(
        &self,
        group: &GroupId,
        query: NsmQuery,
        deadline: Deadline,
    ) -> Result<NsmAnswer, MetaError> {
        self.note("nsm", deadline);
        NamespaceStore::query(&*self.inner, group, query, deadline).await
    }
}

impl OsdConnector for Noting<Backend> {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        let number: u64 = info.long_id.as_str().trim_start_matches("osd-").parse().unwrap();
        let inner: Arc<dyn Osd> = self.inner.osd(OsdId::new(number).unwrap());
        Arc::new(Noting { inner, seen: self.seen.clone() })
    }
}

#[async_trait]
impl Osd for Noting<dyn Osd> {
    async fn apply(&self, batch: OsdBatch, priority: Priority, deadline: Deadline) -> Result<(), OsdError> {
        self.note("osd write", deadline);
        self.inner.apply(batch, priority, deadline).await
    }

    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredValue>>, OsdError> {
        self.note("osd read", deadline);
        self.inner.multi_get(keys, priority, deadline).await
    }

    async fn multi_exists(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<bool>, OsdError> {
        self.note("osd read", deadline);
        self.inner.multi_exists(keys, priority, deadline).await
    }

    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<Vec<Bytes>>, OsdError> {
        self.note("osd read", deadline);
        self.inner.partial_get(key, slices, priority, deadline).await
    }

    async fn range(
        &self,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Page<OsdKey>, OsdError> {
        self.note("osd read", deadline);
        self.inner.range(query, priority, deadline).await
    }

    async fn disk_usage(&self, deadline: Deadline) -> Result<DiskUsage, OsdError> {
        self.inner.disk_usage(deadline).await
    }
}

#[test]
fn no_step_of_a_request_may_take_longer_than_the_request() {
    let fixture = Fixture::new(5, 5, preset(&[[2, 2, 4, 1]], 512, Compression::None));
    let seen = Seen::default();
    let parts = Arc::new(Noting { inner: fixture.backend.clone(), seen: seen.clone() });
    let env = fixture.node.env();
    let client =
        Client::with_parts(env.clone(), ClientConfig::default(), parts.clone(), parts.clone(), parts);
    let bytes = data(5000);
    // Each with less time than any step has by itself, and each with another time.
    let budget = |millis| env.deadline_in(Duration::from_millis(millis));
    let check = |what: &str, deadline: Deadline| {
        let steps = std::mem::take(&mut *seen.lock().unwrap());
        assert!(!steps.is_empty(), "{what} asked nobody");
        for (step, until) in steps {
            // The write of a fragment may outlive its request, as a straggler, and a read the one that began it, as long as
            // another one waits for the same: the request does not wait for them longer.
            let shared = matches!(step, "osd write" | "osd read");
            let deadline = if shared { deadline.max(budget(10_000)) } else { deadline };
            assert!(until <= deadline, "{what}: {step} may go on for {:?} longer", until.0.since(deadline.0));
        }
    };
    fixture.run(async {
        let deadline = budget(900);
        let mut source = BytesSource::new(bytes.clone());
        client.upload(&ns(), &name("o"), &mut source, UploadOptions::default(), deadline).await.unwrap();
        check("upload", deadline);
        // What is left to do after it has times of its own.
        client.settle(budget(60_000)).await.unwrap();
        seen.lock().unwrap().clear();

        let deadline = budget(800);
        let mut sink = MemorySink::new();
        client.download(&ns(), &name("o"), Consistency::Consistent, &mut sink, deadline).await.unwrap();
        check("download", deadline);

        let deadline = budget(700);
        let wanted = vec![(name("o"), vec![Slice { offset: 600, length: 1000 }])];
        client.read_slices(&ns(), wanted, Consistency::Consistent, deadline).await.unwrap();
        check("slices", deadline);

        let deadline = budget(600);
        client.list_objects(&ns(), RangeQuery::all(), deadline).await.unwrap();
        check("list", deadline);

        let deadline = budget(500);
        client.delete_object(&ns(), &name("o"), true, deadline).await.unwrap();
        check("deletion", deadline);
    });
}

/// Clients that ask and go away, ten thousand times, with OSDs that never answer.
#[test]
fn ten_thousand_requests_that_are_given_up_leave_nothing_taken() {
    let config = ClientConfig { max_bytes_in_flight: 1 << 20, max_uploads: 8, ..ClientConfig::default() };
    let fixture = Fixture::with_config(5, 5, preset(&[[2, 2, 4, 1]], 16 << 10, Compression::None), config);
    let bytes = data(200_000);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        settle(&fixture).await;
        for osd in fixture.backend.all() {
            osd.set(|faults| faults.delay = Duration::from_secs(3600));
        }
        let clock = fixture.node.env().clock;
        for batch in 0..100_u64 {
            let all = (0..100_u64).map(|number| {
                let (client, bytes) = (fixture.client.clone(), bytes.clone());
                let (clock, deadline) = (clock.clone(), fixture.deadline());
                async move {
                    let work = async {
                        match number % 3 {
                            0 => {
                                let mut source = BytesSource::new(bytes);
                                let to = name(&format!("{batch}-{number}"));
                                let options = UploadOptions::default();
                                drop(client.upload(&ns(), &to, &mut source, options, deadline).await);
                            }
                            1 => {
                                let mut sink = MemorySink::new();
                                let from = name("o");
                                drop(
                                    client
                                        .download(&ns(), &from, Consistency::Cached, &mut sink, deadline)
                                        .await,
                                );
                            }
                            _ => {
                                let wanted = vec![(name("o"), vec![Slice { offset: 0, length: 100_000 }])];
                                drop(client.read_slices(&ns(), wanted, Consistency::Cached, deadline).await);
                            }
                        }
                    };
                    let work = Request::new(None, Some(number)).scope(work);
                    // Given up at some point between the first step and the wait for an OSD.
                    let until = Deadline::after(&*clock, Duration::from_millis(number % 7));
                    let _ = alba_core::env::within(&*clock, until, Box::pin(work)).await;
                }
            });
            futures_util::future::join_all(all).await;
        }
        let taken: u64 = fixture.client.engine.buffers.used().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(taken, 0, "bytes of buffers are still taken");
        assert_eq!(fixture.client.engine.waiting(), 0);
        // Every upload slot has come back.
        fixture.client.settle(fixture.node.env().deadline_in(Duration::from_secs(1))).await.unwrap();
        for osd in fixture.backend.all() {
            osd.set(|faults| faults.delay = Duration::ZERO);
        }
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn who_gets_no_room_is_told_which_key_to_change() {
    let config = ClientConfig {
        max_bytes_in_flight: 4 << 20,
        max_client_bytes_in_flight: 1 << 20,
        ..ClientConfig::default()
    };
    let fixture = Fixture::with_config(5, 5, preset(&[[2, 2, 4, 1]], 512 << 10, Compression::None), config);
    fixture.run(async {
        let engine = &fixture.client.engine;
        let soon = || fixture.node.env().deadline_in(Duration::from_secs(1));
        let text = |refused: Result<_, ClientError>| refused.map(drop).unwrap_err().to_string();
        let one = Request::new(None, Some(1));
        let held = one.clone().scope(engine.buffers.work(1 << 20, soon())).await.unwrap();
        let refused = text(one.clone().scope(engine.buffers.work(200_000, soon())).await);
        assert!(refused.contains("max_client_bytes_in_flight"), "{refused}");
        let others = engine.buffers.work(5 << 19, soon()).await.unwrap();
        let refused = text(engine.buffers.work(200_000, soon()).await);
        assert!(refused.contains("max_bytes_in_flight") && !refused.contains("client"), "{refused}");
        // More room, while it runs.
        let config = ClientConfig { max_bytes_in_flight: 8 << 20, ..fixture.client.config().clone() };
        assert!(fixture.client.reconfigure(config));
        assert_eq!(fixture.client.config().max_bytes_in_flight, 8 << 20);
        let more = engine.buffers.work(200_000, soon()).await.unwrap();
        drop((held, others, more));
    });
}
