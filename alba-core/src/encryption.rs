//! Keys: those that fragments are encrypted with, and the cluster's, which wraps them.
//!
//! A fragment is encrypted with AES-256 in CTR mode (NIST SP 800-38A §6.5) under a counter block of its own, drawn at random when
//! it is packed and kept in the manifest: 2^128 blocks leave no chance that two fragments share one. CTR hides and
//! does not authenticate: the fragment checksum is over the encrypted bytes, and with `blake3` it is a root that nobody can forge.
//!
//! The metadata only ever sees wrapped keys (AES key wrap, RFC 3394) and their SHA-256. No key is printed, logged or
//! serialised; memory that held one is overwritten.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aes::Aes256;
use aes::cipher::consts::U32;
use aes::cipher::{KeyInit, KeyIvInit, StreamCipher, StreamCipherSeek};
use aes_kw::KwAes256;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;

/// Bytes of a wrapped key: 8 more, which tell whether it was unwrapped with the right one.
const WRAPPED_BYTES: usize = KEY_BYTES + 8;

/// The first counter block of one fragment.
pub type CounterBlock = [u8; 16];

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the key file {path}: {text}")]
    File {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        text: String,
    },
    /// Others than its owner and group can read the file.
    #[error("the key file {0} can be read by everybody: chmod 600 it (or 640, for one group)")]
    Exposed(PathBuf),
    /// Not what such a file holds.
    #[error("the key file {path} {rule}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        rule: &'static str,
    },
    /// There is no cluster key to unwrap it with.
    #[error(
        "fragments are encrypted with a key that only the cluster key opens: name its file as cluster_key in the \
         configuration"
    )]
    NoClusterKey,
    /// The cluster key is another one than the one it was wrapped with, or the wrapped key is damaged.
    #[error("this cluster key does not open the preset's key: it is another cluster's")]
    WrongClusterKey,
    /// Encrypted with another key than the preset has.
    #[error("encrypted with key {found}…, the preset has key {expected}…")]
    OtherKey {
        /// First digits of the hash of the preset's key.
        expected: String,
        /// Of the one that is needed.
        found: String,
    },
    /// Encrypted in a way that is not supported.
    #[error("encrypted with AES-256-CBC, which this version does not read")]
    Cbc,
}

/// The key that fragments of a preset are encrypted with.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct FragmentKey([u8; KEY_BYTES]);

impl fmt::Debug for FragmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FragmentKey(secret)")
    }
}

impl FragmentKey {
    /// Of these bytes.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads a file of exactly 32 bytes, as the original's presets name them.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let mut bytes = read_secret(path)?;
        let key = <[u8; KEY_BYTES]>::try_from(&bytes[..]);
        bytes.zeroize();
        key.map(Self)
            .map_err(|_| KeyError::Content { path: path.to_owned(), rule: "must hold exactly 32 bytes" })
    }

    /// What manifests know a key by.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// The bytes, for a client that is to decrypt by itself.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Encrypts or decrypts (CTR does the same for both) bytes that begin `offset` bytes into what `counter` is the first
    /// block of.
    pub fn apply(&self, counter: &CounterBlock, offset: u64, bytes: &mut [u8]) {
        let mut cipher = ctr::Ctr128BE::<Aes256>::new(&self.0.into(), counter.into());
        // 2^64 bytes are 2^60 blocks, fewer than the counter can number.
        cipher.seek(offset);
        cipher.apply_keystream(bytes);
    }
}

/// A fragment key that only the cluster key opens.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey(#[serde(with = "wrapped_bytes")] [u8; WRAPPED_BYTES]);

mod wrapped_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::WRAPPED_BYTES;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; WRAPPED_BYTES], s: S) -> Result<S::Ok, S::Error> {
        let (first, second) = bytes.split_at(WRAPPED_BYTES / 2);
        (first, second).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; WRAPPED_BYTES], D::Error> {
        let (first, second): (Vec<u8>, Vec<u8>) = Deserialize::deserialize(d)?;
        [first, second]
            .concat()
            .try_into()
            .map_err(|_| serde::de::Error::custom("a wrapped key has 40 bytes"))
    }
}

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrappedKey(40 bytes)")
    }
}

/// The key that wraps all others of a cluster. It exists in a file on the hosts that read and write objects.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ClusterKey([u8; KEY_BYTES]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

