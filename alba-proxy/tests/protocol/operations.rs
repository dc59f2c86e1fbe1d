//! What operators see and change: slow requests in the log, limits that change while it runs, an end in order.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use alba_proxy::ProxyConfig;
use tokio::time::sleep;
use tracing_subscriber::fmt::MakeWriter;

use crate::harness::{Harness, request, slices};

/// Log lines of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        // With one subscriber alone, tracing asks the thread that comes to a span first whether anybody wants it, and keeps the answer: threads
        // of other tests have none, and say no. With a second one, which is never used, it asks both.
        static SECOND: LazyLock<tracing::Dispatch> =
            LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::registry()));
        LazyLock::force(&SECOND);
        let lines = Self::default();
        let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false);
        let guard =
            tracing::subscriber::set_default(subscriber.with_max_level(tracing::Level::DEBUG).finish());
        (lines, guard)
    }

    fn of(&self, what: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
    }
}

/// The id in a line `…request{id=0123456789abcdef client=…`.
fn id_of(line: &str) -> &str {
    line.split_once("request{id=").unwrap().1.get(..16).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_slow_request_says_where_the_time_went() {
    let (lines, _guard) = Lines::start();
    let harness = Harness::with(|config| config.slow_request_ms = 400);
    let mut raw = harness.connect().await;
    raw.ok(request(20).f64(0.3)).await;
    assert_eq!(lines.of("slow request"), Vec::<String>::new());
    raw.ok(request(20).f64(0.6)).await;
    // A client that sends its request piece by piece: not our time.
    let frame = request(2).str("demo").frame();
    raw.send(&frame[..10]).await;
    sleep(Duration::from_millis(700)).await;
    raw.send(&frame[10..]).await;
    raw.answer().await;
    let slow = lines.of("slow request");
    assert_eq!(slow.len(), 2, "{slow:?}");
    assert!(slow[0].contains("op=\"ping\"") && slow[0].contains("serving=60"), "{}", slow[0]);
    assert!(slow[1].contains("op=\"namespace_exists\"") && slow[1].contains("arriving=70"), "{}", slow[1]);
}

#[tokio::test]
async fn every_line_of_a_request_has_its_id_and_each_request_its_own() {
    let (lines, _guard) = Lines::start();
    let harness = Harness::with(|config| config.slow_request_ms = 0);
    harness.fake.put("o", "data");
    let mut raw = harness.connect().await;
    raw.ok(slices(13, "demo", &[("o", &[(0, 4)])])).await;
    raw.err(slices(13, "demo", &[("nothing", &[(0, 4)])])).await;
    let (served, refused) = (lines.of("request served"), lines.of("request refused"));
    let (served, refused) = (id_of(&served[0]).to_owned(), id_of(&refused[0]).to_owned());
    assert_ne!(served, refused);
    assert!(u64::from_str_radix(&served, 16).is_ok_and(|id| id != 0), "{served}");
}

#[tokio::test(start_paused = true)]
async fn limits_change_while_it_runs() {
    let harness = Harness::with(|config| config.max_client_connections = 1);
    let mut first = harness.connect().await;
    first.alive().await;
    harness.raw().closed().await;
    let with = |change: fn(&mut ProxyConfig)| {
        let mut config = ProxyConfig::new(vec![([127, 0, 0, 1], 4000).into()]);
        config.max_client_connections = 2;
        change(&mut config);
        config
    };
    let now = harness.server.reload(&with(|config| config.client.upload_slack = 0.7)).unwrap();
    assert_eq!((now.max_client_connections, now.engine().upload_slack), (2, 0.7));
    let mut second = harness.connect().await;
    second.alive().await;
    harness.raw().closed().await;
    // Nothing new: nothing to hand on.
    assert_eq!(harness.server.reload(&now), None);
    // What needs a restart does not come by the way.
    let now = harness.server.reload(&with(|config| {
        config.handshake_timeout_ms = 60;
        config.max_frame_bytes = 1 << 20;
    }));
    assert_eq!(now.unwrap().max_frame_bytes, 256 << 20);
    drop(second);
    let start = tokio::time::Instant::now();
    sleep(Duration::from_millis(10)).await;
    harness.raw().closed().await;
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    // A mixture of the two that makes no sense is refused as a whole.
    let mixture = with(|config| {
        config.max_frame_bytes = 1 << 20;
        config.max_request_bytes_in_flight = 1 << 20;
    });
    assert_eq!(harness.server.reload(&mixture), None);
    first.alive().await;
}
