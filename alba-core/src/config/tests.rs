use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Example {
    listen: String,
    #[serde(default)]
    slack: f64,
    #[serde(default)]
    client: Client,
}

#[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Client {
    metadata: Vec<std::net::SocketAddr>,
    timeout: u64,
    secret_key: String,
}

fn sources(file: &str) -> Sources {
    Sources {
        name: "asd-server".to_owned(),
        file: Some(("a.toml".into(), file.to_owned())),
        ..Sources::default()
    }
}

fn with(file: &str, env: &[(&str, &str)], set: &[&str]) -> Result<Example, String> {
    let mut sources = sources(file);
    sources.env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    sources.set = set.iter().map(|s| (*s).to_owned()).collect();
    load(&sources).map_err(|error| error.to_string())
}

#[test]
fn later_sources_win_key_by_key() {
    let file = "listen = \"a\"\nslack = 0.1\n[client]\ntimeout = 5\n";
    let env = [
        ("ALBA_ASD_SERVER__SLACK", "0.2"),
        ("ALBA_ASD_SERVER__CLIENT__TIMEOUT", "6"),
        ("ALBA_PROXY__NOT_OURS", "1"),
        ("PATH", "/bin"),
    ];
    let set = ["client.timeout=7", "client.metadata=[\"127.0.0.1:1\"]"];
    let loaded = with(file, &env, &set).unwrap();
    let client =
        Client { metadata: vec!["127.0.0.1:1".parse().unwrap()], timeout: 7, secret_key: String::new() };
    assert_eq!(loaded, Example { listen: "a".to_owned(), slack: 0.2, client });
}

#[test]
fn what_is_no_toml_value_is_text() {
    for (given, want) in [
        ("listen=127.0.0.1:80", "127.0.0.1:80"),
        ("listen=", ""),
        ("listen = a b ", "a b"),
        ("listen=\"7\"", "7"),
        ("listen=1\nslack=2", "1\nslack=2"),
        ("listen=a=b", "a=b"),
    ] {
        assert_eq!(with("", &[], &[given]).unwrap().listen, want, "{given:?}");
    }
}

#[test]
fn errors_name_place_key_and_remedy() {
    let check = |result: Result<Example, String>, want: &[&str]| {
        let error = result.unwrap_err();
        for part in want {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    };
    check(
        with("listen = \"a\"\nlisen = 1\n", &[], &[]),
        &["a.toml, line 2", "unknown key `lisen`", "`listen`"],
    );
    check(
        with("listen = \"a\"\n\n[client]\ntimout = 1\n", &[], &[]),
        &["a.toml, line 4", "unknown key `timout`", "section `client`", "`timeout`"],
    );
    check(with("listen = \"a\"\nslack = \"x\"\n", &[], &[]), &["a.toml, line 2", "`slack`", "string"]);
    check(with("listen = \n", &[], &[]), &["a.toml, line 1", "TOML"]);
    check(with("slack = 1.0\n", &[], &[]), &["a.toml", "`listen` is missing", "--set listen="]);
    check(with("listen = 1\n", &[], &["slack=3"]), &["a.toml, line 1", "`listen`"]);
    check(
        with("", &[], &["listen=a", "client.timout=3"]),
        &["--set client.timout=3", "unknown key `timout`"],
    );
    check(with("", &[], &["listen=a", "client.timeout=x"]), &["--set client.timeout=x", "`client.timeout`"]);
    check(
        with("listen = \"a\"", &[("ALBA_ASD_SERVER__LISEN", "1")], &[]),
        &["environment variable ALBA_ASD_SERVER__LISEN", "unknown key `lisen`"],
    );
    check(with("listen = \"a\"", &[], &["listen.x=1"]), &["--set listen.x=1", "not a section"]);
    check(with("listen = \"a\"", &[], &["slack"]), &["--set slack", "no `=`"]);
    check(with("listen = \"a\"", &[], &["client..x=1"]), &["empty"]);
    check(with("listen = \"a\"\nlisten = \"b\"\n", &[], &[]), &["a.toml, line 2", "duplicate key"]);
}

#[test]
fn a_shared_key_is_taken_out_before_the_type_is_checked() {
    let texts = Texts::new(&sources("log_level = \"debug\"\nlisten = \"a\"\n")).unwrap();
    let mut document = Document::parse(&texts).unwrap();
    assert_eq!(document.take::<String>("log_level").unwrap().as_deref(), Some("debug"));
    assert_eq!(document.take::<String>("log_level").unwrap(), None);
    assert_eq!(document.into_typed::<Example>().unwrap().listen, "a");

    let texts = Texts::new(&sources("\nlog_level = 3\n")).unwrap();
    let error = Document::parse(&texts).unwrap().take::<String>("log_level").unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("log_level"), "{error}");
}

#[test]
fn secrets_are_masked_and_the_rest_is_shown() {
    let client = Client { metadata: Vec::new(), timeout: 1, secret_key: "hunter2".to_owned() };
    let config = Example { listen: "a".to_owned(), slack: 0.0, client };
    let shown = masked(&config).unwrap().to_string();
    assert!(
        !shown.contains("hunter2") && shown.contains(MASK) && shown.contains("listen = \"a\""),
        "{shown}"
    );
}
