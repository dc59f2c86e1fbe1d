//! The repository as text: where it is, which files it has, which tests a source file holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// All files below `directory` whose names end in `ending`, sorted; build output and hidden directories left out.
pub fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    waiting.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What stands above a test function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestFunction {
    /// It has `#[ignore]`.
    pub ignored: bool,
}

/// The test functions of a source file by name: those with an attribute that ends in `test` (or `test(…)`). Inside
/// `proptest!` the attribute is the same.
pub fn test_functions(source: &str) -> BTreeMap<String, TestFunction> {
    let mut found = BTreeMap::new();
    let mut attributes: Vec<&str> = Vec::new();
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") {
            attributes.push(line);
            continue;
        }
        let name = function_name(line).filter(|_| attributes.iter().any(|attribute| is_test(attribute)));
        if let Some(name) = name {
            let ignored = attributes.iter().any(|attribute| attribute.starts_with("#[ignore"));
            found.insert(name.to_owned(), TestFunction { ignored });
        }
        // Attributes over several lines end in `]`: only code or an empty line separates them from the function.
        if !line.starts_with("//") && !line.ends_with(']') {
            attributes.clear();
        }
    }
    found
}

fn is_test(attribute: &str) -> bool {
    let inner = attribute.trim_start_matches("#[").split(['(', ']']).next().unwrap_or_default();
    inner == "test" || inner.ends_with("::test")
}

fn function_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ").unwrap_or(line);
    let rest = rest.strip_prefix("async ").unwrap_or(rest).strip_prefix("fn ")?;
    rest.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_tests_and_what_is_ignored() {
        let source = r#"
            fn helper() {}
            #[test]
            fn one() {}
            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "slow"]
            async fn two() {}
            proptest! {
                #![proptest_config(x)]
                /// Says why.
                #[test]
                fn three(a in 0..1) {}
            }
            #[derive(Debug)]
            struct X;
            fn not_one() {}
            #[rstest]
            fn not_known() {}
        "#;
        let found = test_functions(source);
        let names: Vec<_> = found.iter().map(|(name, test)| (name.as_str(), test.ignored)).collect();
        assert_eq!(names, [("one", false), ("three", false), ("two", true)]);
    }
}
