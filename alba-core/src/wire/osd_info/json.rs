//! OSDs as compact JSON (wire-protocol §7.4): variants are lists that begin with the constructor's name, tuples are lists,
//! what is absent is null.

use serde::Serialize;
use serde_json::{Value, json};

use super::{ClientConfig, ConnInfo, OsdInfo, OsdKind};

/// The fields in the original's order.
#[derive(Serialize)]
struct Fields<'a> {
    kind: Value,
    decommissioned: bool,
    node_id: &'a str,
    other: &'a str,
    total: u64,
    used: u64,
    seen: &'a [f64],
    read: &'a [f64],
    write: &'a [f64],
    errors: &'a [(f64, String)],
    checksum_errors: u64,
    claimed_since: Option<f64>,
}

fn conn_info(conn: &ConnInfo) -> Value {
    json!([conn.ips, conn.port, conn.use_tls, conn.use_rdma])
}

fn config(config: &ClientConfig) -> Value {
    json!([config.cluster_id, config.nodes])
}

fn kind(kind: &OsdKind) -> Value {
    match kind {
        OsdKind::Asd(conn, id) => json!(["Asd", conn_info(conn), id]),
        OsdKind::Kinetic(conn, id) => json!(["Kinetic", conn_info(conn), id]),
        OsdKind::Alba { second, config: cluster, id, prefix, preset } => {
            let name = if *second { "Alba2" } else { "Alba" };
            json!([name, { "cfg": config(cluster), "id": id, "prefix": prefix, "preset": preset }])
        }
        OsdKind::AlbaProxy { endpoints, id, prefix, preset } => {
            json!(["AlbaProxy", { "endpoints": endpoints, "id": id, "prefix": prefix, "preset": preset }])
        }
    }
}

impl OsdInfo {
    /// Compact JSON, for programs that read OsdView. A time that is no number is null.
    pub fn to_json(&self) -> String {
        let fields = Fields {
            kind: kind(&self.kind),
            decommissioned: self.decommissioned,
            node_id: &self.node_id,
            other: &self.other,
            total: self.total,
            used: self.used,
            seen: &self.seen,
            read: &self.read,
            write: &self.write,
            errors: &self.errors,
            checksum_errors: self.checksum_errors,
            claimed_since: self.claimed_since,
        };
        // Numbers, texts and lists of them: nothing that JSON cannot say.
        serde_json::to_string(&fields).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the description.
    #[test]
    fn an_asd_is_told_as_the_original_tells_it() {
        let conn =
            ConnInfo { ips: vec!["127.0.0.1".to_owned()], port: 8000, use_tls: false, use_rdma: false };
        let mut info = OsdInfo {
            kind: OsdKind::Asd(conn.clone(), "asd_0".to_owned()),
            node_id: "node_0".to_owned(),
            decommissioned: false,
            other: String::new(),
            total: 1000,
            used: 0,
            seen: Vec::new(),
            read: Vec::new(),
            write: Vec::new(),
            errors: Vec::new(),
            checksum_errors: 0,
            claimed_since: None,
        };
        let expected = r#"{"kind":["Asd",[["127.0.0.1"],8000,false,false],"asd_0"],"decommissioned":false,
            "node_id":"node_0","other":"","total":1000,"used":0,"seen":[],"read":[],
            "write":[],"errors":[],"checksum_errors":0,"claimed_since":null}"#;
        let dense: String = expected.chars().filter(|c| !c.is_whitespace()).collect();
        assert_eq!(info.to_json(), dense);

        info.errors = vec![(2.5, "a \"b\"".to_owned())];
        info.claimed_since = Some(1.0);
        let json: Value = serde_json::from_str(&info.to_json()).unwrap();
        assert_eq!((&json["errors"], &json["claimed_since"]), (&json!([[2.5, "a \"b\""]]), &json!(1.0)));

        for (kind, name) in [
            (OsdKind::Kinetic(conn, "k".to_owned()), "Kinetic"),
            (
                OsdKind::Alba {
                    second: true,
                    config: ClientConfig::default(),
                    id: String::new(),
                    prefix: String::new(),
                    preset: String::new(),
                },
                "Alba2",
            ),
            (
                OsdKind::AlbaProxy {
                    endpoints: Vec::new(),
                    id: String::new(),
                    prefix: String::new(),
                    preset: String::new(),
                },
                "AlbaProxy",
            ),
        ] {
            info.kind = kind;
            let json: Value = serde_json::from_str(&info.to_json()).unwrap();
            assert_eq!(json["kind"][0], name);
        }
    }
}
