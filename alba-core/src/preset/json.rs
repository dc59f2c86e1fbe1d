//! The JSON of presets, as operators of the original know it (wire-protocol §9.5, interfaces §4).

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::{
    Compression, FragmentEncryption, MAX_FRAGMENT_SIZE, ObjectChecksums, OsdSet, Preset, PresetError,
};
use crate::checksum::ChecksumAlgorithm;
use crate::ids::{OsdId, PresetName};
use crate::layout::FRAGMENT_MULTIPLE;
use crate::policy::Policy;

/// What the registry keeps beside the preset; printed, and ignored on input.
const READ_ONLY: [&str; 4] = ["name", "is_default", "in_use", "version"];

const POLICIES: (&str, &str) =
    ("policies", "a list of [k, m, min_fragment_count, max_disks_per_node], preferred first");
const FRAGMENT_SIZE: (&str, &str) = ("fragment_size", "the largest fragment, in bytes");
const OSDS: (&str, &str) = ("osds", "[\"all\"] or [\"explicit\", [osd ids]]");
const COMPRESSION: (&str, &str) =
    ("compression", "\"none\", \"snappy\", \"lz4\", \"zstd\", \"bz2\" or \"test\"");
const FRAGMENT_CHECKSUM: (&str, &str) = ("fragment_checksum", CHECKSUMS);
const OBJECT_CHECKSUM: (&str, &str) = (
    "object_checksum",
    "{\"allowed\": [checksums], \"default\": checksum, \"verify_upload\": true or false}",
);
const FRAGMENT_ENCRYPTION: (&str, &str) =
    ("fragment_encryption", "[\"none\"] or [\"aes-ctr-256\", \"a file of 32 bytes, the key\"]");
/// Ours; the original's presets don't have it.
const INLINE_LIMIT: (&str, &str) =
    ("inline_limit", "the largest object that lives in the metadata, in bytes; 0 for none");
const REQUIRED: [(&str, &str); 7] =
    [POLICIES, FRAGMENT_SIZE, OSDS, COMPRESSION, FRAGMENT_CHECKSUM, OBJECT_CHECKSUM, FRAGMENT_ENCRYPTION];

const CHECKSUMS: &str = "[\"none\"], [\"sha-1\"], [\"crc-32c\"] or [\"blake3\"]";
const ALLOWED: (&str, &str) = ("object_checksum.allowed", "a list of checksums");
const DEFAULT: (&str, &str) = ("object_checksum.default", CHECKSUMS);
const VERIFY: (&str, &str) = ("object_checksum.verify_upload", "true or false");

impl Preset {
    /// Parses the JSON of a preset that encrypts nothing, see [`Preset::from_json_with`].
    pub fn from_json(text: &str) -> Result<Self, PresetError> {
        Self::from_json_with(text, |_| Err("keys cannot be read here".to_owned()))
    }

    /// Parses the JSON of a preset. Comments (`//`, `/* */`, `#`) are allowed, the read-only fields of a listing are
    /// ignored, anything else unknown is refused. `wrapped` makes of the name of a key's file what the preset keeps of it.
    pub fn from_json_with(
        text: &str,
        wrapped: impl FnOnce(&str) -> Result<FragmentEncryption, String>,
    ) -> Result<Self, PresetError> {
        let mut fields = Fields::parse(text)?;
        let preset = Self {
            policies: policies(fields.take(POLICIES)?)?,
            fragment_size: fragment_size(&fields.take(FRAGMENT_SIZE)?)?,
            osds: osds(&fields.take(OSDS)?)?,
            compression: compression(&fields.take(COMPRESSION)?)?,
            fragment_checksum: checksum(FRAGMENT_CHECKSUM, &fields.take(FRAGMENT_CHECKSUM)?)?,
            object_checksum: object_checksum(fields.take(OBJECT_CHECKSUM)?)?,
            fragment_encryption: encryption(&fields.take(FRAGMENT_ENCRYPTION)?, wrapped)?,
            inline_limit: fields.take_optional(INLINE_LIMIT).map_or(Ok(0), |limit| inline_limit(&limit))?,
        };
        preset.check()?;
        Ok(preset)
    }

