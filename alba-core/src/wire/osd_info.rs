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
