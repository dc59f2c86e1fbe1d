//! Objects that are encrypted, and small ones that live in the metadata.

use std::collections::BTreeSet;
use std::io::Write;

use alba_core::encryption::{ClusterKey, FragmentKey, KeyError};
use alba_core::env::{MetaError, files};
use alba_core::manifest::{CipherMode, EncryptInfo};
use alba_core::osd_keys::{Parsed, parse};
use alba_core::preset::{Compression, FragmentEncryption, Preset};
use alba_core::wire::recovery::{RecoveryError, RecoveryInfo};
use alba_core::wire::rpc::nsm::NsmError;
use bytes::Bytes;

use super::backend::{Fixture, preset};
use super::*;
use crate::{ClientConfig, ObjectSource, SequenceUpdate, Slice};

const KEY: [u8; 32] = [5; 32];

pub(super) struct Sealed {
    pub(super) fixture: Fixture,
    pub(super) dir: tempfile::TempDir,
}

/// A backend whose preset encrypts and takes objects up to `inline_limit` into the metadata.
pub(super) fn sealed(policy: [u32; 4], compression: Compression, inline_limit: u32) -> Sealed {
    let dir = tempfile::tempdir().unwrap();
    let (path, cluster) = (dir.path().join("cluster.key"), ClusterKey::new([6; 32]));
    files::create_with_mode(&path, 0o600).unwrap().write_all(cluster.to_text().as_bytes()).unwrap();
    let fragment_encryption = FragmentEncryption::aes_256_ctr(&FragmentKey::new(KEY), &cluster);
    let preset = Preset { fragment_encryption, inline_limit, ..preset(&[policy], 1024, compression) };
    let config = ClientConfig { cluster_key: Some(path), ..ClientConfig::default() };
    Sealed { fixture: Fixture::with_config(policy[0] + policy[1], 9, preset, config), dir }
}

pub(super) async fn slices(
    fixture: &Fixture,
    object: &str,
    asked: &[(i64, i32)],
) -> Result<Bytes, ClientError> {
    let asked = asked.iter().map(|(offset, length)| Slice { offset: *offset, length: *length }).collect();
    let requests = vec![(name(object), asked)];
    let read = fixture.client.read_slices(&ns(), requests, Consistency::Cached, fixture.deadline()).await?;
    Ok(read.data.concat().into())
}

#[test]
fn what_is_encrypted_comes_back_whole_and_in_parts() {
    for (policy, compression) in [
        ([5, 4, 9, 3], Compression::None),
        ([2, 2, 4, 4], Compression::Zstd),
        ([1, 2, 3, 1], Compression::None),
        ([1, 2, 3, 1], Compression::Lz4),
        ([3, 0, 3, 3], Compression::None),
    ] {
        let Sealed { fixture, dir: _dir } = sealed(policy, compression, 0);
        let m = usize::try_from(policy[1]).unwrap();
        let sizes = [0, 1, 16, 1023, 5000, 12_345];
        let read_all = async |rotten: usize| {
            for size in sizes {
                let (object, bytes) = (size.to_string(), data(size));
                assert_eq!(
                    get(&fixture, &object).await.unwrap(),
                    bytes,
                    "{policy:?} {compression:?} {size} {rotten}"
                );
                let (third, first) = (size / 3, 1.min(size / 3));
                let asked = [(third, size - third), (0, first)]
                    .map(|(from, len)| (i64::try_from(from).unwrap(), i32::try_from(len).unwrap()));
                let part = slices(&fixture, &object, &asked).await.unwrap();
                let expected = [&bytes[third..], &bytes[..first]].concat();
                assert_eq!(part, expected, "{policy:?} {compression:?} {size} {rotten}");
            }
        };
        fixture.run(async {
            for size in sizes {
                let stored = put(&fixture, &size.to_string(), &data(size)).await.unwrap();
                let key_sha256 = FragmentKey::new(KEY).sha256();
                let encryption = EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256 };
                assert_eq!(stored.manifest.encryption, encryption);
            }
            read_all(0).await;
            // m devices away: also parts have to be made from parity.
            for osd in fixture.backend.all().iter().take(m) {
                osd.set(|faults| faults.dead = true);
            }
            read_all(m).await;
        });
    }
}

