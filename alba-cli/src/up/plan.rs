//! What a local cluster consists of: a pure function of the options and of what is in the data directory.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// The size and the ports. What is not given is as at the last start, at the first start the default.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ShapeArgs {
    /// Nodes to pretend: failure domains [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) nodes: Option<u16>,
    /// Storage daemons per node [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) osds_per_node: Option<u16>,
    /// Metadata servers, 1, 3 or 5: every metadata group has a replica on each. Fixed at the first start [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=5))]
    pub(crate) metadata_nodes: Option<u16>,
    /// Metadata groups that hold namespaces [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nsm_groups: Option<u16>,
    /// Proxies [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) proxies: Option<u16>,
    /// Port of the first proxy; others follow [default: 10000]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) proxy_port: Option<u16>,
    /// Port of the first storage daemon; others follow [default: 8000]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) asd_base_port: Option<u16>,
    /// Port (UDP) of the first metadata server; others follow [default: 4000]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) metadata_base_port: Option<u16>,
    /// Port of the first process's metrics; others follow [default: 9100]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) metrics_base_port: Option<u16>,
    /// Bytes each storage daemon may hold [default: the size of the file system]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) osd_capacity: Option<u64>,
    /// Where proxies keep fragments that are read or written often: nowhere, or in memory and below the data directory
    /// [default: none]
    #[arg(long, value_name = "KIND")]
    pub(crate) fragment_cache: Option<FragmentCache>,
}

/// Where a proxy caches fragments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FragmentCache {
    /// Nowhere.
    #[default]
    None,
    /// In memory and in the proxy's directory.
    Local,
}

impl FragmentCache {
    /// As it is given.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Local => "local",
        }
    }
}

/// A cluster's shape as it is kept in its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    nodes: u16,
    osds_per_node: u16,
    /// Data directories from before groups could be replicated do not name it.
    #[serde(default = "one")]
    metadata_nodes: u16,
    nsm_groups: u16,
    proxies: u16,
    proxy_port: u16,
    asd_base_port: u16,
    metadata_base_port: u16,
    metrics_base_port: u16,
    osd_capacity: Option<u64>,
    /// Data directories from before there was a choice do not name it.
    #[serde(default)]
    fragment_cache: FragmentCache,
    /// The node of each OSD. Fixed for life: an OSD that changed its node would break the spread of what it holds.
    osd_nodes: Vec<u16>,
}

fn one() -> u16 {
    1
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Metadata server.
    Metadata,
    /// Storage daemon on a node.
    Asd {
        /// Which node.
        node: u16,
    },
    /// Proxy.
    Proxy,
    /// Maintenance agent: serves nothing but its metrics.
    Maintenance,
    /// Rebalancer: serves nothing but its metrics, too.
    Rebalancer,
}

impl Role {
    /// The sub-command that runs it.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Asd { .. } => "asd-server",
            Self::Proxy => "proxy",
            Self::Maintenance => "maintenance",
            Self::Rebalancer => "rebalancer",
        }
    }

    /// Does it serve nothing but its metrics?
    pub(crate) fn is_agent(self) -> bool {
        matches!(self, Self::Maintenance | Self::Rebalancer)
    }

    /// The option that moves its ports.
    fn port_option(self) -> &'static str {
        match self {
            Self::Metadata => "--metadata-base-port",
            Self::Asd { .. } => "--asd-base-port",
            Self::Proxy => "--proxy-port",
            Self::Maintenance | Self::Rebalancer => "--metrics-base-port",
        }
    }
}

/// A process to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    /// `asd-0`, …
    pub(crate) name: String,
    /// What it does.
    pub(crate) role: Role,
    /// Where it serves; an agent has no more than its metrics.
    pub(crate) listen: SocketAddr,
    /// Where its metrics and health are.
    pub(crate) metrics: SocketAddr,
}

impl Shape {
    /// The shape for these options, on top of the one in the data directory.
    pub(crate) fn new(args: &ShapeArgs, last: Option<&Self>) -> Result<Self, String> {
        let or = |given: Option<u16>, last: Option<u16>, default: u16| given.or(last).unwrap_or(default);
        let nodes = or(args.nodes, last.map(|l| l.nodes), 4);
        let osds_per_node = or(args.osds_per_node, last.map(|l| l.osds_per_node), 3);
        let nsm_groups = or(args.nsm_groups, last.map(|l| l.nsm_groups), 1);
        let metadata_nodes = or(args.metadata_nodes, last.map(|l| l.metadata_nodes), 1);
        if metadata_nodes % 2 == 0 {
            return Err(format!(
                "--metadata-nodes {metadata_nodes} is even, and survives no more failures than {}: give 1, 3 or 5",
                metadata_nodes - 1
            ));
        }
        if let Some(last) = last
            && last.metadata_nodes != metadata_nodes
        {
            return Err(format!(
                "--metadata-nodes {metadata_nodes}: this data directory has {}, which is fixed at the first start; \
                 leave the option out, or give another --data-dir",
                last.metadata_nodes
            ));
        }
        if let Some(last) = last {
            for (option, now, before) in [
                ("--nodes", nodes, last.nodes),
                ("--osds-per-node", osds_per_node, last.osds_per_node),
                ("--nsm-groups", nsm_groups, last.nsm_groups),
            ] {
                if now < before {
                    return Err(format!(
                        "{option} {now} is less than the {before} this data directory has: a cluster does not shrink; \
                         give {before} or more, or another --data-dir"
                    ));
                }
            }
        }
        let osd_nodes = grown(last.map(|l| l.osd_nodes.clone()).unwrap_or_default(), nodes, osds_per_node);
        Ok(Self {
            nodes,
            osds_per_node,
            metadata_nodes,
            nsm_groups,
            proxies: or(args.proxies, last.map(|l| l.proxies), 1),
            proxy_port: or(args.proxy_port, last.map(|l| l.proxy_port), 10_000),
            asd_base_port: or(args.asd_base_port, last.map(|l| l.asd_base_port), 8000),
            metadata_base_port: or(args.metadata_base_port, last.map(|l| l.metadata_base_port), 4000),
            metrics_base_port: or(args.metrics_base_port, last.map(|l| l.metrics_base_port), 9100),
            osd_capacity: args.osd_capacity.or(last.and_then(|l| l.osd_capacity)),
            fragment_cache: args.fragment_cache.or(last.map(|l| l.fragment_cache)).unwrap_or_default(),
            osd_nodes,
        })
    }

