//! Makes a backend of running processes. Every step looks first and does only what is missing, so that a start that was
//! cut off anywhere is completed by the next one.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use alba_client::metadata::MetadataClient;
use alba_core::env::osd::DiskUsage;
use alba_core::env::{Deadline, Directory, Endpoint, Env, MetaError, files};
use alba_core::ids::{AlbaId, GroupId, LongId, NamespaceName, NodeId, ObjectName, Place};
use alba_core::net::asd::Reach;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmQuery, NamespaceState, OsdEndpoint, OsdFilter, OsdInfo, OsdPorts, OsdRecord,
    OsdState,
};
use alba_proxy::client::ProxyClient;

use super::plan::{Planned, Role};
use super::ready;
use crate::commands::osds::ask_who;
use crate::error::CliError;
use crate::ranges::{Pager, collect};

/// The namespace that every local cluster has.
const NAMESPACE: &str = "demo";

/// A storage daemon that does not answer for so long is not waited for: replaying a full disk takes less.
const OSD_PATIENCE: Duration = Duration::from_secs(30);

/// The object that is put and read back before the cluster is called ready.
const PROBE: &str = ".alba-up-probe";

/// Makes the backend known to itself: its id and its metadata groups.
pub(super) async fn groups(
    env: &Env,
    metadata: &MetadataClient,
    servers: &[SocketAddr],
    groups: &[String],
    deadline: Deadline,
) -> Result<(), CliError> {
    let alba_id = AlbaId::new(random_uuid(env))?;
    metadata.command(AbmCommand::Bootstrap { alba_id }, deadline).await?;
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    for group in groups {
        let id = GroupId::new(group.as_str())?;
        metadata.command(AbmCommand::AddGroup { id, servers: servers.clone() }, deadline).await?;
    }
    Ok(())
}

/// The OSD that is registered at the address of `process`, claimed by this backend.
pub(super) async fn known(
    metadata: &MetadataClient,
    process: &Planned,
    deadline: Deadline,
) -> Result<Option<LongId>, CliError> {
    let key = |osd: &OsdRecord| osd.info.long_id.as_str().as_bytes().to_vec();
    let ask = async |range| {
        let query = AbmQuery::Osds { filter: OsdFilter::Claimed, range };
        match metadata.query(query, deadline).await? {
            AbmAnswer::Osds(page) => Ok(page),
            _ => Err(MetaError::Protocol("the answer to Osds is of another kind".to_owned())),
        }
    };
    let found = collect(Pager::all(), key, ask).await?;
    let here = |osd: &OsdRecord| {
        let endpoint = &osd.info.endpoint;
        endpoint.tcp().any(|address| address == process.listen)
    };
    Ok(found.into_iter().find(here).map(|osd| osd.info.long_id))
}

fn endpoint(listen: SocketAddr, quic: Option<u16>) -> OsdEndpoint {
    let tcp = listen.port();
    let ports = quic.map_or(OsdPorts::Tcp(tcp), |quic| OsdPorts::Both { tcp, quic });
    OsdEndpoint { ips: vec![listen.ip()], ports }
}

/// Registers and claims an OSD, once it answers; tells the ABM when its address changed. Gives its long id.
pub(super) async fn osd(
    env: &Env,
    metadata: &MetadataClient,
    process: &Planned,
    deadline: Deadline,
) -> Result<LongId, CliError> {
    let (long_id, usage) = first_answer(env, process.listen, deadline).await?;
    let Role::Asd { node } = process.role else {
        return Err(CliError::failure(format!("{} is no storage daemon", process.name)));
    };
    let info = OsdInfo {
        long_id: long_id.clone(),
        place: Place::of_node(NodeId::new(format!("node-{node}"))?),
        endpoint: endpoint(process.listen, None),
        capacity: usage.capacity,
        used: usage.used,
    };
    let record = match metadata.query(AbmQuery::Osd(long_id.clone()), deadline).await? {
        AbmAnswer::Osd(record) => record,
        _ => return Err(MetaError::Protocol("the answer to Osd is of another kind".to_owned()).into()),
    };
    let claimed = match record {
        None => {
            metadata.command(AbmCommand::AddOsd(info), deadline).await?;
            false
        }
        Some(record) => {
            // A port of QUIC that an operator added stays.
            let info =
                OsdInfo { endpoint: endpoint(process.listen, record.info.endpoint.ports.quic()), ..info };
            let moved = record.info.endpoint != info.endpoint || record.info.capacity != info.capacity;
            if moved {
                metadata.command(AbmCommand::UpdateOsd(info), deadline).await?;
            }
            record.state != OsdState::Available
        }
    };
    if !claimed {
        metadata.claim_osd(&long_id, deadline).await?;
    }
    Ok(long_id)
}

