//! Rules of the repository that no compiler checks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use alba_tests::repository::{files, root};

/// Which crate may name which others, in any kind of dependency.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("alba-core", &[][..]),
        ("alba-client", &["alba-core"]),
        ("asd-server", &["alba-core"]),
        ("alba-metadata", &["alba-core"]),
        ("alba-proxy", &["alba-client", "alba-core"]),
        ("alba-maintenance", &["alba-client", "alba-core"]),
        ("alba-rebalancer", &["alba-client", "alba-core"]),
        (
            "alba-cli",
            &[
                "alba-core",
                "alba-client",
                "asd-server",
                "alba-metadata",
                "alba-proxy",
                "alba-maintenance",
                "alba-rebalancer",
            ],
        ),
        (
            "alba-tests",
            &[
                "alba-core",
                "alba-client",
                "asd-server",
                "alba-metadata",
                "alba-proxy",
                "alba-maintenance",
                "alba-rebalancer",
                "alba-cli",
            ],
        ),
    ])
}

fn manifest(path: &Path) -> toml::Table {
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Every crate of the workspace with its manifest, as the workspace lists them.
fn members() -> Vec<(String, toml::Table)> {
    let workspace = manifest(&root().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    members
        .iter()
        .map(|member| {
            let manifest = manifest(&root().join(member.as_str().unwrap()).join("Cargo.toml"));
            (manifest["package"]["name"].as_str().unwrap().to_owned(), manifest)
        })
        .collect()
}

/// Names in all dependency tables, those for single platforms included; a renamed one counts under its real name.
fn dependencies(table: &toml::Table, into: &mut BTreeSet<String>) {
    for (key, value) in table {
        match (key.as_str(), value.as_table()) {
            ("dependencies" | "dev-dependencies" | "build-dependencies", Some(list)) => {
                for (name, spec) in list {
                    let real = spec.get("package").and_then(toml::Value::as_str).unwrap_or(name);
                    into.insert(real.to_owned());
                }
            }
            ("target", Some(targets)) => {
                targets
                    .values()
                    .filter_map(toml::Value::as_table)
                    .for_each(|target| dependencies(target, into));
            }
            _ => {}
        }
    }
}

#[test]
fn crates_depend_in_one_direction() {
    let allowed = allowed();
    let members = members();
    let names: BTreeSet<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, allowed.keys().copied().collect(), "the crates of the workspace");
    for (name, manifest) in &members {
        let mut named = BTreeSet::new();
        dependencies(manifest, &mut named);
        let ours: BTreeSet<&str> =
            named.iter().map(String::as_str).filter(|name| names.contains(name)).collect();
        let may: BTreeSet<&str> = allowed[name.as_str()].iter().copied().collect();
        let wrong: Vec<_> = ours.difference(&may).collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
}

/// `simd-accel` of the crate compiles C for Haswell: it would crash on older CPUs, and replace the reference that all
/// kernels are compared with. Cargo unifies features, so one mention anywhere in the workspace would be enough.
#[test]
fn simd_accel_is_never_part_of_what_ships() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members: Vec<String> = manifest(&root().join("Cargo.toml"))["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| fs::read_to_string(root().join(member.as_str().unwrap()).join("Cargo.toml")).unwrap())
        .collect();
    for text in members.iter().chain([&workspace]) {
        assert!(!text.contains("simd-accel"), "a manifest of the workspace names simd-accel:\n{text}");
    }
    // What the feature needs, in the versions that are built: its absence from the lock file says the same.
    let lock: toml::Table = toml::from_str(&fs::read_to_string(root().join("Cargo.lock")).unwrap()).unwrap();
    let of_the_crate: Vec<&toml::Value> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| package["name"].as_str() == Some("reed-solomon-erasure"))
        .collect();
    let [package] = of_the_crate.as_slice() else { panic!("one version of the crate: {of_the_crate:?}") };
    let needs = package["dependencies"].as_array().unwrap();
    assert!(!needs.iter().any(|need| ["cc", "libc"].contains(&need.as_str().unwrap())), "{needs:?}");
    // The packages that may have it, or sanitizers, stay outside.
    let excluded = manifest(&root().join("Cargo.toml"))["workspace"]["exclude"].clone();
    for folder in ["fuzz", "benches/erasure-peers"] {
        assert!(excluded.as_array().unwrap().iter().any(|path| path.as_str() == Some(folder)), "{folder}");
        assert!(manifest(&root().join(folder).join("Cargo.toml")).contains_key("workspace"), "{folder}");
    }
    let peers = fs::read_to_string(root().join("benches/erasure-peers/Cargo.toml")).unwrap();
    assert!(peers.contains("simd-accel"), "the word this test looks for is still the feature's name");
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    for (name, manifest) in members() {
        let taken =
            manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(taken, Some(true), "{name} needs `lints.workspace = true`");
    }
}

#[test]
fn files_stay_readable() {
    for path in files(&root(), ".rs") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 700, "{} has {lines} lines; 700 is the most", path.display());
    }
}

#[test]
fn no_unfinished_work_is_marked_in_code() {
    // Put together here, so that this file does not find itself.
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    for path in files(&root(), ".rs") {
        let source = fs::read_to_string(&path).unwrap();
        for mark in &marks {
            assert!(!source.contains(mark.as_str()), "{} has a {mark}", path.display());
        }
    }
}

const DOCUMENTS: [&str; 9] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "docs/quick-start.md",
    "docs/formats/README.md",
    "docs/requirements.toml",
];

/// Targets of Markdown links that are files of the repository.
fn local_links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

#[test]
fn documents_are_there_and_their_links_work() {
    for document in DOCUMENTS {
        assert!(root().join(document).is_file(), "{document} is missing");
    }
    for path in files(&root(), ".md") {
        let text = fs::read_to_string(&path).unwrap();
        for link in local_links(&text) {
            assert!(path.parent().unwrap().join(link).exists(), "{}: no file {link}", path.display());
        }
    }
}

#[test]
fn recipes_named_in_documents_exist() {
    let justfile = fs::read_to_string(root().join("justfile")).unwrap();
    let recipes: BTreeSet<&str> = justfile
        .lines()
        .filter(|line| !line.starts_with([' ', '#', '\t']))
        .filter_map(|line| line.split_once(':').map(|(head, _)| head))
        .filter_map(|head| head.split_whitespace().next())
        .collect();
    assert!(recipes.contains("test"), "recipes were found: {recipes:?}");
    for path in files(&root(), ".md") {
        let text = fs::read_to_string(&path).unwrap();
        for named in text.split("`just ").skip(1).filter_map(|rest| rest.split(['`', ' ']).next()) {
            assert!(recipes.contains(named), "{}: the justfile has no `{named}`", path.display());
        }
    }
}

/// Who may skip is a decision, not an accident.
#[test]
fn tests_that_may_skip_are_listed() {
    let guide = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    // Not as one text, so that this file has no call in it.
    let call = ["skips", "::skip(\""].concat();
    let mut found = 0;
    for path in files(&root().join("tests/tests"), ".rs") {
        // A call may be over several lines.
        let source: String = fs::read_to_string(&path).unwrap().split_whitespace().collect();
        for after in source.split(&call).skip(1) {
            let name = after.split('"').next().unwrap_or_default();
            assert!(source.contains(&format!("fn{name}(")), "{}: no test {name:?}", path.display());
            assert!(guide.contains(&format!("| `{name}` |")), "CONTRIBUTING.md does not list {name:?}");
            found += 1;
        }
    }
    assert!(found > 0, "nobody skips any more: remove this test and the list");
}
