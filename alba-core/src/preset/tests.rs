use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;

use super::*;
use crate::ids::PresetName;

const EXAMPLE: &str = r#"
// What a volume driver uses.
{ "policies": [[5, 4, 8, 3], [2, 2, 3, 4]],   # preferred first
  "fragment_size": 1048576, /* 1 MiB */
  "osds": ["explicit", [3, 1, 3]],
  "compression": "snappy",
  "fragment_checksum": ["crc-32c"],
  "object_checksum": {"allowed": [["none"], ["sha-1"], ["crc-32c"]], "default": ["crc-32c"], "verify_upload": true},
  "fragment_encryption": ["none"],
  "name": "ignored", "is_default": true, "in_use": false, "version": 7 }
"#;

/// The example without comments, to be spoilt field by field.
fn example() -> serde_json::Value {
    Preset::from_json(EXAMPLE).unwrap().to_json()
}

fn error_with(field: &str, value: serde_json::Value) -> String {
    let mut preset = example();
    match field.split_once('.') {
        Some((outer, inner)) => preset[outer][inner] = value,
        None => preset[field] = value,
    }
    Preset::from_json(&preset.to_string()).unwrap_err().to_string()
}

#[test]
fn json_with_comments_is_a_preset() {
    let preset = Preset::from_json(EXAMPLE).unwrap();
    assert_eq!(preset.policies, [Policy::new(5, 4, 8, 3).unwrap(), Policy::new(2, 2, 3, 4).unwrap()]);
    assert_eq!(preset.fragment_size, 1 << 20);
    assert_eq!(preset.osds, OsdSet::Explicit(vec![OsdId::from_u32(1), OsdId::from_u32(3)]));
    assert_eq!(preset.compression, Compression::Snappy);
    assert_eq!(preset.fragment_checksum, ChecksumAlgorithm::Crc32c);
    assert_eq!(preset.object_checksum.allowed.len(), 3);
    assert!(preset.object_checksum.verify_upload);
}

#[test]
fn the_example_of_the_documentation_is_the_built_in_preset() {
    let page = include_str!("../../../docs/formats/manifest.md");
    let example = page.split("```").find(|block| block.contains("\"policies\"")).unwrap();
    assert_eq!(Preset::from_json(example), Ok(Preset::built_in()));
}

#[test]
fn a_printed_preset_is_read_back() {
    let mut preset = Preset::from_json(EXAMPLE).unwrap();
    for compression in Compression::ALL {
        preset.compression = compression;
        assert_eq!(Preset::from_json(&preset.to_json().to_string()), Ok(preset.clone()));
    }
    let name = PresetName::new("default").unwrap();
    let listing = Preset::built_in().to_listing(&name, true, false, 3);
    assert_eq!(
        listing,
        json!({
            "name": "default", "is_default": true, "in_use": false, "version": 3,
            "policies": [[5, 4, 8, 3], [2, 2, 3, 4]], "fragment_size": 1048576, "osds": ["all"],
            "compression": "none", "fragment_checksum": ["blake3"],
            "object_checksum": {
                "allowed": [["none"], ["sha-1"], ["crc-32c"], ["blake3"]],
                "default": ["crc-32c"], "verify_upload": true
            },
            "fragment_encryption": ["none"]
        })
    );
    assert_eq!(Preset::from_json(&listing.to_string()), Ok(Preset::built_in()));
}

