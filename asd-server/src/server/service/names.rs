//! As metrics call errors.

use alba_core::wire::asd::AsdError;

pub(super) fn class(error: &AsdError) -> &'static str {
    match error {
        AsdError::Unknown(_) => "device",
        AsdError::AssertFailed(_) => "assert",
        AsdError::UnknownOperation
        | AsdError::ProtocolVersionMismatch(_)
        | AsdError::BadRequest(_)
        | AsdError::WrongChecksum(_) => "caller",
        AsdError::Forbidden(_) => "forbidden",
        AsdError::Full => "full",
        AsdError::Damaged(_) => "damage",
        AsdError::Overloaded(_) => "overload",
    }
}
