//! The same by the operator's command.

use crate::World;

pub(crate) fn commands(world: &World) {
    let alba = |arguments: &[&str]| world.cluster.alba(arguments).unwrap();
    let alba_id = alba(&["get-alba-id"])["id"].clone();
    let levels = alba(&["proxy-osd-info"]);
    assert_eq!(levels[0][0], alba_id);
    let osds = levels[0][1].as_array().unwrap();
    assert_eq!(osds.len(), world.cluster.ready.osds.len());
    let mut found: Vec<_> = osds.iter().map(|osd| osd[1]["kind"][2].as_str().unwrap()).collect();
    found.sort_unstable();
    let mut expected: Vec<_> = world.cluster.ready.osds.iter().map(|osd| osd.long_id.as_str()).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(osds[0][2], serde_json::json!(["MultiGet2", "PartialGet"]));

    let view = alba(&["proxy-osd-view"]);
    assert_eq!(view["claim_infos"].as_array().unwrap().len(), expected.len());
    assert_eq!(view["claim_infos"][0][1][0], "ThisAlba");
    assert_eq!(view["state_infos"][0][2]["disqualified"], false);
    assert!(view["state_infos"][0][1]["kind"].is_array());

    let config = alba(&["proxy-client-cfg"]);
    assert_eq!(config["cluster_id"], alba_id);
    assert_eq!(config["nodes"].as_array().unwrap().len(), world.cluster.ready.metadata.len());

    // Two namespaces at least were used by now; one is forgotten, and all are after the answer.
    let told = alba(&["proxy-statistics"]);
    let names = |told: &serde_json::Value| -> Vec<String> {
        let stats = told["ns_stats"].as_array().unwrap();
        stats.iter().map(|stat| stat[0].as_str().unwrap().to_owned()).collect()
    };
    let before = names(&told);
    assert!(before.len() >= 2 && before.contains(&"demo".to_owned()), "{before:?}");
    let of_demo = told["ns_stats"].as_array().unwrap().iter().find(|stat| stat[0] == "demo").unwrap();
    assert!(of_demo[1]["upload"]["n"].as_i64().unwrap() > 0);
    assert!(of_demo[1]["upload"]["avg"].as_f64().unwrap() > 0.0);
    let rest = names(&alba(&["proxy-statistics", "--clear", "--forget", "demo"]));
    assert!(!rest.contains(&"demo".to_owned()) && rest.len() + 1 == before.len(), "{rest:?}");
    assert!(names(&alba(&["proxy-statistics"])).is_empty());

    // For people.
    for (command, word) in [
        ("proxy-osd-info", "LONG ID"),
        ("proxy-osd-view", "ours"),
        ("proxy-client-cfg", "metadata-0"),
        ("proxy-statistics", "UPLOADS"),
    ] {
        let output = world.cluster.run(&[command]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains(word), "{command}: {text}");
    }
}
