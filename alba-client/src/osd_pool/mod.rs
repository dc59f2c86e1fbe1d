//! The OSDs of the backend as this process sees them: who there is, who is well, and every call to one of them.
//!
//! Each call goes through [`OsdPool::call`], which gives it a deadline of its own, learns from its outcome, and takes a
//! failing device out of use until a probe has written to it again. An OSD that nobody may write to is still read from:
//! what a manifest names is tried.

mod health;
mod latency;
mod report;
mod reporter;
mod view;

use std::sync::{Arc, Weak};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdBatch, OsdKey, OsdUpdate, Priority, StoredValue, ValueSlice};
use alba_core::env::{Clock, Deadline, Directory, Env, Moment, Osd, OsdError, within};
use alba_core::ids::OsdId;
use alba_core::wire::rpc::abm::OsdInfo;
use bytes::Bytes;

use crate::ClientError;
use crate::watch::Fresh;
pub(crate) use health::CallSize;
use health::{ErrorClass, ProbePause};
pub(crate) use report::CallKind;
use reporter::Reporter;
pub(crate) use view::Member;
use view::View;

/// Makes handles on OSDs. Making one does not connect: that happens at the first call.
pub trait OsdConnector: Send + Sync + 'static {
    /// A handle on the OSD that `info` describes; its long id is checked by every connection.
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd>;
}

/// What probes write (wire-protocol §5.2: a test key). Its value is small: a probe must not load a device that is in
/// trouble.
const TEST_KEY: &[u8] = b"test";
const TEST_VALUE: &[u8] = &[0x5a; 4096];

/// An unknown id makes the pool ask the ABM, but not more often than this.
const UNKNOWN_ID_PAUSE: Duration = Duration::from_millis(200);

/// See the module.
pub(crate) struct OsdPool {
    env: Env,
    timeout: Duration,
    view: View,
    reporter: Reporter,
}

impl OsdPool {
    /// `timeout` limits each call; `report_pause` is the time between two reports of the OSDs' health to the ABM.
    pub(crate) fn new(
        env: Env,
        directory: Arc<dyn Directory>,
        connector: Arc<dyn OsdConnector>,
        timeout: Duration,
        report_pause: Duration,
    ) -> Arc<Self> {
        let reporter = Reporter::new(Arc::clone(&directory), report_pause);
        let view = View::new(Arc::clone(&env.clock), directory, connector);
        Arc::new(Self { env, timeout, view, reporter })
    }

    fn now(&self) -> Moment {
        self.env.clock.now()
    }

    /// Makes sure that the list of OSDs is as new as wanted.
    pub(crate) async fn refresh(&self, wanted: Fresh, deadline: Deadline) -> Result<(), ClientError> {
        self.view.refresh(wanted, deadline).await
    }

    /// An OSD that is known already.
    pub(crate) fn known(&self, id: OsdId) -> Option<Arc<Member>> {
        self.view.get(id)
    }

    /// All that are known.
    pub(crate) fn all(&self) -> Vec<Arc<Member>> {
        self.view.all()
    }

    /// An OSD; the ABM is asked when it is not known.
    pub(crate) async fn member(&self, id: OsdId, deadline: Deadline) -> Result<Arc<Member>, ClientError> {
        if let Some(member) = self.view.get(id) {
            return Ok(member);
        }
        self.view.refresh(Fresh::within(UNKNOWN_ID_PAUSE), deadline).await?;
        self.view.get(id).ok_or(ClientError::OsdUnknown(id))
    }

    /// A call that writes: see [`Self::call_of`].
    pub(crate) async fn call<T, F>(
        self: &Arc<Self>,
        member: &Arc<Member>,
        size: CallSize,
        deadline: Deadline,
        operation: impl Fn(Arc<dyn Osd>, Deadline) -> F,
    ) -> Result<T, OsdError>
    where
        F: Future<Output = Result<T, OsdError>>,
    {
        self.call_of(CallKind::Write, member, size, deadline, operation).await
    }

    /// One call to one OSD: `operation` on its handle under a deadline of at most `osd_timeout`. A broken connection is
    /// tried once more, since the pooled one may just have been old: so `operation` must be harmless when repeated.
    pub(crate) async fn call_of<T, F>(
        self: &Arc<Self>,
        kind: CallKind,
        member: &Arc<Member>,
        size: CallSize,
        deadline: Deadline,
        operation: impl Fn(Arc<dyn Osd>, Deadline) -> F,
    ) -> Result<T, OsdError>
    where
        F: Future<Output = Result<T, OsdError>>,
    {
        self.reporter.start(self);
        let clock = &*self.env.clock;
        let limit = deadline.capped(clock, self.timeout);
        let mut retried = false;
        loop {
            let mut watch = Watch { clock, member, size, started: clock.now(), ended: false };
            let answer = within(clock, limit, operation(Arc::clone(&member.osd), limit)).await;
            watch.ended = true;
            let waited = clock.now().since(watch.started);
            let error = match answer {
                Ok(Ok(value)) => {
                    member.health().worked(kind, size, waited, clock.now());
                    return Ok(value);
                }
                Ok(Err(OsdError::Connection(_))) if !retried && limit.left(clock) > Duration::ZERO => {
                    retried = true;
                    continue;
                }
                Ok(Err(error)) => error,
                Err(_) => OsdError::Timeout,
            };
            let mut class = ErrorClass::of(&error);
            if error == OsdError::Timeout {
                member.health().took_at_least(size, waited);
                // The caller's own deadline was the shorter one: that says how patient the caller is, no more.
                if limit == deadline && waited < self.timeout {
                    class = ErrorClass::Caller;
                }
            }
            self.failed(member, class, &error);
            return Err(error);
        }
    }

