//! The lives of OSDs, namespaces and the links between them, as tables: what may follow what, and nothing else.
//!
//! ```text
//! OSD:        available ──claimed──► active ──decommission──► decommissioning
//! namespace:  creating ──group has it──► active ──delete──► removing ──group dropped it──► gone
//! link:       adding ──device has it──► on device ──group has it──► active
//! ```

use alba_core::wire::rpc::abm::{NamespaceState, OsdState};
use serde::{Deserialize, Serialize};

/// What happens to an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OsdEvent {
    /// The ownership keys on the device are ours.
    Claimed,
}

/// The state after an event; none when it may not happen now. Claiming what is claimed is a repeat.
pub(crate) fn osd(state: OsdState, event: OsdEvent) -> Option<OsdState> {
    match (state, event) {
        (OsdState::Available, OsdEvent::Claimed) => Some(OsdState::Active),
        (OsdState::Active | OsdState::Decommissioning, OsdEvent::Claimed) => None,
    }
}

/// What happens to a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamespaceEvent {
    /// The group has taken it on.
    Created,
    /// Someone deletes it.
    Delete,
}

/// The state after an event; none when it may not happen now.
pub(crate) fn namespace(state: NamespaceState, event: NamespaceEvent) -> Option<NamespaceState> {
    match (state, event) {
        (NamespaceState::Creating, NamespaceEvent::Created) => Some(NamespaceState::Active),
        (NamespaceState::Active, NamespaceEvent::Delete) => Some(NamespaceState::Removing),
        _ => None,
    }
}

/// How far an OSD has come to serve a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LinkState {
    /// The device does not know the namespace yet.
    Adding,
    /// It does; the group does not know the link yet.
    OnDevice,
    /// Fragments may go there.
    Active,
}

/// What happens to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// AddNamespace had its effect on the device.
    DeviceHasIt,
    /// LinkOsd had its effect in the group.
    GroupHasIt,
}

/// The state after an event; none when nothing changes.
pub(crate) fn link(state: LinkState, event: LinkEvent) -> Option<LinkState> {
    match (state, event) {
        (LinkState::Adding, LinkEvent::DeviceHasIt) => Some(LinkState::OnDevice),
        (LinkState::OnDevice, LinkEvent::GroupHasIt) => Some(LinkState::Active),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transition_is_in_the_table() {
        use {LinkState as L, NamespaceState as N, OsdState as O};
        let osds = [O::Available, O::Active, O::Decommissioning].map(|s| osd(s, OsdEvent::Claimed));
        assert_eq!(osds, [Some(O::Active), None, None]);
        let states = [N::Creating, N::Active, N::Removing];
        assert_eq!(states.map(|s| namespace(s, NamespaceEvent::Created)), [Some(N::Active), None, None]);
        assert_eq!(states.map(|s| namespace(s, NamespaceEvent::Delete)), [None, Some(N::Removing), None]);
        let links = [L::Adding, L::OnDevice, L::Active];
        assert_eq!(links.map(|s| link(s, LinkEvent::DeviceHasIt)), [Some(L::OnDevice), None, None]);
        assert_eq!(links.map(|s| link(s, LinkEvent::GroupHasIt)), [None, Some(L::Active), None]);
    }
}
