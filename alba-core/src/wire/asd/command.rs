//! The operations and their codes.

/// An operation. Codes from 64 on are ours, so that those the original may give next stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// 1
    Range,
    /// 2
    MultiGet,
    /// 3
    Apply,
    /// 4
    RangeEntries,
    /// 5
    Statistics,
    /// 6
    SetFull,
    /// 7
    GetVersion,
    /// 8
    MultiGet2,
    /// 9
    MultiExists,
    /// 10
    GetDiskUsage,
    /// 11
    PartialGet,
    /// 12
    Capabilities,
    /// 13
    RangeValidate,
    /// 14
    Slowness,
    /// 64, ours
    ProvenGet,
    /// 65, ours
    SetPeers,
    /// 66, ours
    Health,
}

impl Command {
    /// All, in the order of their codes.
    pub const ALL: [Self; 17] = [
        Self::Range,
        Self::MultiGet,
        Self::Apply,
        Self::RangeEntries,
        Self::Statistics,
        Self::SetFull,
        Self::GetVersion,
        Self::MultiGet2,
        Self::MultiExists,
        Self::GetDiskUsage,
        Self::PartialGet,
        Self::Capabilities,
        Self::RangeValidate,
        Self::Slowness,
        Self::ProvenGet,
        Self::SetPeers,
        Self::Health,
    ];

    /// The code on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Self::Range => 1,
            Self::MultiGet => 2,
            Self::Apply => 3,
            Self::RangeEntries => 4,
            Self::Statistics => 5,
            Self::SetFull => 6,
            Self::GetVersion => 7,
            Self::MultiGet2 => 8,
            Self::MultiExists => 9,
            Self::GetDiskUsage => 10,
            Self::PartialGet => 11,
            Self::Capabilities => 12,
            Self::RangeValidate => 13,
            Self::Slowness => 14,
            Self::ProvenGet => 64,
            Self::SetPeers => 65,
            Self::Health => 66,
        }
    }

    /// The operation of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.code() == code)
    }

    /// Its name in metrics and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::MultiGet => "multi_get",
            Self::Apply => "apply",
            Self::RangeEntries => "range_entries",
            Self::Statistics => "statistics",
            Self::SetFull => "set_full",
            Self::GetVersion => "get_version",
            Self::MultiGet2 => "multi_get2",
            Self::MultiExists => "multi_exists",
            Self::GetDiskUsage => "get_disk_usage",
            Self::PartialGet => "partial_get",
            Self::Capabilities => "capabilities",
            Self::RangeValidate => "range_validate",
            Self::Slowness => "slowness",
            Self::ProvenGet => "proven_get",
            Self::SetPeers => "set_peers",
            Self::Health => "health",
        }
    }
}
