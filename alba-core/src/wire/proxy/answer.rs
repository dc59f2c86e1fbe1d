//! What a proxy answers.

use bytes::Bytes;

use super::{Command, OsdView, ProxyError, ProxyStatistics};
use crate::checksum::Checksum;
use crate::ids::{NamespaceId, OsdId};
use crate::range::Page;
use crate::wire::common::{Version, read_checksum, read_page, write_original_checksum, write_page};
use crate::wire::llio::{Message, Reader, WireError, Writer};
use crate::wire::manifest::{LocatedManifest, ManifestSer, WireManifest};
use crate::wire::osd_info::{Capability, OsdInfo, read_capabilities, write_capabilities};

pub use crate::wire::osd_info::ClientConfig;

/// An object as direct readers are told about it.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectInfo {
    /// Its name.
    pub name: Bytes,
    /// Whose it is; empty: the proxy's own backend.
    pub alba_id: Bytes,
    /// Where its fragments are.
    pub manifest: LocatedManifest,
}

impl ObjectInfo {
    fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self { name: r.bytes()?, alba_id: r.bytes()?, manifest: LocatedManifest::read(r)? })
    }

    fn write(&self, w: &mut Writer, ser: ManifestSer) {
        w.bytes(&self.name);
        w.bytes(&self.alba_id);
        self.manifest.write(w, ser);
    }

    /// Two strings, an envelope and an id.
    const MIN_LEN: usize = 4 + 4 + 5 + 4;
}

/// An object read whole.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadObject {
    /// How it is stored.
    pub manifest: WireManifest,
    /// Its bytes, in any number of pieces.
    pub data: Vec<Bytes>,
}

/// A claimed OSD.
#[derive(Debug, Clone, PartialEq)]
pub struct OsdEntry {
    /// Its id in the backend.
    pub id: OsdId,
    /// Where it is and how it fares.
    pub info: OsdInfo,
    /// What it can do; empty until it was asked.
    pub capabilities: Vec<Capability>,
}

impl OsdEntry {
    fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            id: r.x_id("osd id")?,
            info: OsdInfo::read(&mut Reader::new(r.bytes()?))?,
            capabilities: read_capabilities(r)?,
        })
    }

    fn write(&self, w: &mut Writer) {
        w.x_int64(self.id.get());
        w.nested(|w| self.info.write(w));
        write_capabilities(w, &self.capabilities);
    }

    const MIN_LEN: usize = 4 + 4 + 4;
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// To whatever only succeeds or fails.
    Done,
    /// To ListNamespaces and ListObjects.
    Names(Page<Bytes>),
    /// To ListNamespaces2: names and presets.
    NamesWithPresets(Page<(Bytes, Bytes)>),
    /// To NamespaceExists and HasLocalFragmentCache.
    Flag(bool),
    /// To GetObjectInfo.
    Summary {
        /// In bytes, without padding.
        size: u64,
        /// Of the object.
        checksum: Checksum,
    },
    /// To ReadObjectsSlices: all slices back to back, in any number of pieces.
    Data(Vec<Bytes>),
    /// To ReadObjectsSlices2.
    DataAndObjects(Vec<Bytes>, Vec<ObjectInfo>),
    /// To WriteObjectFs2.
    Manifest(Box<LocatedManifest>),
    /// To ApplySequence: what was uploaded.
    Objects(Vec<ObjectInfo>),
    /// To ProxyStatistics.
    Statistics(ProxyStatistics),
    /// To GetVersion.
    Version(Version),
    /// To GetClientConfig.
    ClientConfig(ClientConfig),
    /// To Ping: Unix seconds.
    Time(f64),
    /// To OsdView.
    OsdView(OsdView),
    /// To OsdInfo.
    Osds(Vec<OsdEntry>),
    /// To OsdInfo2: per backend, the proxy's own first, the deepest fragment cache last.
    OsdsByAlba(Vec<(Bytes, Vec<OsdEntry>)>),
    /// To ReadObjects, in the order asked; none: missing.
    ReadObjects(NamespaceId, Vec<Option<ReadObject>>),
    /// To MultiExists, in the order asked.
    Exists(Vec<bool>),
    /// To GetAlbaId.
    AlbaId(Bytes),
    /// To UpdateSession: what was processed.
    Session(Vec<(Bytes, Bytes)>),
    /// To GetFragmentEncryptionKey.
    Key(Option<Bytes>),
}

/// The frame that answers a request of kind `command`; manifests in the session's form. A response that does not
/// belong to the command is a programming error and is refused.
pub fn encode_answer(
    command: Command,
    answer: &Result<Response, ProxyError>,
    ser: ManifestSer,
) -> Result<Message, WireError> {
    Writer::frame(|w| match answer {
        Err(error) => error.write(w),
        Ok(response) => {
            w.uint32(0);
            response.write(command, ser, w);
        }
    })
}