impl ClusterKey {
    /// Of these (random) bytes.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads what [`ClusterKey::to_text`] made.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let mut text = read_secret(path)?;
        let mut key = [0; KEY_BYTES];
        let decoded = hex::decode_to_slice(text.trim_ascii(), &mut key);
        text.zeroize();
        let rule = "must hold 64 hexadecimal digits, as `alba ca init` writes it";
        decoded.map(|()| Self(key)).map_err(|_| KeyError::Content { path: path.to_owned(), rule })
    }

    /// What its file holds: 64 hexadecimal digits and a line feed.
    pub fn to_text(&self) -> String {
        format!("{}\n", hex::encode(self.0))
    }

    fn cipher(&self) -> KwAes256 {
        KwAes256::new(&self.0.into())
    }

    /// Wraps a key.
    pub fn wrap(&self, key: &FragmentKey) -> WrappedKey {
        WrappedKey(self.cipher().wrap_fixed_key::<U32>(&key.0.into()).into())
    }

    /// Opens a wrapped key.
    pub fn unwrap(&self, wrapped: &WrappedKey) -> Result<FragmentKey, KeyError> {
        let mut bytes = [0; KEY_BYTES];
        self.cipher().unwrap_key(&wrapped.0, &mut bytes).map_err(|_| KeyError::WrongClusterKey)?;
        Ok(FragmentKey(bytes))
    }
}

/// A key file is short; a longer one is a mistake.
const LONGEST: u64 = 4096;

fn read_secret(path: &Path) -> Result<Vec<u8>, KeyError> {
    use io::Read;
    let failed = |error: io::Error| KeyError::File { path: path.to_owned(), text: error.to_string() };
    let file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.permissions().mode() & 0o007 != 0 {
        return Err(KeyError::Exposed(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::files;

    fn unhex<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn ctr_is_that_of_the_standard() {
        // NIST SP 800-38A, F.5.5: CTR-AES256.Encrypt.
        let key = FragmentKey::new(unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"));
        let counter = unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff");
        let plain = hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51").unwrap();
        let secret = hex::decode("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5").unwrap();
        let mut bytes = plain.clone();
        key.apply(&counter, 0, &mut bytes);
        assert_eq!(bytes, secret);
        // Any part of it, from where it begins.
        for (from, to) in [(0, 32), (1, 31), (15, 17), (16, 32), (31, 32), (7, 7)] {
            let mut part = secret[from..to].to_vec();
            key.apply(&counter, u64::try_from(from).unwrap(), &mut part);
            assert_eq!(part, plain[from..to], "{from}..{to}");
        }
    }

    #[test]
    fn wrapping_is_that_of_the_standard_and_only_the_right_key_unwraps() {
        // RFC 3394 §4.6: 256 bits of key data with a 256-bit key.
        let cluster =
            ClusterKey::new(unhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"));
        let key = FragmentKey::new(unhex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f"));
        let wrapped = cluster.wrap(&key);
        let expected = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21";
        assert_eq!(hex::encode(wrapped.0), expected);
        assert_eq!(cluster.unwrap(&wrapped).unwrap().expose(), key.expose());
        assert_eq!(ClusterKey::new([1; 32]).unwrap(&wrapped).unwrap_err(), KeyError::WrongClusterKey);
        let stored = postcard::to_stdvec(&wrapped).unwrap();
        assert_eq!(postcard::from_bytes(&stored), Ok(wrapped));
    }

    #[test]
    fn keys_are_never_shown() {
        let text = format!("{:?} {:?}", FragmentKey::new([7; 32]), ClusterKey::new([7; 32]));
        assert_eq!(text, "FragmentKey(secret) ClusterKey(secret)");
    }

    #[test]
    fn key_files_are_private_and_hold_what_they_should() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let write = |bytes: &[u8], mode| {
            files::replace(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert!(matches!(FragmentKey::read(&path), Err(KeyError::File { .. })));
        write(&[5; 32], 0o600);
        assert_eq!(FragmentKey::read(&path).unwrap().expose(), &[5; 32]);
        assert!(matches!(ClusterKey::read(&path), Err(KeyError::Content { .. })));
        write(&[5; 33], 0o600);
        assert!(matches!(FragmentKey::read(&path), Err(KeyError::Content { .. })));
        let cluster = ClusterKey::new([9; 32]);
        write(cluster.to_text().as_bytes(), 0o400);
        assert_eq!(ClusterKey::read(&path).unwrap().0, cluster.0);
        write(cluster.to_text().as_bytes(), 0o640);
        assert_eq!(ClusterKey::read(&path).unwrap().0, cluster.0);
        write(cluster.to_text().as_bytes(), 0o604);
        assert_eq!(ClusterKey::read(&path).unwrap_err(), KeyError::Exposed(path.clone()));
    }
}