#[test]
fn errors_name_the_field_the_value_and_the_rule() {
    for (field, value, message) in [
        ("policies", json!([]), "policies = []: at least one policy is needed"),
        (
            "policies",
            json!([[5, 4, 4, 3]]),
            "policies = [5,4,4,3]: min_fragment_count is 4; it must be between k = 5 and k + m = 9",
        ),
        (
            "policies",
            json!([[5, 4, 8]]),
            "policies = [5,4,8]: a list of [k, m, min_fragment_count, max_disks_per_node], preferred first",
        ),
        (
            "policies",
            json!("5+4"),
            "policies = \"5+4\": a list of [k, m, min_fragment_count, max_disks_per_node], preferred first",
        ),
        ("fragment_size", json!(15), "fragment_size = 15: it must be between 16 and 67108864 bytes"),
        (
            "fragment_size",
            json!(67_108_865),
            "fragment_size = 67108865: it must be between 16 and 67108864 bytes",
        ),
        ("fragment_size", json!(-1), "fragment_size = -1: it must be a whole number between 16 and 67108864"),
        (
            "fragment_size",
            json!(1.5),
            "fragment_size = 1.5: it must be a whole number between 16 and 67108864",
        ),
        ("osds", json!("all"), "osds = \"all\": [\"all\"] or [\"explicit\", [osd ids]]"),
        ("osds", json!(["explicit", [-1]]), "osds = -1: [\"all\"] or [\"explicit\", [osd ids]]"),
        (
            "compression",
            json!("gzip"),
            "compression = \"gzip\": \"none\", \"snappy\", \"lz4\", \"zstd\", \"bz2\" or \"test\"",
        ),
        (
            "fragment_checksum",
            json!("crc-32c"),
            "fragment_checksum = \"crc-32c\": [\"none\"], [\"sha-1\"], [\"crc-32c\"] or [\"blake3\"]",
        ),
        (
            "object_checksum.default",
            json!(["blake3"]),
            "object_checksum.default = blake3: the default must be among the allowed ones: none, sha-1, crc-32c",
        ),
        ("object_checksum.verify_upload", json!(1), "object_checksum.verify_upload = 1: true or false"),
        (
            "object_checksum.salt",
            json!(1),
            "unknown field \"object_checksum.salt\"; a preset has allowed, default, verify_upload",
        ),
        (
            "fragment_encryption",
            json!(["aes-cbc-256", "/etc/key"]),
            "fragment_encryption = aes-cbc-256 is not available yet in this version; use aes-ctr-256",
        ),
        (
            "fragment_encryption",
            json!(["rot13", "secret"]),
            "fragment_encryption = [\"rot13\",\"…\"]: [\"none\"] or [\"aes-ctr-256\", \"a file of 32 bytes, the key\"]",
        ),
        (
            "fragment_encryption",
            json!({ "secret": 1 }),
            "fragment_encryption = something else: [\"none\"] or [\"aes-ctr-256\", \"a file of 32 bytes, the key\"]",
        ),
        (
            "fragment_encryption",
            json!(["aes-ctr-256", "file"]),
            "fragment_encryption: keys cannot be read here",
        ),
        (
            "inline_limit",
            json!(4097),
            "inline_limit = 4097: at most 4096 bytes; 0 keeps every object on OSDs",
        ),
        (
            "inline_limit",
            json!("4k"),
            "inline_limit = \"4k\": the largest object that lives in the metadata, in bytes; 0 for none",
        ),
    ] {
        assert_eq!(error_with(field, value), message);
    }
    assert!(
        error_with("fragmentsize", json!(1))
            .starts_with("unknown field \"fragmentsize\"; a preset has policies,")
    );
}

#[test]
fn a_key_is_wrapped_and_only_its_hash_is_shown() {
    let (key, cluster) = (FragmentKey::new([1; 32]), ClusterKey::new([2; 32]));
    let mut json = example();
    json["fragment_encryption"] = json!(["aes-ctr-256", "keys/wide"]);
    json["inline_limit"] = json!(4096);
    let preset = Preset::from_json_with(&json.to_string(), |file| {
        assert_eq!(file, "keys/wide");
        Ok(FragmentEncryption::aes_256_ctr(&key, &cluster))
    })
    .unwrap();
    let FragmentEncryption::Aes256Ctr { key_sha256, key: wrapped } = preset.fragment_encryption else {
        panic!("{preset:?}")
    };
    assert_eq!((key_sha256, cluster.unwrap(&wrapped).unwrap().expose()), (key.sha256(), &[1; 32]));
    let shown = preset.to_json();
    assert_eq!(
        shown["fragment_encryption"],
        json!(["aes-ctr-256", format!("sha-256:{}", hex::encode(key_sha256))])
    );
    assert_eq!(shown["inline_limit"], json!(4096));
    let stored = postcard::to_stdvec(&preset).unwrap();
    assert_eq!(postcard::from_bytes::<Preset>(&stored).as_ref(), Ok(&preset));
}

#[test]
fn every_field_is_required_once() {
    for field in example().as_object().unwrap().keys() {
        let mut preset = example();
        preset.as_object_mut().unwrap().remove(field);
        let error = Preset::from_json(&preset.to_string()).unwrap_err();
        assert!(
            matches!(&error, PresetError::MissingField { field: missing, .. } if missing == field),
            "{error}"
        );
    }
    let twice = EXAMPLE.replacen('{', "{ \"compression\": \"none\",", 1);
    assert_eq!(Preset::from_json(&twice), Err(PresetError::DuplicateField("compression".into())));
}

#[test]
fn what_is_no_json_object_is_refused_with_the_place() {
    for text in ["", "[]", "{", "{} {}", "nonsense", "{\"policies\": [[1,0,1,1],]}"] {
        assert!(matches!(Preset::from_json(text), Err(PresetError::NotJson(_))), "{text}");
    }
    let error = Preset::from_json("// comment\n{ \"policies\" 1 }").unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
    let deep = "[".repeat(100_000);
    assert!(matches!(Preset::from_json(&format!("{{\"osds\": {deep}")), Err(PresetError::NotJson(_))));
}

#[test]
fn chunks_stay_below_2_gib() {
    let mut preset = Preset::built_in();
    preset.fragment_size = MAX_FRAGMENT_SIZE;
    preset.policies = vec![Policy::new(31, 1, 31, 1).unwrap()];
    assert_eq!(preset.check(), Ok(()));
    preset.policies.push(Policy::new(32, 1, 32, 1).unwrap());
    assert_eq!(
        preset.check().unwrap_err().to_string(),
        "fragment_size = 67108864: with k = 32 of policy (32, 1, 32, 1) a chunk would have 2147483648 bytes; \
         at most 2147483647 are possible"
    );
}