impl Response {
    fn write(&self, command: Command, ser: ManifestSer, w: &mut Writer) {
        match (command, self) {
            (
                Command::CreateNamespace
                | Command::DeleteNamespace
                | Command::DeleteObject
                | Command::ReadObjectFs
                | Command::WriteObjectFs
                | Command::InvalidateCache
                | Command::DropCache,
                Self::Done,
            ) => {}
            (Command::ListNamespaces | Command::ListObjects, Self::Names(page)) => {
                write_page(w, page, |w, name| w.bytes(name));
            }
            (Command::ListNamespaces2, Self::NamesWithPresets(page)) => {
                write_page(w, page, |w, (name, preset)| {
                    w.bytes(name);
                    w.bytes(preset);
                });
            }
            (Command::NamespaceExists | Command::HasLocalFragmentCache, Self::Flag(flag)) => w.bool(*flag),
            (Command::GetObjectInfo, Self::Summary { size, checksum }) => {
                w.size(*size);
                write_original_checksum(w, checksum);
            }
            (Command::ReadObjectsSlices, Self::Data(pieces)) => w.value_pieces(pieces),
            (Command::ReadObjectsSlices2, Self::DataAndObjects(pieces, objects)) => {
                w.value_pieces(pieces);
                w.list(objects, |w, object| object.write(w, ser));
            }
            (Command::WriteObjectFs2, Self::Manifest(manifest)) => manifest.write(w, ser),
            (Command::ApplySequence, Self::Objects(objects)) => {
                w.list(objects, |w, object| object.write(w, ser));
            }
            (Command::ProxyStatistics, Self::Statistics(statistics)) => statistics.write(w),
            (Command::GetVersion, Self::Version(version)) => version.write(w),
            (Command::GetClientConfig, Self::ClientConfig(config)) => config.write(w),
            (Command::Ping, Self::Time(seconds)) => w.float(*seconds),
            (Command::OsdView, Self::OsdView(view)) => view.write(w),
            (Command::OsdInfo, Self::Osds(osds)) => w.list(osds, |w, osd| osd.write(w)),
            (Command::OsdInfo2, Self::OsdsByAlba(levels)) => w.list(levels, |w, (alba, osds)| {
                w.bytes(alba);
                w.list(osds, |w, osd| osd.write(w));
            }),
            (Command::ReadObjects, Self::ReadObjects(namespace, objects)) => {
                w.x_int64(namespace.get());
                w.list(objects, |w, object| {
                    w.option(object.as_ref(), |w, object| {
                        object.manifest.write(w, ser);
                        w.value_pieces(&object.data);
                    });
                });
            }
            (Command::MultiExists, Self::Exists(flags)) => w.list(flags, |w, flag| w.bool(*flag)),
            (Command::GetAlbaId, Self::AlbaId(id)) => w.bytes(id),
            (Command::UpdateSession, Self::Session(processed)) => w.list(processed, |w, (key, value)| {
                w.bytes(key);
                w.bytes(value);
            }),
            (Command::GetFragmentEncryptionKey, Self::Key(key)) => {
                w.option(key.as_ref(), |w, key| w.bytes(key));
            }
            _ => w.fail(WireError::invalid("answer", "it is of another operation")),
        }
    }

    fn read(command: Command, r: &mut Reader) -> Result<Self, WireError> {
        Ok(match command {
            Command::CreateNamespace
            | Command::DeleteNamespace
            | Command::DeleteObject
            | Command::ReadObjectFs
            | Command::WriteObjectFs
            | Command::InvalidateCache
            | Command::DropCache => Self::Done,
            Command::ListNamespaces | Command::ListObjects => Self::Names(read_page(r, 4, Reader::bytes)?),
            Command::ListNamespaces2 => {
                Self::NamesWithPresets(read_page(r, 8, |r| Ok((r.bytes()?, r.bytes()?)))?)
            }
            Command::NamespaceExists | Command::HasLocalFragmentCache => Self::Flag(r.bool()?),
            Command::GetObjectInfo => {
                Self::Summary { size: r.size("object size")?, checksum: read_checksum(r)? }
            }
            Command::ReadObjectsSlices => Self::Data(vec![r.bytes()?]),
            Command::ReadObjectsSlices2 => {
                Self::DataAndObjects(vec![r.bytes()?], r.list(ObjectInfo::MIN_LEN, ObjectInfo::read)?)
            }
            Command::WriteObjectFs2 => Self::Manifest(Box::new(LocatedManifest::read(r)?)),
            Command::ApplySequence => Self::Objects(r.list(ObjectInfo::MIN_LEN, ObjectInfo::read)?),
            Command::ProxyStatistics => Self::Statistics(ProxyStatistics::read(r)?),
            Command::GetVersion => Self::Version(Version::read(r)?),
            Command::GetClientConfig => Self::ClientConfig(ClientConfig::read(r)?),
            Command::Ping => Self::Time(r.float()?),
            Command::OsdInfo => Self::Osds(r.list(OsdEntry::MIN_LEN, OsdEntry::read)?),
            Command::OsdInfo2 => {
                Self::OsdsByAlba(r.list(8, |r| Ok((r.bytes()?, r.list(OsdEntry::MIN_LEN, OsdEntry::read)?)))?)
            }
            Command::ReadObjects => Self::ReadObjects(
                r.x_id("namespace id")?,
                r.list(1, |r| {
                    r.option(|r| Ok(ReadObject { manifest: WireManifest::read(r)?, data: vec![r.bytes()?] }))
                })?,
            ),
            Command::MultiExists => Self::Exists(r.list(1, Reader::bool)?),
            Command::GetAlbaId => Self::AlbaId(r.bytes()?),
            Command::UpdateSession => Self::Session(r.list(8, |r| Ok((r.bytes()?, r.bytes()?)))?),
            Command::GetFragmentEncryptionKey => Self::Key(r.option(Reader::bytes)?),
            Command::OsdView => Self::OsdView(OsdView::read(r)?),
        })
    }
}

/// Decodes the payload of the frame that answers a request of kind `command`.
pub fn decode_answer(command: Command, payload: Bytes) -> Result<Result<Response, ProxyError>, WireError> {
    let mut r = Reader::new(payload);
    match r.uint32()? {
        0 => Response::read(command, &mut r).map(Ok),
        status => ProxyError::read(status, &mut r).map(Err),
    }
}
