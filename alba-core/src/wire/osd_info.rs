//! OSDs as the original's clients are told about them (wire-protocol §7.1, §7.2, and ClaimInfo of §2.3).

mod json;

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
    /// Ours: the command ProvenGet; BLAKE3 roots are compared with their values when those are stored.
    ProvenGet,
    /// Ours: the update that deletes a range.
    DeleteRange,
    /// Ours: the update that fetches its value from a peer.
    CopyFromPeer,
    /// Ours: the command SetPeers.
    Peers,
    /// Ours: the command Health.
    Health,
}

/// What the original's ASDs can do, and all of ours.
pub const ASD_CAPABILITIES: [Capability; 2] = [Capability::MultiGet2, Capability::PartialGet];

impl Capability {
    /// Its name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MultiGet2 => "MultiGet2",
            Self::PartialGet => "PartialGet",
            Self::RoraFetcher { .. } => "RoraFetcher",
            Self::RoraFetcher2 { .. } => "RoraFetcher2",
            Self::ProvenGet => "ProvenGet",
            Self::DeleteRange => "DeleteRange",
            Self::CopyFromPeer => "CopyFromPeer",
            Self::Peers => "Peers",
            Self::Health => "Health",
        }
    }

    /// Its tag. Tags from 128 on are ours and travel in version 2 only, where clients of the original skip what they don't
    /// know; in version 1 an unknown one ends their connection.
    fn tag(&self) -> u8 {
        match self {
            Self::MultiGet2 => 1,
            Self::PartialGet => 2,
            Self::RoraFetcher { .. } => 3,
            Self::RoraFetcher2 { .. } => 4,
            Self::ProvenGet => 128,
            Self::DeleteRange => 129,
            Self::CopyFromPeer => 130,
            Self::Peers => 131,
            Self::Health => 132,
        }
    }

    fn is_of_version_1(&self) -> bool {
        matches!(self, Self::MultiGet2 | Self::PartialGet | Self::RoraFetcher { .. })
    }
}

/// Reads capabilities; unknown ones of version 2 are skipped.
pub fn read_capabilities(r: &mut Reader) -> Result<Vec<Capability>, WireError> {
    let known = r.list(2, |r| match r.int8()? {
        1 => match read_capability(r)? {
            Some(known) if known.is_of_version_1() => Ok(Some(known)),
            _ => Err(WireError::invalid("capability", "unknown in version 1")),
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
        128 => Some(Capability::ProvenGet),
        129 => Some(Capability::DeleteRange),
        130 => Some(Capability::CopyFromPeer),
        131 => Some(Capability::Peers),
        132 => Some(Capability::Health),
        _ => None,
    })
}

/// Writes capabilities: what version 1 knows in version 1.
pub fn write_capabilities(w: &mut Writer, capabilities: &[Capability]) {
    w.list(capabilities, |w, capability| {
        if capability.is_of_version_1() {
            w.int8(1);
            write_capability(w, capability);
        } else {
            w.int8(2);
            w.nested(|w| write_capability(w, capability));
        }
    });
}

fn write_capability(w: &mut Writer, capability: &Capability) {
    w.int8(capability.tag());
    match capability {
        Capability::RoraFetcher { port } => w.uint32(*port),
        Capability::RoraFetcher2 { ips, port, transport } => {
            w.list(ips, |w, ip| w.bytes(ip));
            w.uint32(*port);
            w.bytes(transport);
        }
        Capability::MultiGet2
        | Capability::PartialGet
        | Capability::ProvenGet
        | Capability::DeleteRange
        | Capability::CopyFromPeer
        | Capability::Peers
        | Capability::Health => {}
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::llio::Writer;

    const OURS: [Capability; 5] = [
        Capability::ProvenGet,
        Capability::DeleteRange,
        Capability::CopyFromPeer,
        Capability::Peers,
        Capability::Health,
    ];

    fn written(capabilities: &[Capability]) -> bytes::Bytes {
        let mut w = Writer::new();
        write_capabilities(&mut w, capabilities);
        w.finish().unwrap()
    }

    /// How a client of the original reads them (§7.2): the tags it knows; it fails on any other one in version 1, and skips it
    /// in version 2.
    fn original_tags(r: &mut Reader) -> Result<Vec<u8>, WireError> {
        let known = |r: &mut Reader, tag: u8| {
            if tag == 3 {
                r.uint32()?;
            }
            Ok(Some(tag))
        };
        let tags = r.list(2, |r| match r.int8()? {
            1 => match r.int8()? {
                tag @ 1..=3 => known(r, tag),
                tag => Err(WireError::Tag { what: "capability", tag: u32::from(tag) }),
            },
            2 => {
                let mut inner = Reader::new(r.bytes()?);
                match inner.int8()? {
                    tag @ 1..=4 => known(&mut inner, tag),
                    _ => Ok(None),
                }
            }
            version => Err(WireError::Tag { what: "capability version", tag: u32::from(version) }),
        })?;
        Ok(tags.into_iter().flatten().collect())
    }

    #[test]
    fn all_capabilities_read_back() {
        let fetcher =
            Capability::RoraFetcher2 { ips: vec!["1.2.3.4".into()], port: 1, transport: "tcp".into() };
        let all =
            [&ASD_CAPABILITIES[..], &OURS[..], &[Capability::RoraFetcher { port: 8 }, fetcher]].concat();
        assert_eq!(read_capabilities(&mut Reader::new(written(&all))), Ok(all.clone()));
        let names: std::collections::BTreeSet<&str> = all.iter().map(Capability::name).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn ours_have_their_golden_bytes() {
        let golden = "05000000 0201000000 84 0201000000 83 0201000000 82 0201000000 81 0201000000 80";
        assert_eq!(hex::encode(written(&OURS)), golden.replace(' ', ""));
    }

    #[test]
    fn clients_of_the_original_skip_ours_and_read_what_follows() {
        let all = [&OURS[..2], &ASD_CAPABILITIES[..], &OURS[2..]].concat();
        let bytes = [&written(&all)[..], b"next"].concat();
        let mut r = Reader::new(bytes);
        assert_eq!(original_tags(&mut r), Ok(vec![1, 2]));
        assert_eq!(r.rest(), "next");
    }

    #[test]
    fn ours_are_refused_in_version_1_and_others_skipped_in_version_2() {
        for tag in [4, 5, 128, 132, 255] {
            let version_1 = vec![1, 0, 0, 0, 1, tag];
            assert!(read_capabilities(&mut Reader::new(version_1)).is_err(), "{tag}");
        }
        for tag in [0, 5, 127, 133, 255] {
            let version_2 = vec![1, 0, 0, 0, 2, 4, 0, 0, 0, tag, 1, 2, 3];
            assert_eq!(read_capabilities(&mut Reader::new(version_2)), Ok(Vec::new()), "{tag}");
        }
    }
}
