//! The ABM's key space. The table is in `docs/formats/metadata.md`.

use alba_core::ids::{GroupId, LongId, MessageId, NamespaceId, NamespaceName, OsdId, PresetName};
use alba_core::kv::KvError;
use alba_core::wire::rpc::abm::Destination;

use crate::value::{Key, damaged};

pub(super) const ALBA_ID: &[u8] = b"A";
pub(super) const DEFAULT_PRESET: &[u8] = b"D";
pub(super) const NEXT_OSD: &[u8] = b"o";
pub(super) const NEXT_NAMESPACE: &[u8] = b"n";
pub(super) const OSDS: &[u8] = b"O";
pub(super) const PRESETS: &[u8] = b"P";
pub(super) const NAMESPACES: &[u8] = b"N";
pub(super) const GROUPS: &[u8] = b"G";
pub(super) const QUEUE_LENGTHS: &[u8] = b"w";

/// → `OsdRecord`.
pub(super) fn osd(long_id: &LongId) -> Vec<u8> {
    Key::table(OSDS).bytes(long_id.as_str().as_bytes()).end()
}

/// → `LongId`.
pub(super) fn osd_by_id(id: OsdId) -> Vec<u8> {
    Key::table(b"I").number(id.get()).end()
}

/// All OSD ids.
pub(super) const OSD_IDS: &[u8] = b"I";

/// → (`Preset`, version).
pub(super) fn preset(name: &PresetName) -> Vec<u8> {
    Key::table(PRESETS).bytes(name.as_str().as_bytes()).end()
}

/// The namespaces of a preset.
pub(super) fn users_of_preset(name: &PresetName) -> Vec<u8> {
    Key::table(b"U").counted(name.as_str().as_bytes()).end()
}

/// → present.
pub(super) fn user_of_preset(name: &PresetName, namespace: NamespaceId) -> Vec<u8> {
    Key::table(b"U").counted(name.as_str().as_bytes()).number(namespace.get()).end()
}

/// → `NamespaceRecord`.
pub(super) fn namespace(name: &NamespaceName) -> Vec<u8> {
    Key::table(NAMESPACES).bytes(name.as_bytes()).end()
}

/// → `NamespaceName`.
pub(super) fn namespace_by_id(id: NamespaceId) -> Vec<u8> {
    Key::table(b"M").number(id.get()).end()
}

/// → servers.
pub(super) fn group(id: &GroupId) -> Vec<u8> {
    Key::table(GROUPS).bytes(id.as_str().as_bytes()).end()
}

/// → counter of namespaces.
pub(super) fn group_load(id: &GroupId) -> Vec<u8> {
    Key::table(b"g").bytes(id.as_str().as_bytes()).end()
}

/// The OSDs of a namespace.
pub(super) fn links_of_namespace(namespace: NamespaceId) -> Vec<u8> {
    Key::table(b"L").number(namespace.get()).end()
}

/// → `LinkState`.
pub(super) fn link(namespace: NamespaceId, osd: OsdId) -> Vec<u8> {
    Key::table(b"L").number(namespace.get()).number(osd.get()).end()
}

/// The namespaces of an OSD.
pub(super) fn links_of_osd(osd: OsdId) -> Vec<u8> {
    Key::table(b"K").number(osd.get()).end()
}

/// → present.
pub(super) fn link_back(osd: OsdId, namespace: NamespaceId) -> Vec<u8> {
    Key::table(b"K").number(osd.get()).number(namespace.get()).end()
}

fn with_destination(table: &[u8], destination: &Destination) -> Key {
    match destination {
        Destination::Group(id) => Key::table(table).bytes(&[1]).counted(id.as_str().as_bytes()),
        Destination::Osd(id) => Key::table(table).bytes(&[2]).number(id.get()),
    }
}

/// The messages to a destination.
pub(super) fn messages(destination: &Destination) -> Vec<u8> {
    with_destination(b"Q", destination).end()
}

/// → `Message`.
pub(super) fn message(destination: &Destination, id: MessageId) -> Vec<u8> {
    with_destination(b"Q", destination).number(id.get()).end()
}

/// → the id of the next message.
pub(super) fn next_message(destination: &Destination) -> Vec<u8> {
    with_destination(b"q", destination).end()
}

/// → counter of messages.
pub(super) fn queue_length(destination: &Destination) -> Vec<u8> {
    with_destination(QUEUE_LENGTHS, destination).end()
}

/// The destination of a `queue_length` key without its table letter.
pub(super) fn parse_destination(key: &[u8]) -> Result<Destination, KvError> {
    match key {
        [1, _, _, id @ ..] => {
            let text = String::from_utf8(id.to_vec()).map_err(damaged)?;
            Ok(Destination::Group(GroupId::new(text).map_err(damaged)?))
        }
        [2, id @ ..] => {
            let bytes = <[u8; 8]>::try_from(id).map_err(damaged)?;
            Ok(Destination::Osd(OsdId::new(u64::from_be_bytes(bytes)).map_err(damaged)?))
        }
        _ => Err(damaged("a queue of no destination")),
    }
}
