//! Presets.

use std::io::Read;
use std::path::PathBuf;

use alba_core::ids::PresetName;
use alba_core::preset::Preset;
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{AbmCommand, AbmError};
use clap::Args;

use super::backend::Backend;
use crate::answer::Answer;
use crate::error::CliError;
use crate::ranges::RangeArgs;
use crate::session::Session;
use crate::table::table;

/// A preset as the help shows it: all that has to be said.
const EXAMPLE: &str = r#"  {
    "policies": [[5, 4, 8, 3], [2, 2, 3, 4]], // k, m, least fragments stored, most per node; preferred first
    "fragment_size": 1048576,
    "osds": ["all"],
    "compression": "zstd",
    "fragment_checksum": ["blake3"],
    "object_checksum": { "allowed": [["none"], ["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
    "fragment_encryption": ["none"]
  }"#;

/// Create a preset from JSON (comments allowed) on standard input or in a file
#[derive(Debug, Args)]
#[command(after_help = format!("Example:\n  alba create-preset wide --input-url ./wide.json\n\nwith wide.json:\n{EXAMPLE}"))]
pub(crate) struct Create {
    /// Its name
    name: PresetName,
    /// Read this file instead of standard input
    #[arg(long, value_name = "FILE")]
    input_url: Option<String>,
}

impl Create {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let preset = parse(&self.input()?)?;
        let client = session.client().await?;
        let command = AbmCommand::CreatePreset { name: self.name.clone(), preset: Box::new(preset) };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("created preset {}", self.name)))
    }

    fn input(&self) -> Result<String, CliError> {
        match &self.input_url {
            Some(url) => {
                let path = PathBuf::from(url.strip_prefix("file://").unwrap_or(url));
                std::fs::read_to_string(&path).map_err(|error| CliError::file("read", &path, &error))
            }
            None => {
                let mut text = String::new();
                // A preset is small; what is longer is a mistake.
                let read = std::io::stdin().lock().take(LONGEST).read_to_string(&mut text);
                read.map_err(|error| CliError::failure(format!("cannot read standard input: {error}")))?;
                Ok(text)
            }
        }
    }
}

/// Longest preset in bytes.
const LONGEST: u64 = 1 << 20;

fn parse(text: &str) -> Result<Preset, CliError> {
    // Refused here as the ABM refuses what it alone can see: Invalid_preset.
    Preset::from_json(text).map_err(|error| AbmError::PresetInvalid(error.to_string()).into())
}

/// List presets
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-presets --to-json")]
pub(crate) struct List {
    #[command(flatten)]
    range: RangeArgs,
}

impl List {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let found = Backend::new(&client, session.deadline()).presets(self.range.pager()).await?;
        let rows = found.iter().map(|record| {
            let preset = &record.preset;
            let policies: Vec<String> = preset.policies.iter().map(ToString::to_string).collect();
            let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
            vec![
                record.name.to_string(),
                policies.join(" "),
                ByteCount(u64::from(preset.fragment_size)).to_string(),
                preset.compression.name().to_owned(),
                preset.fragment_checksum.name().to_owned(),
                yes(record.is_default),
                yes(record.in_use),
            ]
        });
        let headers =
            ["NAME", "POLICIES (k, m, c, x)", ">FRAGMENT", "COMPRESSION", "CHECKSUM", "DEFAULT", "IN USE"];
        let text = table(&headers, rows.collect());
        let listing = found.iter().map(|record| {
            record.preset.to_listing(&record.name, record.is_default, record.in_use, record.version)
        });
        Answer::new(listing.collect::<Vec<_>>(), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_help_is_a_preset() {
        assert_eq!(parse(EXAMPLE).map(|preset| preset.policies.len()), Ok(2));
    }

    #[test]
    fn a_preset_that_breaks_the_rules_is_refused_as_the_abm_would() {
        let error = parse(&EXAMPLE.replace("[5, 4, 8, 3]", "[5, 4, 10, 3]")).unwrap_err();
        assert_eq!((error.kind.name(), error.code, error.exit), ("albamgr_exn", 17, 1));
        assert!(error.message.contains("10"), "{error}");
    }
}
