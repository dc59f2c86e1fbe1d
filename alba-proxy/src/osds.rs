//! Requests about the backend itself: its OSDs, its metadata servers, its keys. Direct readers live on them.

use std::net::SocketAddr;

use alba_client::{NamespaceKey, OsdReading};
use alba_core::ids::{AlbaId, NamespaceId};
use alba_core::wire::osd_info::{ASD_CAPABILITIES, ClaimInfo, ClientConfig, ConnInfo, OsdInfo, OsdKind};
use alba_core::wire::proxy::{ErrorCode, OsdEntry, OsdState, OsdView};
use alba_core::wire::rpc::abm;
use bytes::Bytes;

use crate::refusal::Refusal;
use crate::server::Shared;

/// Unix seconds of microseconds. Doubles hold microseconds exactly until the year 2255.
#[allow(clippy::cast_precision_loss)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn times(micros: &[u64]) -> Vec<f64> {
    micros.iter().copied().map(seconds).collect()
}

fn errors(reading: &OsdReading) -> Vec<(f64, String)> {
    reading.health.errors.iter().map(|(micros, text)| (seconds(*micros), text.clone())).collect()
}

fn ips(reading: &OsdReading) -> Vec<String> {
    reading.record.info.endpoint.ips.iter().map(ToString::to_string).collect()
}

/// What speaks their protocol as they know it. 0, where nothing listens, for an OSD that serves QUIC only: they then read
/// through the proxy.
fn tcp_port(reading: &OsdReading) -> u32 {
    reading.record.info.endpoint.ports.tcp().unwrap_or(0).into()
}

/// An OSD as clients of the original know them.
fn described(reading: &OsdReading) -> OsdInfo {
    let info = &reading.record.info;
    let conn = ConnInfo {
        ips: ips(reading),
        port: tcp_port(reading),
        // What speaks their protocol there is plain TCP.
        use_tls: false,
        use_rdma: false,
    };
    let kind = match reading.record.kind {
        abm::OsdKind::Asd => OsdKind::Asd(conn, info.long_id.as_str().to_owned()),
    };
    OsdInfo {
        kind,
        node_id: info.place.node().as_str().to_owned(),
        decommissioned: reading.record.state.is_leaving(),
        other: String::new(),
        total: info.capacity.get(),
        used: info.used.get(),
        seen: times(&reading.health.seen),
        read: times(&reading.health.read),
        write: times(&reading.health.write),
        errors: errors(reading),
        checksum_errors: reading.health.checksum_errors,
        claimed_since: reading.record.claimed_since.map(seconds),
    }
}

/// 22, and each level of 28: the claimed OSDs, ordered by their id.
pub(crate) fn entries(readings: &[OsdReading]) -> Vec<OsdEntry> {
    let entry = |reading: &OsdReading| {
        let id = reading.record.osd_id.filter(|_| reading.record.state.is_claimed())?;
        Some(OsdEntry { id, info: described(reading), capabilities: ASD_CAPABILITIES.to_vec() })
    };
    let mut entries: Vec<OsdEntry> = readings.iter().filter_map(entry).collect();
    entries.sort_by_key(|entry| entry.id);
    entries
}

/// 18. Times and errors are those that all processes reported; who is disqualified is this proxy's own opinion.
pub(crate) fn view(readings: &[OsdReading]) -> OsdView {
    let claim = |reading: &OsdReading| {
        let record = &reading.record;
        let foreign = || {
            let owner = record.owner.as_deref().unwrap_or_default();
            // Whatever is written on it: that it is not ours must be told.
            AlbaId::new(owner).or_else(|_| AlbaId::new("unknown")).map(ClaimInfo::AnotherAlba)
        };
        let claim = match (record.state, record.osd_id) {
            (abm::OsdState::Foreign, _) => foreign().unwrap_or(ClaimInfo::Available),
            (state, Some(id)) if state.is_claimed() => ClaimInfo::ThisAlba(id),
            _ => ClaimInfo::Available,
        };
        (Bytes::copy_from_slice(reading.record.info.long_id.as_str().as_bytes()), claim)
    };
    let state = |reading: &OsdReading| OsdState {
        disqualified: reading.opinion.is_some_and(|opinion| opinion.disqualified),
        read: times(&reading.health.read),
        write: times(&reading.health.write),
        errors: errors(reading),
        seen: times(&reading.health.seen),
        json: None,
        ips: Some(ips(reading)),
        port: Some(tcp_port(reading)),
        used: Some(reading.record.info.used.get()),
        total: Some(reading.record.info.capacity.get()),
        checksum_errors: Some(reading.opinion.map_or(0, |opinion| opinion.checksum_errors)),
    };
    let mut osds: Vec<_> = readings
        .iter()
        .filter(|reading| reading.record.state.is_claimed())
        .filter_map(|reading| {
            Some((reading.record.osd_id?, described(reading).to_json().into(), state(reading)))
        })
        .collect();
    osds.sort_by_key(|(id, _, _)| *id);
    OsdView { claims: readings.iter().map(claim).collect(), osds }
}

/// 19: the metadata servers, told as the nodes of a cluster.
pub(crate) fn client_config(cluster: &str, servers: &[SocketAddr]) -> ClientConfig {
    let node = |(number, at): (usize, &SocketAddr)| {
        (format!("metadata-{number}"), vec![at.ip().to_string()], u32::from(at.port()))
    };
    ClientConfig { cluster_id: cluster.to_owned(), nodes: servers.iter().enumerate().map(node).collect() }
}

/// 33: the key of a namespace, for those who decrypt fragments themselves. None for another backend: that is how clients learn
/// that it is not ours to know.
pub(crate) async fn fragment_key(
    shared: &Shared,
    alba_id: &[u8],
    namespace: i64,
) -> Result<Option<Bytes>, Refusal> {
    let by = shared.deadline_for(0);
    let own = shared.within(by, shared.backend.alba_id(by)).await?;
    if alba_id != own.as_str().as_bytes() {
        return Ok(None);
    }
    let unknown =
        || Refusal::new(ErrorCode::NamespaceDoesNotExist, format!("no namespace has the number {namespace}"));
    let id = u64::try_from(namespace).ok().and_then(|id| NamespaceId::new(id).ok()).ok_or_else(unknown)?;
    match shared.within(by, shared.backend.namespace_key(id, by)).await? {
        NamespaceKey::UnknownNamespace => Err(unknown()),
        NamespaceKey::NotEncrypted => Ok(None),
        NamespaceKey::Key(key) => Ok(Some(Bytes::copy_from_slice(key.expose()))),
    }
}
