//! From a request's bytes to its answer's: decodes, asks the engine, encodes.

use std::any::Any;
use std::time::Duration;

use alba_client::{Consistency, Slice, StoredObject};
use alba_core::env::{Clock, computing};
use alba_core::ids::{NamespaceName, ObjectName, PresetName};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::common::Version;
use alba_core::wire::llio::{Message, WireError};
use alba_core::wire::manifest::{LocatedManifest, ManifestSer, WireManifest};
use alba_core::wire::proxy::{
    Command, ErrorCode, ObjectInfo, ObjectSlices, Request, Response, Session, WriteObjectFs, encode_answer,
};
use bytes::Bytes;

use crate::op;
use crate::refusal::Refusal;
use crate::server::Shared;
use crate::statistics::{Done, wall};
use crate::{objects, osds, sequence};

/// Longest delay of a ping, in seconds. It costs a connection, and the client ends it by going away.
const MAX_PING: f64 = 3600.0;

/// Revision of the source, when the build says it.
const REVISION: Option<&str> = option_env!("ALBA_REVISION");

/// An answer's bytes, with what must live until they are sent.
pub(crate) struct Answer {
    message: Message,
    _hold: Option<Box<dyn Any + Send + Sync>>,
}

impl Answer {
    /// The answer to a request that failed, or could not even be read.
    pub(crate) fn refused(refusal: &Refusal) -> Result<Self, WireError> {
        // An error looks the same whatever it answers.
        let message = encode_answer(Command::GetVersion, &Err(refusal.0.clone()), ManifestSer::V1)?;
        Ok(Self { message, _hold: None })
    }

    pub(crate) fn parts(&self) -> &[Bytes] {
        self.message.parts()
    }

    pub(crate) fn len(&self) -> usize {
        self.message.len()
    }
}

/// May frames of this command be large?
pub(crate) fn carries_data(command: u32) -> bool {
    command == Command::ApplySequence.code()
}

/// Serves one request. `WireError` is for what no answer can say.
pub(crate) async fn handle(
    shared: &Shared,
    session: &mut Session,
    frame: Bytes,
) -> Result<Answer, WireError> {
    let started = shared.env.clock.now();
    let request = decode(frame);
    let command = request.as_ref().ok().map(Request::command);
    let served = match request {
        Ok(request) => Box::pin(serve(shared, session, request)).await,
        Err(refusal) => Err(refusal),
    };
    if let Ok(Served { did: Some((namespace, done)), .. }) = &served {
        shared.statistics.record(namespace, *done, shared.env.clock.now().since(started));
    }
    let ser = session.manifest_ser;
    let limit = usize::try_from(shared.config.max_frame_bytes).unwrap_or(usize::MAX);
    let answer = match served {
        Err(refusal) => Err(refusal),
        Ok(Served { response, moved, hold, .. }) => {
            let command = command.unwrap_or(Command::GetVersion);
            match encoded(shared, command, response, ser).await {
                Err(error) => Err(error.into()),
                Ok(message) if message.len() > limit => {
                    let text = format!("the answer has {} bytes; at most {limit} are sent", message.len());
                    Err(Refusal::unknown(text))
                }
                Ok(message) => Ok((Answer { message, _hold: hold }, moved)),
            }
        }
    };
    let op = command.map_or("unknown", op::name);
    let took = shared.env.clock.now().since(started);
    metrics::histogram!("alba_proxy_request_seconds", "op" => op).record(took.as_secs_f64());
    match answer {
        Ok((answer, moved)) => {
            tracing::debug!(op, ?took, moved, "request served");
            metrics::counter!("alba_proxy_bytes_total", "op" => op).increment(moved);
            Ok(answer)
        }
        Err(refusal) => {
            let code = refusal.0.code;
            metrics::counter!("alba_proxy_errors_total", "op" => op, "code" => code.number().to_string())
                .increment(1);
            match code {
                ErrorCode::Unknown => tracing::warn!(op, ?took, error = %refusal, "request failed"),
                _ => tracing::debug!(op, ?took, error = %refusal, "request refused"),
            }
            Answer::refused(&refusal)
        }
    }
}