#[test]
fn nothing_of_an_encrypted_object_is_stored_in_the_clear_and_no_counter_is_used_twice() {
    let Sealed { fixture, dir: _dir } = sealed([2, 2, 4, 1], Compression::None, 0);
    // Equal blocks everywhere: with a counter used twice their ciphertexts would be equal, too.
    let bytes = Bytes::from(b"sixteen bytes!!\n".repeat(1000));
    fixture.run(async {
        put(&fixture, "secret-name", &bytes).await.unwrap();
        put(&fixture, "another", &bytes).await.unwrap();
        settle(&fixture).await;
    });
    let key = FragmentKey::new(KEY);
    let (mut blocks, mut infos) = (BTreeSet::new(), 0);
    for osd in fixture.backend.all() {
        for (stored_key, stored) in osd.memory.content() {
            assert!(!stored.value.windows(15).any(|part| part == b"sixteen bytes!!"));
            match parse(&stored_key).unwrap() {
                Parsed::Fragment(..) => {
                    for block in stored.value.chunks(16) {
                        assert!(blocks.insert(block.to_vec()), "two equal blocks");
                    }
                }
                Parsed::RecoveryInfo(..) => {
                    infos += 1;
                    let value = stored.value;
                    assert!(matches!(RecoveryInfo::decode(value.clone()), Err(RecoveryError::Encrypted(_))));
                    let info = RecoveryInfo::decode_with(value, |_| Some(key.clone())).unwrap();
                    assert!(
                        info.ctr.is_some() && [name("secret-name"), name("another")].contains(&info.name)
                    );
                }
                _ => {}
            }
        }
    }
    assert!((blocks.len(), infos) == (4000, 64), "{} {infos}", blocks.len());
}

/// Gives other bytes each time it is read.
struct Changing(u8);

#[async_trait::async_trait]
impl ObjectSource for Changing {
    fn size(&self) -> u64 {
        10_000
    }

    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0 += u8::from(offset == 0);
        buffer.fill(self.0);
        Ok(())
    }
}

/// The counter blocks that a stored fragment used up, and its bytes.
fn used(fixture: &Fixture) -> Vec<(u128, u128, Bytes)> {
    let mut used = Vec::new();
    for osd in fixture.backend.all() {
        let content = osd.memory.content();
        for (key, stored) in &content {
            let Ok(Parsed::Fragment(namespace, at)) = parse(key) else { continue };
            let beside = &content[&alba_core::osd_keys::recovery_info(namespace, &at)];
            let info = RecoveryInfo::decode_with(beside.value.clone(), |_| Some(FragmentKey::new(KEY)));
            let from = u128::from_be_bytes(info.unwrap().ctr.unwrap());
            let blocks = u128::try_from(stored.value.len().div_ceil(16)).unwrap();
            used.push((from, from.wrapping_add(blocks), stored.value.clone()));
        }
    }
    used
}

#[test]
fn two_attempts_share_no_counter_and_copies_on_spares_are_the_same_bytes() {
    for compression in [Compression::None, Compression::Test] {
        let Sealed { fixture, dir: _dir } = sealed([2, 2, 3, 2], compression, 0);
        fixture.run(async {
            fixture.backend.add_osd(4).await;
            for osd in fixture.backend.all() {
                osd.set(|f| f.write_delay = Duration::from_millis(4));
            }
            // It stores what it is given, but a spare is faster to say so.
            fixture.backend.osd(osd(1)).set(|f| f.answer_delay = Duration::from_secs(3));
            let refusal = Some(MetaError::Nsm(NsmError::InvalidBucket));
            fixture.backend.group.lock().unwrap().refusals.push(refusal);
            let options = UploadOptions::default();
            let mut source = Changing(0);
            let (namespace, object, deadline) = (ns(), name("o"), fixture.deadline());
            let upload = fixture.client.upload(&namespace, &object, &mut source, options, deadline);
            upload.await.unwrap();
            assert_eq!(source.0, 2, "two attempts");
            settle(&fixture).await;
            assert_eq!(get(&fixture, "o").await.unwrap(), vec![2; 10_000]);
        });
        let used = used(&fixture);
        let mut copies = 0;
        for (position, (from, to, bytes)) in used.iter().enumerate() {
            for (other_from, other_to, other) in &used[..position] {
                let apart = to <= other_from || other_to <= from;
                let same = from == other_from && bytes == other;
                assert!(apart || same, "{from:x} and {other_from:x} overlap");
                copies += usize::from(same);
            }
        }
        assert!(used.len() >= 2 * 5 * 4 && copies > 0, "{} {copies}", used.len());
    }
}

