//! What one run of the command has: its options, the outside, and the client it makes when a command needs one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alba_client::Client;
use alba_core::env::{Deadline, Env, real, within};
use alba_core::units::ByteCount;
use alba_proxy::client::ProxyClient;

use crate::answer::Output;
use crate::args::Common;
use crate::client_file::ClientFile;
use crate::error::CliError;

/// Deadline of a command without bulk data (interfaces §3).
const TIMEOUT: Duration = Duration::from_secs(20);

/// Slowest transfer that is waited for when no --timeout is given.
const SLOWEST: ByteCount = ByteCount::mib(4);

/// Where `alba up` writes the client configuration when it is not told otherwise.
const UP_CONFIG: &str = "alba-data/client.toml";

/// One run of the command.
pub(crate) struct Session {
    /// The outside.
    pub(crate) env: Env,
    /// Where the answer goes.
    pub(crate) output: Output,
    common: Common,
}

impl Session {
    /// For these options.
    pub(crate) fn new(common: Common, output: Output) -> Self {
        Self { env: real::env(), output, common }
    }

    /// When a command without bulk data gives up.
    pub(crate) fn deadline(&self) -> Deadline {
        self.env.deadline_in(self.common.timeout.unwrap_or(TIMEOUT))
    }

    /// When a command gives up that people wait for.
    pub(crate) fn deadline_or(&self, default: Duration) -> Deadline {
        self.env.deadline_in(self.common.timeout.unwrap_or(default))
    }

    /// When a command that moves `bytes` gives up.
    pub(crate) fn bulk_deadline(&self, bytes: u64) -> Deadline {
        let extra = Duration::from_secs(bytes / SLOWEST.get());
        self.env.deadline_in(self.common.timeout.unwrap_or(TIMEOUT.saturating_add(extra)))
    }

    /// The client configuration's path.
    pub(crate) fn config_path(&self) -> Result<PathBuf, CliError> {
        if let Some(path) = &self.common.config {
            return Ok(path.clone());
        }
        let up = Path::new(UP_CONFIG);
        if up.exists() {
            return Ok(up.to_owned());
        }
        Err(CliError::usage(format!(
            "no client configuration: give --config FILE or set ALBA_CONFIG (`alba up` writes {UP_CONFIG})"
        )))
    }

    /// The client configuration.
    pub(crate) fn config(&self) -> Result<ClientFile, CliError> {
        ClientFile::read(&self.config_path()?)
    }

    /// A client of the backend that the configuration names.
    pub(crate) async fn client(&self) -> Result<Client, CliError> {
        self.client_of(self.config()?, self.deadline()).await
    }

    /// A client of the backend that `file` names.
    pub(crate) async fn client_of(&self, file: ClientFile, deadline: Deadline) -> Result<Client, CliError> {
        let servers = file.client.metadata.clone();
        let connect = Client::connect(self.env.clone(), file.client);
        match within(self.env.clock.as_ref(), deadline, connect).await {
            Ok(client) => Ok(client?),
            Err(late) => Err(CliError::from(late).while_doing(&format!("metadata servers {servers:?}"))),
        }
    }

    /// A connection to `proxy`, or to the first proxy of the configuration that answers.
    pub(crate) async fn proxy(
        &self,
        proxy: Option<SocketAddr>,
        deadline: Deadline,
    ) -> Result<ProxyClient, CliError> {
        let (proxies, origin) = match proxy {
            Some(proxy) => (vec![proxy], "give another one with --host and --port".to_owned()),
            None => (
                self.config()?.proxies,
                format!("is `alba up` running? They are from {}", self.config_path()?.display()),
            ),
        };
        let mut last = None;
        for proxy in proxies {
            match ProxyClient::connect(&self.env, proxy, deadline).await {
                Ok(client) => return Ok(client),
                Err(error) => last = Some(CliError::from(error).while_doing(&format!("proxy {proxy}"))),
            }
        }
        Err(match last {
            Some(error) => CliError { message: format!("{} ({origin})", error.message), ..error },
            None => {
                CliError::usage("no proxy: give --host and --port, or `proxies` in the client configuration")
            }
        })
    }
}
