//! What a client asks a proxy.

use bytes::Bytes;

use crate::checksum::Checksum;
use crate::range::RangeQuery;
use crate::wire::common::{
    RangeOrder, RequestError, read_checksum, read_range, write_original_checksum, write_range,
};
use crate::wire::llio::{Message, Reader, WireError, Writer};

/// The operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// 1
    ListNamespaces,
    /// 2
    NamespaceExists,
    /// 3
    CreateNamespace,
    /// 4
    DeleteNamespace,
    /// 5
    ListObjects,
    /// 8
    DeleteObject,
    /// 9
    GetObjectInfo,
    /// 10
    ReadObjectFs,
    /// 11
    WriteObjectFs,
    /// 13
    ReadObjectsSlices,
    /// 14
    InvalidateCache,
    /// 15
    ProxyStatistics,
    /// 16
    DropCache,
    /// 17
    GetVersion,
    /// 18
    OsdView,
    /// 19
    GetClientConfig,
    /// 20
    Ping,
    /// 21
    WriteObjectFs2,
    /// 22
    OsdInfo,
    /// 23
    ReadObjectsSlices2,
    /// 24
    ApplySequence,
    /// 25
    ReadObjects,
    /// 26
    MultiExists,
    /// 28
    OsdInfo2,
    /// 29
    GetAlbaId,
    /// 30
    ListNamespaces2,
    /// 31
    HasLocalFragmentCache,
    /// 32
    UpdateSession,
    /// 33
    GetFragmentEncryptionKey,
}

impl Command {
    /// All of them with their codes.
    pub const ALL: [(u32, Self); 29] = [
        (1, Self::ListNamespaces),
        (2, Self::NamespaceExists),
        (3, Self::CreateNamespace),
        (4, Self::DeleteNamespace),
        (5, Self::ListObjects),
        (8, Self::DeleteObject),
        (9, Self::GetObjectInfo),
        (10, Self::ReadObjectFs),
        (11, Self::WriteObjectFs),
        (13, Self::ReadObjectsSlices),
        (14, Self::InvalidateCache),
        (15, Self::ProxyStatistics),
        (16, Self::DropCache),
        (17, Self::GetVersion),
        (18, Self::OsdView),
        (19, Self::GetClientConfig),
        (20, Self::Ping),
        (21, Self::WriteObjectFs2),
        (22, Self::OsdInfo),
        (23, Self::ReadObjectsSlices2),
        (24, Self::ApplySequence),
        (25, Self::ReadObjects),
        (26, Self::MultiExists),
        (28, Self::OsdInfo2),
        (29, Self::GetAlbaId),
        (30, Self::ListNamespaces2),
        (31, Self::HasLocalFragmentCache),
        (32, Self::UpdateSession),
        (33, Self::GetFragmentEncryptionKey),
    ];

    /// The code on the wire.
    pub fn code(self) -> u32 {
        Self::ALL.into_iter().find(|(_, command)| *command == self).map_or(0, |(code, _)| code)
    }

    /// The operation of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == code).map(|(_, command)| command)
    }
}

/// An upload of a file the proxy can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteObjectFs {
    /// Where to.
    pub namespace: Bytes,
    /// Under which name.
    pub object: Bytes,
    /// Path as the proxy sees it.
    pub input_file: Bytes,
    /// May an object of that name be replaced?
    pub allow_overwrite: bool,
    /// Of the data, when the client knows it.
    pub checksum: Option<Checksum>,
}

/// A slice as asked for; nothing is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceRequest {
    /// Where it begins, in bytes.
    pub offset: i64,
    /// How long it is, in bytes.
    pub length: i32,
}

/// Slices of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSlices {
    /// Which object.
    pub object: Bytes,
    /// In the order wanted.
    pub slices: Vec<SliceRequest>,
}

/// A condition of a sequence, on the state before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assert {
    /// 1
    ObjectExists(Bytes),
    /// 2
    ObjectDoesNotExist(Bytes),
    /// 3: name and object id.
    ObjectHasId(Bytes, Bytes),
    /// 4: name and checksum.
    ObjectHasChecksum(Bytes, Checksum),
}

