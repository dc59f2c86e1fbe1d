//! The agent's configuration. Sizes are in bytes; durations are written like `15m`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use alba_client::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::pace::Limits;
use crate::schedule::{Rhythm, Timing, duration};
use crate::task::Task;

/// What an operator can set. Only `metadata` has no default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceConfig {
    /// Where `/metrics`, `/health` and `/tasks` are served; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Metadata servers; any one that answers is enough.
    #[serde(default)]
    pub metadata: Vec<SocketAddr>,
    /// Bytes per second of all tasks of this agent together.
    #[serde(default = "defaults::bytes_per_second")]
    pub bytes_per_second: u64,
    /// Objects or fragments per second of all tasks of this agent together.
    #[serde(default = "defaults::objects_per_second")]
    pub objects_per_second: u64,
    /// Do less while clients are there.
    #[serde(default = "defaults::yes")]
    pub adapt_to_clients: bool,
    /// How long uploads that have begun may take until garbage collection makes them begin anew.
    #[serde(default = "defaults::gc_grace")]
    pub gc_grace: String,
    /// How long work stays with an agent that is not heard of, before another agent takes it.
    #[serde(default = "defaults::lease")]
    pub lease: String,
    /// In which time the background scrub reads everything once.
    #[serde(default = "defaults::scrub_period")]
    pub scrub_period: String,
    /// By task; what is not named is as the task itself has it (`--list-tasks`).
    #[serde(default)]
    pub tasks: BTreeMap<String, TaskConfig>,
    /// The object engine. Its `metadata` is that of above.
    #[serde(default)]
    pub client: ClientConfig,
}

/// What can be set of a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Does this agent do it?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// A cron pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// So long after the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// Only in these hours, such as `22:00-06:00`, by this machine's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Objects or fragments per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_per_second: Option<u64>,
    /// Parts that this agent does side by side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<usize>,
}

mod defaults {
    pub(super) fn bytes_per_second() -> u64 {
        1 << 30
    }
    pub(super) fn objects_per_second() -> u64 {
        10_000
    }
    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn lease() -> String {
        "30s".to_owned()
    }
    /// The original's (features §2.11).
    pub(super) fn gc_grace() -> String {
        "2m".to_owned()
    }
    pub(super) fn scrub_period() -> String {
        "30d".to_owned()
    }
}

/// What is in force for a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Does this agent do it?
    pub enabled: bool,
    /// When.
    pub timing: Timing,
    /// How fast.
    pub limits: Limits,
    /// Parts side by side.
    pub at_once: usize,
}

/// Most parts of one task side by side.
pub const AT_ONCE_MAX: usize = 64;

/// Shortest period of the background scrub: one of its runs, which then reads everything.
const SCRUB_LEAST: Duration = Duration::from_secs(600);

impl TaskConfig {
    /// What is in force for `task`.
    pub fn settings(&self, task: &dyn Task) -> Result<Settings, String> {
        let named = |error: String| format!("tasks.{}: {error}", task.name());
        let mut timing = match (&self.schedule, &self.every) {
            (Some(_), Some(_)) => return Err(named("give schedule or every, not both".to_owned())),
            (Some(pattern), None) => Timing::cron(pattern).map_err(named)?,
            (None, Some(every)) => Timing::every(duration(every).map_err(named)?),
            (None, None) => task.usual(),
        };
        if timing.rhythm == Rhythm::Every(Duration::ZERO) {
            return Err(named("every must be longer than nothing".to_owned()));
        }
        if let Some(window) = &self.window {
            timing.window = Some(window.parse().map_err(named)?);
        }
        let at_once = self.at_once.unwrap_or_else(|| task.at_once());
        if !(1..=AT_ONCE_MAX).contains(&at_once) {
            return Err(named(format!("at_once must be from 1 to {AT_ONCE_MAX}")));
        }
        if self.bytes_per_second == Some(0) || self.objects_per_second == Some(0) {
            return Err(named("a rate must be at least 1; enabled = false switches the task off".to_owned()));
        }
        let limits =
            Limits { bytes_per_second: self.bytes_per_second, objects_per_second: self.objects_per_second };
        Ok(Settings { enabled: self.enabled.unwrap_or(true), timing, limits, at_once })
    }
}

impl MaintenanceConfig {
    /// The defaults, with these metadata servers.
    pub fn new(metadata: Vec<SocketAddr>) -> Self {
        Self {
            metrics_listen: None,
            metadata,
            bytes_per_second: defaults::bytes_per_second(),
            objects_per_second: defaults::objects_per_second(),
            adapt_to_clients: true,
            gc_grace: defaults::gc_grace(),
            lease: defaults::lease(),
            scrub_period: defaults::scrub_period(),
            tasks: BTreeMap::new(),
            client: ClientConfig::default(),
        }
    }

