//! When to stop looking: an imbalance that no allowed move can cure is recognised, reported, and not scanned for ever.
//!
//! A scan reads manifests page by page. When a whole pass over the sources has found no move, the imbalance is incurable as
//! things stand. Scans begin again when the things that decide change (OSDs, nodes, roles, classes), or after a long rest,
//! since objects come and go.

use std::collections::BTreeMap;
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::ids::{NodeId, OsdId};

use crate::observe::{FillClass, Observation, Role};

/// Rest after a pass that found nothing: manifests of a large backend take hours to list.
pub const REST: Duration = Duration::from_secs(6 * 3600);

/// What decides whether there is a move: a change of any of it is worth another look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation(BTreeMap<OsdId, (NodeId, Role, FillClass)>);

impl Situation {
    /// Of an observation.
    pub fn of(observation: &Observation) -> Self {
        let look = |fill: &crate::observe::OsdFill| {
            (fill.node.clone(), fill.role, observation.bounds.class(fill.rate()))
        };
        Self(observation.osds.iter().map(|(id, fill)| (*id, look(fill))).collect())
    }
}

/// What the fill looks like, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// All OSDs are within the bounds.
    Even,
    /// Moves are looked for, or under way.
    Uneven,
    /// No allowed move makes it better; looked at again at the latest then.
    Incurable {
        /// When.
        until: Moment,
    },
}

/// What is known from passes so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Search {
    fruitless: Option<(Situation, Moment)>,
}

impl Search {
    /// How things stand, and so whether a pass is due: only when [`Outlook::Uneven`].
    pub fn outlook(&self, observation: &Observation, now: Moment) -> Outlook {
        if observation.is_even() {
            return Outlook::Even;
        }
        match &self.fruitless {
            Some((situation, until)) if *until > now && *situation == Situation::of(observation) => {
                Outlook::Incurable { until: *until }
            }
            _ => Outlook::Uneven,
        }
    }

    /// A whole pass, begun when things were as `observation` says, found and made so many moves.
    pub fn passed(&mut self, observation: &Observation, moves: u64, now: Moment) {
        self.fruitless = (moves == 0).then(|| (Situation::of(observation), now.plus(REST)));
    }
}

#[cfg(test)]
mod tests {
    use alba_core::units::ByteCount;

    use super::*;
    use crate::observe::{OsdFill, observe};

    fn seen(percents: &[u64]) -> Observation {
        let fill = |(id, percent): (u32, &u64)| {
            let node = NodeId::new(format!("node-{id}")).unwrap();
            let fill = OsdFill { node, used: ByteCount(*percent), total: ByteCount(100), role: Role::Member };
            (OsdId::from_u32(id), fill)
        };
        observe((0..).zip(percents).map(fill).collect())
    }

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn an_even_cluster_is_never_scanned() {
        assert_eq!(Search::default().outlook(&seen(&[50, 50]), at(0)), Outlook::Even);
    }

    #[test]
    fn a_pass_without_moves_is_not_repeated_until_something_changes_or_long_after() {
        let mut search = Search::default();
        let uneven = seen(&[60, 60, 60, 60, 0]);
        assert_eq!(search.outlook(&uneven, at(0)), Outlook::Uneven);
        search.passed(&uneven, 3, at(10));
        assert_eq!(search.outlook(&uneven, at(10)), Outlook::Uneven, "there may be more");
        search.passed(&uneven, 0, at(20));
        let until = at(20).plus(REST);
        assert_eq!(search.outlook(&uneven, at(30)), Outlook::Incurable { until });
        // A little more or less changes no class, so no move either.
        assert_eq!(search.outlook(&seen(&[61, 60, 60, 60, 0]), at(30)), Outlook::Incurable { until });
        assert_eq!(search.outlook(&seen(&[60, 60, 60, 60, 0, 0]), at(30)), Outlook::Uneven, "another OSD");
        let mut draining = uneven.osds.clone();
        draining.get_mut(&OsdId::from_u32(0)).unwrap().role = Role::Draining;
        assert_eq!(search.outlook(&observe(draining), at(30)), Outlook::Uneven, "one that drains");
        assert_eq!(search.outlook(&uneven, until), Outlook::Uneven, "long after");
    }
}
