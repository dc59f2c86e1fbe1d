//! The ABM's key space. The table is in `docs/formats/metadata.md`.

use alba_core::ids::{
    AgentId, GroupId, JobName, LongId, MessageId, NamespaceId, NamespaceName, ObjectId, OsdId, PresetName,
    TaskName, WorkId,
};
use alba_core::kv::KvError;
use alba_core::wire::rpc::abm::{Destination, WindowTarget};

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
pub(super) const LETTER_COUNTS: &[u8] = b"y";
pub(super) const HEALTH: &[u8] = b"H";
pub(super) const WALKS: &[u8] = b"T";
pub(super) const LAST_WALK: &[u8] = b"t";
pub(super) const NEXT_WORK: &[u8] = b"v";
pub(super) const WORK: &[u8] = b"W";
pub(super) const WORK_BY_ITEM: &[u8] = b"X";
pub(super) const WORK_BY_TIME: &[u8] = b"x";
pub(super) const WORK_COUNT: &[u8] = b"V";
pub(super) const JOBS: &[u8] = b"J";
pub(super) const TOKEN: &[u8] = b"e";
pub(super) const LEASES: &[u8] = b"E";
pub(super) const TASKS: &[u8] = b"k";
pub(super) const PAUSED: &[u8] = b"c";
pub(super) const PARTICIPANTS: &[u8] = b"Z";
pub(super) const MAINTENANCE: &[u8] = b"C";
pub(super) const PEERS_REVISION: &[u8] = b"p";
pub(super) const PEERS_TOLD: &[u8] = b"S";
pub(super) const REVISIONS: &[u8] = b"r";
pub(super) const PRESET_USERS: &[u8] = b"U";
pub(super) const NAMESPACE_IDS: &[u8] = b"M";
pub(super) const GROUP_COUNTS: &[u8] = b"g";
pub(super) const GROUP_LOADS: &[u8] = b"l";
pub(super) const LINKS: &[u8] = b"L";
pub(super) const LINKS_BACK: &[u8] = b"K";
pub(super) const QUEUES: &[u8] = b"Q";
pub(super) const LETTERS: &[u8] = b"B";
pub(super) const LETTERS_BY_NAMESPACE: &[u8] = b"b";
pub(super) const LEAVES: &[u8] = b"j";
pub(super) const LAST_MOVES: &[u8] = b"m";
pub(super) const MOVING: &[u8] = b"Y";

pub(super) const MARKS: &[u8] = b"h";
pub(super) const WINDOWS: &[u8] = b"d";
pub(super) const SURVEYS: &[u8] = b"s";
pub(super) const UNREPAIRED: &[u8] = b"u";
pub(super) const UNREPAIRED_COUNT: &[u8] = b"z";
pub(super) const WOKEN: &[u8] = b"a";

/// → `OsdRecord`.
pub(super) fn osd(long_id: &LongId) -> Vec<u8> {
    Key::table(OSDS).bytes(long_id.as_str().as_bytes()).end()
}

/// → `LongId`.
pub(super) fn osd_by_id(id: OsdId) -> Vec<u8> {
    Key::table(OSD_IDS).number(id.get()).end()
}

/// All OSD ids.
pub(super) const OSD_IDS: &[u8] = b"I";

/// → (`Preset`, version).
pub(super) fn preset(name: &PresetName) -> Vec<u8> {
    Key::table(PRESETS).bytes(name.as_str().as_bytes()).end()
}

/// The namespaces of a preset.
pub(super) fn users_of_preset(name: &PresetName) -> Vec<u8> {
    Key::table(PRESET_USERS).counted(name.as_str().as_bytes()).end()
}

/// → present.
pub(super) fn user_of_preset(name: &PresetName, namespace: NamespaceId) -> Vec<u8> {
    Key::table(PRESET_USERS).counted(name.as_str().as_bytes()).number(namespace.get()).end()
}

