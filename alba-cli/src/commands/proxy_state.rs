//! What a proxy says of itself and of its backend.

use alba_core::ids::{NamespaceName, text_or_hex};
use alba_core::wire::common::Stat;
use alba_core::wire::osd_info::{Capability, ClaimInfo};
use alba_proxy::client::{NamespaceStatistics, OsdEntry, OsdKind, OsdState};
use clap::Args;
use serde_json::{Value, json};

use super::proxy::ProxyArgs;
use crate::answer::Answer;
use crate::error::CliError;
use crate::names;
use crate::session::Session;
use crate::table::table;

/// Show what a proxy did, per namespace
///
/// Times are in seconds, sizes in bytes; since the proxy started or was told to --clear.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:\n  alba proxy-statistics --clear --forget old-namespace"
)]
pub(crate) struct Statistics {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// Count anew after this
    #[arg(long)]
    clear: bool,
    /// Forget this namespace first; may be given several times
    #[arg(long, value_name = "NAMESPACE", value_parser = names::namespace())]
    forget: Vec<NamespaceName>,
}

fn stat(stat: &Stat) -> Value {
    // Without samples the smallest and the largest are placeholders.
    let seen = |value: f64| (stat.n > 0).then_some(value);
    json!({
        "n": stat.n, "avg": stat.avg, "exp_avg": stat.exp_avg, "m2": stat.m2, "var": stat.var,
        "min": seen(stat.min), "max": seen(stat.max), "alpha": stat.alpha,
    })
}

fn namespace(of: &NamespaceStatistics) -> Value {
    json!({
        "upload": stat(&of.upload),
        "download": stat(&of.download),
        "delete": stat(&of.delete),
        "manifest_cached": of.manifest_cached,
        "manifest_from_nsm": of.manifest_from_nsm,
        "manifest_stale": of.manifest_stale,
        "fragment_cache_hits": of.fragment_cache_hits,
        "fragment_cache_misses": of.fragment_cache_misses,
        "partial_read_size": stat(&of.partial_read_size),
        "partial_read_count": stat(&of.partial_read_count),
        "partial_read_time": stat(&of.partial_read_time),
        "partial_read_objects": stat(&of.partial_read_objects),
        "empty_partial_read_count": stat(&of.empty_partial_read_count),
        "empty_partial_read_time": stat(&of.empty_partial_read_time),
        "empty_partial_read_objects": stat(&of.empty_partial_read_objects),
        "last_updated": of.last_updated,
    })
}

impl Statistics {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let mut proxy = session.proxy(self.proxy.address(), deadline).await?;
        let told = proxy.statistics(self.clear, &self.forget, deadline).await?;
        let rows = told.namespaces.iter().map(|(name, of)| {
            let requests = [&of.upload, &of.download, &of.delete, &of.partial_read_time];
            let counts = requests.iter().map(|stat| stat.n.to_string());
            let millis = [&of.upload, &of.partial_read_time].map(|stat| format!("{:.2}", stat.avg * 1e3));
            std::iter::once(text_or_hex(name)).chain(counts).chain(millis).collect()
        });
        let headers = [
            "NAMESPACE",
            ">UPLOADS",
            ">DOWNLOADS",
            ">DELETES",
            ">PARTIAL READS",
            ">MS PER UPLOAD",
            ">MS PER PARTIAL READ",
        ];
        let text = format!("counted for {:.0} s\n{}", told.period, table(&headers, rows.collect()));
        let stats: Vec<Value> =
            told.namespaces.iter().map(|(name, of)| json!([text_or_hex(name), namespace(of)])).collect();
        Answer::new(json!({ "creation": told.creation, "period": told.period, "ns_stats": stats }), text)
    }
}

/// Show whose the OSDs are that a proxy knows, and how they fare in its eyes
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-osd-view -p 10000")]
pub(crate) struct OsdView {
    #[command(flatten)]
    proxy: ProxyArgs,
}

fn claim(claim: &ClaimInfo) -> (Value, String) {
    match claim {
        ClaimInfo::ThisAlba(id) => (json!(["ThisAlba", id.get()]), format!("ours, {id}")),
        ClaimInfo::AnotherAlba(alba) => (json!(["AnotherAlba", alba.as_str()]), format!("of {alba}")),
        ClaimInfo::Available => (json!(["Available"]), "available".to_owned()),
    }
}