/// A change of a sequence. Of several for one name the first counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// 1
    UploadObjectFromFile {
        /// Name of the object.
        object: Bytes,
        /// Path as the proxy sees it.
        file: Bytes,
        /// Of the data, when the client knows it.
        checksum: Option<Checksum>,
    },
    /// 2
    UploadObject {
        /// Name of the object.
        object: Bytes,
        /// Its bytes: a slice of the frame.
        data: Bytes,
        /// Of the data, when the client knows it.
        checksum: Option<Checksum>,
    },
    /// 3: its name; a missing object is fine.
    DeleteObject(Bytes),
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of wire-protocol §2.3, by their names there")]
pub enum Request {
    ListNamespaces(RangeQuery),
    NamespaceExists(Bytes),
    CreateNamespace {
        name: Bytes,
        preset: Option<Bytes>,
    },
    DeleteNamespace(Bytes),
    ListObjects {
        namespace: Bytes,
        query: RangeQuery,
    },
    DeleteObject {
        namespace: Bytes,
        object: Bytes,
        may_not_exist: bool,
    },
    GetObjectInfo {
        namespace: Bytes,
        object: Bytes,
        consistent_read: bool,
        should_cache: bool,
    },
    ReadObjectFs {
        namespace: Bytes,
        object: Bytes,
        dest_file: Bytes,
        consistent_read: bool,
        should_cache: bool,
    },
    WriteObjectFs(WriteObjectFs),
    ReadObjectsSlices {
        namespace: Bytes,
        objects: Vec<ObjectSlices>,
        consistent_read: bool,
    },
    InvalidateCache(Bytes),
    ProxyStatistics {
        clear: bool,
        forget: Vec<Bytes>,
    },
    DropCache(Bytes),
    GetVersion,
    OsdView,
    GetClientConfig,
    Ping {
        delay: f64,
    },
    WriteObjectFs2(WriteObjectFs),
    OsdInfo,
    ReadObjectsSlices2 {
        namespace: Bytes,
        objects: Vec<ObjectSlices>,
        consistent_read: bool,
    },
    ApplySequence {
        namespace: Bytes,
        write_barrier: bool,
        asserts: Vec<Assert>,
        updates: Vec<Update>,
    },
    ReadObjects {
        namespace: Bytes,
        objects: Vec<Bytes>,
        consistent_read: bool,
        should_cache: bool,
    },
    MultiExists {
        namespace: Bytes,
        objects: Vec<Bytes>,
    },
    OsdInfo2,
    GetAlbaId,
    ListNamespaces2(RangeQuery),
    HasLocalFragmentCache,
    UpdateSession(Vec<(Bytes, Option<Bytes>)>),
    GetFragmentEncryptionKey {
        alba_id: Bytes,
        namespace_id: i64,
    },
}

impl Request {
    /// Which operation it is.
    pub fn command(&self) -> Command {
        match self {
            Self::ListNamespaces(_) => Command::ListNamespaces,
            Self::NamespaceExists(_) => Command::NamespaceExists,
            Self::CreateNamespace { .. } => Command::CreateNamespace,
            Self::DeleteNamespace(_) => Command::DeleteNamespace,
            Self::ListObjects { .. } => Command::ListObjects,
            Self::DeleteObject { .. } => Command::DeleteObject,
            Self::GetObjectInfo { .. } => Command::GetObjectInfo,
            Self::ReadObjectFs { .. } => Command::ReadObjectFs,
            Self::WriteObjectFs(_) => Command::WriteObjectFs,
            Self::ReadObjectsSlices { .. } => Command::ReadObjectsSlices,
            Self::InvalidateCache(_) => Command::InvalidateCache,
            Self::ProxyStatistics { .. } => Command::ProxyStatistics,
            Self::DropCache(_) => Command::DropCache,
            Self::GetVersion => Command::GetVersion,
            Self::OsdView => Command::OsdView,
            Self::GetClientConfig => Command::GetClientConfig,
            Self::Ping { .. } => Command::Ping,
            Self::WriteObjectFs2(_) => Command::WriteObjectFs2,
            Self::OsdInfo => Command::OsdInfo,
            Self::ReadObjectsSlices2 { .. } => Command::ReadObjectsSlices2,
            Self::ApplySequence { .. } => Command::ApplySequence,
            Self::ReadObjects { .. } => Command::ReadObjects,
            Self::MultiExists { .. } => Command::MultiExists,
            Self::OsdInfo2 => Command::OsdInfo2,
            Self::GetAlbaId => Command::GetAlbaId,
            Self::ListNamespaces2(_) => Command::ListNamespaces2,
            Self::HasLocalFragmentCache => Command::HasLocalFragmentCache,
            Self::UpdateSession(_) => Command::UpdateSession,
            Self::GetFragmentEncryptionKey { .. } => Command::GetFragmentEncryptionKey,
        }
    }

