//! The lives of OSDs, namespaces and the links between them, as tables: what may follow what, and nothing else.
//!
//! ```text
//! OSD:        available ◄─► foreign
//!                 └──claimed──► active ◄──► draining
//!                                  └─decommission─┴─► decommissioning ──emptied──► decommissioned
//!                                  └─purge─┴───────────────┴─► purging ──let go by all──► forgotten
//!             (available, foreign and decommissioned ones are forgotten at once)
//! namespace:  creating ──group has it──► active ──delete──► removing ──group dropped it──► gone
//!                                        active ◄──► trashed ──delete──► removing
//!                                        active ◄──► moving(to)
//!                          active, recovering ──group lost──► recovering ──recovered──► active
//! link:       adding ──device has it──► on device ──group has it──► active
//!             on device, active ──drain──► draining ──undrain──► on device
//!             on device, active, draining ──OSD leaves──► decommissioning ──group knows──► repairing ──empty──► gone
//! ```

use alba_core::ids::{GroupId, MessageId};
use alba_core::wire::rpc::abm::{NamespaceState, OsdState};
use serde::{Deserialize, Serialize};

/// What happens to an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OsdEvent {
    /// The ownership keys on the device are ours.
    Claimed,
    /// They are another backend's.
    Foreign,
    /// No new fragments.
    Drain,
    /// New fragments again.
    Undrain,
    /// Move everything away.
    Decommission,
    /// It is gone for good.
    Purge,
    /// No namespace has anything there.
    Emptied,
}

/// What becomes of an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OsdFate {
    /// It goes on in this state.
    Is(OsdState),
    /// Its record goes.
    Forgotten,
}

/// What becomes of an OSD by an event; none when it may not happen now.
pub(crate) fn osd(state: OsdState, event: OsdEvent) -> Option<OsdFate> {
    use {OsdEvent as E, OsdFate as F, OsdState as S};
    Some(match (state, event) {
        (S::Available | S::Foreign, E::Claimed) => F::Is(S::Active),
        (S::Available | S::Foreign, E::Foreign) => F::Is(S::Foreign),
        (S::Active | S::Draining, E::Drain) => F::Is(S::Draining),
        (S::Active | S::Draining, E::Undrain) => F::Is(S::Active),
        (S::Active | S::Draining, E::Decommission) => F::Is(S::Decommissioning),
        (S::Active | S::Draining | S::Decommissioning | S::Purging, E::Purge) => F::Is(S::Purging),
        (S::Available | S::Foreign | S::Decommissioned, E::Purge) => F::Forgotten,
        (S::Decommissioning, E::Emptied) => F::Is(S::Decommissioned),
        (S::Purging, E::Emptied) => F::Forgotten,
        _ => return None,
    })
}

/// What happens to a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NamespaceEvent {
    /// The group has taken it on.
    Created,
    /// Someone deletes it.
    Delete,
    /// Someone deletes it and may want it back.
    Trash {
        /// Now.
        since: u64,
    },
    /// Someone wants it back.
    Undelete,
    /// Its group was lost; another one takes it.
    Recover,
    /// Everything was found again.
    Recovered,
    /// It moves to another group.
    StartMove(GroupId),
    /// It has moved there, or stays.
    EndMove(GroupId),
}

/// The state after an event; none when it may not happen now.
pub(crate) fn namespace(state: &NamespaceState, event: &NamespaceEvent) -> Option<NamespaceState> {
    use {NamespaceEvent as E, NamespaceState as S};
    Some(match (state, event) {
        (S::Creating, E::Created) | (S::Recovering, E::Recovered) | (S::Trashed { .. }, E::Undelete) => {
            S::Active
        }
        (S::Active | S::Trashed { .. }, E::Delete) => S::Removing,
        (S::Active, E::Trash { since }) => S::Trashed { since: *since },
        // Its new group hears of it as of a new one, and says so.
        (S::Creating, E::Recover) => S::Creating,
        // What is being moved away from a lost group first arrives or stays: the move knows which.
        (S::Active | S::Recovering, E::Recover) => S::Recovering,
        (S::Active, E::StartMove(to)) => S::Moving { to: to.clone() },
        (S::Moving { to: under_way }, E::EndMove(to)) if under_way == to => S::Active,
        _ => return None,
    })
}