#[test]
fn a_preset_is_not_too_large_to_store() {
    let mut preset = Preset::built_in();
    preset.policies = vec![Policy::new(200, 55, 200, u32::MAX).unwrap(); MAX_POLICIES];
    preset.osds = OsdSet::Explicit(vec![OsdId::new(i64::MAX.unsigned_abs()).unwrap(); MAX_EXPLICIT_OSDS]);
    assert_eq!(preset.check(), Ok(()));
    assert!(postcard::to_stdvec(&preset).unwrap().len() < 90 << 10);
    let mut many = preset.clone();
    many.policies.push(many.policies[0]);
    assert!(many.check().is_err());
    preset.osds = OsdSet::Explicit(vec![OsdId::from_u32(1); MAX_EXPLICIT_OSDS + 1]);
    assert!(preset.check().is_err());
}

#[test]
fn the_built_in_preset_is_valid_and_has_its_golden_bytes() {
    let preset = Preset::built_in();
    assert_eq!(preset.check(), Ok(()));
    let bytes = postcard::to_stdvec(&preset).unwrap();
    assert_eq!(hex::encode(&bytes), "020504080302020304808040000003040001020302010000");
    assert_eq!(postcard::from_bytes::<Preset>(&bytes), Ok(preset));
}

#[test]
fn deserialising_checks_too() {
    let mut preset = Preset::built_in();
    preset.fragment_size = 3;
    let bytes = postcard::to_stdvec(&preset).unwrap();
    assert!(postcard::from_bytes::<Preset>(&bytes).is_err());
    let json = serde_json::to_string(&preset).unwrap();
    let error = serde_json::from_str::<Preset>(&json).unwrap_err().to_string();
    assert!(error.contains("fragment_size = 3: it must be between 16"), "{error}");
}

const ALGORITHMS: [ChecksumAlgorithm; 4] =
    [ChecksumAlgorithm::None, ChecksumAlgorithm::Sha1, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Blake3];

fn policy() -> impl Strategy<Value = Policy> {
    (1_u32..32, 0_u32..20, any::<proptest::sample::Index>(), 1_u32..).prop_map(|(k, m, c, x)| {
        let c = k + u32::try_from(c.index(usize::try_from(m).unwrap() + 1)).unwrap();
        Policy::new(k, m, c, x).unwrap()
    })
}

fn osds() -> impl Strategy<Value = OsdSet> {
    let ids = proptest::collection::btree_set(0..=i64::MAX.unsigned_abs(), 0..5);
    let explicit = ids.prop_map(|ids| ids.into_iter().map(|id| OsdId::new(id).unwrap()).collect());
    prop_oneof![Just(OsdSet::All), explicit.prop_map(OsdSet::Explicit)]
}

fn preset() -> impl Strategy<Value = Preset> {
    let checksums =
        (subsequence(ALGORITHMS.to_vec(), 1..=4), any::<proptest::sample::Index>(), any::<bool>()).prop_map(
            |(allowed, default, verify_upload)| {
                let default = *default.get(&allowed);
                ObjectChecksums { allowed, default, verify_upload }
            },
        );
    (
        proptest::collection::vec(policy(), 1..4),
        FRAGMENT_MULTIPLE..=MAX_FRAGMENT_SIZE,
        osds(),
        select(&Compression::ALL[..]),
        select(&ALGORITHMS[..]),
        checksums,
        0..=MAX_INLINE,
    )
        .prop_map(
            |(
                policies,
                fragment_size,
                osds,
                compression,
                fragment_checksum,
                object_checksum,
                inline_limit,
            )| {
                let fragment_encryption = FragmentEncryption::None;
                Preset {
                    policies,
                    fragment_size,
                    osds,
                    compression,
                    fragment_checksum,
                    object_checksum,
                    fragment_encryption,
                    inline_limit,
                }
            },
        )
}

proptest! {
    #[test]
    fn every_valid_preset_survives_both_forms(preset in preset()) {
        prop_assert_eq!(preset.check(), Ok(()));
        prop_assert_eq!(Preset::from_json(&preset.to_json().to_string()), Ok(preset.clone()));
        let bytes = postcard::to_stdvec(&preset).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Preset>(&bytes), Ok(preset));
    }

    #[test]
    fn a_damaged_preset_is_an_error_or_valid(position in 0_usize..EXAMPLE.len(), byte in 0x20_u8..0x7f) {
        let mut text = EXAMPLE.as_bytes().to_vec();
        text[position] = byte;
        if let Ok(preset) = Preset::from_json(std::str::from_utf8(&text).unwrap()) {
            prop_assert_eq!(preset.check(), Ok(()));
        }
    }
}
