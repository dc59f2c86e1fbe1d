//! OSDs as the original's clients are told about them (wire-protocol §7.1, §7.2, and ClaimInfo of §2.3).

use super::llio::{Reader, WireError, Writer};
use crate::ids::{AlbaId, OsdId};

/// What an OSD can do (§7.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capability {
    /// MultiGet2.
    MultiGet2,
    /// PartialGet.
    PartialGet,
    /// The retired direct-read service.
    RoraFetcher {
        /// Its port.
        port: u32,
    },
    /// The retired direct-read service, second form.
    RoraFetcher2 {
        /// Its addresses.
        ips: Vec<String>,
        /// Its port.
        port: u32,
        /// `tcp` or `rdma`.
        transport: String,
    },
}

/// What our ASDs can do.
pub const ASD_CAPABILITIES: [Capability; 2] = [Capability::MultiGet2, Capability::PartialGet];

/// Reads capabilities; unknown ones of version 2 are skipped.
pub fn read_capabilities(r: &mut Reader) -> Result<Vec<Capability>, WireError> {
    let known = r.list(2, |r| match r.int8()? {
        1 => match read_capability(r)? {
            Some(Capability::RoraFetcher2 { .. }) => Err(WireError::Tag { what: "capability", tag: 4 }),
            None => Err(WireError::invalid("capability", "unknown in version 1")),
            known => Ok(known),
        },
        2 => read_capability(&mut Reader::new(r.bytes()?)),
        version => Err(WireError::Tag { what: "capability version", tag: u32::from(version) }),
    })?;
    Ok(known.into_iter().flatten().collect())
}

fn read_capability(r: &mut Reader) -> Result<Option<Capability>, WireError> {
    Ok(match r.int8()? {
        1 => Some(Capability::MultiGet2),
        2 => Some(Capability::PartialGet),
        3 => Some(Capability::RoraFetcher { port: r.uint32()? }),
        4 => Some(Capability::RoraFetcher2 {
            ips: r.list(4, Reader::text_lossy)?,
            port: r.uint32()?,
            transport: r.text_lossy()?,
        }),
        _ => None,
    })
}

/// Writes capabilities: what version 1 knows in version 1.
pub fn write_capabilities(w: &mut Writer, capabilities: &[Capability]) {
    w.list(capabilities, |w, capability| match capability {
        Capability::MultiGet2 => w.raw(&[1, 1]),
        Capability::PartialGet => w.raw(&[1, 2]),
        Capability::RoraFetcher { port } => {
            w.raw(&[1, 3]);
            w.uint32(*port);
        }
        Capability::RoraFetcher2 { ips, port, transport } => {
            w.int8(2);
            w.nested(|w| {
                w.int8(4);
                w.list(ips, |w, ip| w.bytes(ip));
                w.uint32(*port);
                w.bytes(transport);
            });
        }
    });
}

/// Whose an OSD is (OsdView).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimInfo {
    /// Ours.
    ThisAlba(OsdId),
    /// Another backend's.
    AnotherAlba(AlbaId),
    /// Nobody's.
    Available,
}

impl ClaimInfo {
    /// Reads it.
    pub fn read(r: &mut Reader) -> Result<Self, WireError> {
        match r.int8()? {
            1 => r.x_id("osd id").map(Self::ThisAlba),
            2 => r.text_id("alba id").map(Self::AnotherAlba),
            3 => Ok(Self::Available),
            tag => Err(WireError::Tag { what: "claim info", tag: u32::from(tag) }),
        }
    }

    /// Writes it.
    pub fn write(&self, w: &mut Writer) {
        match self {
            Self::ThisAlba(id) => {
                w.int8(1);
                w.x_int64(id.get());
            }
            Self::AnotherAlba(id) => {
                w.int8(2);
                w.bytes(id.as_str());
            }
            Self::Available => w.int8(3),
        }
    }
}

/// Where an OSD listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnInfo {
    /// Numeric addresses; the C++ client takes the first.
    pub ips: Vec<String>,
    /// The port.
    pub port: u32,
    /// TLS on that port.
    pub use_tls: bool,
    /// RDMA instead of TCP.
    pub use_rdma: bool,
}

/// The layouts of [`ConnInfo`] and [`OsdInfo`] over time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum InfoSer {
    V1,
    V2,
    V3,
}

impl ConnInfo {
    fn read(r: &mut Reader, ser: InfoSer) -> Result<Self, WireError> {
        Ok(Self {
            ips: r.list(4, Reader::text_lossy)?,
            port: r.uint32()?,
            use_tls: ser >= InfoSer::V2 && r.bool()?,
            use_rdma: ser >= InfoSer::V3 && r.bool()?,
        })
    }

    fn write(&self, w: &mut Writer) {
        w.list(&self.ips, |w, ip| w.bytes(ip));
        w.uint32(self.port);
        w.bool(self.use_tls);
        w.bool(self.use_rdma);
    }
}

/// The metadata cluster as the original described it (command 19), in its first and only working form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientConfig {
    /// Name of the cluster.
    pub cluster_id: String,
    /// Names, addresses and ports of its nodes.
    pub nodes: Vec<(String, Vec<String>, u32)>,
}

impl ClientConfig {
    /// Reads it.
    pub fn read(r: &mut Reader) -> Result<Self, WireError> {
        match r.int8()? {
            1 => Ok(Self {
                cluster_id: r.text_lossy()?,
                nodes: r.list(12, |r| Ok((r.text_lossy()?, r.list(4, Reader::text_lossy)?, r.uint32()?)))?,
            }),
            tag => Err(WireError::Tag { what: "cluster config version", tag: u32::from(tag) }),
        }
    }