/// How far an OSD has come to serve a namespace, or to let go of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LinkState {
    /// The device does not know the namespace yet.
    Adding,
    /// It does; the group does not know the link yet.
    OnDevice,
    /// Fragments may go there.
    Active,
    /// The group hears (in this message) that no more fragments go there, because they have to leave.
    Decommissioning {
        /// An earlier UnlinkOsd may be followed by a LinkOsd: only this one counts.
        unlink: MessageId,
    },
    /// The fragments there are being moved.
    Repairing,
    /// No more fragments go there; those there stay.
    Draining,
}

/// What happens to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// AddNamespace had its effect on the device.
    OnDevice,
    /// LinkOsd had its effect in the group.
    Linked,
    /// This UnlinkOsd had its effect in the group.
    Unlinked(MessageId),
}

/// The state after an event; none when nothing changes.
pub(crate) fn link(state: LinkState, event: LinkEvent) -> Option<LinkState> {
    use {LinkEvent as E, LinkState as S};
    match (state, event) {
        (S::Adding, E::OnDevice) => Some(S::OnDevice),
        (S::OnDevice, E::Linked) => Some(S::Active),
        (S::Decommissioning { unlink }, E::Unlinked(message)) if message >= unlink => Some(S::Repairing),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transition_of_an_osd_is_in_the_table() {
        use {OsdEvent as E, OsdState as S};
        let states = [
            S::Available,
            S::Active,
            S::Decommissioning,
            S::Draining,
            S::Purging,
            S::Decommissioned,
            S::Foreign,
        ];
        let events = [E::Claimed, E::Foreign, E::Drain, E::Undrain, E::Decommission, E::Purge, E::Emptied];
        let shown = states.map(|state| {
            events.map(|event| match osd(state, event) {
                None => '-',
                Some(OsdFate::Forgotten) => '+',
                Some(OsdFate::Is(state)) => match state {
                    S::Available => 'v',
                    S::Active => 'a',
                    S::Decommissioning => 'd',
                    S::Draining => 'r',
                    S::Purging => 'p',
                    S::Decommissioned => 'D',
                    S::Foreign => 'f',
                },
            })
        });
        let shown = shown.map(String::from_iter);
        let want = ["af---+-", "--radp-", "-----pD", "--radp-", "-----p+", "-----+-", "af---+-"];
        assert_eq!(shown, want);
    }

    #[test]
    fn every_transition_of_a_namespace_is_in_the_table() {
        use {NamespaceEvent as E, NamespaceState as S};
        let group = |text: &str| GroupId::new(text).unwrap();
        let (a, b) = (group("a"), group("b"));
        let states = [
            S::Creating,
            S::Active,
            S::Removing,
            S::Recovering,
            S::Trashed { since: 1 },
            S::Moving { to: a.clone() },
        ];
        let events = [
            E::Created,
            E::Delete,
            E::Trash { since: 1 },
            E::Undelete,
            E::Recover,
            E::Recovered,
            E::StartMove(a.clone()),
            E::EndMove(a),
            E::EndMove(b),
        ];
        let shown = states.clone().map(|state| {
            let after = events.iter().map(|event| match namespace(&state, event) {
                None => "-",
                Some(S::Creating) => "c",
                Some(S::Active) => "a",
                Some(S::Removing) => "r",
                Some(S::Recovering) => "R",
                Some(S::Trashed { .. }) => "t",
                Some(S::Moving { .. }) => "m",
            });
            after.collect::<String>()
        });
        let want = ["a---c----", "-rt-R-m--", "---------", "----Ra---", "-r-a-----", "-------a-"];
        assert_eq!(shown, want);
    }

    #[test]
    fn every_transition_of_a_link_is_in_the_table() {
        use {LinkEvent as E, LinkState as S};
        let id = MessageId::from_u32;
        let states = [
            S::Adding,
            S::OnDevice,
            S::Active,
            S::Decommissioning { unlink: id(5) },
            S::Repairing,
            S::Draining,
        ];
        let after = |event| states.map(|state| link(state, event));
        assert_eq!(after(E::OnDevice), [Some(S::OnDevice), None, None, None, None, None]);
        assert_eq!(after(E::Linked), [None, Some(S::Active), None, None, None, None]);
        assert_eq!(after(E::Unlinked(id(4))), [None; 6], "an older one");
        assert_eq!(after(E::Unlinked(id(5))), [None, None, None, Some(S::Repairing), None, None]);
    }
}
