//! Keeps health and metrics of a running ASD up to date, and looks whether what failed works again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alba_core::daemon::Health;
use alba_core::env::osd::{DiskUsage, Priority};
use alba_core::env::{Env, Moment, blocking, within};
use serde_json::json;

use super::announce::Announcer;
use super::controls;
use crate::engine::Engine;
use crate::gauge;
use crate::home::Identity;
use crate::server::Service;
use crate::state::{Condition, FileSystem, Observed, is_ready, judge};

/// Between attempts to write on a disk whose writes failed.
const PROBE: Duration = Duration::from_secs(5);

/// For the file system to answer.
const ASKED: Duration = Duration::from_secs(2);

/// Announcements of the ASD.
pub(super) struct Announce {
    pub(super) announcer: Announcer,
    pub(super) every: Duration,
    pub(super) address: SocketAddr,
    pub(super) last: Option<Moment>,
}

/// What it watches.
pub(super) struct Watch {
    pub(super) env: Env,
    pub(super) health: Health,
    pub(super) service: Arc<Service>,
    pub(super) identity: Identity,
    pub(super) data_dir: PathBuf,
    pub(super) segment_bytes: u64,
    pub(super) announce: Option<Announce>,
    /// What an operator should know although it is no fault.
    pub(super) warnings: Vec<String>,
    last_probe: Moment,
    before: Vec<&'static str>,
}

impl Watch {
    pub(super) fn new(
        env: Env,
        health: Health,
        service: Arc<Service>,
        identity: Identity,
        data_dir: PathBuf,
        segment_bytes: u64,
    ) -> Self {
        let (warnings, before, last_probe) = (Vec::new(), Vec::new(), env.clock.now());
        Self {
            env,
            health,
            service,
            identity,
            data_dir,
            segment_bytes,
            announce: None,
            warnings,
            last_probe,
            before,
        }
    }

    /// What the file system says; none when it does not answer.
    pub(super) async fn file_system(&self) -> Option<FileSystem> {
        let data_dir = self.data_dir.clone();
        let asked = blocking(self.env.spawn.as_ref(), move || FileSystem::of(&data_dir).ok());
        within(self.env.clock.as_ref(), self.env.deadline_in(ASKED), asked).await.ok()?.ok()?
    }

    /// Looks once.
    pub(super) async fn look(&mut self) {
        let mut observed = Observed {
            segment_bytes: self.segment_bytes,
            file_system: self.file_system().await,
            ..Observed::default()
        };
        let engine = self.service.current_engine();
        match &engine {
            Err(reason) => observed.absent = Some(reason.clone()),
            Ok(engine) => {
                let usage = engine.usage();
                observed.engine = engine.status();
                observed.full = engine.is_full();
                observed.used_bytes = usage.used.get();
                observed.capacity_bytes = usage.capacity.get();
                self.tell_others(usage);
            }
        }
        self.report(&observed, &judge(&observed), engine.as_deref().ok());
        if let (Ok(engine), true) = (&engine, observed.engine.writing.is_some()) {
            let now = self.env.clock.now();
            if now.since(self.last_probe) >= PROBE {
                self.last_probe = now;
                match controls::probe(&self.env, engine).await {
                    Ok(()) => tracing::info!("writing works again"),
                    Err(error) => tracing::debug!(%error, "writing still fails"),
                }
            }
        }
    }

    fn tell_others(&mut self, usage: DiskUsage) {
        let now = self.env.clock.now();
        let Some(announce) = &mut self.announce else { return };
        if announce.last.is_some_and(|last| now.since(last) < announce.every) {
            return;
        }
        announce.last = Some(now);
        if let Err(error) = announce.announcer.send(&self.identity, announce.address, usage) {
            tracing::debug!(%error, "not announced");
        }
    }

    fn report(&mut self, observed: &Observed, conditions: &[Condition], engine: Option<&Engine>) {
        let names: Vec<_> = conditions.iter().map(Condition::name).collect();
        for condition in conditions.iter().filter(|condition| !self.before.contains(&condition.name())) {
            tracing::warn!(condition = condition.name(), "{}", condition.why());
        }
        for gone in self.before.iter().filter(|before| !names.contains(before)) {
            tracing::info!(condition = gone, "over");
        }
        for name in Condition::NAMES {
            let is = f64::from(u8::from(names.contains(&name)));
            metrics::gauge!("alba_osd_condition", "condition" => name).set(is);
        }
        metrics::gauge!("alba_osd_used_bytes").set(gauge(observed.used_bytes));
        metrics::gauge!("alba_osd_capacity_bytes").set(gauge(observed.capacity_bytes));
        if let Some(file_system) = observed.file_system {
            metrics::gauge!("alba_osd_file_system_free_bytes").set(gauge(file_system.free_bytes));
        }
        self.service.gate().report();
        if let Some(engine) = engine {
            let space = engine.space();
            metrics::gauge!("alba_osd_segments", "state" => "all").set(gauge(space.segments));
            metrics::gauge!("alba_osd_segments", "state" => "free").set(gauge(space.free));
            metrics::gauge!("alba_osd_segment_bytes", "what" => "live").set(gauge(space.live_bytes));
            metrics::gauge!("alba_osd_segment_bytes", "what" => "written").set(gauge(space.written));
            metrics::gauge!("alba_scrub_damaged_values").set(gauge(engine.scrub_status().damaged));
        }
        self.before = names;

        let load = |priority| {
            let load = self.service.gate().load(priority);
            json!({
                "waiting": load.waiting, "waiting_bytes": load.waiting_bytes,
                "in_flight": load.running, "in_flight_bytes": load.running_bytes,
            })
        };
        let details = json!({
            "long_id": self.identity.long_id,
            "place": self.identity.place,
            "version": env!("CARGO_PKG_VERSION"),
            "ready": is_ready(conditions),
            "conditions": conditions,
            "warnings": self.warnings,
            "used_bytes": observed.used_bytes,
            "capacity_bytes": observed.capacity_bytes,
            "file_system": observed.file_system,
            "damaged_reads": observed.engine.damaged_reads,
            "queues": { "high": load(Priority::High), "low": load(Priority::Low) },
            "segments": engine.map(|engine| engine.space()),
            "scrub": engine.map(|engine| engine.scrub_status()),
            "peers": self.service.peers().get().len(),
        });
        self.service.set_health(details.to_string());
        self.health.set_details(details);
        if is_ready(conditions) {
            self.health.set_ready();
        } else {
            let reasons: Vec<_> = conditions.iter().map(Condition::why).collect();
            self.health.set_not_ready(reasons.join("; "));
        }
    }
}