    /// The first thing that is wrong with the values, in words for the operator.
    pub fn check(&self) -> Result<(), String> {
        if self.metadata.is_empty() && self.client.metadata.is_empty() {
            return Err("metadata is missing: name the metadata servers, for instance \
                        metadata = [\"127.0.0.1:4000\"]"
                .to_owned());
        }
        if self.bytes_per_second == 0 || self.objects_per_second == 0 {
            return Err("bytes_per_second and objects_per_second must be at least 1".to_owned());
        }
        self.grace()?;
        self.lease()?;
        if self.scrub_period()? < SCRUB_LEAST {
            return Err("scrub_period must be at least 10m".to_owned());
        }
        let tasks = crate::tasks::all(self);
        for (name, config) in &self.tasks {
            let Some(task) = tasks.iter().find(|task| task.name() == name) else {
                let known: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
                return Err(format!("tasks.{name}: there is no such task; there are {}", known.join(", ")));
            };
            config.settings(task.as_ref())?;
        }
        self.engine().check().map_err(|reason| format!("client: {reason}"))
    }

    /// How long uploads that have begun may take.
    pub fn grace(&self) -> Result<Duration, String> {
        duration(&self.gc_grace).map_err(|error| format!("gc_grace: {error}"))
    }

    /// How long work stays with an agent that is not heard of.
    pub fn lease(&self) -> Result<Duration, String> {
        let lease = duration(&self.lease).map_err(|error| format!("lease: {error}"))?;
        match (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&lease) {
            true => Ok(lease),
            false => Err("lease must be from 1s to 1h".to_owned()),
        }
    }

    /// In which time the background scrub reads everything once.
    pub fn scrub_period(&self) -> Result<Duration, String> {
        duration(&self.scrub_period).map_err(|error| format!("scrub_period: {error}"))
    }

    /// The rates of all tasks together.
    pub fn limits(&self) -> Limits {
        Limits {
            bytes_per_second: Some(self.bytes_per_second),
            objects_per_second: Some(self.objects_per_second),
        }
    }

    /// What is in force for a task. A configuration that was checked gives no error.
    pub fn settings(&self, task: &dyn Task) -> Result<Settings, String> {
        self.tasks.get(task.name()).unwrap_or(&TaskConfig::default()).settings(task)
    }

    /// The object engine's configuration, with what is set here.
    pub fn engine(&self) -> ClientConfig {
        let mut engine = self.client.clone();
        if !self.metadata.is_empty() {
            engine.metadata.clone_from(&self.metadata);
        }
        engine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<MaintenanceConfig, String> {
        let config: MaintenanceConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    const SERVERS: &str = "metadata = [\"127.0.0.1:4000\"]\n";

    #[test]
    fn tasks_are_configured_by_name() {
        let text = format!(
            "{SERVERS}[tasks.gc]\nevery = \"1h\"\nwindow = \"22:00-06:00\"\nobjects_per_second = 10\n\
             [tasks.work]\nschedule = \"0 3 * * *\"\nenabled = false\n"
        );
        let config = parsed(&text).unwrap();
        let tasks = crate::tasks::all(&config);
        let of = |name: &str| {
            config.settings(tasks.iter().find(|task| task.name() == name).unwrap().as_ref()).unwrap()
        };
        let gc = of("gc");
        assert_eq!(gc.timing.rhythm, Rhythm::Every(Duration::from_secs(3600)));
        assert_eq!(gc.timing.window, Some("22:00-06:00".parse().unwrap()));
        assert_eq!(
            (gc.enabled, gc.limits.objects_per_second, gc.limits.bytes_per_second),
            (true, Some(10), None)
        );
        let work = of("work");
        assert!(!work.enabled && matches!(work.timing.rhythm, Rhythm::Cron(_)));
    }

    #[test]
    fn nonsense_is_named() {
        let refused = |text: &str| parsed(&format!("{SERVERS}{text}")).unwrap_err();
        assert!(parsed("").unwrap_err().contains("metadata"));
        assert!(refused("[tasks.gcc]\n").contains("there is no such task; there are"));
        assert!(refused("[tasks.gc]\nevery = \"1h\"\nschedule = \"0 3 * * *\"\n").contains("not both"));
        assert!(refused("[tasks.gc]\nevery = \"0s\"\n").contains("tasks.gc"));
        assert!(refused("[tasks.gc]\nschedule = \"at noon\"\n").contains("cron"));
        assert!(refused("[tasks.gc]\nwindow = \"late\"\n").contains("22:00-06:00"));
        assert!(refused("[tasks.gc]\nbytes_per_second = 0\n").contains("enabled = false"));
        assert!(refused("[tasks.gc]\nat_once = 0\n").contains("at_once"));
        assert!(refused("gc_grace = \"soon\"\n").contains("gc_grace"));
        assert!(refused("lease = \"0s\"\n").contains("lease"));
        assert!(refused("scrub_period = \"1m\"\n").contains("scrub_period"));
        assert!(refused("objects_per_second = 0\n").contains("objects_per_second"));
    }

    #[test]
    fn the_manual_has_every_task_and_a_valid_example() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/maintenance.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let config = parsed(example).unwrap();
        // Beside what it sets of one task and where it listens it shows the defaults.
        let defaults = MaintenanceConfig::new(config.metadata.clone());
        assert_eq!(MaintenanceConfig { metrics_listen: None, tasks: BTreeMap::new(), ..config }, defaults);
        for task in crate::tasks::all(&defaults) {
            assert!(text.contains(&format!("| `{}` |", task.name())), "{}", task.name());
        }
    }
}