/// Manifests are serialized and compressed: many of them where no small request waits for it.
async fn encoded(
    shared: &Shared,
    command: Command,
    response: Response,
    ser: ManifestSer,
) -> Result<Message, WireError> {
    let count = match &response {
        Response::Objects(objects) | Response::DataAndObjects(_, objects) => objects.len(),
        Response::ReadObjects(_, objects) => objects.len(),
        _ => 0,
    };
    let encode = move || encode_answer(command, &Ok(response), ser);
    if count <= objects::FEW_OBJECTS {
        return encode();
    }
    match computing(shared.env.bulk.as_ref(), encode).await {
        Ok(message) => message,
        Err(gone) => encode_answer(command, &Err(Refusal::unknown(gone).0), ser),
    }
}

fn decode(frame: Bytes) -> Result<Request, Refusal> {
    let code = frame.first_chunk().copied().map(u32::from_le_bytes);
    if code.is_some_and(carries_data) {
        sequence::check_counts(&frame)?;
    }
    Ok(Request::decode(frame)?)
}

/// What a request gave.
struct Served {
    response: Response,
    /// Bytes of objects that were moved, for the metrics.
    moved: u64,
    /// For the statistics.
    did: Option<(NamespaceName, Done)>,
    hold: Option<Box<dyn Any + Send + Sync>>,
}

impl Served {
    fn counted(self, namespace: &NamespaceName, done: Done) -> Self {
        Self { did: Some((namespace.clone(), done)), ..self }
    }
}

impl From<Response> for Served {
    fn from(response: Response) -> Self {
        Self { response, moved: 0, did: None, hold: None }
    }
}