/// Asks until there is an answer. Whoever is full or damaged answers, too: this is not about health.
async fn first_answer(
    env: &Env,
    address: SocketAddr,
    deadline: Deadline,
) -> Result<(LongId, DiskUsage), CliError> {
    let clock = env.clock.as_ref();
    let deadline = deadline.capped(clock, OSD_PATIENCE);
    let reach = Reach::without_certificate(env.clone());
    loop {
        let soon = deadline.capped(clock, Duration::from_secs(2));
        match ask_who(&reach, Endpoint::Tcp(address), soon).await {
            Err(_) if deadline.left(clock) > Duration::ZERO => ready::pause(clock, deadline.0).await,
            answer => return answer,
        }
    }
}

/// Creates the namespace unless it is there.
pub(super) async fn namespace(metadata: &MetadataClient, deadline: Deadline) -> Result<(), CliError> {
    let name = NamespaceName::new(NAMESPACE)?;
    match metadata.query(AbmQuery::Namespace(name.clone()), deadline).await? {
        AbmAnswer::Namespace(Some(record)) if record.state != NamespaceState::Removing => Ok(()),
        _ => {
            metadata
                .command(AbmCommand::CreateNamespace { name, preset: None, group: None }, deadline)
                .await?;
            Ok(())
        }
    }
}

/// Puts an object through `proxy` and reads it back, until that works.
pub(super) async fn probe(
    env: &Env,
    proxy: SocketAddr,
    dir: &Path,
    deadline: Deadline,
) -> Result<(), CliError> {
    let clock = env.clock.as_ref();
    loop {
        let step = deadline.capped(clock, Duration::from_secs(20));
        match round_trip(env, proxy, dir, step).await {
            Ok(()) => return Ok(()),
            Err(error) if deadline.left(clock) == Duration::ZERO => {
                return Err(error.while_doing("the cluster runs, but storing an object does not work"));
            }
            Err(_) => ready::pause(clock, deadline.0).await,
        }
    }
}

async fn round_trip(env: &Env, proxy: SocketAddr, dir: &Path, deadline: Deadline) -> Result<(), CliError> {
    let (put, got) = (dir.join("probe.put"), dir.join("probe.got"));
    let data = env.rng.bytes32();
    files::replace(&put, &data).map_err(|error| CliError::file("write", &put, &error))?;
    let mut client = ProxyClient::connect(env, proxy, deadline).await?;
    let (namespace, name) = (NamespaceName::new(NAMESPACE)?, ObjectName::new(PROBE)?);
    client.upload_object(&namespace, &name, &put, true, None, deadline).await?;
    client.download_object(&namespace, &name, &got, true, deadline).await?;
    let read = std::fs::read(&got).map_err(|error| CliError::file("read", &got, &error))?;
    client.delete_object(&namespace, &name, true, deadline).await?;
    for path in [&put, &got] {
        files::remove_file(path).map_err(|error| CliError::file("remove", path, &error))?;
    }
    if read == data { Ok(()) } else { Err(CliError::failure("what was read is not what was stored")) }
}

/// A random UUID, version 4.
pub(crate) fn random_uuid(env: &Env) -> String {
    let mut bytes = [0; 16];
    env.rng.fill(&mut bytes);
    uuid_text(bytes)
}

fn uuid_text(mut bytes: [u8; 16]) -> String {
    // RFC 9562: version 4 in the upper half of byte 6, variant 10 in the upper bits of byte 8.
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let text = hex::encode(bytes);
    let part = |range| text.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_form() {
        assert_eq!(uuid_text([0; 16]), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_text([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
