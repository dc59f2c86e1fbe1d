//! Presets.

use std::io::Read;
use std::path::{Path, PathBuf};

use alba_core::encryption::{ClusterKey, FragmentKey, KeyError};
use alba_core::ids::{OsdId, PresetName};
use alba_core::policy::Policy;
use alba_core::preset::{FragmentEncryption, Preset};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmQuery};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::backend::{Backend, mismatch};
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
///
/// With "fragment_encryption": ["aes-ctr-256", "FILE"] fragments are encrypted with the key in FILE, of exactly 32 bytes (head -c 32
/// /dev/urandom makes one). The metadata keeps it wrapped by the cluster key of the client configuration, so that FILE is not
/// needed any more; every client that has the cluster key can read and write. With "inline_limit" objects up to that many bytes live in the
/// metadata, where its group has three replicas or more.
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
        let config = session.config()?.client;
        let preset = parse(&input(self.input_url.as_deref())?, config.cluster_key.as_deref())?;
        let client = session.client().await?;
        let command = AbmCommand::CreatePreset { name: self.name.clone(), preset: Box::new(preset) };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("created preset {}", self.name)))
    }
}

/// Reads the file, or standard input when there is none.
fn input(url: Option<&str>) -> Result<String, CliError> {
    match url {
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

/// Longest preset in bytes.
const LONGEST: u64 = 1 << 20;

fn parse(text: &str, cluster_key: Option<&Path>) -> Result<Preset, CliError> {
    let wrapped = |file: &str| {
        let wrap = || {
            let cluster = ClusterKey::read(cluster_key.ok_or(KeyError::NoClusterKey)?)?;
            Ok(FragmentEncryption::aes_256_ctr(&FragmentKey::read(Path::new(file))?, &cluster))
        };
        wrap().map_err(|error: KeyError| error.to_string())
    };
    // Refused here as the ABM refuses what it alone can see: Invalid_preset.
    Preset::from_json_with(text, wrapped).map_err(|error| AbmError::PresetInvalid(error.to_string()).into())
}

/// What may change of a preset.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    policies: Option<Vec<[u32; 4]>>,
    fragment_size: Option<u32>,
}

fn parse_change(text: &str) -> Result<Change, CliError> {
    let refused = |reason: String| CliError::from(AbmError::PresetInvalid(reason));
    let change: Change = serde_json::from_reader(json_comments::StripComments::new(text.as_bytes()))
        .map_err(|error| refused(format!("only policies and fragment_size can change: {error}")))?;
    if change == Change::default() {
        return Err(refused("name policies, fragment_size or both".to_owned()));
    }
    Ok(change)
}

/// Change policies and fragment size of a preset, from JSON on standard input or in a file; all else is for life
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  echo '{\"policies\": [[4, 2, 5, 3]]}' | alba update-preset wide")]
pub(crate) struct Update {
    /// Its name
    name: PresetName,
    /// Read this file instead of standard input
    #[arg(long, value_name = "FILE")]
    input_url: Option<String>,
}

impl Update {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let Change { policies, fragment_size } = parse_change(&input(self.input_url.as_deref())?)?;
        let policies = policies
            .map(|policies| policies.into_iter().map(Policy::try_from).collect::<Result<Vec<_>, _>>())
            .transpose()
            .map_err(|error| AbmError::PresetInvalid(error.to_string()))?;
        let client = session.client().await?;
        let command = AbmCommand::UpdatePreset { name: self.name.clone(), policies, fragment_size };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("updated preset {}", self.name)))
    }
}

/// Use a preset for namespaces that name none
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba preset-set-default wide")]
pub(crate) struct SetDefault {
    /// Its name
    name: PresetName,
}

impl SetDefault {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let command = AbmCommand::SetDefaultPreset { name: self.name.clone() };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("{} is the default preset", self.name)))
    }
}

