//! OsdView (command 18): whose the known OSDs are, and how the claimed ones fare in the eyes of one proxy.

use bytes::Bytes;

use crate::ids::OsdId;
use crate::wire::llio::{Reader, WireError, Writer};
use crate::wire::osd_info::ClaimInfo;

/// Most time stamps and errors of a kind.
pub const OSD_STAMPS_MAX: usize = 10;

/// How an OSD fares. Times are Unix seconds, the most recent first, at most [`OSD_STAMPS_MAX`] of a kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OsdState {
    /// Does the proxy avoid it for new fragments?
    pub disqualified: bool,
    /// When reads worked.
    pub read: Vec<f64>,
    /// When writes worked.
    pub write: Vec<f64>,
    /// When what failed.
    pub errors: Vec<(f64, String)>,
    /// When it showed life.
    pub seen: Vec<f64>,
    /// What it announced of itself.
    pub json: Option<String>,
    /// Its addresses.
    pub ips: Option<Vec<String>>,
    /// Its port.
    pub port: Option<u32>,
    /// Bytes it holds.
    pub used: Option<u64>,
    /// Bytes it may hold.
    pub total: Option<u64>,
    /// Damaged fragments found on it.
    pub checksum_errors: Option<u64>,
}

impl OsdState {
    fn read(r: &mut Reader) -> Result<Self, WireError> {
        match r.int8()? {
            1 => {}
            tag => return Err(WireError::Tag { what: "OSD state version", tag: u32::from(tag) }),
        }
        Ok(Self {
            disqualified: r.bool()?,
            read: r.list(8, Reader::float)?,
            write: r.list(8, Reader::float)?,
            errors: r.list(12, |r| Ok((r.float()?, r.text_lossy()?)))?,
            seen: r.list(8, Reader::float)?,
            json: r.option(Reader::text_lossy)?,
            ips: r.option(|r| r.list(4, Reader::text_lossy))?,
            port: r.option(Reader::uint32)?,
            used: r.option(|r| r.size("used"))?,
            total: r.option(|r| r.size("total"))?,
            checksum_errors: r.tail(|r| r.option(|r| r.size("checksum errors")))?.flatten(),
        })
    }

    fn write(&self, w: &mut Writer) {
        w.int8(1);
        w.bool(self.disqualified);
        for times in [&self.read, &self.write] {
            w.list(times, |w, time| w.float(*time));
        }
        w.list(&self.errors, |w, (time, text)| {
            w.float(*time);
            w.bytes(text);
        });
        w.list(&self.seen, |w, time| w.float(*time));
        w.option(self.json.as_ref(), |w, json| w.bytes(json));
        w.option(self.ips.as_ref(), |w, ips| w.list(ips, |w, ip| w.bytes(ip)));
        w.option(self.port, Writer::uint32);
        for size in [self.used, self.total, self.checksum_errors] {
            w.option(size, Writer::size);
        }
    }

    /// Version, flag, four counts and six absent options, of which the last may be missing altogether.
    const MIN_LEN: usize = 1 + 1 + 4 * 4 + 5;
}

/// What a proxy knows of OSDs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OsdView {
    /// By long id: whose it is.
    pub claims: Vec<(Bytes, ClaimInfo)>,
    /// The claimed ones: their description as JSON ([`OsdInfo::to_json`](crate::wire::osd_info::OsdInfo::to_json)), and how
    /// they fare.
    pub osds: Vec<(OsdId, Bytes, OsdState)>,
}

impl OsdView {
    pub(super) fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            claims: r.list(5, |r| Ok((r.bytes()?, ClaimInfo::read(r)?)))?,
            osds: r.list(4 + 4 + OsdState::MIN_LEN, |r| {
                Ok((r.x_id("osd id")?, r.bytes()?, OsdState::read(r)?))
            })?,
        })
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.list(&self.claims, |w, (long_id, claim)| {
            w.bytes(long_id);
            claim.write(w);
        });
        w.list(&self.osds, |w, (id, json, state)| {
            w.x_int64(id.get());
            w.bytes(json);
            state.write(w);
        });
    }
}