#[test]
fn a_client_without_the_right_cluster_key_is_told_so() {
    let Sealed { fixture, dir } = sealed([2, 2, 4, 1], Compression::None, 0);
    fixture.run(async { put(&fixture, "o", &data(100)).await.unwrap() });
    let path = dir.path().join("cluster.key");
    let another = ClusterKey::new([7; 32]).to_text();
    files::create_with_mode(&path, 0o600).unwrap().write_all(another.as_bytes()).unwrap();
    fixture.run(async {
        let other = fixture.second_client();
        let read = get_by(&fixture, &other, "o", Consistency::Consistent).await;
        assert_eq!(read, Err(ClientError::Key(KeyError::WrongClusterKey)));
        let mut source = BytesSource::new(data(100));
        let options = UploadOptions::default();
        let put = other.upload(&ns(), &name("p"), &mut source, options, fixture.deadline()).await;
        assert_eq!(put.unwrap_err(), ClientError::Key(KeyError::WrongClusterKey));
        assert!(fixture.backend.stored(&name("p")).is_none());
    });
}

#[test]
fn small_objects_live_in_the_metadata_and_come_back() {
    for compression in [Compression::None, Compression::Zstd] {
        let Sealed { fixture, dir: _dir } = sealed([2, 2, 4, 1], compression, 100);
        fixture.run(async {
            for size in [0, 1, 99, 100] {
                let bytes = data(size);
                let stored = put(&fixture, "o", &bytes).await.unwrap();
                assert!(stored.manifest.chunks.is_empty(), "{size}");
                for consistency in [Consistency::Consistent, Consistency::Cached] {
                    assert_eq!(get_by(&fixture, &fixture.client, "o", consistency).await.unwrap(), bytes);
                }
                let half = i64::try_from(size / 2).unwrap();
                let rest = i32::try_from(size - size / 2).unwrap();
                assert_eq!(slices(&fixture, "o", &[(half, rest)]).await.unwrap(), bytes.slice(size / 2..));
            }
            assert_eq!(slices(&fixture, "o", &[(50, 51)]).await, Err(ClientError::SliceOutsideObject));
            settle(&fixture).await;
            assert!(fixture.backend.all().iter().all(|osd| osd.fragments() == 0));
            assert!(!put(&fixture, "o", &data(101)).await.unwrap().manifest.chunks.is_empty());
            assert_eq!(get(&fixture, "o").await.unwrap(), data(101));
            // Both kinds in one step.
            let update = |object: &str, size| SequenceUpdate::Upload {
                name: name(object),
                source: Box::new(BytesSource::new(data(size))),
                checksum: None,
            };
            let updates =
                vec![update("small", 10), update("large", 1000), SequenceUpdate::Delete { name: name("o") }];
            let done =
                fixture.client.apply_sequence(&ns(), vec![], updates, fixture.deadline()).await.unwrap();
            assert_eq!(done.iter().map(|o| o.manifest.chunks.len()).collect::<Vec<_>>(), [0, 1]);
            assert_eq!(get(&fixture, "small").await.unwrap(), data(10));
            assert_eq!(get(&fixture, "large").await.unwrap(), data(1000));
        });
    }
}

#[test]
fn a_group_with_too_few_replicas_gets_fragments_instead() {
    let Sealed { fixture, dir: _dir } = sealed([2, 2, 4, 1], Compression::None, 100);
    fixture.backend.group.lock().unwrap().takes_inline = false;
    fixture.run(async {
        for (object, asked) in [("first", 2), ("second", 3)] {
            // The second one is not even tried in the metadata.
            assert!(!put(&fixture, object, &data(50)).await.unwrap().manifest.chunks.is_empty());
            assert_eq!(fixture.backend.group.lock().unwrap().sent_to.len(), asked);
            assert_eq!(get(&fixture, object).await.unwrap(), data(50));
        }
    });
}

#[test]
fn an_object_that_moves_out_of_the_metadata_is_followed_by_readers_who_do_not_know() {
    let Sealed { fixture, dir: _dir } = sealed([2, 2, 4, 1], Compression::None, 100);
    fixture.run(async {
        let reader = fixture.second_client();
        put(&fixture, "o", &data(50)).await.unwrap();
        assert_eq!(get_by(&fixture, &reader, "o", Consistency::Cached).await.unwrap(), data(50));
        put(&fixture, "o", &data(500)).await.unwrap();
        assert_eq!(get_by(&fixture, &reader, "o", Consistency::Cached).await.unwrap(), data(500));
        put(&fixture, "o", &data(60)).await.unwrap();
        // Its fragments are gone before it hears of it.
        for osd in fixture.backend.all() {
            osd.set(|faults| faults.dead = true);
        }
        assert_eq!(get_by(&fixture, &reader, "o", Consistency::Cached).await.unwrap(), data(60));
    });
}
