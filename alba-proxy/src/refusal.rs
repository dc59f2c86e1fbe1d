//! What a client is told when its request fails: a code that it acts on and a text for people (wire-protocol §2.2).

use std::fmt;

use alba_client::ClientError;
use alba_core::env::MetaError;
use alba_core::ids::{IdError, ObjectName};
use alba_core::wire::llio::WireError;
use alba_core::wire::proxy::{ErrorCode, ProxyError, RequestError};
use alba_core::wire::rpc::abm::AbmError;
use alba_core::wire::rpc::nsm::NsmError;

use crate::admission::Full;

/// Longest text of an error: names and paths in it may be long.
const MAX_TEXT: usize = 2048;

/// A request's failure, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) ProxyError);

impl Refusal {
    /// `explanation` behind the original's text, in which operators recognise the error.
    pub(crate) fn new(code: ErrorCode, explanation: impl fmt::Display) -> Self {
        let mut text = explanation.to_string();
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push('…');
        }
        Self(ProxyError::explained(code, text))
    }

    /// Anything without a code of its own.
    pub(crate) fn unknown(explanation: impl fmt::Display) -> Self {
        Self::new(ErrorCode::Unknown, explanation)
    }

    /// An assert of a sequence does not hold for this object.
    pub(crate) fn assert_failed(name: &ObjectName) -> Self {
        Self(ProxyError::assert_failed(name.as_bytes().to_vec()))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        Self::unknown(full)
    }
}

impl From<IdError> for Refusal {
    fn from(error: IdError) -> Self {
        Self::unknown(error)
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::unknown(error)
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        Self(error.into())
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::AssertFailed(name) | ClientError::Meta(MetaError::Nsm(NsmError::AssertFailed(name))) => {
                return Self::assert_failed(name);
            }
            ClientError::NamespaceUnknown(_)
            | ClientError::Meta(
                MetaError::Abm(AbmError::NamespaceUnknown(_) | AbmError::NamespaceNotActive(_))
                // Gone between looking the name up and using the number.
                | MetaError::Nsm(NsmError::NamespaceMoved(_)),
            ) => ErrorCode::NamespaceDoesNotExist,
            ClientError::NamespaceExists(_)
            | ClientError::Meta(MetaError::Abm(AbmError::NamespaceExists(_))) => ErrorCode::NamespaceAlreadyExists,
            ClientError::PresetUnknown(_) | ClientError::Meta(MetaError::Abm(AbmError::PresetUnknown(_))) => {
                ErrorCode::PresetDoesNotExist
            }
            ClientError::ObjectUnknown(_) | ClientError::Meta(MetaError::Nsm(NsmError::ObjectNotFound)) => {
                ErrorCode::ObjectDoesNotExist
            }
            ClientError::OverwriteNotAllowed(_)
            | ClientError::Meta(MetaError::Nsm(NsmError::OverwriteNotAllowed(_))) => ErrorCode::OverwriteNotAllowed,
            ClientError::ChecksumMismatch { .. } => ErrorCode::ChecksumMismatch,
            ClientError::ChecksumNotAllowed(_) => ErrorCode::ChecksumAlgoNotAllowed,
            ClientError::NoSatisfiablePolicy { .. } => ErrorCode::NoSatisfiablePolicy,
            ClientError::BadSliceLength => ErrorCode::BadSliceLength,
            ClientError::OverlappingSlices => ErrorCode::OverlappingSlices,
            ClientError::SliceOutsideObject => ErrorCode::SliceOutsideObject,
            _ if error.is_source_not_found() => ErrorCode::FileNotFound,
            ClientError::TooMuchAtOnce { .. }
            | ClientError::ObjectTooLarge { .. }
            | ClientError::NotEnoughFragments { .. }
            | ClientError::ChunkNotStored { .. }
            | ClientError::Undecodable { .. }
            | ClientError::Key(_)
            | ClientError::OsdUnknown(_)
            | ClientError::Source { .. }
            | ClientError::Sink { .. }
            | ClientError::Meta(_)
            | ClientError::Deadline { .. }
            | ClientError::Busy(_)
            | ClientError::InvalidName(_)
            | ClientError::Config(_)
            | ClientError::Internal(_) => ErrorCode::Unknown,
        };
        Self::new(code, error)
    }
}