    /// Counts a value whose checksum was not the one in the manifest.
    pub(crate) fn damaged(self: &Arc<Self>, member: &Arc<Member>, detail: &str) {
        self.failed(member, ErrorClass::Damage, &OsdError::Damaged(detail.to_owned()));
    }

    fn failed(self: &Arc<Self>, member: &Arc<Member>, class: ErrorClass, error: &OsdError) {
        let start_probe = member.health().failed(class, error, self.now());
        if start_probe {
            tracing::warn!(osd = %member.id, %error, "OSD takes no new fragments until a probe succeeds");
            self.start_probe(member.id);
        } else {
            tracing::debug!(osd = %member.id, %error, ?class, "call to OSD failed");
        }
    }

    /// Reads a little from an OSD that readers go around because it is slow, at most once a second and in the background: so
    /// it is known when it is well again. `key` is a value of at least `len` bytes on it.
    pub(crate) fn look_at(self: &Arc<Self>, member: &Arc<Member>, key: OsdKey, len: u32, size: CallSize) {
        if !member.health().look(self.now()) {
            return;
        }
        let (pool, member) = (Arc::clone(self), Arc::clone(member));
        let look = async move {
            let _ended = Look(&member);
            let deadline = Deadline::after(&*pool.env.clock, pool.timeout);
            let slice = ValueSlice { offset: 0, len };
            let read = pool.call_of(CallKind::Read, &member, size, deadline, |osd, deadline| {
                let key = key.clone();
                async move { osd.partial_get(key, vec![slice], Priority::High, deadline).await }
            });
            if let Err(error) = read.await {
                tracing::debug!(osd = %member.id, %error, "a slow OSD was looked at in vain");
            }
        };
        self.env.spawn.spawn("osd-look", Box::pin(look));
    }

    /// Writes to the OSD again and again until that succeeds or the OSD or this pool is gone. At most one per OSD:
    /// [`health::Health`] sees to it.
    fn start_probe(self: &Arc<Self>, id: OsdId) {
        let pool = Arc::downgrade(self);
        let clock = Arc::clone(&self.env.clock);
        self.env.spawn.spawn("osd-probe", Box::pin(probe(pool, clock, id)));
    }
}

async fn probe(pool: Weak<OsdPool>, clock: Arc<dyn Clock>, id: OsdId) {
    let mut pause = ProbePause::first();
    loop {
        let wait;
        // Only the pool's handle keeps the pool alive: a probe must not.
        match pool.upgrade() {
            None => return,
            Some(pool) => (wait, pause) = pause.next(pool.env.rng.u64()),
        }
        clock.sleep_until(clock.now().plus(wait)).await;
        let Some(pool) = pool.upgrade() else { return };
        let deadline = Deadline::after(&*clock, pool.timeout);
        // It may have moved. When the ABM does not answer, the old address is as good as any.
        if let Err(error) = pool.refresh(Fresh::within(Duration::from_secs(1)), deadline).await {
            tracing::debug!(%error, "no fresh list of OSDs for a probe");
        }
        let Some(member) = pool.known(id) else { return };
        let value = StoredValue { value: Bytes::from_static(TEST_VALUE), checksum: Checksum::None };
        let batch = OsdBatch {
            asserts: Vec::new(),
            updates: vec![OsdUpdate::Set(Bytes::from_static(TEST_KEY), value)],
        };
        let deadline = Deadline::after(&*clock, pool.timeout);
        match within(&*clock, deadline, member.osd.apply(batch, Priority::High, deadline)).await {
            Ok(Ok(())) => {
                tracing::info!(osd = %id, "OSD is back");
                let mut health = member.health();
                health.requalified();
                health.wrote(clock.now());
                return;
            }
            Ok(Err(error)) => tracing::debug!(osd = %id, %error, "probe failed"),
            Err(_) => tracing::debug!(osd = %id, "probe timed out"),
        }
    }
}

/// A look at an OSD; it ends however its task does.
struct Look<'a>(&'a Member);

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.0.health().looked();
    }
}

/// Learns from calls that are given up (dropped): otherwise an OSD that never answers would look fast for ever.
struct Watch<'a> {
    clock: &'a dyn Clock,
    member: &'a Member,
    size: CallSize,
    started: Moment,
    ended: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let now = self.clock.now();
            self.member.health().took_at_least(self.size, now.since(self.started));
        }
    }
}
