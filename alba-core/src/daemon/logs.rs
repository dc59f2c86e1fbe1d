//! Log lines: to standard error, with a level that can change while the daemon runs.

use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use super::args::{LogFormat, Shared};

/// The running subscriber's filter.
pub(super) struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Is `level` a filter?
pub(super) fn check(level: &str) -> Result<(), String> {
    parse(level).map(drop)
}

fn parse(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(level).map_err(|error| {
        format!("log_level {level:?} is wrong: {error}; write error, warn, info, debug, trace or a filter such as info,alba_client=debug")
    })
}

impl Logs {
    /// Installs the subscriber. In a process that has one already, that one stays.
    pub(super) fn start(shared: &Shared) -> Result<Self, String> {
        let (filter, handle) = reload::Layer::new(parse(&shared.log_level)?);
        let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
        let lines = match shared.log_format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        drop(tracing_subscriber::registry().with(filter).with(lines).try_init());
        Ok(Self { filter: handle })
    }

    /// Applies a new level.
    pub(super) fn reload(&self, shared: &Shared) {
        let applied = parse(&shared.log_level)
            .and_then(|filter| self.filter.reload(filter).map_err(|error| error.to_string()));
        match applied {
            Ok(()) => tracing::info!(log_level = shared.log_level, "configuration reloaded"),
            Err(error) => tracing::error!(%error, "log level not changed"),
        }
    }
}
