//! How keys and values are written: values begin with a format version; long ones are cut into pieces.

use std::ops::Bound;

use alba_core::kv::{Entry, KvError, KvRead};
use alba_core::range::next_prefix;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::txn::KvTxn;

/// First byte of every value but counters.
pub(crate) const VERSION: u8 = 1;

/// The value of a key that says all by being there.
pub(crate) const PRESENT: [u8; 1] = [VERSION];

/// Bytes of a long value per piece: below [`crate::txn::MAX_VALUE`] with room for the header.
const PIECE: usize = 64 << 10;

/// Version byte and number of pieces (u16 BE).
const PIECE_HEADER: usize = 3;

/// `VERSION ‖ postcard`.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, KvError> {
    encode_about(value, 64)
}

/// The same for a value of about so many bytes: it is put together without being moved.
pub(crate) fn encode_about<T: Serialize + ?Sized>(value: &T, len: usize) -> Result<Vec<u8>, KvError> {
    let mut bytes = Vec::with_capacity(len);
    bytes.push(VERSION);
    postcard::to_extend(value, bytes)
        .map_err(|error| KvError::Damaged(format!("a value that cannot be written: {error}")))
}

/// How long [`encode`] would be, in bytes.
pub(crate) fn encoded_len<T: Serialize + ?Sized>(value: &T) -> Result<usize, KvError> {
    let size = postcard::ser_flavors::Size::default();
    let body = postcard::serialize_with_flavor(value, size)
        .map_err(|error| KvError::Damaged(format!("a value that cannot be written: {error}")))?;
    Ok(body + 1)
}

/// The reverse of [`encode`].
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, KvError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error| KvError::Damaged(format!("a value: {error}")))
        }
        Some((version, _)) => Err(KvError::Damaged(format!("a value of format version {version}"))),
        None => Err(KvError::Damaged("an empty value".to_owned())),
    }
}

/// The decoded value of a key.
pub(crate) fn load<T: DeserializeOwned>(
    store: &(impl KvRead + ?Sized),
    key: &[u8],
) -> Result<Option<T>, KvError> {
    store.get(key)?.map(|bytes| decode(&bytes)).transpose()
}

/// Sets a key to an encoded value.
pub(crate) fn save<T: Serialize + ?Sized>(
    txn: &mut KvTxn<'_>,
    key: impl Into<Vec<u8>>,
    value: &T,
) -> Result<(), KvError> {
    txn.put(key, encode(value)?);
    Ok(())
}

fn piece_key(key: &[u8], piece: u16) -> Vec<u8> {
    let mut whole = Vec::with_capacity(key.len() + 2);
    whole.extend_from_slice(key);
    whole.extend_from_slice(&piece.to_be_bytes());
    whole
}

/// Sets a long value: pieces under `key ‖ u16 BE`, each `VERSION ‖ pieces u16 BE ‖ bytes`. The key must have no pieces
/// yet, or at least as many.
pub(crate) fn put_long(txn: &mut KvTxn<'_>, key: &[u8], bytes: &[u8]) -> Result<(), KvError> {
    let count = bytes.len().div_ceil(PIECE).max(1);
    let Ok(pieces) = u16::try_from(count) else {
        return Err(KvError::Damaged(format!("a value of {} bytes", bytes.len())));
    };
    for piece in 0..pieces {
        let start = usize::from(piece) * PIECE;
        let end = bytes.len().min(start + PIECE);
        let mut value = Vec::with_capacity(PIECE_HEADER + end - start);
        value.push(VERSION);
        value.extend_from_slice(&pieces.to_be_bytes());
        value.extend_from_slice(bytes.get(start..end).unwrap_or_default());
        txn.put(piece_key(key, piece), value);
    }
    Ok(())
}

fn piece(bytes: &[u8]) -> Result<(u16, &[u8]), KvError> {
    match bytes {
        [VERSION, high, low, rest @ ..] => Ok((u16::from_be_bytes([*high, *low]), rest)),
        _ => Err(KvError::Damaged(format!("a piece of {} bytes", bytes.len().min(PIECE_HEADER)))),
    }
}

/// Of a piece: is it the last of its value, and how many of the value's bytes has it?
pub(crate) fn piece_of(key: &[u8], value: &[u8]) -> Result<(bool, usize), KvError> {
    let number = key.last_chunk::<2>().map(|number| u16::from_be_bytes(*number));
    let number = number.ok_or_else(|| damaged("a short key of a piece"))?;
    let (pieces, bytes) = piece(value)?;
    Ok((number.checked_add(1) == Some(pieces), bytes.len()))
}

/// A long value.
pub(crate) fn get_long(store: &(impl KvRead + ?Sized), key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
    let Some(mut first) = store.get(&piece_key(key, 0))? else { return Ok(None) };
    let (pieces, _) = piece(&first)?;
    // What follows the header, without a copy.
    first.drain(..PIECE_HEADER);
    let mut whole = first;
    for number in 1..pieces {
        let next = store.get(&piece_key(key, number))?;
        let next = next.ok_or_else(|| KvError::Damaged(format!("piece {number} of {pieces} is missing")))?;
        whole.extend_from_slice(piece(&next)?.1);
    }
    Ok(Some(whole))
}

/// Removes a long value.
pub(crate) fn delete_long(txn: &mut KvTxn<'_>, key: &[u8]) -> Result<(), KvError> {
    take_long(txn, key).map(drop)
}