    /// The same JSON again: [`Preset::from_json`] takes it back, but for a key, of which only the hash is shown.
    pub fn to_json(&self) -> Value {
        let algorithm = |algorithm: ChecksumAlgorithm| json!([algorithm.name()]);
        let policies: Vec<[u32; 4]> = self.policies.iter().map(|policy| (*policy).into()).collect();
        let osds = match &self.osds {
            OsdSet::All => json!(["all"]),
            OsdSet::Explicit(ids) => {
                json!(["explicit", ids.iter().map(|id| id.get()).collect::<Vec<_>>()])
            }
        };
        let ObjectChecksums { allowed, default, verify_upload } = &self.object_checksum;
        let mut preset = json!({
            "policies": policies,
            "fragment_size": self.fragment_size,
            "osds": osds,
            "compression": self.compression.name(),
            "fragment_checksum": algorithm(self.fragment_checksum),
            "object_checksum": {
                "allowed": allowed.iter().copied().map(algorithm).collect::<Vec<_>>(),
                "default": algorithm(*default),
                "verify_upload": verify_upload,
            },
            "fragment_encryption": match &self.fragment_encryption {
                FragmentEncryption::None => json!(["none"]),
                FragmentEncryption::Aes256Ctr { key_sha256, .. } => {
                    json!(["aes-ctr-256", format!("sha-256:{}", hex::encode(key_sha256))])
                }
            },
        });
        if self.inline_limit != 0 {
            preset[INLINE_LIMIT.0] = json!(self.inline_limit);
        }
        preset
    }

    /// An entry of `list-presets`.
    pub fn to_listing(&self, name: &PresetName, is_default: bool, in_use: bool, version: u32) -> Value {
        let mut listing = self.to_json();
        listing["name"] = json!(name.as_str());
        listing["is_default"] = json!(is_default);
        listing["in_use"] = json!(in_use);
        listing["version"] = json!(version);
        listing
    }
}

/// The fields of the outer object, known by name and each given once.
struct Fields(Map<String, Value>);

/// Collects the members of an object in order, doubles included: a map would drop all but the last silently.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}

impl Fields {
    fn parse(text: &str) -> Result<Self, PresetError> {
        let not_json = |error: serde_json::Error| PresetError::NotJson(error.to_string());
        let mut json =
            serde_json::Deserializer::from_reader(json_comments::StripComments::new(text.as_bytes()));
        let members = json.deserialize_map(Members).map_err(not_json)?;
        json.end().map_err(not_json)?;
        let mut fields = Map::new();
        for (field, value) in members {
            let known = || REQUIRED.into_iter().chain([INLINE_LIMIT]).map(|(name, _)| name);
            if !READ_ONLY.contains(&field.as_str()) && known().all(|name| name != field) {
                let known = known().collect::<Vec<_>>().join(", ");
                return Err(PresetError::UnknownField { field, known });
            }
            if fields.insert(field.clone(), value).is_some() {
                return Err(PresetError::DuplicateField(field));
            }
        }
        Ok(Self(fields))
    }

    fn take(&mut self, (field, rule): (&'static str, &'static str)) -> Result<Value, PresetError> {
        self.0.remove(field).ok_or(PresetError::MissingField { field, rule })
    }

    fn take_optional(&mut self, (field, _): (&'static str, &'static str)) -> Option<Value> {
        self.0.remove(field)
    }
}

type Field = (&'static str, &'static str);

fn invalid((field, rule): Field, value: &Value) -> PresetError {
    PresetError::invalid(field, value, rule)
}

fn policies(value: Value) -> Result<Vec<Policy>, PresetError> {
    let Value::Array(list) = value else { return Err(invalid(POLICIES, &value)) };
    let policy = |value: Value| {
        let numbers: [u32; 4] =
            serde_json::from_value(value.clone()).map_err(|_| invalid(POLICIES, &value))?;
        Policy::try_from(numbers).map_err(|error| PresetError::invalid(POLICIES.0, &value, error.to_string()))
    };
    list.into_iter().map(policy).collect()
}

