//! The clients of a run, and the checker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use alba_client::{
    BytesSource, Client, ClientConfig, ClientError, Consistency, MemorySink, Slice, UploadOptions,
};
use alba_core::env::Env;
use alba_core::ids::{NamespaceName, ObjectName};
use alba_core::range::RangeQuery;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::world::World;
use super::{Plan, Shared};
use crate::content;
use crate::history::{Content, History, identify};

/// Names of each client.
const NAMES: u32 = 8;

/// Time for one operation under faults.
const OPERATION: Duration = Duration::from_secs(8);

/// Time for one operation when everything is up again: what is broken then stays broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients did and saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Uploads and deletes that began.
    pub attempts: u32,
    /// Those that were acknowledged.
    pub acknowledged: u32,
    /// Reads that gave bytes, all of them compared.
    pub reads: u32,
    /// Reads that failed, as they may while things are broken.
    pub failed_reads: u32,
}

struct Actor {
    machine: u32,
    history: Shared<History>,
}

/// All clients of a run.
pub(super) struct Actors {
    actors: Vec<Actor>,
    remaining: Arc<AtomicU32>,
    counts: Shared<Counts>,
    /// Lives of client machines so far: names the contents apart.
    lives: AtomicU32,
}

impl Actors {
    pub(super) fn start(world: &World<'_>, plan: Plan) -> Self {
        let actors = (0..plan.clients).map(|machine| Actor { machine, history: Shared::default() }).collect();
        let actors = Self {
            actors,
            remaining: Arc::new(AtomicU32::new(plan.operations)),
            counts: Shared::default(),
            lives: AtomicU32::new(0),
        };
        for actor in &actors.actors {
            actors.start_one(world, actor);
        }
        actors
    }

    fn start_one(&self, world: &World<'_>, actor: &Actor) {
        let env = world.client_node(actor.machine).env();
        let life = Life {
            env: env.clone(),
            config: world.client_config(),
            machine: actor.machine,
            life: self.lives.fetch_add(1, Ordering::Relaxed),
            history: actor.history.clone(),
            remaining: self.remaining.clone(),
            counts: self.counts.clone(),
        };
        env.spawn.spawn("client", Box::pin(life.run()));
    }

    /// Operations that are still to be begun.
    pub(super) fn remaining(&self) -> u32 {
        self.remaining.load(Ordering::Relaxed)
    }

    /// Waits until all operations have begun.
    pub(super) async fn done(&self, world: &World<'_>) {
        while self.remaining() > 0 {
            world.sleep(Duration::from_millis(100)).await;
        }
    }

    /// A client machine loses power, whatever its client was doing, and comes back at once.
    pub(super) fn crash_one(&self, world: &World<'_>, rng: &mut StdRng) {
        let actor = &self.actors[rng.random_range(0..self.actors.len())];
        world.client_node(actor.machine).crash();
        self.start_one(world, actor);
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap()
    }
}

/// One life of a client machine.
struct Life {
    env: Env,
    config: ClientConfig,
    machine: u32,
    life: u32,
    history: Shared<History>,
    remaining: Arc<AtomicU32>,
    counts: Shared<Counts>,
}

impl Life {
    async fn run(self) {
        let mut rng = self.env.rng.generator();
        let client = loop {
            match Client::connect(self.env.clone(), self.config.clone()).await {
                Ok(client) => break client,
                Err(_) => self.pause(100).await,
            }
        };
        let mut attempt = 0;
        while self.take_turn() {
            attempt += 1;
            let name = format!("client {} name {}", self.machine, rng.random_range(0..NAMES));
            match rng.random_range(0..10_u32) {
                0 => self.delete(&client, &name).await,
                1..=5 => self.upload(&client, &name, attempt, &mut rng).await,
                _ => self.read(&client, &name, &mut rng).await,
            }
            self.pause(rng.random_range(0..400)).await;
        }
    }