fn state(state: &OsdState) -> Value {
    json!({
        "disqualified": state.disqualified, "read": state.read, "write": state.write, "errors": state.errors,
        "seen": state.seen, "json": state.json, "ips": state.ips, "port": state.port, "used": state.used,
        "total": state.total, "checksum_errors": state.checksum_errors,
    })
}

impl OsdView {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let view = session.proxy(self.proxy.address(), deadline).await?.osd_view(deadline).await?;
        let fares = |of: &ClaimInfo| {
            let ClaimInfo::ThisAlba(id) = of else { return String::new() };
            match view.osds.iter().find(|(known, ..)| known == id) {
                Some((.., state)) if state.disqualified => "disqualified".to_owned(),
                Some((.., state)) => {
                    state.errors.first().map_or_else(|| "ok".to_owned(), |(_, text)| text.clone())
                }
                None => String::new(),
            }
        };
        let rows = view.claims.iter().map(|(id, of)| vec![text_or_hex(id), claim(of).1, fares(of)]);
        let text = table(&["LONG ID", "CLAIM", "STATE"], rows.collect());
        let claims: Vec<Value> =
            view.claims.iter().map(|(id, of)| json!([text_or_hex(id), claim(of).0])).collect();
        let osds: Vec<Value> = view
            .osds
            .iter()
            .map(|(id, info, of)| {
                let info = serde_json::from_slice(info).unwrap_or(Value::Null);
                json!([id.get(), info, state(of)])
            })
            .collect();
        Answer::new(json!({ "claim_infos": claims, "state_infos": osds }), text)
    }
}

/// List the OSDs that a proxy tells direct readers about
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-osd-info -p 10000")]
pub(crate) struct OsdInfo {
    #[command(flatten)]
    proxy: ProxyArgs,
}

fn entry(entry: &OsdEntry) -> Value {
    let info = serde_json::from_str(&entry.info.to_json()).unwrap_or(Value::Null);
    let capabilities: Vec<&str> = entry.capabilities.iter().map(Capability::name).collect();
    json!([entry.id.get(), info, capabilities])
}

impl OsdInfo {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let mut proxy = session.proxy(self.proxy.address(), deadline).await?;
        let levels = proxy.osd_info_by_backend(deadline).await?;
        let row = |alba: &alba_core::ids::AlbaId, osd: &OsdEntry| {
            let (place, long_id) = match &osd.info.kind {
                OsdKind::Asd(conn, long_id) | OsdKind::Kinetic(conn, long_id) => {
                    (format!("{}:{}", conn.ips.first().map_or("?", String::as_str), conn.port), long_id)
                }
                OsdKind::Alba { id, .. } => ("metadata".to_owned(), id),
                OsdKind::AlbaProxy { endpoints, id, .. } => (endpoints.join(" "), id),
            };
            vec![alba.to_string(), osd.id.to_string(), long_id.clone(), osd.info.node_id.clone(), place]
        };
        let rows =
            levels.iter().flat_map(|(alba, osds)| osds.iter().map(move |osd| row(alba, osd))).collect();
        let text = table(&["BACKEND", ">ID", "LONG ID", "NODE", "ADDRESS"], rows);
        let result: Vec<Value> = levels
            .iter()
            .map(|(alba, osds)| json!([alba.as_str(), osds.iter().map(entry).collect::<Vec<_>>()]))
            .collect();
        Answer::new(result, text)
    }
}

/// Show the metadata servers that a proxy was configured with
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  alba proxy-client-cfg -p 10000")]
pub(crate) struct ClientCfg {
    #[command(flatten)]
    proxy: ProxyArgs,
}

impl ClientCfg {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let config = session.proxy(self.proxy.address(), deadline).await?.client_config(deadline).await?;
        let row = |(name, ips, port): &(String, Vec<String>, u32)| {
            vec![name.clone(), ips.join(" "), port.to_string()]
        };
        let text = table(&["NAME", "ADDRESS", ">PORT"], config.nodes.iter().map(row).collect());
        let nodes: Vec<Value> = config
            .nodes
            .iter()
            .map(|(name, ips, port)| json!({ "name": name, "ips": ips, "port": port }))
            .collect();
        Answer::new(json!({ "cluster_id": config.cluster_id, "nodes": nodes }), text)
    }
}
