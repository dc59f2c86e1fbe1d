//! What the names of a namespace may hold, given what was attempted and what was acknowledged: the checker of every test
//! that kills things.
//!
//! One attempt per name at a time. An acknowledged attempt happened. One that failed or was cut off happened entirely or not
//! at all, and possibly later: it stays possible until everything stood still ([`History::settle`]).

use std::collections::BTreeMap;

/// What an attempt stores: bytes named by the attempt ([`crate::content`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Names the bytes.
    pub tag: String,
    /// How many.
    pub size: u64,
}

/// An object, or nothing.
pub type State = Option<Content>;

#[derive(Debug, Clone, Default)]
struct Name {
    acknowledged: State,
    /// Attempts whose end is unknown, the running one included.
    unknown: Vec<State>,
}

/// All names of one namespace.
#[derive(Debug, Clone, Default)]
pub struct History(BTreeMap<String, Name>);

impl History {
    /// An attempt begins: the name is to hold `wanted`.
    pub fn begin(&mut self, name: &str, wanted: State) {
        self.0.entry(name.to_owned()).or_default().unknown.push(wanted);
    }

    /// The attempt that began last was acknowledged.
    pub fn acknowledged(&mut self, name: &str) {
        let name = self.0.get_mut(name).expect("an attempt began");
        name.acknowledged = name.unknown.pop().expect("an attempt began");
    }

    /// Everything that a name may hold now.
    pub fn possible(&self, name: &str) -> Vec<State> {
        self.0.get(name).map_or_else(
            || vec![None],
            |name| std::iter::once(&name.acknowledged).chain(&name.unknown).cloned().collect(),
        )
    }

    /// All names that were ever attempted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Nothing is under way any more and this is what the name holds.
    ///
    /// # Panics
    /// When it may not hold that.
    pub fn settle(&mut self, name: &str, found: State) {
        let possible = self.possible(name);
        assert!(possible.contains(&found), "{name} holds {found:?}, it may hold {possible:?}");
        self.0.insert(name.to_owned(), Name { acknowledged: found, unknown: Vec::new() });
    }

    /// How many names hold an object, as far as acknowledged.
    pub fn objects(&self) -> usize {
        self.0.values().filter(|name| name.acknowledged.is_some()).count()
    }

    /// Takes over the names of another one, which must be others.
    pub fn merge(&mut self, other: Self) {
        for (name, state) in other.0 {
            assert!(self.0.insert(name.clone(), state).is_none(), "{name} is in both histories");
        }
    }

    /// The names that begin with `prefix`.
    pub fn part(&self, prefix: &str) -> Self {
        let names = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        Self(names.map(|(name, state)| (name.clone(), state.clone())).collect())
    }
}

/// Which of the possible contents these bytes are.
pub fn identify(possible: &[State], bytes: &[u8]) -> Option<Content> {
    let same = |content: &&Content| {
        content.size == bytes.len() as u64 && crate::content::bytes(&content.tag, bytes.len()) == bytes
    };
    possible.iter().flatten().find(same).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(tag: &str) -> State {
        Some(Content { tag: tag.to_owned(), size: 10 })
    }

    #[test]
    fn acknowledged_replaces_and_unknown_stays_possible() {
        let mut history = History::default();
        assert_eq!(history.possible("n"), [None]);
        history.begin("n", content("a"));
        assert_eq!(history.possible("n"), [None, content("a")]);
        history.acknowledged("n");
        assert_eq!(history.possible("n"), [content("a")]);
        history.begin("n", content("lost"));
        history.begin("n", None);
        history.acknowledged("n");
        assert_eq!(history.possible("n"), [None, content("lost")]);
        assert_eq!(history.objects(), 0);
        history.settle("n", content("lost"));
        assert_eq!(history.possible("n"), [content("lost")]);
        assert_eq!(history.objects(), 1);
    }

    #[test]
    #[should_panic(expected = "it may hold")]
    fn a_lost_acknowledgement_is_found() {
        let mut history = History::default();
        history.begin("n", content("a"));
        history.acknowledged("n");
        history.settle("n", None);
    }

    #[test]
    fn bytes_are_identified() {
        let possible = [None, content("a"), content("b")];
        assert_eq!(identify(&possible, &crate::content::bytes("b", 10)), possible[2]);
        assert_eq!(identify(&possible, &crate::content::bytes("b", 9)), None);
    }
}
