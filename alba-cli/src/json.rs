//! The JSON shapes that management software reads (features §5.3, wire-protocol §9.6). Byte strings are text when they
//! are UTF-8, else lower-case hex.

use alba_core::checksum::Checksum;
use alba_core::ids::AlbaId;
use alba_core::manifest::{CipherMode, EncryptInfo, Fragment, Manifest};
use alba_core::preset::Compression;
use alba_core::wire::rpc::abm::{
    GroupRecord, MaintenanceConfig, NamespaceRecord, NamespaceState, OsdHealth, OsdKind, OsdRecord, OsdState,
};
use alba_core::wire::rpc::nsm::NamespaceStatistics;
use serde_json::{Map, Value, json};

/// A state as a word.
pub(crate) fn osd_state(state: OsdState) -> &'static str {
    match state {
        OsdState::Available => "available",
        OsdState::Active => "active",
        OsdState::Decommissioning => "decommissioning",
        OsdState::Draining => "draining",
        OsdState::Purging => "purging",
        OsdState::Decommissioned => "decommissioned",
        OsdState::Foreign => "foreign",
    }
}

/// A state as a word.
pub(crate) fn namespace_state(state: &NamespaceState) -> &'static str {
    match state {
        NamespaceState::Creating => "creating",
        NamespaceState::Active => "active",
        NamespaceState::Removing => "removing",
        NamespaceState::Recovering => "recovering",
        NamespaceState::Trashed { .. } => "trashed",
        NamespaceState::Moving { .. } => "moving",
    }
}

/// An OSD, with what clients saw of it. Fields of OSD kinds that do not exist here are null, so that readers of the
/// original's output find every field.
pub(crate) fn osd(osd: &OsdRecord, alba_id: &AlbaId, health: &OsdHealth) -> Value {
    let ips: Vec<String> = osd.info.endpoint.ips.iter().map(ToString::to_string).collect();
    let owner = if osd.state.is_claimed() { Some(alba_id.as_str()) } else { osd.owner.as_deref() };
    let stamps = |stamps: &[u64]| stamps.iter().map(|stamp| seconds(*stamp)).collect::<Vec<_>>();
    let errors: Vec<Value> = health.errors.iter().map(|(at, text)| json!([seconds(*at), text])).collect();
    let kind = match osd.kind {
        OsdKind::Asd => "AsdV2",
    };
    json!({
        "id": osd.osd_id,
        "alba_id": owner,
        "kind": kind,
        "ips": ips,
        "port": osd.info.endpoint.ports.tcp(),
        "quic_port": osd.info.endpoint.ports.quic(),
        "use_tls": false,
        "use_rdma": false,
        "albamgr_cfg": null,
        "prefix": null,
        "preset": null,
        "endpoints": null,
        "decommissioned": osd.state.is_leaving(),
        "state": osd_state(osd.state),
        "node_id": osd.info.place.node().as_str(),
        "place": osd.info.place.to_string(),
        "long_id": osd.info.long_id.as_str(),
        "total": osd.info.capacity,
        "used": osd.info.used,
        "seen": stamps(&health.seen),
        "read": stamps(&health.read),
        "write": stamps(&health.write),
        "errors": errors,
        "checksum_errors": health.checksum_errors,
        "claimed_since": osd.claimed_since.map(seconds),
    })
}

/// Microseconds as the seconds of the original's output.
pub(crate) fn seconds(micros: u64) -> f64 {
    alba_core::manifest::Timestamp(micros).to_seconds()
}

/// A metadata group that holds namespaces.
pub(crate) fn nsm_host(group: &GroupRecord) -> Value {
    let nodes = group.servers.iter().enumerate().map(|(position, server)| {
        let (ip, port) = server.rsplit_once(':').unwrap_or((server, ""));
        json!({ "name": format!("{}-{position}", group.id), "ips": [ip], "port": port.parse::<u16>().ok() })
    });
    json!({
        "id": group.id.as_str(),
        "kind": "Alba",
        "cluster_id": group.id.as_str(),
        "nodes": nodes.collect::<Vec<_>>(),
        "lost": group.lost,
        "namespaces_count": group.namespaces,
    })
}