fn fragment_size(value: &Value) -> Result<u32, PresetError> {
    value.as_u64().and_then(|size| u32::try_from(size).ok()).ok_or_else(|| {
        let rule = format!("it must be a whole number between {FRAGMENT_MULTIPLE} and {MAX_FRAGMENT_SIZE}");
        PresetError::invalid(FRAGMENT_SIZE.0, value, rule)
    })
}

fn osds(value: &Value) -> Result<OsdSet, PresetError> {
    match value.as_array().map(Vec::as_slice) {
        Some([Value::String(kind)]) if kind == "all" => Ok(OsdSet::All),
        Some([Value::String(kind), Value::Array(ids)]) if kind == "explicit" => {
            let id = |id: &Value| id.as_u64().and_then(|id| OsdId::new(id).ok());
            let mut ids: Vec<OsdId> = ids
                .iter()
                .map(|value| id(value).ok_or_else(|| invalid(OSDS, value)))
                .collect::<Result<_, _>>()?;
            ids.sort_unstable();
            ids.dedup();
            Ok(OsdSet::Explicit(ids))
        }
        _ => Err(invalid(OSDS, value)),
    }
}

fn compression(value: &Value) -> Result<Compression, PresetError> {
    value.as_str().and_then(Compression::from_name).ok_or_else(|| invalid(COMPRESSION, value))
}

fn checksum(field: Field, value: &Value) -> Result<ChecksumAlgorithm, PresetError> {
    match value.as_array().map(Vec::as_slice) {
        Some([Value::String(name)]) => ChecksumAlgorithm::from_name(name),
        _ => None,
    }
    .ok_or_else(|| PresetError::invalid(field.0, value, CHECKSUMS))
}

fn object_checksum(value: Value) -> Result<ObjectChecksums, PresetError> {
    let Value::Object(mut members) = value else { return Err(invalid(OBJECT_CHECKSUM, &value)) };
    let mut take = |name: &str, (field, rule): Field| {
        members.remove(name).ok_or(PresetError::MissingField { field, rule })
    };
    let allowed = take("allowed", ALLOWED)?;
    let default = take("default", DEFAULT)?;
    let verify = take("verify_upload", VERIFY)?;
    if let Some(unknown) = members.keys().next() {
        let known = "allowed, default, verify_upload".to_owned();
        return Err(PresetError::UnknownField { field: format!("object_checksum.{unknown}"), known });
    }
    let list = allowed.as_array().ok_or_else(|| invalid(ALLOWED, &allowed))?;
    let mut algorithms = Vec::new();
    for value in list {
        let algorithm = checksum(ALLOWED, value)?;
        if !algorithms.contains(&algorithm) {
            algorithms.push(algorithm);
        }
    }
    Ok(ObjectChecksums {
        allowed: algorithms,
        default: checksum(DEFAULT, &default)?,
        verify_upload: verify.as_bool().ok_or_else(|| invalid(VERIFY, &verify))?,
    })
}

fn encryption(
    value: &Value,
    wrapped: impl FnOnce(&str) -> Result<FragmentEncryption, String>,
) -> Result<FragmentEncryption, PresetError> {
    match value.as_array().map(Vec::as_slice) {
        Some([Value::String(kind)]) if kind == "none" => Ok(FragmentEncryption::None),
        Some([Value::String(kind), Value::String(file)]) if kind == "aes-ctr-256" => {
            wrapped(file).map_err(PresetError::Key)
        }
        // What follows may say something about a key: only the algorithm is repeated.
        Some([Value::String(kind), ..]) if kind == "aes-cbc-256" => Err(PresetError::NotAvailable {
            field: FRAGMENT_ENCRYPTION.0,
            value: kind.clone(),
            instead: "aes-ctr-256",
        }),
        Some([Value::String(kind), ..]) => Err(invalid(FRAGMENT_ENCRYPTION, &json!([kind, "…"]))),
        _ => Err(PresetError::invalid(FRAGMENT_ENCRYPTION.0, "something else", FRAGMENT_ENCRYPTION.1)),
    }
}

fn inline_limit(value: &Value) -> Result<u32, PresetError> {
    value.as_u64().and_then(|limit| u32::try_from(limit).ok()).ok_or_else(|| invalid(INLINE_LIMIT, value))
}
