//! Failures as scripts see them: a type and a code of the original's (features §5.1, §5.3), and a text.

use std::io;

use alba_client::ClientError;
use alba_core::config::ConfigError;
use alba_core::env::{DeadlineExceeded, MetaError, OsdError, TaskGone};
use alba_core::ids::IdError;
use alba_core::wire::rpc::abm::AbmError;
use alba_core::wire::rpc::nsm::NsmError;
use alba_maintenance::TaskError;
use alba_proxy::client::CallError;
use thiserror::Error;

/// Who refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExceptionType {
    /// An NSM group; codes of features §2.12.
    Nsm,
    /// The ABM; codes of features §5.3.
    Albamgr,
    /// A proxy; codes of wire-protocol §2.2.
    Proxy,
    /// An OSD.
    Asd,
    /// The object engine in this process; codes of wire-protocol §2.2, 1 for what it does not name.
    Client,
    /// None of these: arguments, files, this program.
    Unknown,
}

impl ExceptionType {
    /// As the envelope spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nsm => "nsm_exn",
            Self::Albamgr => "albamgr_exn",
            Self::Proxy => "proxy_exn",
            Self::Asd => "asd_exn",
            Self::Client => "client_exn",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub(crate) struct CliError {
    /// What is wrong and what to do.
    pub(crate) message: String,
    /// Who refused.
    pub(crate) kind: ExceptionType,
    /// Its number there; 0 where there are none.
    pub(crate) code: u32,
    /// Of the program.
    pub(crate) exit: u8,
}

/// Lines of a log that are shown with an error.
const LOG_LINES: usize = 5;

impl CliError {
    fn of(kind: ExceptionType, code: u32, message: impl Into<String>) -> Self {
        Self { message: message.into(), kind, code, exit: 1 }
    }

    /// This program could not do it.
    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self::of(ExceptionType::Unknown, 0, message)
    }

    /// Wrong arguments or configuration: exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: 2, ..Self::failure(message) }
    }

    /// A file could not be read or written.
    pub(crate) fn file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::failure(format!("cannot {doing} {}: {error}", path.display()))
    }

    /// The same with the end of a log behind the text.
    #[must_use]
    pub(crate) fn with_log(mut self, log: &std::path::Path) -> Self {
        let text = std::fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        self.message = format!("{}; the end of {}:\n  {}", self.message, log.display(), last.join("\n  "));
        self
    }

    /// The same with something put before the text.
    #[must_use]
    pub(crate) fn while_doing(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<IdError> for CliError {
    fn from(error: IdError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<TaskGone> for CliError {
    fn from(error: TaskGone) -> Self {
        Self::failure(error.to_string())
    }
}

impl From<DeadlineExceeded> for CliError {
    fn from(_: DeadlineExceeded) -> Self {
        Self::of(ExceptionType::Client, 1, "no answer in time; --timeout SECONDS gives more")
    }
}

impl From<AbmError> for CliError {
    fn from(error: AbmError) -> Self {
        Self::of(ExceptionType::Albamgr, error.code(), error.to_string())
    }
}

impl From<NsmError> for CliError {
    fn from(error: NsmError) -> Self {
        Self::of(ExceptionType::Nsm, error.code(), error.to_string())
    }
}

impl From<MetaError> for CliError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::Abm(error) => error.into(),
            MetaError::Nsm(error) => error.into(),
            other => Self::of(ExceptionType::Client, 1, other.to_string()),
        }
    }
}

impl From<TaskError> for CliError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Meta(error) => error.into(),
            TaskError::Client(error) => error.into(),
            TaskError::Osd { .. } => Self::of(ExceptionType::Asd, 1, error.to_string()),
            other => Self::of(ExceptionType::Client, 1, other.to_string()),
        }
    }
}

impl From<OsdError> for CliError {
    fn from(error: OsdError) -> Self {
        Self::of(ExceptionType::Asd, 1, error.to_string())
    }
}

impl From<CallError> for CliError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refused) => {
                let text = alba_core::ids::text_or_hex(&refused.text);
                Self::of(ExceptionType::Proxy, refused.code, format!("the proxy refuses: {text}"))
            }
            other => Self::of(ExceptionType::Client, 1, other.to_string()),
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        use ExceptionType::{Albamgr, Client, Nsm};
        let (kind, code) = match &error {
            ClientError::Meta(meta) => return meta.clone().into(),
            ClientError::Config(_) => return Self::usage(error.to_string()),
            // The original's client passed on what the metadata said; here the engine asks first, with the same words.
            ClientError::NamespaceExists(_) => (Albamgr, 5),
            ClientError::NamespaceUnknown(_) => (Albamgr, 6),
            ClientError::PresetUnknown(_) => (Albamgr, 13),
            ClientError::OsdUnknown(_) => (Albamgr, 10),
            ClientError::ObjectUnknown(_) => (Nsm, 6),
            ClientError::OverwriteNotAllowed(_) => (Nsm, 9),
            ClientError::AssertFailed(_) => (Nsm, 20),
            ClientError::ChecksumMismatch { .. } => (Client, 7),
            ClientError::ChecksumNotAllowed(_) => (Client, 8),
            ClientError::BadSliceLength => (Client, 10),
            ClientError::OverlappingSlices => (Client, 11),
            ClientError::SliceOutsideObject => (Client, 12),
            _ if error.is_source_not_found() => (Client, 14),
            ClientError::NoSatisfiablePolicy { .. } => (Client, 15),
            _ => (Client, 1),
        };
        Self::of(kind, code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use alba_core::ids::NamespaceName;

    use super::*;

    #[test]
    fn codes_are_the_originals() {
        let name = NamespaceName::new("x").unwrap();
        let error = CliError::from(ClientError::NamespaceUnknown(name.clone()));
        assert_eq!((error.kind.name(), error.code, error.exit), ("albamgr_exn", 6, 1));
        let error = CliError::from(ClientError::Meta(AbmError::NamespaceExists(name).into()));
        assert_eq!((error.kind.name(), error.code), ("albamgr_exn", 5));
        let error = CliError::from(ClientError::Meta(NsmError::ObjectNotFound.into()));
        assert_eq!((error.kind.name(), error.code), ("nsm_exn", 6));
        let refused = alba_proxy::client::ProxyError { code: 18, text: b"name".to_vec() };
        let error = CliError::from(CallError::Refused(refused));
        assert_eq!((error.kind.name(), error.code), ("proxy_exn", 18));
        let gone = io::Error::from(io::ErrorKind::NotFound);
        let error = CliError::from(ClientError::source(&gone));
        assert_eq!((error.kind.name(), error.code), ("client_exn", 14));
    }
}