/// Add OSDs to a preset that names its OSDs; its namespaces use them at once
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba add-osds-to-preset fast --osd-id 12 --osd-id 13")]
pub(crate) struct AddOsds {
    /// Its name
    name: PresetName,
    /// An OSD's id, as list-osds shows it; give it once for each
    #[arg(long, value_name = "ID", required = true, value_parser = osd_id)]
    osd_id: Vec<OsdId>,
}

fn osd_id(text: &str) -> Result<OsdId, String> {
    let number: u64 = text.parse().map_err(|_| format!("{text:?} is no OSD id"))?;
    OsdId::new(number).map_err(|error| error.to_string())
}

impl AddOsds {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let command = AbmCommand::AddOsdsToPreset { name: self.name.clone(), osds: self.osd_id };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("added OSDs to preset {}", self.name)))
    }
}

/// Delete a preset that no namespace uses
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba delete-preset wide")]
pub(crate) struct Delete {
    /// Its name
    name: PresetName,
}

impl Delete {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let command = AbmCommand::DeletePreset { name: self.name.clone() };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("deleted preset {}", self.name)))
    }
}

/// Show which presets are still on their way to the metadata groups of their namespaces
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba get-presets-propagation-state --to-json")]
pub(crate) struct Propagation {}

impl Propagation {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let AbmAnswer::PresetsPropagation(found) = backend.ask(AbmQuery::PresetsPropagation).await? else {
            return Err(mismatch("PresetsPropagation"));
        };
        let rows = found
            .iter()
            .map(|one| vec![one.preset.to_string(), one.version.to_string(), one.pending.to_string()]);
        let text = table(&["PRESET", ">VERSION", ">NAMESPACES TO TELL"], rows.collect());
        let shown = found.iter().map(|one| {
            json!({ "preset": one.preset.as_str(), "version": one.version, "namespaces_pending": one.pending })
        });
        Answer::new(shown.collect::<Vec<_>>(), text)
    }
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
        assert_eq!(parse(EXAMPLE, None).map(|preset| preset.policies.len()), Ok(2));
    }

    #[test]
    fn a_key_needs_the_clusters_and_does_not_show() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            let mut file = alba_core::env::files::create_with_mode(&path, 0o600).unwrap();
            std::io::Write::write_all(&mut file, content).unwrap();
            path
        };
        let key = file("key", &[5; 32]);
        let cluster = file("cluster.key", ClusterKey::new([6; 32]).to_text().as_bytes());
        let text = EXAMPLE.replace("[\"none\"]\n", &format!("[\"aes-ctr-256\", {key:?}]\n"));
        let preset = parse(&text, Some(&cluster)).unwrap();
        assert!(matches!(preset.fragment_encryption, FragmentEncryption::Aes256Ctr { .. }));
        assert!(parse(&text, None).unwrap_err().message.contains("cluster_key"));
        let short = file("key", &[5; 31]);
        assert!(parse(&text, Some(&cluster)).unwrap_err().message.contains("exactly 32 bytes"), "{short:?}");
    }

    #[test]
    fn only_what_may_change_is_taken() {
        let change = parse_change("{\"policies\": [[4, 2, 5, 3]] /* wider */}").unwrap();
        assert_eq!(change, Change { policies: Some(vec![[4, 2, 5, 3]]), fragment_size: None });
        for text in ["{}", "[]", "{\"compression\": \"none\"}", "{\"fragment_size\": -1}"] {
            let error = parse_change(text).unwrap_err();
            assert_eq!((error.kind.name(), error.code), ("albamgr_exn", 17), "{text}");
        }
    }

    #[test]
    fn a_preset_that_breaks_the_rules_is_refused_as_the_abm_would() {
        let error = parse(&EXAMPLE.replace("[5, 4, 8, 3]", "[5, 4, 10, 3]"), None).unwrap_err();
        assert_eq!((error.kind.name(), error.code, error.exit), ("albamgr_exn", 17, 1));
        assert!(error.message.contains("10"), "{error}");
    }
}