/// → `NamespaceRecord`.
pub(super) fn namespace(name: &NamespaceName) -> Vec<u8> {
    Key::table(NAMESPACES).bytes(name.as_bytes()).end()
}

/// → `NamespaceName`.
pub(super) fn namespace_by_id(id: NamespaceId) -> Vec<u8> {
    Key::table(NAMESPACE_IDS).number(id.get()).end()
}

/// → `StoredGroup`.
pub(super) fn group(id: &GroupId) -> Vec<u8> {
    Key::table(GROUPS).bytes(id.as_str().as_bytes()).end()
}

/// → counter of namespaces.
pub(super) fn group_load(id: &GroupId) -> Vec<u8> {
    Key::table(GROUP_COUNTS).bytes(id.as_str().as_bytes()).end()
}

/// The OSDs of a namespace.
pub(super) fn links_of_namespace(namespace: NamespaceId) -> Vec<u8> {
    Key::table(LINKS).number(namespace.get()).end()
}

/// → `LinkState`.
pub(super) fn link(namespace: NamespaceId, osd: OsdId) -> Vec<u8> {
    Key::table(LINKS).number(namespace.get()).number(osd.get()).end()
}

/// The namespaces of an OSD.
pub(super) fn links_of_osd(osd: OsdId) -> Vec<u8> {
    Key::table(LINKS_BACK).number(osd.get()).end()
}

/// → present.
pub(super) fn link_back(osd: OsdId, namespace: NamespaceId) -> Vec<u8> {
    Key::table(LINKS_BACK).number(osd.get()).number(namespace.get()).end()
}

fn with_destination(table: &[u8], destination: &Destination) -> Key {
    match destination {
        Destination::Group(id) => Key::table(table).bytes(&[1]).counted(id.as_str().as_bytes()),
        Destination::Osd(id) => Key::table(table).bytes(&[2]).number(id.get()),
    }
}

/// The messages to a destination.
pub(super) fn messages(destination: &Destination) -> Vec<u8> {
    with_destination(QUEUES, destination).end()
}

/// → `Message`.
pub(super) fn message(destination: &Destination, id: MessageId) -> Vec<u8> {
    with_destination(QUEUES, destination).number(id.get()).end()
}

/// → the id of the next message.
pub(super) fn next_message(destination: &Destination) -> Vec<u8> {
    with_destination(b"q", destination).end()
}

/// → counter of messages.
pub(super) fn queue_length(destination: &Destination) -> Vec<u8> {
    with_destination(QUEUE_LENGTHS, destination).end()
}

/// The dead letters of a destination.
pub(super) fn letters(destination: &Destination) -> Vec<u8> {
    with_destination(LETTERS, destination).end()
}

/// → `DeadLetter`.
pub(super) fn letter(destination: &Destination, id: MessageId) -> Vec<u8> {
    with_destination(LETTERS, destination).number(id.get()).end()
}

/// The dead letters of a namespace at a destination.
pub(super) fn letters_of_namespace(destination: &Destination, namespace: NamespaceId) -> Vec<u8> {
    with_destination(LETTERS_BY_NAMESPACE, destination).number(namespace.get()).end()
}

/// → present.
pub(super) fn letter_of_namespace(
    destination: &Destination,
    namespace: NamespaceId,
    id: MessageId,
) -> Vec<u8> {
    with_destination(LETTERS_BY_NAMESPACE, destination).number(namespace.get()).number(id.get()).end()
}

/// → counter of dead letters.
pub(super) fn letter_count(destination: &Destination) -> Vec<u8> {
    with_destination(LETTER_COUNTS, destination).end()
}

/// → `OsdHealth`.
pub(super) fn health(long_id: &LongId) -> Vec<u8> {
    Key::table(HEALTH).bytes(long_id.as_str().as_bytes()).end()
}

/// → `GroupLoad`.
pub(super) fn reported_load(id: &GroupId) -> Vec<u8> {
    Key::table(GROUP_LOADS).bytes(id.as_str().as_bytes()).end()
}

