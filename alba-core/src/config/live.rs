//! Configurations that change while the program runs.

use std::ops::Deref;
use std::sync::OnceLock;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How often a value can be replaced. A signal a day for eleven years.
const MOST: usize = 4096;

/// A value that is read as if it were constant and can be replaced now and then. Those that were replaced stay until the
/// whole goes, since somebody may still look at them: for configurations, which are small and change rarely.
#[derive(Debug)]
pub struct Live<T>(Node<T>);

#[derive(Debug)]
struct Node<T> {
    value: T,
    newer: OnceLock<Box<Node<T>>>,
}

impl<T> Live<T> {
    /// With its first value.
    pub fn new(value: T) -> Self {
        Self(Node { value, newer: OnceLock::new() })
    }

    /// Replaces it; false when it was replaced too often.
    pub fn replace(&self, value: T) -> bool {
        let mut node = Box::new(Node { value, newer: OnceLock::new() });
        let (mut last, mut count) = (&self.0, 1);
        loop {
            while let Some(newer) = last.newer.get() {
                (last, count) = (newer, count + 1);
            }
            if count >= MOST {
                return false;
            }
            match last.newer.set(node) {
                Ok(()) => return true,
                // Another was quicker: behind that one.
                Err(back) => node = back,
            }
        }
    }
}

impl<T> Deref for Live<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let mut node = &self.0;
        while let Some(newer) = node.newer.get() {
            node = newer;
        }
        &node.value
    }
}

impl<T> Drop for Live<T> {
    fn drop(&mut self) {
        // One after the other: a long chain must not take a long stack.
        let mut next = self.0.newer.take();
        while let Some(mut node) = next {
            next = node.newer.take();
        }
    }
}

/// What came of reading a configuration again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded<T> {
    /// In force from now on: the new values of what can change, the old ones of all else.
    pub config: T,
    /// Keys that changed.
    pub changed: Vec<String>,
    /// Keys whose new value needs a restart.
    pub need_restart: Vec<String>,
}

/// Takes of `new` what is among the keys `live` (with their sections, `client.upload_slack`), the rest of `old`.
pub fn reload<T: Serialize + DeserializeOwned>(
    old: &T,
    new: &T,
    live: &[&str],
) -> Result<Reloaded<T>, String> {
    let table = |config: &T| toml::Table::try_from(config).map_err(|error| error.to_string());
    let (mut merged, new) = (table(old)?, table(new)?);
    let mut reloaded = (Vec::new(), Vec::new());
    merge(&mut merged, &new, "", live, &mut reloaded);
    let config = toml::Value::Table(merged).try_into().map_err(|error: toml::de::Error| error.to_string())?;
    let (changed, need_restart) = reloaded;
    Ok(Reloaded { config, changed, need_restart })
}

fn merge(
    old: &mut toml::Table,
    new: &toml::Table,
    section: &str,
    live: &[&str],
    reloaded: &mut (Vec<String>, Vec<String>),
) {
    let mut keys: Vec<String> = old.keys().chain(new.keys()).cloned().collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let path = format!("{section}{key}");
        match (old.get_mut(&key), new.get(&key)) {
            (Some(toml::Value::Table(old)), Some(toml::Value::Table(new))) => {
                merge(old, new, &format!("{path}."), live, reloaded);
            }
            (before, after) if before.as_deref() == after => {}
            (_, after) if live.contains(&&*path) => {
                match after {
                    Some(after) => old.insert(key, after.clone()),
                    None => old.remove(&key),
                };
                reloaded.0.push(path);
            }
            _ => reloaded.1.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[test]
    fn a_live_value_is_the_newest_and_those_before_can_still_be_read() {
        let live = Live::new(String::from("one"));
        let before: &str = &live;
        assert!(live.replace("two".into()));
        assert!(live.replace("three".into()));
        assert_eq!((before, &**live), ("one", "three"));
        for _ in 3..MOST {
            assert!(live.replace("more".into()));
        }
        assert!(!live.replace("too many".into()));
        assert_eq!(&**live, "more");
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Outer {
        port: u16,
        level: Option<u8>,
        inner: Inner,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Inner {
        slack: f64,
        path: String,
    }

    #[test]
    fn only_what_may_change_does_and_the_rest_is_named() {
        let inner = Inner { slack: 0.2, path: "a".into() };
        let old = Outer { port: 1, level: None, inner };
        let new = Outer { port: 2, level: Some(3), inner: Inner { slack: 0.3, path: "b".into() } };
        let reloaded = reload(&old, &new, &["level", "inner.slack"]).unwrap();
        let expected = Outer { port: 1, level: Some(3), inner: Inner { slack: 0.3, path: "a".into() } };
        assert_eq!(reloaded.config, expected);
        assert_eq!(reloaded.changed, ["inner.slack", "level"]);
        assert_eq!(reloaded.need_restart, ["inner.path", "port"]);
        let back = reload(&reloaded.config, &old, &["level", "inner.slack"]).unwrap();
        assert_eq!(back.config, old);
        assert_eq!(back.need_restart, Vec::<String>::new());
    }
}