async fn serve(shared: &Shared, session: &mut Session, request: Request) -> Result<Served, Refusal> {
    let backend = shared.backend.as_ref();
    let by = shared.deadline_for(0);
    let response = match request {
        Request::ListNamespaces(range) => {
            let page = shared.within(by, backend.list_namespaces(checked(range)?, by)).await?;
            Response::Names(map_page(page, |record| bytes_of(record.name.as_bytes())))
        }
        Request::ListNamespaces2(range) => {
            let page = shared.within(by, backend.list_namespaces(checked(range)?, by)).await?;
            Response::NamesWithPresets(map_page(page, |record| {
                (bytes_of(record.name.as_bytes()), bytes_of(record.preset.as_str().as_bytes()))
            }))
        }
        Request::NamespaceExists(name) => {
            let name = namespace_name(&name)?;
            Response::Flag(shared.within(by, backend.namespace(&name, by)).await?.is_some())
        }
        Request::CreateNamespace { name, preset } => {
            let name = namespace_name(&name)?;
            let preset = preset.map(|preset| preset_name(&preset)).transpose()?;
            shared.within(by, backend.create_namespace(&name, preset, by)).await?;
            Response::Done
        }
        Request::DeleteNamespace(name) => {
            let name = namespace_name(&name)?;
            shared.within(by, backend.delete_namespace(&name, by)).await?;
            shared.statistics.forget(&name);
            Response::Done
        }
        Request::ListObjects { namespace, query } => {
            let namespace = namespace_name(&namespace)?;
            let page = shared.within(by, backend.list_objects(&namespace, checked(query)?, by)).await?;
            Response::Names(map_page(page, |name| bytes_of(name.as_bytes())))
        }
        Request::DeleteObject { namespace, object, may_not_exist } => {
            let (namespace, object) = (namespace_name(&namespace)?, object_name(&object)?);
            shared.within(by, backend.delete_object(&namespace, &object, !may_not_exist, by)).await?;
            return Ok(Served::from(Response::Done).counted(&namespace, Done::Delete));
        }
        Request::GetObjectInfo { namespace, object, consistent_read, should_cache: _ } => {
            let (namespace, object) = (namespace_name(&namespace)?, object_name(&object)?);
            let stored = objects::lookup(shared, &namespace, &object, consistency(consistent_read)).await?;
            Response::Summary { size: stored.manifest.size, checksum: stored.manifest.checksum }
        }
        Request::ReadObjectFs { namespace, object, dest_file, consistent_read, should_cache: _ } => {
            let (namespace, object) = (namespace_name(&namespace)?, object_name(&object)?);
            let consistency = consistency(consistent_read);
            let stored = objects::read_to_file(shared, &namespace, &object, &dest_file, consistency).await?;
            let served = Served { moved: stored.manifest.size, ..Response::Done.into() };
            return Ok(served.counted(&namespace, Done::Download));
        }
        Request::WriteObjectFs(write) => return write_object(shared, write, |_| Response::Done).await,
        Request::WriteObjectFs2(write) => {
            let response = |stored: &StoredObject| Response::Manifest(Box::new(located(stored)));
            return write_object(shared, write, response).await;
        }
        Request::ReadObjectsSlices { namespace, objects, consistent_read } => {
            return read_slices(shared, &namespace, objects, consistent_read, |data, _| Response::Data(data))
                .await;
        }
        Request::ReadObjectsSlices2 { namespace, objects, consistent_read } => {
            return read_slices(shared, &namespace, objects, consistent_read, |data, objects| {
                Response::DataAndObjects(data, objects.iter().map(object_info).collect())
            })
            .await;
        }
        // DropCache is a hint that the caller is done with the namespace; what it may have cached is the same.
        Request::InvalidateCache(namespace) | Request::DropCache(namespace) => {
            let namespace = namespace_name(&namespace)?;
            shared.within(by, backend.invalidate_cache(&namespace, by)).await?;
            Response::Done
        }
        Request::GetVersion => Response::Version(version()),
        Request::Ping { delay } => ping(shared, delay).await?,
        // The barrier asks for nothing more: every sequence is durable before it is answered.
        Request::ApplySequence { namespace, write_barrier: _, asserts, updates } => {
            let namespace = namespace_name(&namespace)?;
            let deletes = !updates.is_empty();
            let (stored, moved) = sequence::apply(shared, &namespace, asserts, updates).await?;
            let response = Response::Objects(stored.iter().map(object_info).collect());
            let served = Served { moved, ..response.into() };
            return Ok(match (stored.is_empty(), deletes) {
                (false, _) => served.counted(&namespace, Done::Upload),
                (true, true) => served.counted(&namespace, Done::Delete),
                (true, false) => served,
            });
        }
        Request::MultiExists { namespace, objects } => {
            let namespace = namespace_name(&namespace)?;
            let names = objects.iter().map(object_name).collect::<Result<_, _>>()?;
            Response::Exists(shared.within(by, backend.multi_exists(&namespace, names, by)).await?)
        }
        Request::GetAlbaId => {
            let id = shared.within(by, backend.alba_id(by)).await?;
            Response::AlbaId(bytes_of(id.as_str().as_bytes()))
        }
        Request::UpdateSession(wishes) => {
            let (updated, processed) = session.updated(&wishes);
            *session = updated;
            Response::Session(processed)
        }
        Request::ProxyStatistics { clear, forget } => {
            Response::Statistics(shared.statistics.tell(clear, &forget))
        }
        Request::ReadObjects { namespace, objects, consistent_read, should_cache: _ } => {
            let namespace = namespace_name(&namespace)?;
            let names = objects.iter().map(object_name).collect::<Result<_, _>>()?;
            let read = objects::read_objects(shared, &namespace, names, consistency(consistent_read)).await?;
            let moved = read.objects.iter().flatten().map(|object| objects::len_of(&object.data)).sum();
            let response = Response::ReadObjects(read.namespace, read.objects);
            let served = Served { moved, hold: Some(read.hold), ..response.into() };
            return Ok(served.counted(&namespace, Done::Download));
        }
        Request::OsdView => {
            Response::OsdView(osds::view(&shared.within(by, backend.osd_readings(by)).await?))
        }
        Request::OsdInfo => {
            Response::Osds(osds::entries(&shared.within(by, backend.osd_readings(by)).await?))
        }
        Request::OsdInfo2 => {
            let id = shared.within(by, backend.alba_id(by)).await?;
            let own = osds::entries(&shared.within(by, backend.osd_readings(by)).await?);
            // Below it there would be the backends that are its fragment caches.
            Response::OsdsByAlba(vec![(bytes_of(id.as_str().as_bytes()), own)])
        }
        Request::GetClientConfig => {
            let id = shared.within(by, backend.alba_id(by)).await?;
            Response::ClientConfig(osds::client_config(id.as_str(), &backend.metadata_servers()))
        }
        Request::HasLocalFragmentCache => Response::Flag(backend.has_local_fragment_cache()),
        Request::GetFragmentEncryptionKey { alba_id, namespace_id } => {
            Response::Key(osds::fragment_key(shared, &alba_id, namespace_id).await?)
        }
    };
    Ok(response.into())
}

async fn write_object(
    shared: &Shared,
    write: WriteObjectFs,
    response: impl FnOnce(&StoredObject) -> Response,
) -> Result<Served, Refusal> {
    let (namespace, object) = (namespace_name(&write.namespace)?, object_name(&write.object)?);
    let WriteObjectFs { input_file, allow_overwrite, checksum, .. } = write;
    let stored =
        objects::write_from_file(shared, &namespace, &object, &input_file, allow_overwrite, checksum).await?;
    let served = Served { moved: stored.manifest.size, ..response(&stored).into() };
    Ok(served.counted(&namespace, Done::Upload))
}

