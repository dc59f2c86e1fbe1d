//! Names for namespaces that their groups know by one name. Pure.
//!
//! A namespace in the trash gives its name to a new one and is called `NAME~ID` from then on. Only the ABM knows that: to its
//! group it has the name that it was created with, also after it came out of the trash. So of several with one name the
//! newest is the one that has it, and the others are called as they were, without loss of any.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{NamespaceId, NamespaceName};
use alba_metadata::abm::name_aside;
use alba_metadata::abm::rebuild::KnownNamespace;

use crate::commands::backend::shown;
use crate::error::CliError;

/// A namespace that is called otherwise than by its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aside {
    /// Which.
    pub(super) id: NamespaceId,
    /// As its group calls it.
    pub(super) was: NamespaceName,
    /// As it is called.
    pub(super) is: NamespaceName,
}

/// Attempts to find a free name: each is longer, and only names that users gave on purpose are in the way.
const ATTEMPTS: usize = 8;

/// Gives each namespace a name of its own; which have another one than before, by id.
pub(super) fn tell_apart(namespaces: &mut [KnownNamespace]) -> Result<Vec<Aside>, CliError> {
    let mut newest: BTreeMap<NamespaceName, NamespaceId> = BTreeMap::new();
    for one in namespaces.iter() {
        let id = newest.entry(one.record.name.clone()).or_insert(one.record.id);
        *id = one.record.id.max(*id);
    }
    let mut taken: BTreeSet<NamespaceName> = newest.keys().cloned().collect();
    let mut asides = Vec::new();
    for one in namespaces.iter_mut() {
        let record = &mut one.record;
        if newest.get(&record.name) == Some(&record.id) {
            continue;
        }
        let names =
            std::iter::successors(name_aside(&record.name, record.id), |name| name_aside(name, record.id));
        let Some(free) = names.take(ATTEMPTS).find(|name| !taken.contains(name)) else {
            return Err(CliError::failure(format!(
                "namespace {} ({}) cannot be told apart from a newer one of that name: the names it could be kept \
                 under are in use",
                shown(&record.name),
                record.id
            )));
        };
        taken.insert(free.clone());
        let was = std::mem::replace(&mut record.name, free.clone());
        asides.push(Aside { id: record.id, was, is: free });
    }
    asides.sort_by_key(|aside| aside.id);
    Ok(asides)
}

#[cfg(test)]
mod tests {
    use alba_core::ids::{GroupId, PresetName};
    use alba_core::wire::rpc::abm::{NamespaceRecord, NamespaceState};
    use alba_core::wire::rpc::nsm::MoveId;

    use super::*;

    fn named(id: u32, name: &str) -> KnownNamespace {
        KnownNamespace {
            record: NamespaceRecord {
                id: NamespaceId::from_u32(id),
                name: NamespaceName::new(name).unwrap(),
                group: GroupId::new("nsm-0").unwrap(),
                state: NamespaceState::Trashed { since: 5 },
                preset: PresetName::new("p").unwrap(),
            },
            last_move: MoveId::default(),
            osds: Vec::new(),
        }
    }

    fn names(namespaces: &[KnownNamespace]) -> Vec<(u64, String)> {
        namespaces.iter().map(|one| (one.record.id.get(), one.record.name.to_string())).collect()
    }

    #[test]
    fn the_newest_keeps_the_name_and_the_others_are_called_as_in_the_trash() {
        let mut all = [named(3, "photos"), named(4, "other"), named(9, "photos"), named(7, "photos")];
        let asides = tell_apart(&mut all).unwrap();
        let want = [(3, "photos~3"), (4, "other"), (9, "photos"), (7, "photos~7")];
        assert_eq!(names(&all), want.map(|(id, name)| (id, name.to_owned())));
        let asides: Vec<(u64, String)> =
            asides.iter().map(|one| (one.id.get(), one.is.to_string())).collect();
        assert_eq!(asides, [(3, "photos~3".to_owned()), (7, "photos~7".to_owned())]);
        // And there is nothing to do a second time.
        assert_eq!(tell_apart(&mut all).unwrap(), []);
    }

    #[test]
    fn a_name_that_a_user_gave_stays_with_its_namespace() {
        let mut all = [named(1, "a"), named(2, "a~1"), named(3, "a")];
        tell_apart(&mut all).unwrap();
        let want = [(1, "a~1~1"), (2, "a~1"), (3, "a")];
        assert_eq!(names(&all), want.map(|(id, name)| (id, name.to_owned())));
    }

    #[test]
    fn the_longest_names_are_told_apart_or_refused() {
        let long = "n".repeat(NamespaceName::MAX_LEN);
        let mut all = [named(1, &long), named(2, &long)];
        tell_apart(&mut all).unwrap();
        assert_eq!(all[0].record.name.as_bytes().len(), NamespaceName::MAX_LEN);
        let cut = format!("{}~1", &long[2..]);
        let mut all = [named(1, &long), named(2, &long), named(3, &cut)];
        assert!(tell_apart(&mut all).unwrap_err().message.contains("cannot be told apart"));
    }
}
