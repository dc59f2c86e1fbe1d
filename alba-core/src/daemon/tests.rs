use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExampleConfig {
    listen: SocketAddr,
    auth_token: String,
}

impl Default for ExampleConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), auth_token: "hunter2".to_owned() }
    }
}

struct Example;

impl Daemon for Example {
    type Config = ExampleConfig;
    const NAME: &'static str = "example-daemon";
    const ABOUT: &'static str = "a daemon for tests";

    fn check(config: &ExampleConfig) -> Result<(), String> {
        if config.auth_token.is_empty() { Err("auth_token is empty; give one".to_owned()) } else { Ok(()) }
    }

    fn metrics_listen(_: &ExampleConfig) -> Option<SocketAddr> {
        None
    }

    async fn run(_: ExampleConfig, _: Context) -> anyhow::Result<()> {
        anyhow::bail!("ran and failed")
    }
}

fn parse(args: &[&str]) -> Result<Arguments, ExitCode> {
    let args = std::iter::once("example-daemon").chain(args.iter().copied()).map(OsString::from);
    Arguments::parse(args, Example::NAME, Example::ABOUT)
}

fn code(args: &[&str]) -> String {
    let args = std::iter::once("example-daemon").chain(args.iter().copied()).map(OsString::from);
    format!("{:?}", main::<Example>(args))
}

fn is(code: u8) -> String {
    format!("{:?}", ExitCode::from(code))
}

#[test]
fn exit_codes_tell_wrong_input_from_failure() {
    assert_eq!(code(&["--help"]), is(0));
    assert_eq!(code(&["--check-config"]), is(0));
    assert_eq!(code(&["--no-such-flag"]), is(2));
    assert_eq!(code(&["--config", "/nonexistent/x.toml"]), is(2));
    assert_eq!(code(&["--set", "lisen=1"]), is(2));
    assert_eq!(code(&["--set", "scheduling=sometimes"]), is(2));
    assert_eq!(code(&["--set", "auth_token="]), is(2));
    assert_eq!(code(&["--log-level", "=/="]), is(2));
    assert_eq!(code(&[]), is(1));
}

#[test]
fn an_unreadable_file_is_named_with_the_reason() {
    let arguments = parse(&["--config", "/nonexistent/x.toml"]).unwrap();
    let Err(message) = arguments.load::<Example>() else { panic!("loaded what is not there") };
    assert!(message.contains("/nonexistent/x.toml") && message.contains("No such file"), "{message}");
}

#[test]
fn the_effective_configuration_shows_shared_keys_and_no_secret() {
    let arguments = parse(&["--check-config", "--set", "log_level=warn", "--log-format", "json"]).unwrap();
    let Ok(Outcome::Checked(text)) = arguments.load::<Example>() else { panic!("not checked") };
    assert!(text.contains("log_level = \"warn\"") && text.contains("log_format = \"json\""), "{text}");
    assert!(text.contains("scheduling = \"automatic\""), "{text}");
    let arguments = parse(&["--check-config", "--set", "scheduling=real-time"]).unwrap();
    let Ok(Outcome::Checked(text)) = arguments.load::<Example>() else { panic!("not checked") };
    assert!(text.contains("scheduling = \"real-time\""), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn the_stop_signal_reaches_all_and_stays() {
    let (context, stopper) = Context::new(real::env());
    assert!(!context.stop.is_stopping());
    let other = context.stop.clone();
    stopper.stop();
    other.wait().await;
    other.wait().await;
    assert!(context.stop.is_stopping());
}

#[tokio::test]
async fn a_configuration_read_again_reaches_the_daemon() {
    let (context, _stopper, changing) = Context::with_changes(real::env());
    let mut changes = context.changes.clone();
    let deadline = context.env.deadline_in(Duration::from_millis(1));
    assert!(within(context.env.clock.as_ref(), deadline, changes.next::<ExampleConfig>()).await.is_err());
    changing.hand_over("of another type");
    changing.hand_over(ExampleConfig { auth_token: "new".to_owned(), ..ExampleConfig::default() });
    assert_eq!(changes.next::<ExampleConfig>().await.auth_token, "new");
}

async fn fetch(env: &Env, at: SocketAddr, path: &str) -> String {
    let deadline = env.deadline_in(Duration::from_secs(10));
    let mut stream = env.net.connect(at, deadline).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(env.clock.as_ref(), deadline, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn the_pages_tell_health_metrics_and_masked_configuration() {
    let env = real::env();
    let free = env.net.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let at = free.local_addr().unwrap();
    let taken = http::start(&env, at, &ExampleConfig::default(), Health::default(), Pages::default())
        .await
        .err()
        .unwrap();
    assert!(format!("{taken:#}").contains(&at.to_string()), "{taken:#}");
    drop(free);
    let health = Health::default();
    let pages = Pages::default();
    let _http =
        http::start(&env, at, &ExampleConfig::default(), health.clone(), pages.clone()).await.unwrap();
    assert!(fetch(&env, at, "/tasks").await.starts_with("HTTP/1.1 404"));
    pages.add("/tasks", || serde_json::json!({ "gc": 1 }));
    assert!(fetch(&env, at, "/tasks").await.ends_with("{\"gc\":1}"));
    let answer = fetch(&env, at, "/health/ready").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("starting"), "{answer}");
    health.set_ready();
    let answer = fetch(&env, at, "/health/ready").await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("details"), "{answer}");
    health.set_details(serde_json::json!({ "mood": "fine" }));
    assert!(fetch(&env, at, "/health/ready").await.contains("fine"));
    assert!(fetch(&env, at, "/health/live").await.contains("true"));
    let config = fetch(&env, at, "/config").await;
    assert!(config.contains("listen") && !config.contains("hunter2"), "{config}");
    metrics::counter!("alba_example_total").increment(7);
    assert!(fetch(&env, at, "/metrics").await.contains("alba_example_total 7"));
}

#[test]
fn threads_follow_the_processors_and_there_is_one_of_each_at_least() {
    let threads = |processors| {
        let threads = Threads::one_for(processors, 4, 2, 8);
        (threads.small.get(), threads.bulk.get())
    };
    assert_eq!([0, 1, 2, 8, 64].map(threads), [(1, 1), (1, 1), (1, 1), (2, 4), (8, 8)]);
}
