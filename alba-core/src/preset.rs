//! Presets: what a namespace asks of its objects.
//!
//! A [`Preset`] that was parsed or deserialised obeys the rules of [`Preset::check`]; code that builds one by hand calls
//! it. The JSON that operators write is in [`json`]; stored and sent presets are postcard in field order, so fields may
//! only be added at the end, with a new format version of what contains them.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::checksum::ChecksumAlgorithm;
use crate::encryption::{ClusterKey, FragmentKey, WrappedKey};
use crate::ids::OsdId;
use crate::layout::{FRAGMENT_MULTIPLE, MAX_CHUNK_SIZE};
use crate::policy::Policy;

pub mod json;

/// Largest fragment size in bytes: 64 MiB. A proxy holds whole chunks of k fragments in memory, and object sizes that
/// volume drivers use end at 64 MiB.
pub const MAX_FRAGMENT_SIZE: u32 = 64 << 20;

/// Most policies of a preset: keeps a stored preset small.
pub const MAX_POLICIES: usize = 64;

/// Most OSDs of an explicit set: keeps a stored preset below the metadata store's limit of 90 KiB per value.
pub const MAX_EXPLICIT_OSDS: usize = 4096;

/// How fragments are compressed. Wire tags 1 none, 2 snappy, 3 bz2, 4 test; lz4 and zstd go out to old clients as snappy,
/// which they never decompress themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Compression {
    /// As is.
    None,
    /// A raw snappy block.
    Snappy,
    /// An lz4 block behind its plain length.
    Lz4,
    /// A zstd frame, level 1.
    Zstd,
    /// A bzip2 stream of block size 9 behind its plain length: ten times slower than the others, for compatibility.
    Bzip2,
    /// The time of writing in front of the bz2 form. The same data never has the same packed bytes twice: it shows that
    /// nothing relies on that, since a compressor of another version gives other bytes, too. For tests only.
    Test,
}

impl Compression {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::None, Self::Snappy, Self::Lz4, Self::Zstd, Self::Bzip2, Self::Test];

    /// The name used in presets.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bz2",
            Self::Test => "test",
        }
    }

    /// The codec of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

/// How fragments are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FragmentEncryption {
    /// Not at all.
    None,
    /// AES-256 in CTR mode, every fragment under a counter block of its own.
    Aes256Ctr {
        /// SHA-256 of the key: what manifests name it by.
        key_sha256: [u8; 32],
        /// The key, for those who have the cluster's.
        key: WrappedKey,
    },
}

impl FragmentEncryption {
    /// With this key, wrapped by the cluster's.
    pub fn aes_256_ctr(key: &FragmentKey, cluster: &ClusterKey) -> Self {
        Self::Aes256Ctr { key_sha256: key.sha256(), key: cluster.wrap(key) }
    }
}

/// Largest object in bytes that may live in the metadata: a group's log and store are made for small records.
pub const MAX_INLINE: u32 = 4 << 10;

/// Which OSDs may hold the fragments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdSet {
    /// All of the backend, those claimed later too.
    All,
    /// These only.
    Explicit(Vec<OsdId>),
}

/// Rules for the checksum of a whole object (wire-protocol §2.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectChecksums {
    /// What a client may send.
    pub allowed: Vec<ChecksumAlgorithm>,
    /// Computed when the client sends none.
    pub default: ChecksumAlgorithm,
    /// Compare what the client sent with the data.
    pub verify_upload: bool,
}

/// What a namespace asks of its objects (features §2.2). The rules are those of [`Preset::check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Preset {
    /// Preferred first; the first satisfiable one is used.
    pub policies: Vec<Policy>,
    /// Largest plain fragment in bytes.
    pub fragment_size: u32,
    /// Where fragments may go.
    pub osds: OsdSet,
    /// Per fragment.
    pub compression: Compression,
    /// Of packed fragments.
    pub fragment_checksum: ChecksumAlgorithm,
    /// Of whole objects.
    pub object_checksum: ObjectChecksums,
    /// Of packed fragments, before they are summed up.
    pub fragment_encryption: FragmentEncryption,
    /// Objects up to this many bytes live in the metadata, where its group has three replicas or more; 0: none. At most
    /// [`MAX_INLINE`].
    pub inline_limit: u32,
}

/// A preset as it comes from outside: the same fields, any values.
#[derive(Deserialize)]
struct Unchecked {
    policies: Vec<Policy>,
    fragment_size: u32,
    osds: OsdSet,
    compression: Compression,
    fragment_checksum: ChecksumAlgorithm,
    object_checksum: ObjectChecksums,
    fragment_encryption: FragmentEncryption,
    inline_limit: u32,
}

impl TryFrom<Unchecked> for Preset {
    type Error = PresetError;

