//! Identities: who and what is meant. Each is a type of its own, so that none can be passed for another.
//!
//! Constructors refuse what the formats cannot carry; nothing here ever truncates.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text, number or byte string is not a valid identity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// Longer than the formats can carry.
    #[error("{what} is {len} bytes long; at most {max} are allowed")]
    TooLong {
        /// Which identity.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Empty where something is required.
    #[error("{what} is empty")]
    Empty {
        /// Which identity.
        what: &'static str,
    },
    /// A number outside `0..=i64::MAX`, the range of the wire's `x_int64`.
    #[error("{what} {value} is outside 0..=9223372036854775807")]
    OutOfRange {
        /// Which identity.
        what: &'static str,
        /// The number given.
        value: i128,
    },
    /// Not of the expected length or alphabet.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which identity.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name(u64);

        impl $name {
            /// Accepts `0..=i64::MAX`, the range that the wire's `x_int64` can carry.
            pub fn new(value: u64) -> Result<Self, IdError> {
                if i64::try_from(value).is_ok() {
                    Ok(Self(value))
                } else {
                    Err(IdError::OutOfRange { what: $what, value: i128::from(value) })
                }
            }

            /// For constants in code and tests: every `u32` is in range.
            pub const fn from_u32(value: u32) -> Self {
                // Widening; `u64::from` is not const.
                #[allow(clippy::cast_lossless)]
                Self(value as u64)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The number as the wire carries it.
            pub fn to_i64(self) -> i64 {
                // In range by construction.
                i64::try_from(self.0).unwrap_or(i64::MAX)
            }

            /// The next one; `None` at the end of the range.
            pub fn next(self) -> Option<Self> {
                Self::new(self.0.checked_add(1)?).ok()
            }
        }

        impl TryFrom<u64> for $name {
            type Error = IdError;
            fn try_from(value: u64) -> Result<Self, IdError> {
                Self::new(value)
            }
        }

        impl TryFrom<i64> for $name {
            type Error = IdError;
            fn try_from(value: i64) -> Result<Self, IdError> {
                u64::try_from(value)
                    .map(Self)
                    .map_err(|_| IdError::OutOfRange { what: $what, value: i128::from(value) })
            }
        }

        impl From<$name> for u64 {
            fn from(id: $name) -> u64 {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// An OSD within one backend: small, monotonic, never reused.
    OsdId,
    "osd id"
);
number_id!(
    /// A namespace within one backend: monotonic, never reused.
    NamespaceId,
    "namespace id"
);
number_id!(
    /// A garbage-collection epoch of a namespace (features §2.11).
    GcEpoch,
    "gc epoch"
);
number_id!(
    /// Position of a message in the queue towards one destination (features §1.5).
    MessageId,
    "message id"
);

number_id!(
    /// An item of the ABM's work queue (features §3.7).
    WorkId,
    "work id"
);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Longest accepted, in bytes.
            pub const MAX_LEN: usize = $max;

            /// Accepts 1 to [`Self::MAX_LEN`] bytes of text.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                match text.len() {
                    0 => Err(IdError::Empty { what: $what }),
                    len if len > Self::MAX_LEN => {
                        Err(IdError::TooLong { what: $what, len, max: Self::MAX_LEN })
                    }
                    _ => Ok(Self(text)),
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text_id!(
    /// A backend ("alba instance"), identified by a random UUID made at its first start.
    AlbaId,
    "alba id",
    256
);
text_id!(
    /// The globally unique name of a device, fixed when it is formatted; checked in each connection's prologue.
    LongId,
    "long id",
    256
);
text_id!(
    /// A preset's name.
    PresetName,
    "preset name",
    256
);
text_id!(
    /// A metadata group: `abm`, or an NSM group such as `nsm-0`.
    GroupId,
    "group id",
    64
);
text_id!(
    /// A job over a whole namespace (features §3.7): unique until it is cleared.
    JobName,
    "job name",
    256
);
text_id!(
    /// A task that one agent at a time does, under a lease of the ABM.
    TaskName,
    "task name",
    256
);
text_id!(
    /// An agent that shares work with others: random, made at its start.
    AgentId,
    "agent id",
    128
);
text_id!(
    /// The innermost failure domain: what the old wire calls `node_id`.
    NodeId,
    "node id",
    256
);

macro_rules! name_bytes {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $min:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
        pub struct $name(Vec<u8>);

        impl $name {
            /// Longest accepted, in bytes: keys and values of the metadata store stay small.
            pub const MAX_LEN: usize = $max;

            /// Accepts any bytes up to [`Self::MAX_LEN`].
            pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, IdError> {
                let bytes = bytes.into();
                match bytes.len() {
                    0 if $min > 0 => Err(IdError::Empty { what: $what }),
                    len if len > Self::MAX_LEN => {
                        Err(IdError::TooLong { what: $what, len, max: Self::MAX_LEN })
                    }
                    _ => Ok(Self(bytes)),
                }
            }

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl TryFrom<Vec<u8>> for $name {
            type Error = IdError;
            fn try_from(bytes: Vec<u8>) -> Result<Self, IdError> {
                Self::new(bytes)
            }
        }

        impl From<$name> for Vec<u8> {
            fn from(name: $name) -> Vec<u8> {
                name.0
            }
        }

        impl fmt::Display for $name {
            /// Text when it is UTF-8, else lower-case hex (interfaces §3).
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&text_or_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", text_or_hex(&self.0))
            }
        }
    };
}

name_bytes!(
    /// A namespace's name: any bytes, unique in the backend.
    NamespaceName,
    "namespace name",
    1024,
    1
);
name_bytes!(
    /// An object's name: any bytes, unique in its namespace.
    ObjectName,
    "object name",
    4096,
    0
);

/// Byte strings for people and JSON: text when UTF-8, else lower-case hex (interfaces §3).
pub fn text_or_hex(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => hex::encode(bytes),
    }
}

/// An object's identity: 32 random bytes. A new upload of the same name is a new object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId([u8; 32]);

impl ObjectId {
    /// Wraps 32 bytes that came from a random source or a manifest.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<&[u8]> for ObjectId {
    type Error = IdError;
    fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
        bytes.try_into().map(Self).map_err(|_| IdError::Malformed {
            what: "object id",
            reason: format!("{} bytes instead of 32", bytes.len()),
        })
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

macro_rules! position {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u32);

        impl $name {
            /// As an index into a slice.
            pub fn index(self) -> usize {
                // `usize` has at least 32 bits on every platform we build for.
                usize::try_from(self.0).unwrap_or(usize::MAX)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

position!(
    /// Position of a chunk in its object.
    ChunkIndex
);
position!(
    /// Position of a fragment in its chunk: data `0..k`, then parity `k..k+m`.
    FragmentIndex
);
position!(
    /// Version of a manifest, and the one a fragment was (re)placed at: 0 at upload, +1 at each move.
    ObjectVersion
);

/// Where a device stands: a path of failure domains. Policies limit the node level only (for the time being
/// one level counts), but formats carry the whole path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    zone: String,
    rack: String,
    node: NodeId,
}

impl Place {
    /// A node outside any named zone or rack.
    pub fn of_node(node: NodeId) -> Self {
        Self { zone: String::new(), rack: String::new(), node }
    }

    /// The outermost domain; empty when not named.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The middle domain; empty when not named.
    pub fn rack(&self) -> &str {
        &self.rack
    }

    /// The domain that policies count.
    pub fn node(&self) -> &NodeId {
        &self.node
    }
}

impl std::str::FromStr for Place {
    type Err = IdError;
    /// `node`, `rack/node` or `zone/rack/node`.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let malformed = |reason: &str| IdError::Malformed {
            what: "place",
            reason: format!("{text:?}: {reason}; write node, rack/node or zone/rack/node"),
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(malformed("a part is empty"));
        }
        let (zone, rack, node) = match parts.as_slice() {
            [node] => ("", "", *node),
            [rack, node] => ("", *rack, *node),
            [zone, rack, node] => (*zone, *rack, *node),
            _ => return Err(malformed("too many parts")),
        };
        Ok(Self { zone: zone.to_owned(), rack: rack.to_owned(), node: NodeId::new(node)? })
    }
}

impl TryFrom<String> for Place {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> String {
        place.to_string()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.zone, &self.rack] {
            if !part.is_empty() {
                write!(f, "{part}/")?;
            }
        }
        self.node.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_the_range_of_the_wire() {
        assert!(OsdId::new(i64::MAX.unsigned_abs()).is_ok());
        assert!(OsdId::new(i64::MAX.unsigned_abs() + 1).is_err());
        assert!(OsdId::try_from(-1_i64).is_err());
    }

    #[test]
    fn a_place_is_a_path_of_domains() {
        let place: Place = "z/r/n".parse().unwrap();
        assert_eq!((place.zone(), place.rack(), place.node().as_str()), ("z", "r", "n"));
        assert_eq!(place.to_string(), "z/r/n");
        assert_eq!("n".parse::<Place>().unwrap().to_string(), "n");
        assert!("a//b".parse::<Place>().is_err());
        assert!("a/b/c/d".parse::<Place>().is_err());
    }

    #[test]
    fn names_have_a_limit_and_print_as_text_or_hex() {
        assert!(ObjectName::new(vec![b'x'; 65536]).is_err());
        assert_eq!(ObjectName::new("a").unwrap().to_string(), "a");
        assert_eq!(ObjectName::new(vec![0xff, 0x00]).unwrap().to_string(), "ff00");
    }
}