    async fn pause(&self, millis: u64) {
        self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(millis))).await;
    }

    fn take_turn(&self) -> bool {
        let left = |left: u32| left.checked_sub(1);
        self.remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }

    fn begin(&self, name: &str, wanted: Option<Content>) {
        self.counts.lock().unwrap().attempts += 1;
        self.history.lock().unwrap().begin(name, wanted);
    }

    fn end<T>(&self, name: &str, result: &Result<T, ClientError>) {
        if result.is_ok() {
            self.counts.lock().unwrap().acknowledged += 1;
            self.history.lock().unwrap().acknowledged(name);
        }
    }

    async fn delete(&self, client: &Client, name: &str) {
        self.begin(name, None);
        let deadline = self.env.deadline_in(OPERATION);
        let result = client.delete_object(&namespace(), &object(name), false, deadline).await;
        self.end(name, &result);
    }

    async fn upload(&self, client: &Client, name: &str, attempt: u32, rng: &mut StdRng) {
        let size = match rng.random_range(0..8_u32) {
            0 => 0,
            1..=5 => rng.random_range(1..20_000),
            _ => rng.random_range(20_000..300_000),
        };
        let tag = format!("{name} life {} attempt {attempt}", self.life);
        let mut source = BytesSource::new(content::bytes(&tag, size));
        self.begin(name, Some(Content { tag, size: size as u64 }));
        let deadline = self.env.deadline_in(OPERATION);
        let options = UploadOptions::default();
        let result = client.upload(&namespace(), &object(name), &mut source, options, deadline).await;
        self.end(name, &result);
    }

    async fn read(&self, client: &Client, name: &str, rng: &mut StdRng) {
        let possible = self.history.lock().unwrap().possible(name);
        let deadline = self.env.deadline_in(OPERATION);
        let read = if rng.random_bool(0.5) {
            let mut sink = MemorySink::new();
            let read = client
                .download(&namespace(), &object(name), Consistency::Consistent, &mut sink, deadline)
                .await;
            read.map(|_| Some(sink.into_bytes()))
        } else {
            self.read_slice(client, name, &possible, rng).await
        };
        let mut counts = self.counts.lock().unwrap();
        match read {
            Ok(Some(bytes)) => {
                let found = identify(&possible, &bytes);
                assert!(found.is_some(), "{name}: {} bytes that are none of {possible:?}", bytes.len());
                counts.reads += 1;
            }
            Ok(None) => counts.reads += 1,
            Err(ClientError::ObjectUnknown(_)) => {
                assert!(possible.contains(&None), "{name} is not there; it may hold {possible:?}");
                counts.reads += 1;
            }
            Err(
                error @ (ClientError::ChecksumMismatch { .. }
                | ClientError::Undecodable { .. }
                | ClientError::Internal(_)),
            ) => panic!("{name}: {error}"),
            Err(_) => counts.failed_reads += 1,
        }
    }

    /// Reads a slice and compares it; no bytes when there was nothing to compare with.
    async fn read_slice(
        &self,
        client: &Client,
        name: &str,
        possible: &[Option<Content>],
        rng: &mut StdRng,
    ) -> Result<Option<bytes::Bytes>, ClientError> {
        let longest = possible.iter().flatten().map(|content| content.size).max().unwrap_or(0);
        let offset = rng.random_range(0..=longest);
        let length = rng.random_range(0..=longest - offset).min(50_000);
        let slice = Slice { offset: offset.try_into().unwrap(), length: length.try_into().unwrap() };
        let deadline = self.env.deadline_in(OPERATION);
        let request = vec![(object(name), vec![slice])];
        let read = client.read_slices(&namespace(), request, Consistency::Consistent, deadline).await;
        let data = match read {
            Ok(read) => read.data.concat(),
            // It may hold something shorter.
            Err(ClientError::SliceOutsideObject) => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = usize::try_from(length).unwrap();
        let fits = possible.iter().flatten().any(|content| {
            content.size >= offset + data.len() as u64 && content::slice(&content.tag, offset, length) == data
        });
        assert!(fits || data.is_empty(), "{name}: bytes {offset}+{length} are of none of {possible:?}");
        Ok(None)
    }
}

fn namespace() -> NamespaceName {
    NamespaceName::new(super::world::NAMESPACE).unwrap()
}

fn object(name: &str) -> ObjectName {
    ObjectName::new(name).unwrap()
}

/// Everything is up: every name holds what it may, whole, and nothing else is there. Returns the number of objects.
pub(super) async fn check_everything(world: &World<'_>, actors: &Actors) -> usize {
    // Clients that are still at their last operation go with their machines.
    for actor in &actors.actors {
        world.client_node(actor.machine).crash();
    }
    // What they had sent may still have its effect; then it has had it.
    world.sleep(PATIENCE).await;
    let env = world.auditor.env();
    let client = Client::connect(env.clone(), world.client_config()).await.unwrap();
    let mut history = History::default();
    for actor in &actors.actors {
        history.merge(actor.history.lock().unwrap().clone());
    }
    let listed = list(&client, &env).await;
    let names: Vec<String> = history.names().map(str::to_owned).collect();
    for name in &listed {
        assert!(names.contains(name), "{name} is listed, but nobody wrote it");
    }
    for name in &names {
        if !listed.contains(name) {
            history.settle(name, None);
            continue;
        }
        let mut sink = MemorySink::new();
        let deadline = env.deadline_in(PATIENCE);
        client
            .download(&namespace(), &object(name), Consistency::Consistent, &mut sink, deadline)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}; it may hold {:?}", history.possible(name)));
        let bytes = sink.into_bytes();
        let found = identify(&history.possible(name), &bytes);
        assert!(found.is_some(), "{name}: {} bytes of none of {:?}", bytes.len(), history.possible(name));
        history.settle(name, found);
    }
    history.objects()
}

async fn list(client: &Client, env: &Env) -> Vec<String> {
    let mut range = RangeQuery::all();
    let mut names = Vec::new();
    loop {
        let page = client.list_objects(&namespace(), range.clone(), env.deadline_in(PATIENCE)).await.unwrap();
        names.extend(page.items.iter().map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned()));
        match page.items.last() {
            Some(last) if page.has_more => range = range.after(last.as_bytes()),
            _ => return names,
        }
    }
}
