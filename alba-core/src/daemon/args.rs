//! The arguments every daemon takes, and how they become its configuration.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use serde::Deserialize;

use super::{Daemon, effective, environment};
use crate::config::{Document, Sources, Texts};

/// What all daemons configure alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// An `EnvFilter`: `info`, or `info,alba_client=debug`.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Whom its threads share processors with.
    pub scheduling: Scheduling,
}

/// Whom a daemon's threads share processors with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduling {
    /// As `RealTime` for daemons that serve small requests where the system allows it, as `Normal` otherwise; it is not worth a warning.
    #[default]
    Automatic,
    /// With everything else on the machine.
    Normal,
    /// Small requests of daemons that serve them go before everything else on the machine. Where it cannot be, a warning says so.
    RealTime,
}

impl std::fmt::Display for Scheduling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Automatic => "automatic",
            Self::Normal => "normal",
            Self::RealTime => "real-time",
        })
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl std::fmt::Display for LogFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// A daemon's command line.
#[derive(Debug, Clone, Parser)]
#[command(version, disable_help_subcommand = true)]
pub(super) struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override a key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Parse and check the configuration, print it as it takes effect (secrets masked), and exit
    #[arg(long)]
    check_config: bool,
    /// Which log lines to write: error, warn, info, debug, trace, or a filter such as info,alba_client=debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
    /// Stop when standard input ends: for a supervisor that holds its other end
    #[arg(long, hide = true)]
    pub(super) die_with_parent: bool,
}

/// What the command line asks for.
pub(super) enum Outcome<C> {
    /// Run with this.
    Run(C, Shared),
    /// Print this and exit.
    Checked(String),
}

impl Arguments {
    /// Parses; help, version and errors are printed here, and end the program with the code given back.
    pub(super) fn parse(
        args: impl IntoIterator<Item = OsString>,
        name: &'static str,
        about: &'static str,
    ) -> Result<Self, ExitCode> {
        let variable = name.to_ascii_uppercase().replace('-', "_");
        let example = format!(
            "Example:\n  alba {name} --config {name}.toml --set log_level=debug\n\n\
             Any key can also come from the environment: ALBA_{variable}__KEY=VALUE, \
             ALBA_{variable}__SECTION__KEY=VALUE."
        );
        let command = Self::command().name(name).about(about).after_help(example);
        command.try_get_matches_from(args).and_then(|matches| Self::from_arg_matches(&matches)).map_err(
            |error| {
                // Where it cannot be printed, the exit code says it.
                drop(error.print());
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
            },
        )
    }

    /// Reads and checks the configuration.
    pub(super) fn load<D: Daemon>(&self) -> Result<Outcome<D::Config>, String> {
        let file = match &self.config {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    format!("cannot read the configuration file {}: {error}", path.display())
                })?;
                Some((path.clone(), text))
            }
        };
        let sources = Sources { name: D::NAME.to_owned(), file, env: environment(), set: self.set.clone() };
        let texts = Texts::new(&sources).map_err(|error| error.to_string())?;
        let mut document = Document::parse(&texts).map_err(|error| error.to_string())?;
        let level = document.take("log_level").map_err(|error| error.to_string())?;
        let format = document.take("log_format").map_err(|error| error.to_string())?;
        let scheduling: Option<Scheduling> =
            document.take("scheduling").map_err(|error| error.to_string())?;
        let shared = Shared {
            log_level: self.log_level.clone().or(level).unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.or(format).unwrap_or_default(),
            scheduling: scheduling.unwrap_or_default(),
        };
        super::logs::check(&shared.log_level)?;
        let config: D::Config = document.into_typed().map_err(|error| error.to_string())?;
        D::check(&config)?;
        if !self.check_config {
            return Ok(Outcome::Run(config, shared));
        }
        let table = effective(&config, &shared).map_err(|error| error.to_string())?;
        Ok(Outcome::Checked(table.to_string()))
    }
}
