//! As metrics call operations and errors.

use alba_core::wire::asd::{AsdError, Command};

pub(super) fn name(command: Command) -> &'static str {
    match command {
        Command::Range => "range",
        Command::MultiGet => "multi_get",
        Command::Apply => "apply",
        Command::RangeEntries => "range_entries",
        Command::Statistics => "statistics",
        Command::SetFull => "set_full",
        Command::GetVersion => "get_version",
        Command::MultiGet2 => "multi_get2",
        Command::MultiExists => "multi_exists",
        Command::GetDiskUsage => "get_disk_usage",
        Command::PartialGet => "partial_get",
        Command::Capabilities => "capabilities",
        Command::RangeValidate => "range_validate",
        Command::Slowness => "slowness",
    }
}

pub(super) fn class(error: &AsdError) -> &'static str {
    match error {
        AsdError::Unknown(_) => "device",
        AsdError::AssertFailed(_) => "assert",
        AsdError::UnknownOperation | AsdError::ProtocolVersionMismatch(_) | AsdError::BadRequest(_) => {
            "caller"
        }
        AsdError::Full => "full",
        AsdError::Damaged(_) => "damage",
        AsdError::Overloaded(_) => "overload",
    }
}
