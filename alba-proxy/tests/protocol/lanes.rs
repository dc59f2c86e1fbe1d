//! What is large is moved by threads that give way to small requests, and small requests are not handed to them.

use std::sync::{Arc, Mutex};

use alba_core::env::spawn::{BlockingWork, Spawn, Task, TaskHandle};
use alba_core::env::{Env, real};

use crate::harness::{Harness, request, slices};

/// The threads for bulk, and what they were given.
struct Bulk {
    threads: Arc<dyn Spawn>,
    given: Mutex<Vec<&'static str>>,
}

impl Bulk {
    /// Since the last time.
    fn taken(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.given.lock().unwrap())
    }
}

impl Spawn for Bulk {
    fn spawn(&self, name: &'static str, task: Task) -> TaskHandle {
        self.given.lock().unwrap().push(name);
        self.threads.spawn(name, task)
    }

    fn run_blocking(&self, work: BlockingWork) {
        self.threads.run_blocking(work);
    }
}

/// Real threads of both kinds.
fn with_bulk() -> (Harness, Arc<Bulk>) {
    let env = real::env();
    let bulk = Arc::new(Bulk { threads: env.bulk.clone(), given: Mutex::default() });
    (Harness::on(Env { bulk: bulk.clone(), ..env }, |_| {}), bulk)
}

#[tokio::test]
async fn large_frames_and_answers_are_moved_by_threads_that_give_way() {
    const LARGE: usize = 1 << 20;
    let (harness, bulk) = with_bulk();
    harness.fake.put("large", vec![7; LARGE]);
    harness.fake.put("small", "small");
    let mut raw = harness.connect().await;

    let small = raw.ok(slices(13, "demo", &[("small", &[(0, 5)])])).await.str();
    assert_eq!((small.as_slice(), bulk.taken()), (b"small".as_slice(), vec![]));

    // The work itself is bulk, and so is its answer.
    let length = i32::try_from(LARGE).unwrap();
    let large = raw.ok(slices(13, "demo", &[("large", &[(0, length)])])).await.str();
    assert!(large == [7; LARGE]);
    assert_eq!(bulk.taken(), ["large request", "large frame"]);

    // ApplySequence, one object by value, without a checksum.
    let upload = |data: &[u8]| {
        let none: [(); 0] = [];
        request(24).str("demo").bool(true).list(&none, |r, ()| r).list(&[data], |r, data| {
            r.byte(2).str("new").str(data).byte(0)
        })
    };
    raw.ok(upload(&[8; LARGE])).await;
    assert_eq!(bulk.taken().first(), Some(&"large frame"), "it was received there");
    raw.ok(upload(b"small")).await;
    assert_eq!(bulk.taken(), Vec::<&str>::new());

    // And the connection goes on.
    raw.alive().await;
}