    /// Decodes the payload of a frame. Names and data are slices of it.
    pub fn decode(payload: Bytes) -> Result<Self, RequestError> {
        let mut r = Reader::new(payload);
        let code = r.uint32()?;
        let command = Command::from_code(code).ok_or(RequestError::UnknownOperation(code))?;
        Ok(Self::read(command, &mut r)?)
    }

    fn read(command: Command, r: &mut Reader) -> Result<Self, WireError> {
        Ok(match command {
            Command::ListNamespaces => Self::ListNamespaces(read_range(r, RangeOrder::MaxFirst)?),
            Command::ListNamespaces2 => Self::ListNamespaces2(read_range(r, RangeOrder::MaxFirst)?),
            Command::NamespaceExists => Self::NamespaceExists(r.bytes()?),
            Command::CreateNamespace => {
                Self::CreateNamespace { name: r.bytes()?, preset: r.option(Reader::bytes)? }
            }
            Command::DeleteNamespace => Self::DeleteNamespace(r.bytes()?),
            Command::InvalidateCache => Self::InvalidateCache(r.bytes()?),
            Command::DropCache => Self::DropCache(r.bytes()?),
            Command::ListObjects => {
                Self::ListObjects { namespace: r.bytes()?, query: read_range(r, RangeOrder::MaxFirst)? }
            }
            Command::DeleteObject => {
                Self::DeleteObject { namespace: r.bytes()?, object: r.bytes()?, may_not_exist: r.bool()? }
            }
            Command::GetObjectInfo => Self::GetObjectInfo {
                namespace: r.bytes()?,
                object: r.bytes()?,
                consistent_read: r.bool()?,
                should_cache: r.bool()?,
            },
            Command::ReadObjectFs => Self::ReadObjectFs {
                namespace: r.bytes()?,
                object: r.bytes()?,
                dest_file: r.bytes()?,
                consistent_read: r.bool()?,
                should_cache: r.bool()?,
            },
            Command::WriteObjectFs => Self::WriteObjectFs(WriteObjectFs::read(r)?),
            Command::WriteObjectFs2 => Self::WriteObjectFs2(WriteObjectFs::read(r)?),
            Command::ReadObjectsSlices => {
                let (namespace, objects, consistent_read) = read_slices(r)?;
                Self::ReadObjectsSlices { namespace, objects, consistent_read }
            }
            Command::ReadObjectsSlices2 => {
                let (namespace, objects, consistent_read) = read_slices(r)?;
                Self::ReadObjectsSlices2 { namespace, objects, consistent_read }
            }
            Command::ProxyStatistics => Self::ProxyStatistics {
                clear: r.bool()?,
                forget: r.tail(|r| r.list(4, Reader::bytes))?.unwrap_or_default(),
            },
            Command::GetVersion => Self::GetVersion,
            Command::OsdView => Self::OsdView,
            Command::GetClientConfig => Self::GetClientConfig,
            Command::Ping => Self::Ping { delay: r.float()? },
            Command::OsdInfo => Self::OsdInfo,
            Command::OsdInfo2 => Self::OsdInfo2,
            Command::GetAlbaId => Self::GetAlbaId,
            Command::HasLocalFragmentCache => Self::HasLocalFragmentCache,
            Command::ApplySequence => Self::ApplySequence {
                namespace: r.bytes()?,
                write_barrier: r.bool()?,
                asserts: r.list(5, Assert::read)?,
                updates: r.list(5, Update::read)?,
            },
            Command::ReadObjects => Self::ReadObjects {
                namespace: r.bytes()?,
                objects: r.list(4, Reader::bytes)?,
                consistent_read: r.bool()?,
                should_cache: r.bool()?,
            },
            Command::MultiExists => {
                Self::MultiExists { namespace: r.bytes()?, objects: r.list(4, Reader::bytes)? }
            }
            Command::UpdateSession => {
                Self::UpdateSession(r.list(5, |r| Ok((r.bytes()?, r.option(Reader::bytes)?)))?)
            }
            Command::GetFragmentEncryptionKey => {
                Self::GetFragmentEncryptionKey { alba_id: r.bytes()?, namespace_id: r.int64()? }
            }
        })
    }