/// → `WorkRecord`.
pub(super) fn work(id: WorkId) -> Vec<u8> {
    Key::table(WORK).number(id.get()).end()
}

/// → `WorkId`; the item as it is stored.
pub(super) fn work_by_item(item: &[u8]) -> Vec<u8> {
    Key::table(WORK_BY_ITEM).bytes(item).end()
}

/// → present; by the time from which on it may be claimed.
pub(super) fn work_by_time(not_before: u64, id: WorkId) -> Vec<u8> {
    Key::table(WORK_BY_TIME).number(not_before).number(id.get()).end()
}

/// → `JobRecord`.
pub(super) fn job(name: &JobName) -> Vec<u8> {
    Key::table(JOBS).bytes(name.as_str().as_bytes()).end()
}

/// The leaves of a job.
pub(super) fn leaves(name: &JobName) -> Vec<u8> {
    Key::table(LEAVES).counted(name.as_str().as_bytes()).end()
}

/// → `LeafProgress`.
pub(super) fn leaf(name: &JobName, leaf: u32) -> Vec<u8> {
    Key::table(LEAVES).counted(name.as_str().as_bytes()).number(leaf.into()).end()
}

/// → `LeaseRecord`.
pub(super) fn lease(task: &TaskName) -> Vec<u8> {
    Key::table(LEASES).bytes(task.as_str().as_bytes()).end()
}

/// → `TaskRecord`.
pub(super) fn task(task: &TaskName) -> Vec<u8> {
    Key::table(TASKS).bytes(task.as_str().as_bytes()).end()
}

/// → `TaskName`.
pub(super) fn paused(task: &TaskName) -> Vec<u8> {
    Key::table(PAUSED).bytes(task.as_str().as_bytes()).end()
}

/// → how far the task says it has come.
pub(super) fn mark(task: &TaskName) -> Vec<u8> {
    Key::table(MARKS).bytes(task.as_str().as_bytes()).end()
}

/// → `WindowRecord`.
pub(super) fn window(target: &WindowTarget) -> Vec<u8> {
    match target {
        WindowTarget::Node(node) => Key::table(WINDOWS).bytes(&[1]).bytes(node.as_str().as_bytes()).end(),
        WindowTarget::Osd(long_id) => {
            Key::table(WINDOWS).bytes(&[2]).bytes(long_id.as_str().as_bytes()).end()
        }
    }
}

/// → `SurveyRecord`.
pub(super) fn survey(namespace: NamespaceId) -> Vec<u8> {
    Key::table(SURVEYS).number(namespace.get()).end()
}

/// → `UnrepairedRecord`.
pub(super) fn unrepaired(namespace: NamespaceId, object: &ObjectId) -> Vec<u8> {
    Key::table(UNREPAIRED).number(namespace.get()).bytes(object.as_bytes()).end()
}

/// → `ParticipantRecord`.
pub(super) fn participant(agent: &AgentId) -> Vec<u8> {
    Key::table(PARTICIPANTS).bytes(agent.as_str().as_bytes()).end()
}

/// → the revision of the list of peers that the OSD has.
pub(super) fn peers_told(osd: OsdId) -> Vec<u8> {
    Key::table(PEERS_TOLD).number(osd.get()).end()
}

/// → present: the group will drop its old copy of the namespace.
pub(super) fn leaving_group(group: &GroupId, namespace: NamespaceId) -> Vec<u8> {
    Key::table(b"f").counted(group.as_str().as_bytes()).number(namespace.get()).end()
}

/// → `MoveId`: of the last move of the namespace that was begun. Kept as long as the namespace is.
pub(super) fn last_move(namespace: NamespaceId) -> Vec<u8> {
    Key::table(LAST_MOVES).number(namespace.get()).end()
}

/// → name: the namespace is being moved.
pub(super) fn moving(namespace: NamespaceId) -> Vec<u8> {
    Key::table(MOVING).number(namespace.get()).end()
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
