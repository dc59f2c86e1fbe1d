//! The client configuration file: what `alba up` writes and `--config` reads.
//!
//! TOML: the keys of the object engine (`metadata` and its limits) and `proxies`, the proxies' addresses. Keys can be
//! overridden by `ALBA_CLIENT__KEY=value`.

use std::net::SocketAddr;
use std::path::Path;

use alba_client::ClientConfig;
use alba_core::config::{Document, Sources, Texts};
use serde::Serialize;

use crate::error::CliError;

/// The parsed file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ClientFile {
    /// Proxies of this backend.
    pub(crate) proxies: Vec<SocketAddr>,
    /// How to reach it directly.
    #[serde(flatten)]
    pub(crate) client: ClientConfig,
}

impl ClientFile {
    /// Reads `path`. Whatever is wrong with it ends the program with exit code 2.
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            CliError::usage(format!("cannot read the client configuration {}: {error}", path.display()))
        })?;
        let env =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self::parse(&Sources {
            name: "client".to_owned(),
            file: Some((path.to_owned(), text)),
            env: env.collect(),
            set: Vec::new(),
        })
    }

    fn parse(sources: &Sources) -> Result<Self, CliError> {
        let texts = Texts::new(sources)?;
        let mut document = Document::parse(&texts)?;
        let proxies = document.take("proxies")?.unwrap_or_default();
        let client: ClientConfig = document.into_typed()?;
        client.check().map_err(CliError::usage)?;
        Ok(Self { proxies, client })
    }

    /// As the file's text.
    pub(crate) fn to_toml(&self) -> Result<String, CliError> {
        toml::to_string(self).map_err(|error| CliError::failure(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ClientFile, CliError> {
        let file = Some(("client.toml".into(), text.to_owned()));
        ClientFile::parse(&Sources { name: "client".to_owned(), file, ..Sources::default() })
    }

    #[test]
    fn what_up_writes_is_read_back() {
        let client = ClientConfig { metadata: vec!["127.0.0.1:4000".parse().unwrap()], ..Default::default() };
        let file = ClientFile { proxies: vec!["127.0.0.1:10000".parse().unwrap()], client };
        assert_eq!(parse(&file.to_toml().unwrap()), Ok(file));
    }

    #[test]
    fn mistakes_exit_with_2_and_name_the_line() {
        let error = parse("metadata = []\nproxys = []\n").unwrap_err();
        assert_eq!(error.exit, 2);
        assert!(error.message.contains("client.toml, line 2") && error.message.contains("proxys"), "{error}");
        let missing = ClientFile::read(Path::new("/nonexistent/client.toml")).unwrap_err();
        assert_eq!(missing.exit, 2);
        assert!(missing.message.contains("/nonexistent/client.toml"), "{missing}");
    }
}