    /// The frame to send. Data of 4 KiB and more is shared, not copied.
    pub fn encode(&self) -> Result<Message, WireError> {
        Writer::frame(|w| {
            w.uint32(self.command().code());
            self.write(w);
        })
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Self::ListNamespaces(query) | Self::ListNamespaces2(query) => {
                write_range(w, query, RangeOrder::MaxFirst);
            }
            Self::NamespaceExists(name)
            | Self::DeleteNamespace(name)
            | Self::InvalidateCache(name)
            | Self::DropCache(name) => w.bytes(name),
            Self::CreateNamespace { name, preset } => {
                w.bytes(name);
                w.option(preset.as_ref(), |w, preset| w.bytes(preset));
            }
            Self::ListObjects { namespace, query } => {
                w.bytes(namespace);
                write_range(w, query, RangeOrder::MaxFirst);
            }
            Self::DeleteObject { namespace, object, may_not_exist } => {
                w.bytes(namespace);
                w.bytes(object);
                w.bool(*may_not_exist);
            }
            Self::GetObjectInfo { namespace, object, consistent_read, should_cache } => {
                w.bytes(namespace);
                w.bytes(object);
                w.bool(*consistent_read);
                w.bool(*should_cache);
            }
            Self::ReadObjectFs { namespace, object, dest_file, consistent_read, should_cache } => {
                w.bytes(namespace);
                w.bytes(object);
                w.bytes(dest_file);
                w.bool(*consistent_read);
                w.bool(*should_cache);
            }
            Self::WriteObjectFs(write) | Self::WriteObjectFs2(write) => write.write(w),
            Self::ReadObjectsSlices { namespace, objects, consistent_read }
            | Self::ReadObjectsSlices2 { namespace, objects, consistent_read } => {
                w.bytes(namespace);
                w.list(objects, |w, object| {
                    w.bytes(&object.object);
                    w.list(&object.slices, |w, slice| {
                        w.int64(slice.offset);
                        w.int32(slice.length);
                    });
                });
                w.bool(*consistent_read);
            }
            Self::ProxyStatistics { clear, forget } => {
                w.bool(*clear);
                w.list(forget, |w, name| w.bytes(name));
            }
            Self::GetVersion
            | Self::OsdView
            | Self::GetClientConfig
            | Self::OsdInfo
            | Self::OsdInfo2
            | Self::GetAlbaId
            | Self::HasLocalFragmentCache => {}
            Self::Ping { delay } => w.float(*delay),
            Self::ApplySequence { namespace, write_barrier, asserts, updates } => {
                w.bytes(namespace);
                w.bool(*write_barrier);
                w.list(asserts, |w, assert| assert.write(w));
                w.list(updates, |w, update| update.write(w));
            }
            Self::ReadObjects { namespace, objects, consistent_read, should_cache } => {
                w.bytes(namespace);
                w.list(objects, |w, name| w.bytes(name));
                w.bool(*consistent_read);
                w.bool(*should_cache);
            }
            Self::MultiExists { namespace, objects } => {
                w.bytes(namespace);
                w.list(objects, |w, name| w.bytes(name));
            }
            Self::UpdateSession(wishes) => w.list(wishes, |w, (key, value)| {
                w.bytes(key);
                w.option(value.as_ref(), |w, value| w.bytes(value));
            }),
            Self::GetFragmentEncryptionKey { alba_id, namespace_id } => {
                w.bytes(alba_id);
                w.int64(*namespace_id);
            }
        }
    }
}