    /// Writes it.
    pub fn write(&self, w: &mut Writer) {
        w.int8(1);
        w.bytes(&self.cluster_id);
        w.list(&self.nodes, |w, (name, ips, port)| {
            w.bytes(name);
            w.list(ips, |w, ip| w.bytes(ip));
            w.uint32(*port);
        });
    }
}

/// What an OSD is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OsdKind {
    /// 1: an ASD and its long id.
    Asd(ConnInfo, String),
    /// 2: a kinetic drive and its id.
    Kinetic(ConnInfo, String),
    /// 3 (`false`) and 4 (`true`): another backend.
    Alba {
        /// Tag 4 instead of 3.
        second: bool,
        /// Where its metadata is.
        config: ClientConfig,
        /// Its id.
        id: String,
        /// Of the namespaces used there.
        prefix: String,
        /// Of those namespaces.
        preset: String,
    },
    /// 5: another backend behind proxies.
    AlbaProxy {
        /// `tcp://host:port`, `rdma://host:port`.
        endpoints: Vec<String>,
        /// Its id.
        id: String,
        /// Of the namespaces used there.
        prefix: String,
        /// Of those namespaces.
        preset: String,
    },
}

impl OsdKind {
    fn read(r: &mut Reader, ser: InfoSer) -> Result<Self, WireError> {
        Ok(match r.int8()? {
            1 => Self::Asd(ConnInfo::read(r, ser)?, r.text_lossy()?),
            2 => Self::Kinetic(ConnInfo::read(r, ser)?, r.text_lossy()?),
            tag @ (3 | 4) => Self::Alba {
                second: tag == 4,
                config: ClientConfig::read(r)?,
                id: r.text_lossy()?,
                prefix: r.text_lossy()?,
                preset: r.text_lossy()?,
            },
            5 => Self::AlbaProxy {
                endpoints: r.list(4, Reader::text_lossy)?,
                id: r.text_lossy()?,
                prefix: r.text_lossy()?,
                preset: r.text_lossy()?,
            },
            tag => return Err(WireError::Tag { what: "OSD kind", tag: u32::from(tag) }),
        })
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Self::Asd(conn, id) => {
                w.int8(1);
                conn.write(w);
                w.bytes(id);
            }
            Self::Kinetic(conn, id) => {
                w.int8(2);
                conn.write(w);
                w.bytes(id);
            }
            Self::Alba { second, config, id, prefix, preset } => {
                w.int8(if *second { 4 } else { 3 });
                config.write(w);
                [id, prefix, preset].into_iter().for_each(|text| w.bytes(text));
            }
            Self::AlbaProxy { endpoints, id, prefix, preset } => {
                w.int8(5);
                w.list(endpoints, |w, endpoint| w.bytes(endpoint));
                [id, prefix, preset].into_iter().for_each(|text| w.bytes(text));
            }
        }
    }
}

/// An OSD (§7.1). Times are Unix seconds, the most recent first.
#[derive(Debug, Clone, PartialEq)]
pub struct OsdInfo {
    /// What it is and where.
    pub kind: OsdKind,
    /// Its node.
    pub node_id: String,
    /// Is it being emptied?
    pub decommissioned: bool,
    /// Free text.
    pub other: String,
    /// Bytes it may hold.
    pub total: u64,
    /// Bytes it holds.
    pub used: u64,
    /// When it was last seen.
    pub seen: Vec<f64>,
    /// When it was last read from.
    pub read: Vec<f64>,
    /// When it was last written to.
    pub write: Vec<f64>,
    /// What failed lately.
    pub errors: Vec<(f64, String)>,
    /// Damaged fragments found on it.
    pub checksum_errors: u64,
    /// Since when it belongs to the backend.
    pub claimed_since: Option<f64>,
}

impl OsdInfo {
    /// Reads any version.
    pub fn read(r: &mut Reader) -> Result<Self, WireError> {
        match r.int8()? {
            1 => Self::read_inner(r, InfoSer::V1),
            2 => Self::read_inner(&mut Reader::new(r.bytes()?), InfoSer::V2),
            3 => Self::read_inner(&mut Reader::new(r.bytes()?), InfoSer::V3),
            tag => Err(WireError::Tag { what: "OSD info version", tag: u32::from(tag) }),
        }
    }

    fn read_inner(r: &mut Reader, ser: InfoSer) -> Result<Self, WireError> {
        let mut info = Self {
            kind: OsdKind::read(r, ser)?,
            node_id: r.text_lossy()?,
            decommissioned: r.bool()?,
            other: r.text_lossy()?,
            total: r.size("total")?,
            used: r.size("used")?,
            seen: r.list(8, Reader::float)?,
            read: r.list(8, Reader::float)?,
            write: r.list(8, Reader::float)?,
            errors: r.list(12, |r| Ok((r.float()?, r.text_lossy()?)))?,
            checksum_errors: 0,
            claimed_since: None,
        };
        if ser == InfoSer::V3 {
            info.checksum_errors = r.tail(|r| r.size("checksum errors"))?.unwrap_or_default();
            info.claimed_since = r.tail(|r| r.option(Reader::float))?.flatten();
        }
        Ok(info)
    }

    /// Writes version 3, the one the C++ client accepts.
    pub fn write(&self, w: &mut Writer) {
        w.int8(3);
        w.nested(|w| {
            self.kind.write(w);
            w.bytes(&self.node_id);
            w.bool(self.decommissioned);
            w.bytes(&self.other);
            w.size(self.total);
            w.size(self.used);
            for times in [&self.seen, &self.read, &self.write] {
                w.list(times, |w, time| w.float(*time));
            }
            w.list(&self.errors, |w, (time, text)| {
                w.float(*time);
                w.bytes(text);
            });
            w.size(self.checksum_errors);
            w.option(self.claimed_since, Writer::float);
        });
    }
}
