//! Watching the ABM: "tell me when any of this has changed; I wait so long".
//!
//! An answer is a hint and no data: who gets one reads what it needs, linearizably or at least as new as the index that came with
//! the answer. So any replica may give it. A hint must never be lost: whoever has been told of a revision and sees another one
//! has to take the matter for changed, and whoever is told of another [`Lineage`] everything.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// More topics in one request are refused.
pub const MAX_TOPICS: usize = 16;

/// No server waits longer than this, whatever it is asked for.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What can be watched. A server does not tell of a topic that it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Topic(pub u8);

impl Topic {
    /// OSD records; not what clients report of OSDs.
    pub const OSDS: Self = Self(0);
    /// Presets, the default too.
    pub const PRESETS: Self = Self(1);
    /// Namespace records.
    pub const NAMESPACES: Self = Self(2);
    /// Groups; not their loads.
    pub const GROUPS: Self = Self(3);
    /// The maintenance configuration.
    pub const MAINTENANCE: Self = Self(4);
    /// What NSM groups were told: presets and OSDs of their namespaces. Counted when the group has it.
    pub const DELIVERIES: Self = Self(5);

    /// All that this version knows.
    pub const ALL: [Self; 6] =
        [Self::OSDS, Self::PRESETS, Self::NAMESPACES, Self::GROUPS, Self::MAINTENANCE, Self::DELIVERIES];
}

/// Within one lineage revisions only grow. A server takes a new one, at random and never 0, when it starts and when the state it
/// tells of went back. 0: nothing is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lineage(pub u64);

/// Revisions of some topics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Who counted.
    pub lineage: Lineage,
    /// Each topic once.
    pub revisions: Vec<(Topic, u64)>,
}

impl Seen {
    /// Nothing is known of any topic.
    pub fn nothing(topics: &[Topic]) -> Self {
        Self { lineage: Lineage::default(), revisions: topics.iter().map(|topic| (*topic, 0)).collect() }
    }

    /// The revision of a topic, when it is there.
    pub fn of(&self, topic: Topic) -> Option<u64> {
        self.revisions.iter().find(|(of, _)| *of == topic).map(|(_, revision)| *revision)
    }

    /// Is this state another one, for who knows `known` and asks for its topics?
    pub fn is_news_to(&self, known: &Self) -> bool {
        let other = |(topic, revision): &(Topic, u64)| self.of(*topic).is_some_and(|now| now != *revision);
        self.lineage != known.lineage || known.revisions.iter().any(other)
    }

    /// The part of it that `known` asks for.
    pub fn asked_by(&self, known: &Self) -> Self {
        let asked = |(topic, _): &&(Topic, u64)| known.of(*topic).is_some();
        Self { lineage: self.lineage, revisions: self.revisions.iter().filter(asked).copied().collect() }
    }
}

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// What the sender knows; its topics are those that it asks for.
    pub known: Seen,
    /// How long it wants to wait for a change, in milliseconds.
    pub wait_ms: u32,
}

impl WatchRequest {
    /// How long the server waits.
    pub fn wait(&self) -> Duration {
        Duration::from_millis(u64::from(self.wait_ms)).min(LONGEST_WAIT)
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchReply {
    /// Something is different; what is known from now on.
    News(Seen),
    /// Nothing was, until the time was over.
    Quiet,
    /// Too many wait already, on this connection or on this server.
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rpc::{Reply, Request};

    fn seen(lineage: u64, revisions: &[(u8, u64)]) -> Seen {
        let revisions = revisions.iter().map(|(topic, revision)| (Topic(*topic), *revision)).collect();
        Seen { lineage: Lineage(lineage), revisions }
    }

    #[test]
    fn request_and_replies_have_golden_bytes() {
        let known = seen(300, &[(0, 5), (2, 128)]);
        let request = Request::Watch(WatchRequest { known: known.clone(), wait_ms: 10_000 });
        // variant 9 | lineage | 2 topics: number, revision | milliseconds
        let bytes = [9, 0xac, 2, 2, 0, 5, 2, 0x80, 1, 0x90, 0x4e];
        assert_eq!(postcard::to_stdvec(&request).unwrap(), bytes);
        assert_eq!(postcard::from_bytes::<Request>(&bytes).unwrap(), request);
        // variant 9 | which answer | …
        let replies: [(WatchReply, &[u8]); 3] = [
            (WatchReply::News(known), &[9, 0, 0xac, 2, 2, 0, 5, 2, 0x80, 1]),
            (WatchReply::Quiet, &[9, 1]),
            (WatchReply::TooMany, &[9, 2]),
        ];
        for (reply, bytes) in replies {
            let reply = Reply::Watch(reply);
            assert_eq!(postcard::to_stdvec(&reply).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<Reply>(bytes).unwrap(), reply);
        }
    }

    #[test]
    fn another_revision_or_lineage_is_news_and_what_was_not_asked_for_or_is_unknown_is_not() {
        let now = seen(7, &[(0, 5), (1, 6)]);
        assert!(!now.is_news_to(&now));
        assert!(!now.is_news_to(&seen(7, &[(0, 5)])));
        assert!(now.is_news_to(&seen(7, &[(0, 4), (1, 6)])));
        assert!(now.is_news_to(&seen(7, &[(0, 6)])), "one that is ahead has something to ask for too");
        assert!(now.is_news_to(&seen(8, &[(0, 5)])));
        assert!(now.is_news_to(&Seen::nothing(&Topic::ALL)));
        assert!(!now.is_news_to(&seen(7, &[(99, 1)])), "a topic of a later version");
        assert_eq!(now.asked_by(&seen(1, &[(1, 0), (99, 0)])), seen(7, &[(1, 6)]));
    }

    #[test]
    fn no_server_waits_longer_than_it_may() {
        let request = WatchRequest { known: Seen::default(), wait_ms: u32::MAX };
        assert_eq!(request.wait(), LONGEST_WAIT);
    }
}