fn read_slices(r: &mut Reader) -> Result<(Bytes, Vec<ObjectSlices>, bool), WireError> {
    let namespace = r.bytes()?;
    let objects = r.list(8, |r| {
        let object = r.bytes()?;
        let slices = r.list(12, |r| Ok(SliceRequest { offset: r.int64()?, length: r.int32()? }))?;
        Ok(ObjectSlices { object, slices })
    })?;
    Ok((namespace, objects, r.bool()?))
}

fn read_given_checksum(r: &mut Reader) -> Result<Option<Checksum>, WireError> {
    r.option(read_checksum)
}

fn write_given_checksum(w: &mut Writer, checksum: Option<&Checksum>) {
    w.option(checksum, write_original_checksum);
}

impl WriteObjectFs {
    fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            namespace: r.bytes()?,
            object: r.bytes()?,
            input_file: r.bytes()?,
            allow_overwrite: r.bool()?,
            checksum: read_given_checksum(r)?,
        })
    }

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.namespace);
        w.bytes(&self.object);
        w.bytes(&self.input_file);
        w.bool(self.allow_overwrite);
        write_given_checksum(w, self.checksum.as_ref());
    }
}

impl Assert {
    /// The object it is about.
    pub fn object(&self) -> &Bytes {
        match self {
            Self::ObjectExists(name)
            | Self::ObjectDoesNotExist(name)
            | Self::ObjectHasId(name, _)
            | Self::ObjectHasChecksum(name, _) => name,
        }
    }

    fn read(r: &mut Reader) -> Result<Self, WireError> {
        let tag = r.int8()?;
        let name = r.bytes()?;
        Ok(match tag {
            1 => Self::ObjectExists(name),
            2 => Self::ObjectDoesNotExist(name),
            3 => Self::ObjectHasId(name, r.bytes()?),
            4 => Self::ObjectHasChecksum(name, read_checksum(r)?),
            tag => return Err(WireError::Tag { what: "assert", tag: u32::from(tag) }),
        })
    }

    fn write(&self, w: &mut Writer) {
        w.int8(match self {
            Self::ObjectExists(_) => 1,
            Self::ObjectDoesNotExist(_) => 2,
            Self::ObjectHasId(..) => 3,
            Self::ObjectHasChecksum(..) => 4,
        });
        w.bytes(self.object());
        match self {
            Self::ObjectExists(_) | Self::ObjectDoesNotExist(_) => {}
            Self::ObjectHasId(_, id) => w.bytes(id),
            Self::ObjectHasChecksum(_, checksum) => write_original_checksum(w, checksum),
        }
    }
}

impl Update {
    /// The object it is about.
    pub fn object(&self) -> &Bytes {
        match self {
            Self::UploadObjectFromFile { object, .. }
            | Self::UploadObject { object, .. }
            | Self::DeleteObject(object) => object,
        }
    }

    fn read(r: &mut Reader) -> Result<Self, WireError> {
        let tag = r.int8()?;
        let object = r.bytes()?;
        Ok(match tag {
            1 => Self::UploadObjectFromFile { object, file: r.bytes()?, checksum: read_given_checksum(r)? },
            2 => Self::UploadObject { object, data: r.bytes()?, checksum: read_given_checksum(r)? },
            3 => Self::DeleteObject(object),
            tag => return Err(WireError::Tag { what: "update", tag: u32::from(tag) }),
        })
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Self::UploadObjectFromFile { object, file, checksum } => {
                w.int8(1);
                w.bytes(object);
                w.bytes(file);
                write_given_checksum(w, checksum.as_ref());
            }
            Self::UploadObject { object, data, checksum } => {
                w.int8(2);
                w.bytes(object);
                w.value(data);
                write_given_checksum(w, checksum.as_ref());
            }
            Self::DeleteObject(object) => {
                w.int8(3);
                w.bytes(object);
            }
        }
    }
}