    /// Bytes an OSD may hold, if they are limited.
    pub(crate) fn osd_capacity(&self) -> Option<u64> {
        self.osd_capacity
    }

    /// What the proxies cache fragments in.
    pub(crate) fn fragment_cache(&self) -> FragmentCache {
        self.fragment_cache
    }

    /// Is the metadata replicated?
    pub(crate) fn replicated(&self) -> bool {
        self.metadata_nodes > 1
    }

    /// Names of the metadata groups that hold namespaces.
    pub(crate) fn groups(&self) -> Vec<String> {
        (0..self.nsm_groups).map(|i| format!("nsm-{i}")).collect()
    }

    /// All processes in the order they are started. Ports must be distinct; those of OSD i never move while the base
    /// stays.
    pub(crate) fn processes(&self) -> Result<Vec<Planned>, String> {
        let mut planned = Vec::new();
        let mut metrics = Ports::new("--metrics-base-port", self.metrics_base_port);
        let mut add = |role: Role, prefix: &str, base: u16, count: usize, nodes: &[u16]| {
            let mut ports = Ports::new(role.port_option(), base);
            for index in 0..count {
                let role = match (role, nodes.get(index)) {
                    (Role::Asd { .. }, Some(node)) => Role::Asd { node: *node },
                    _ => role,
                };
                let name = format!("{prefix}-{index}");
                planned.push(Planned { name, role, listen: ports.next()?, metrics: metrics.next()? });
            }
            Ok::<_, String>(())
        };
        add(Role::Metadata, "metadata", self.metadata_base_port, usize::from(self.metadata_nodes), &[])?;
        add(Role::Proxy, "proxy", self.proxy_port, usize::from(self.proxies), &[])?;
        let osds = self.osd_nodes.len();
        add(Role::Asd { node: 0 }, "asd", self.asd_base_port, osds, &self.osd_nodes)?;
        for (name, role) in [("maintenance-0", Role::Maintenance), ("rebalancer-0", Role::Rebalancer)] {
            let at = metrics.next()?;
            planned.push(Planned { name: name.to_owned(), role, listen: at, metrics: at });
        }
        let mut owners: BTreeMap<SocketAddr, (String, &'static str)> = BTreeMap::new();
        for process in &planned {
            for (at, option) in process.addresses() {
                let who = if at == process.metrics {
                    format!("the metrics of {}", process.name)
                } else {
                    process.name.clone()
                };
                if let Some((other, its)) = owners.insert(at, (who.clone(), option)) {
                    return Err(format!(
                        "port {} would serve both {other} and {who}: change {its} or {option}",
                        at.port()
                    ));
                }
            }
        }
        Ok(planned)
    }
}

impl Planned {
    /// Its addresses, and the option that moves each.
    pub(crate) fn addresses(&self) -> Vec<(SocketAddr, &'static str)> {
        let mut addresses = vec![(self.metrics, "--metrics-base-port")];
        if !self.role.is_agent() {
            addresses.push((self.listen, self.role.port_option()));
        }
        addresses
    }
}

/// Adds what is missing on each node, behind the OSDs that are there.
fn grown(mut osd_nodes: Vec<u16>, nodes: u16, per_node: u16) -> Vec<u16> {
    for node in 0..nodes {
        let has = osd_nodes.iter().filter(|other| **other == node).count();
        osd_nodes.extend((has..usize::from(per_node)).map(|_| node));
    }
    osd_nodes
}

/// Ports from a base on.
struct Ports {
    option: &'static str,
    next: Option<u16>,
}

impl Ports {
    fn new(option: &'static str, base: u16) -> Self {
        Self { option, next: Some(base) }
    }

    fn next(&mut self) -> Result<SocketAddr, String> {
        let port = self.next.ok_or_else(|| format!("{} is too high: ports end at 65535", self.option))?;
        self.next = port.checked_add(1);
        Ok((Ipv4Addr::LOCALHOST, port).into())
    }
}

#[cfg(test)]
mod tests;