/// Removes a long value, if there is one, and says how many bytes it had.
pub(crate) fn take_long(txn: &mut KvTxn<'_>, key: &[u8]) -> Result<Option<usize>, KvError> {
    let first_key = piece_key(key, 0);
    let Some(first) = txn.get(&first_key)? else { return Ok(None) };
    let (pieces, bytes) = piece(&first)?;
    let mut whole = bytes.len();
    txn.delete(first_key);
    for number in 1..pieces {
        let next_key = piece_key(key, number);
        let next = txn.get(&next_key)?;
        let next = next.ok_or_else(|| KvError::Damaged(format!("piece {number} of {pieces} is missing")))?;
        whole += piece(&next)?.1.len();
        txn.delete(next_key);
    }
    Ok(Some(whole))
}

/// At most `limit` entries whose keys begin with `prefix`, in order.
pub(crate) fn scan_prefix(
    store: &(impl KvRead + ?Sized),
    prefix: &[u8],
    limit: usize,
) -> Result<Vec<Entry>, KvError> {
    let end = next_prefix(prefix);
    let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    store.scan(Bound::Included(prefix), upper, false, limit)
}

/// Bytes of a key that are put together without memory of their own: nearly all keys but those with long names.
const SHORT: usize = 96;

/// A key: a table's letter, then its parts. Put together where it is, so that a key that is only looked up costs no memory.
pub(crate) struct Key {
    short: [u8; SHORT],
    len: usize,
    /// All of a longer one.
    long: Vec<u8>,
}

impl Key {
    /// Of a table.
    #[inline]
    pub(crate) fn table(table: &[u8]) -> Self {
        Self { short: [0; SHORT], len: 0, long: Vec::new() }.bytes(table)
    }

    /// Adds a number, so that order is numeric.
    #[inline]
    pub(crate) fn number(self, number: u64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    /// Adds a text that others follow: length first (u16 BE).
    pub(crate) fn counted(self, text: &[u8]) -> Self {
        // Every counted text is an id of at most 1024 bytes.
        let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.bytes(&len.to_be_bytes()).bytes(text)
    }

    /// Adds bytes as they are: of fixed length, or the last part.
    #[inline]
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        let end = self.len + bytes.len();
        match self.short.get_mut(self.len..end) {
            Some(room) if self.long.is_empty() => room.copy_from_slice(bytes),
            _ => {
                if self.long.is_empty() {
                    self.long.reserve_exact(end);
                    self.long.extend_from_slice(self.short.get(..self.len).unwrap_or_default());
                }
                self.long.extend_from_slice(bytes);
            }
        }
        self.len = end;
        self
    }

    /// The key.
    pub(crate) fn end(self) -> Vec<u8> {
        if self.long.is_empty() { self.as_ref().to_vec() } else { self.long }
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        if self.long.is_empty() { self.short.get(..self.len).unwrap_or_default() } else { &self.long }
    }
}

impl From<Key> for Vec<u8> {
    fn from(key: Key) -> Self {
        key.end()
    }
}

/// The last 8 bytes of a key as a number.
pub(crate) fn last_number(key: &[u8]) -> Result<u64, KvError> {
    key.last_chunk::<8>()
        .map(|bytes| u64::from_be_bytes(*bytes))
        .ok_or_else(|| KvError::Damaged(format!("a key of {} bytes", key.len())))
}

/// What a store holds although no code of ours writes it.
pub(crate) fn damaged(error: impl std::fmt::Display) -> KvError {
    KvError::Damaged(error.to_string())
}

#[cfg(test)]
mod tests {
    use alba_core::kv::MemKv;

    use super::*;
    use crate::txn::MAX_VALUE;

    #[test]
    fn long_values_are_cut_and_come_back_whole() {
        let store = MemKv::new();
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 10 * PIECE + 7] {
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            let mut txn = KvTxn::new(&store);
            put_long(&mut txn, b"k", &bytes).unwrap();
            assert_eq!(get_long(&txn, b"k").unwrap().as_ref(), Some(&bytes));
            txn.accept();
            let batch = txn.into_batch();
            assert_eq!(batch.0.len(), len.div_ceil(PIECE).max(1));
            assert!(batch.0.values().flatten().all(|value| value.len() < MAX_VALUE));
        }
        let mut txn = KvTxn::new(&store);
        put_long(&mut txn, b"k", &vec![1; 3 * PIECE]).unwrap();
        delete_long(&mut txn, b"k").unwrap();
        assert_eq!(get_long(&txn, b"k").unwrap(), None);
        assert!(scan_prefix(&txn, b"k", 10).unwrap().is_empty());
    }

    #[test]
    fn values_and_keys_have_golden_bytes() {
        assert_eq!(encode(&(7_u64, "ab")).unwrap(), [VERSION, 7, 2, b'a', b'b']);
        assert!(decode::<u64>(&[2, 7]).is_err() && decode::<u64>(&[]).is_err());
        let key = Key::table(b"Q").counted(b"ab").number(258).bytes(b"z").end();
        assert_eq!(key, b"Q\0\x02ab\0\0\0\0\0\0\x01\x02z");
        for len in [SHORT - 3, SHORT - 2, SHORT - 1, SHORT, 3 * SHORT] {
            let long = vec![b'x'; len];
            let key = || Key::table(b"Q").bytes(&long).number(1).bytes(b"z");
            let whole = [b"Q", &long[..], &[0, 0, 0, 0, 0, 0, 0, 1, b'z']].concat();
            assert_eq!((key().as_ref(), key().end()), (&whole[..], whole.clone()));
        }
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        put_long(&mut txn, b"k", b"ab").unwrap();
        txn.accept();
        let batch = txn.into_batch();
        assert_eq!(batch.0.first_key_value(), Some((&b"k\0\0".to_vec(), &Some(b"\x01\0\x01ab".to_vec()))));
    }
}
