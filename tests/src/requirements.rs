//! `docs/requirements.toml`: its shape, and its rules as a function that lists what is wrong.

use std::collections::BTreeSet;

use serde::Deserialize;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirements {
    /// Its rows, in order.
    pub row: Vec<Row>,
}

/// One thing that was asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// `<issue>.<item>[.<letter or number>]`.
    pub id: String,
    /// One line, in the project's own words.
    pub text: String,
    /// Whether it is there.
    pub state: State,
    /// `file::function`, relative to the root.
    #[serde(default)]
    pub tests: Vec<String>,
    /// What a narrow one still lacks.
    pub missing: Option<String>,
    /// How to see it.
    pub command: Option<String>,
    /// What was measured.
    pub figure: Option<String>,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing.
    Absent,
    /// Works, but not all that was asked.
    Narrow,
    /// All that was asked.
    Built,
}

/// What a named test turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It runs.
    Runs,
    /// It has `#[ignore]`.
    Ignored,
    /// There is no such file or function.
    Missing,
}

/// What is wrong with the rows themselves; `look_up` says what each named test is.
pub fn faults(requirements: &Requirements, look_up: impl Fn(&str, &str) -> Lookup) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for row in &requirements.row {
        let id = &row.id;
        if !seen.insert(id) {
            faults.push(format!("{id}: listed twice"));
        }
        match row.state {
            State::Absent if !row.tests.is_empty() => faults.push(format!("{id}: absent, but has tests")),
            State::Narrow | State::Built if row.tests.is_empty() => {
                faults.push(format!("{id}: has no test"));
            }
            _ => {}
        }
        if (row.state == State::Narrow) != row.missing.is_some() {
            faults.push(format!("{id}: exactly the narrow rows say what is missing"));
        }
        for test in &row.tests {
            match test.split_once("::").map(|(file, function)| look_up(file, function)) {
                Some(Lookup::Runs) => {}
                Some(Lookup::Ignored) => faults.push(format!("{id}: {test} is ignored")),
                Some(Lookup::Missing) => faults.push(format!("{id}: there is no test {test}")),
                None => faults.push(format!("{id}: {test} is not file::function")),
            }
        }
    }
    faults
}

/// Which of `items` have no row: neither of that id nor below it.
pub fn without_row<'a>(requirements: &Requirements, items: &[&'a str]) -> Vec<&'a str> {
    let below = |id: &str, item: &str| id.strip_prefix(item).is_some_and(|rest| rest.starts_with('.'));
    let covered = |item: &str| requirements.row.iter().any(|row| row.id == item || below(&row.id, item));
    items.iter().copied().filter(|item| !covered(item)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rows: &str) -> Requirements {
        toml::from_str(rows).unwrap()
    }

    fn look_up(file: &str, function: &str) -> Lookup {
        match (file, function) {
            ("a.rs", "runs") => Lookup::Runs,
            ("a.rs", "sleeps") => Lookup::Ignored,
            _ => Lookup::Missing,
        }
    }

    #[test]
    fn rules() {
        let cases = [
            ("state = 'built'\ntests = ['a.rs::runs']", 0),
            ("state = 'narrow'\ntests = ['a.rs::runs']\nmissing = 'x'", 0),
            ("state = 'absent'", 0),
            ("state = 'built'", 1),
            ("state = 'built'\ntests = ['a.rs::sleeps']", 1),
            ("state = 'built'\ntests = ['a.rs::runs', 'b.rs::runs']", 1),
            ("state = 'built'\ntests = ['runs']", 1),
            ("state = 'absent'\ntests = ['a.rs::runs']", 1),
            ("state = 'narrow'\ntests = ['a.rs::runs']", 1),
        ];
        for (row, expected) in cases {
            let requirements = parse(&format!("[[row]]\nid = '2.1'\ntext = 't'\n{row}"));
            let faults = faults(&requirements, look_up);
            assert_eq!(faults.len(), expected, "{row}: {faults:?}");
        }
        let twice = "[[row]]\nid = '2.1'\ntext = 't'\nstate = 'absent'\n";
        assert_eq!(faults(&parse(&twice.repeat(2)), look_up).len(), 1);
        assert!(toml::from_str::<Requirements>(&format!("{twice}other = 1")).is_err());
    }

    #[test]
    fn items_without_a_row() {
        let requirements = parse("[[row]]\nid = '2.1.a'\ntext = 't'\nstate = 'absent'\n");
        assert_eq!(without_row(&requirements, &["2.1", "2", "2.1.a", "2.2", "2.1.b"]), ["2.2", "2.1.b"]);
    }
}
