//! The real program, killed with SIGKILL at random moments: what it acknowledged is there when it comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::process::Command;
use std::time::Duration;

use alba_core::env::real;
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmOutcome, NsmQuery};

use common::{Client, NS, Server, namespace, object_name, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_puts_survive_kill_9() {
    let env = real::env();
    let directory = tempfile::tempdir().unwrap();
    let at = {
        // A port that was free a moment ago.
        let listener = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        listener.local_addr().unwrap()
    };
    let config = directory.path().join("metadata.toml");
    let data_dir = directory.path().join("data");
    let text = format!("data_dir = {:?}\nlisten = \"{at}\"\n", data_dir.display().to_string());
    alba_core::env::files::replace(&config, text.as_bytes()).unwrap();
    let mut acknowledged: Vec<u32> = Vec::new();
    let mut next = 0;
    for _ in 0..4 {
        let mut server = Server::start(&config);
        let mut client = Client::connect(&env, at).await;
        client.command(namespace()).await.expect("delivered");
        for n in &acknowledged {
            let query = NsmQuery::Manifests { namespace: NS, names: vec![object_name(*n)] };
            match client.ask(query).await {
                NsmAnswer::Manifests(found) => assert!(found[0].is_some(), "object {n} was acknowledged"),
                other => panic!("{other:?}"),
            }
        }
        let NsmAnswer::Statistics(statistics) = client.ask(NsmQuery::Statistics(NS)).await else { panic!() };
        let (least, most) = (u64::try_from(acknowledged.len()).unwrap(), u64::from(next));
        assert!((least..=most).contains(&statistics.objects), "{statistics:?}");
        assert_eq!(statistics.logical_bytes, 16 * statistics.objects);
        let lifetime = Duration::from_millis(20 + env.rng.u64() % 200);
        #[allow(clippy::disallowed_methods, reason = "a thread of the test itself")]
        let killer = tokio::task::spawn_blocking({
            let end = env.clock.now().plus(lifetime);
            let clock = env.clock.clone();
            move || {
                tokio::runtime::Handle::current().block_on(clock.sleep_until(end));
                server.0.kill().unwrap();
                server
            }
        });
        while let Some(outcome) = client.command(put(next)).await {
            assert!(matches!(outcome, NsmOutcome::Stored(_)));
            acknowledged.push(next);
            next += 1;
        }
        // The last one may have happened or not.
        next += 1;
        drop(killer.await.unwrap());
    }
    assert!(acknowledged.len() > 4, "only {} puts in all", acknowledged.len());
}

#[test]
fn bad_configuration_is_a_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("metadata.toml");
    let run = |text: &str| {
        alba_core::env::files::replace(&config, text.as_bytes()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_alba-metadata"))
            .args(["--check-config", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run("data_dir = \"/nowhere\"\nlisten = \"0.0.0.0:1\"\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("insecure_listen"), "{text}");
    let (code, text) = run("data_dir = \"/nowhere\"\nsurprise = 1\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("surprise"), "{text}");
    assert_eq!(run("data_dir = \"/nowhere\"\n").0, Some(0));
}
