//! `alba ca`: the cluster's certificate authority and the certificates of its members.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::answer::Answer;
use crate::authority::Authority;
use crate::cluster_key;
use crate::error::CliError;
use crate::session::Session;

/// Make a cluster's certificate authority, and certificates for its members
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba ca init --dir ./ca\n  alba ca issue host-1 --dir ./ca --out ./host-1"
)]
pub(crate) struct Ca {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make the authority: ca.pem, which every member trusts, and ca.key, which stays here; and cluster.key, which opens the keys
    /// of presets that encrypt: hosts with proxies or agents need a copy, nobody else may have one, and you need a safe one
    Init {
        /// Where to keep it
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make a member's certificate and key; who has them takes part in the cluster
    Issue {
        /// The member's name; the files are NAME.pem and NAME.key
        name: String,
        /// Where the authority is
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Where to write ca.pem, NAME.pem and NAME.key [default: the authority's directory]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

impl Ca {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        match self.command {
            CaCommand::Init { dir } => {
                Authority::create(&dir)?;
                let (ca, key) = (dir.join("ca.pem"), dir.join("cluster.key"));
                cluster_key::ensure(&key, &*session.env.rng)?;
                let text =
                    format!("made the authority {}\nmade the cluster's key {}", ca.display(), key.display());
                Answer::new(json!({ "ca": ca, "cluster_key": key }), text)
            }
            CaCommand::Issue { name, dir, out } => {
                let plain = !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
                if !plain || name == "ca" || name.starts_with('.') {
                    return Err(CliError::usage(format!(
                        "{name:?} is no name for a member: use letters, digits, - _ and . and another name than ca"
                    )));
                }
                let authority = Authority::open(&dir)?.ok_or_else(|| {
                    CliError::usage(format!(
                        "there is no authority in {0}; `alba ca init --dir {0}` makes one",
                        dir.display()
                    ))
                })?;
                let files = authority.member(&name, out.as_deref().unwrap_or(&dir))?;
                let result = json!({ "tls_ca": files.ca, "tls_cert": files.cert, "tls_key": files.key });
                let text = format!(
                    "tls_ca = {:?}\ntls_cert = {:?}\ntls_key = {:?}",
                    files.ca, files.cert, files.key
                );
                Answer::new(result, text)
            }
        }
    }
}