async fn read_slices(
    shared: &Shared,
    namespace: &Bytes,
    requests: Vec<ObjectSlices>,
    consistent_read: bool,
    response: impl FnOnce(Vec<Bytes>, &[StoredObject]) -> Response,
) -> Result<Served, Refusal> {
    let namespace = namespace_name(namespace)?;
    let slice =
        |slice: &alba_core::wire::proxy::SliceRequest| Slice { offset: slice.offset, length: slice.length };
    let (slices, objects) = (requests.iter().map(|entry| entry.slices.len()).sum(), requests.len());
    let requests = requests
        .iter()
        .map(|entry| Ok((object_name(&entry.object)?, entry.slices.iter().map(slice).collect())))
        .collect::<Result<_, Refusal>>()?;
    let read = objects::read_slices(shared, &namespace, requests, consistency(consistent_read)).await?;
    let moved = objects::len_of(&read.data);
    let response = response(read.data, &read.objects);
    let served = Served { moved, hold: Some(read.hold), ..response.into() };
    // A request for no object succeeds also when there is no such namespace: nothing to count.
    if objects == 0 {
        return Ok(served);
    }
    Ok(served.counted(&namespace, Done::PartialRead { bytes: moved, slices, objects }))
}

/// 20: sleeps, then tells the time.
async fn ping(shared: &Shared, delay: f64) -> Result<Response, Refusal> {
    if delay.is_nan() || delay > MAX_PING {
        let text = format!("a delay of {delay} s; at most {MAX_PING} s are waited");
        return Err(Refusal::unknown(text));
    }
    let clock: &dyn Clock = shared.env.clock.as_ref();
    let delay = Duration::try_from_secs_f64(delay.max(0.0)).unwrap_or_default();
    clock.sleep_until(clock.now().plus(delay)).await;
    Ok(Response::Time(wall(clock)))
}

fn version() -> Version {
    let part = |text: &str| text.parse().unwrap_or(-1);
    Version {
        major: part(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: part(env!("CARGO_PKG_VERSION_MINOR")),
        patch: part(env!("CARGO_PKG_VERSION_PATCH")),
        revision: REVISION.unwrap_or(concat!("v", env!("CARGO_PKG_VERSION"))).to_owned(),
    }
}

fn located(stored: &StoredObject) -> LocatedManifest {
    LocatedManifest { manifest: WireManifest::from(stored.manifest.as_ref()), namespace: stored.namespace }
}

fn object_info(stored: &StoredObject) -> ObjectInfo {
    let name = bytes_of(stored.manifest.name.as_bytes());
    // The empty id stands for the proxy's own backend.
    ObjectInfo { name, alba_id: Bytes::new(), manifest: located(stored) }
}

fn consistency(consistent_read: bool) -> Consistency {
    if consistent_read { Consistency::Consistent } else { Consistency::Cached }
}

fn bytes_of(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn map_page<T, U>(page: Page<T>, item: impl FnMut(T) -> U) -> Page<U> {
    Page { items: page.items.into_iter().map(item).collect(), has_more: page.has_more }
}

/// Copied out of the frame, which should not live as long as names do.
fn namespace_name(name: &Bytes) -> Result<NamespaceName, Refusal> {
    Ok(NamespaceName::new(name.as_ref())?)
}

pub(crate) fn object_name(name: &Bytes) -> Result<ObjectName, Refusal> {
    Ok(ObjectName::new(name.as_ref())?)
}

fn preset_name(name: &Bytes) -> Result<PresetName, Refusal> {
    let text = std::str::from_utf8(name).map_err(|_| {
        let text = format!("preset {}: names of presets are text", alba_core::ids::text_or_hex(name));
        Refusal::new(ErrorCode::PresetDoesNotExist, text)
    })?;
    Ok(PresetName::new(text)?)
}

/// Bounds that no name can have are as wrong as names that are too long.
fn checked(range: RangeQuery) -> Result<RangeQuery, Refusal> {
    object_name(&Bytes::copy_from_slice(&range.first))?;
    if let Some((last, _)) = &range.last {
        object_name(&Bytes::copy_from_slice(last))?;
    }
    Ok(range)
}