    fn try_from(fields: Unchecked) -> Result<Self, PresetError> {
        let preset = Self {
            policies: fields.policies,
            fragment_size: fields.fragment_size,
            osds: fields.osds,
            compression: fields.compression,
            fragment_checksum: fields.fragment_checksum,
            object_checksum: fields.object_checksum,
            fragment_encryption: fields.fragment_encryption,
            inline_limit: fields.inline_limit,
        };
        preset.check()?;
        Ok(preset)
    }
}

/// Which rule a preset breaks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PresetError {
    /// No JSON, or not an object.
    #[error("a preset is a JSON object (comments are allowed): {0}")]
    NotJson(String),
    /// A field that presets don't have.
    #[error("unknown field {field:?}; a preset has {known}")]
    UnknownField {
        /// Its name.
        field: String,
        /// Those there are.
        known: String,
    },
    /// A field given twice.
    #[error("field {0:?} is given twice")]
    DuplicateField(String),
    /// A field that is required.
    #[error("field {field:?} is missing: {rule}")]
    MissingField {
        /// Its name.
        field: &'static str,
        /// What it has to be.
        rule: &'static str,
    },
    /// A value against the rules.
    #[error("{field} = {value}: {rule}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it has to be.
        rule: String,
    },
    /// Understood, but not built yet.
    #[error("{field} = {value} is not available yet in this version; use {instead}")]
    NotAvailable {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What works.
        instead: &'static str,
    },
    /// The key that it names cannot be used.
    #[error("fragment_encryption: {0}")]
    Key(String),
}

impl PresetError {
    fn invalid(field: &'static str, value: impl ToString, rule: impl Into<String>) -> Self {
        Self::Invalid { field, value: value.to_string(), rule: rule.into() }
    }
}

impl Preset {
    /// At least one policy; fragments of 16 bytes to 64 MiB, chunks of k of them below 2 GiB; a default checksum that is
    /// allowed.
    pub fn check(&self) -> Result<(), PresetError> {
        if self.policies.is_empty() {
            return Err(PresetError::invalid("policies", "[]", "at least one policy is needed"));
        }
        if self.policies.len() > MAX_POLICIES {
            let rule = format!("at most {MAX_POLICIES} policies are possible");
            return Err(PresetError::invalid("policies", format!("{} policies", self.policies.len()), rule));
        }
        if !(FRAGMENT_MULTIPLE..=MAX_FRAGMENT_SIZE).contains(&self.fragment_size) {
            let rule = format!("it must be between {FRAGMENT_MULTIPLE} and {MAX_FRAGMENT_SIZE} bytes");
            return Err(PresetError::invalid("fragment_size", self.fragment_size, rule));
        }
        for policy in &self.policies {
            let k = u64::from(policy.shape().as_u8().0);
            let chunk = u64::from(self.fragment_size) * k;
            if chunk > u64::from(MAX_CHUNK_SIZE) {
                let rule = format!(
                    "with k = {k} of policy {policy} a chunk would have {chunk} bytes; at most {MAX_CHUNK_SIZE} are possible"
                );
                return Err(PresetError::invalid("fragment_size", self.fragment_size, rule));
            }
        }
        if let OsdSet::Explicit(osds) = &self.osds
            && osds.len() > MAX_EXPLICIT_OSDS
        {
            let rule = format!("at most {MAX_EXPLICIT_OSDS} OSDs can be listed; use [\"all\"]");
            return Err(PresetError::invalid("osds", format!("{} OSDs", osds.len()), rule));
        }
        let ObjectChecksums { allowed, default, .. } = &self.object_checksum;
        if !allowed.contains(default) {
            let names: Vec<_> = allowed.iter().map(|algorithm| algorithm.name()).collect();
            let rule = format!("the default must be among the allowed ones: {}", names.join(", "));
            return Err(PresetError::invalid("object_checksum.default", default.name(), rule));
        }
        if self.inline_limit > MAX_INLINE {
            let rule = format!("at most {MAX_INLINE} bytes; 0 keeps every object on OSDs");
            return Err(PresetError::invalid("inline_limit", self.inline_limit, rule));
        }
        Ok(())
    }

    /// The preset called `default` that every backend starts with (interfaces §4).
    pub fn built_in() -> Self {
        Self {
            policies: [[5, 4, 8, 3], [2, 2, 3, 4]]
                .into_iter()
                .filter_map(|p| Policy::try_from(p).ok())
                .collect(),
            fragment_size: 1 << 20,
            osds: OsdSet::All,
            compression: Compression::None,
            fragment_checksum: ChecksumAlgorithm::Blake3,
            object_checksum: ObjectChecksums {
                allowed: vec![
                    ChecksumAlgorithm::None,
                    ChecksumAlgorithm::Sha1,
                    ChecksumAlgorithm::Crc32c,
                    ChecksumAlgorithm::Blake3,
                ],
                default: ChecksumAlgorithm::Crc32c,
                verify_upload: true,
            },
            fragment_encryption: FragmentEncryption::None,
            inline_limit: 0,
        }
    }
}

#[cfg(test)]
mod tests;