/// The maintenance configuration.
pub(crate) fn maintenance(config: &MaintenanceConfig) -> Value {
    let pairs: Vec<_> = config.cache_eviction_prefix_preset_pairs.iter().collect();
    let redis = config.redis_lru_cache_eviction.as_ref();
    json!({
        "enable_auto_repair": config.enable_auto_repair,
        "auto_repair_timeout_seconds": config.auto_repair_timeout_seconds,
        "auto_repair_disabled_nodes": config.auto_repair_disabled_nodes,
        "enable_rebalance": config.enable_rebalance,
        "cache_eviction_prefix_preset_pairs": pairs,
        "redis_lru_cache_eviction":
            redis.map(|redis| json!({ "host": redis.host, "port": redis.port, "key": redis.key })),
        "auto_cleanup_deleted_namespaces": config.auto_cleanup_deleted_namespaces_days,
    })
}

/// A namespace.
pub(crate) fn namespace(namespace: &NamespaceRecord) -> Value {
    json!({
        "id": namespace.id,
        "name": namespace.name.to_string(),
        "nsm_host_id": namespace.group.as_str(),
        "state": namespace_state(&namespace.state),
        "preset_name": namespace.preset.as_str(),
    })
}

/// The counters of `show-namespace`. Buckets are [[k, m, fragments, most per node], objects].
pub(crate) fn statistics(statistics: &NamespaceStatistics) -> Value {
    let buckets = statistics.buckets.iter().map(|(bucket, objects)| {
        let (k, m) = bucket.shape.as_u8();
        json!([[k, m, bucket.fragments, bucket.max_per_node], objects])
    });
    json!({
        "objects": statistics.objects,
        "logical": statistics.logical_bytes,
        "storage": statistics.storage_bytes,
        "storage_per_osd": statistics.storage_per_osd,
        "bucket_count": buckets.collect::<Vec<_>>(),
    })
}

/// A checksum, as the original prints it.
fn checksum(checksum: &Checksum) -> Value {
    match checksum {
        Checksum::None => json!(["NoChecksum"]),
        Checksum::Sha1(digest) => json!(["Sha1", hex::encode(digest)]),
        Checksum::Crc32c(crc) => json!(["Crc32c", format!("0x{crc:08x}")]),
        Checksum::Blake3(root) => json!(["Blake3", hex::encode(root)]),
    }
}

fn compression(compression: Compression) -> Value {
    json!([match compression {
        Compression::None => "NoCompression".to_owned(),
        Compression::Snappy => "Snappy".to_owned(),
        Compression::Lz4 => "Lz4".to_owned(),
        Compression::Zstd => "Zstd".to_owned(),
        Compression::Bzip2 => "Bzip2".to_owned(),
        Compression::Test => "Test".to_owned(),
    }])
}

fn encryption(encryption: &EncryptInfo) -> Value {
    match encryption {
        EncryptInfo::None => json!(["NoEncryption"]),
        EncryptInfo::Aes256 { mode, key_sha256 } => {
            let mode = match mode {
                CipherMode::Cbc => "CBC",
                CipherMode::Ctr => "CTR",
            };
            json!(["Encrypted", ["AES", [mode], ["L256"]], ["KeySha256", hex::encode(key_sha256)]])
        }
    }
}

fn fragment(position: usize, fragment: &Fragment) -> Value {
    json!({
        "osd": fragment.location,
        "ver": fragment.version,
        "crc": checksum(&fragment.checksum),
        "len": fragment.packed_len,
        "ctr": fragment.ctr.map(hex::encode),
        "fnr": position,
    })
}

/// The manifest of `show-object`.
pub(crate) fn manifest(manifest: &Manifest) -> Value {
    let (k, m) = manifest.scheme.shape.as_u8();
    let chunks = manifest.chunks.iter().map(|chunk| {
        let fragments = chunk.fragments.iter().enumerate().map(|(position, entry)| fragment(position, entry));
        Value::Array(fragments.collect())
    });
    // One key after the other: past the recursion limit of `json!` otherwise.
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| object.insert(key.to_owned(), value);
    set("name", json!(manifest.name.to_string()));
    set("object_id", json!(manifest.object_id.to_string()));
    let coding = json!(["RSVM", k, m, ["W8"]]);
    set("storage_scheme", json!(["EncodeCompressEncrypt", coding, compression(manifest.scheme.compression)]));
    set("encrypt_info", encryption(&manifest.encryption));
    set("chunk_sizes", json!(manifest.chunks.iter().map(|chunk| chunk.size).collect::<Vec<_>>()));
    set("size", json!(manifest.size));
    set("checksum", checksum(&manifest.checksum));
    set("fragments", Value::Array(chunks.collect()));
    set("version_id", json!(manifest.version));
    set("max_disks_per_node", json!(manifest.max_disks_per_node));
    set("timestamp", json!(manifest.timestamp.to_seconds()));
    Value::Object(object)
}

#[cfg(test)]
mod tests;
