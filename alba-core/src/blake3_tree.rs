//! The BLAKE3 tree of a value, at a grain of 16 KiB: what lets a reader verify a piece of a value against its root.
//!
//! BLAKE3 is a binary tree over chunks of 1 KiB whose root is the hash. Cut at the level of 16 chunks it has *leaves* of
//! 16 KiB, each with a 32-byte chaining value. An OSD keeps those beside the value ([`LeafTable`]); a reader that
//! knows the root gets whole leaves and the few chaining values that lead from them to the root ([`ProvenSlice`]), and
//! [`verify`]s them. The root is `blake3::hash(value)`, nothing of our own. The shape of the tree: section 2.1 of the BLAKE3
//! paper; the left child of a node is the largest complete subtree that leaves something for the right one.
//!
//! What was not verified never becomes a [`VerifiedSlice`]. A value's length is not part of its hash: it has to
//! come from where the root came from.

use std::ops::Range;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use bytes::Bytes;
use thiserror::Error;

use crate::env::osd::{ProvenSlice, ValueSlice};

/// Bytes of a leaf; the last one of a value may be shorter. A power of two, as subtrees of BLAKE3 must be.
pub const LEAF_BYTES: u32 = 16_384;

/// The same as a length in memory.
const LEAF: usize = 16_384;

/// Bytes of a chaining value.
const CV: usize = 32;

/// The BLAKE3 hash of a value.
pub type Root = [u8; 32];

/// Why a table or a proof is of no use.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TreeError {
    /// The value has 4 GiB or more.
    #[error("a value of 4 GiB or more has no leaf table")]
    TooLong,
    /// A table of another length than the value's.
    #[error("a leaf table of {found} bytes where the value's has {expected}")]
    TableLength {
        /// What it has to be.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// The chaining values do not lead to the root: the table is damaged, or of another value. It can be recomputed from
    /// the value.
    #[error("the leaf table does not belong to the root")]
    Table,
    /// The slice is not inside the value.
    #[error("slice {offset}+{len} is outside of a value of {value_len} bytes")]
    Outside {
        /// Of the slice.
        offset: u32,
        /// Of the slice.
        len: u32,
        /// Of the value.
        value_len: u32,
    },
    /// The value is said to have another length than the reader knows.
    #[error("the value is said to have {claimed} bytes, and has {known}")]
    ValueLength {
        /// By the other side.
        claimed: u32,
        /// By the reader.
        known: u32,
    },
    /// Not exactly the leaves that cover the slice.
    #[error("{found} bytes of leaves where {expected} cover the slice")]
    LeavesLength {
        /// What the slice needs.
        expected: u32,
        /// What came.
        found: usize,
    },
    /// Not exactly the chaining values needed.
    #[error("a proof of {0} bytes, which is not what the slice needs")]
    ProofLength(usize),
    /// Leaves and proof do not lead to the root.
    #[error("the bytes do not belong to the root")]
    Mismatch,
}

/// The chaining values of a value's leaves, known to lead to its root. A value of one leaf or less has none: its root says all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafTable {
    root: Root,
    value_len: u32,
    table: Bytes,
}

impl LeafTable {
    /// Computes it.
    pub fn of(value: &[u8]) -> Result<Self, TreeError> {
        let mut builder = LeafTableBuilder::new();
        builder.update(value);
        builder.finish()
    }

    /// Length in bytes of the table of a value of that length: 32 per leaf, none when there is only one.
    pub fn encoded_len(value_len: u32) -> usize {
        match leaf_count(value_len) {
            1 => 0,
            leaves => leaves * CV,
        }
    }

    /// Reads a table that was kept beside a value, and checks that it leads to `root`. From an error the caller recomputes it
    /// with [`LeafTable::of`] and compares the roots.
    pub fn parse(root: Root, value_len: u32, table: Bytes) -> Result<Self, TreeError> {
        let expected = Self::encoded_len(value_len);
        if table.len() != expected {
            return Err(TreeError::TableLength { expected, found: table.len() });
        }
        match chaining_values(&table) {
            [] => {}
            leaves if merge_root(leaves) == root => {}
            _ => return Err(TreeError::Table),
        }
        Ok(Self { root, value_len, table })
    }

    /// The value's BLAKE3 hash.
    pub fn root(&self) -> Root {
        self.root
    }

    /// The value's length in bytes.
    pub fn value_len(&self) -> u32 {
        self.value_len
    }

    /// What to keep: [`Self::encoded_len`] bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.table
    }

    /// The bytes of the value that [`Self::prove`] is about: the whole leaves that cover `slice`. Of a slice of no bytes,
    /// none.
    pub fn covering(value_len: u32, slice: ValueSlice) -> Result<Range<u32>, TreeError> {
        let end = slice.offset.checked_add(slice.len).filter(|end| *end <= value_len);
        let Some(end) = end else {
            return Err(TreeError::Outside { offset: slice.offset, len: slice.len, value_len });
        };
        if slice.len == 0 {
            return Ok(slice.offset..slice.offset);
        }
        let start = slice.offset - slice.offset % LEAF_BYTES;
        Ok(start..end.checked_next_multiple_of(LEAF_BYTES).map_or(value_len, |end| end.min(value_len)))
    }

    /// The chaining values that a reader of `slice` needs beside the covering leaves, in the order in which it
    /// consumes them: those of the subtrees that it has no byte of, from left to right.
    pub fn prove(&self, slice: ValueSlice) -> Result<Bytes, TreeError> {
        let covered = covered_leaves(&Self::covering(self.value_len, slice)?);
        let mut proof = Vec::new();
        let leaves = chaining_values(&self.table);
        if !covered.is_empty() && !leaves.is_empty() {
            siblings(leaves, 0, &covered, &mut proof);
        }
        Ok(proof.into())
    }

    /// Length in bytes of the proof of `slice`.
    pub fn proof_len(value_len: u32, slice: ValueSlice) -> Result<usize, TreeError> {
        let covered = covered_leaves(&Self::covering(value_len, slice)?);
        let leaves = leaf_count(value_len);
        Ok(if covered.is_empty() { 0 } else { count_siblings(0..leaves, &covered) * CV })
    }
}

/// Computes a [`LeafTable`] while the value passes by, in pieces of any size.
pub struct LeafTableBuilder {
    /// Chaining values of the leaves that are complete and known not to be the last.
    table: Vec<u8>,
    /// The leaf in the making.
    leaf: blake3::Hasher,
    /// Bytes in it.
    filled: usize,
    /// Bytes before it.
    before: u64,
}

impl LeafTableBuilder {
    /// Of no bytes so far.
    pub fn new() -> Self {
        Self { table: Vec::new(), leaf: blake3::Hasher::new(), filled: 0, before: 0 }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == LEAF {
                self.end_leaf();
            }
            let (now, later) = bytes.split_at(bytes.len().min(LEAF - self.filled));
            self.leaf.update(now);
            self.filled += now.len();
            bytes = later;
        }
    }

    /// Only when the leaf is full, or the last of several: it holds bytes, as `finalize_non_root` demands.
    fn end_leaf(&mut self) {
        self.table.extend_from_slice(&self.leaf.finalize_non_root());
        self.before += u64::from(LEAF_BYTES);
        self.filled = 0;
        self.leaf = leaf_hasher(self.before);
    }

    /// Of all bytes.
    pub fn finish(mut self) -> Result<LeafTable, TreeError> {
        // A leaf has at most 16 384 bytes.
        let last = u64::try_from(self.filled).unwrap_or(u64::MAX);
        let value_len = u32::try_from(self.before.saturating_add(last)).map_err(|_| TreeError::TooLong)?;
        let root = if self.table.is_empty() {
            *self.leaf.finalize().as_bytes()
        } else {
            self.end_leaf();
            merge_root(chaining_values(&self.table))
        };
        Ok(LeafTable { root, value_len, table: self.table.into() })
    }
}

impl Default for LeafTableBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// A slice of a value that is known to be what its root says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSlice(Bytes);

impl VerifiedSlice {
    /// The bytes, as long as the slice asked for.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

/// The bytes of `slice`, if what the other side sent leads to `root`. `root` and `value_len` must come from where they
/// are trusted (the manifest), not from the side that sent `proven`.
pub fn verify(
    root: Root,
    value_len: u32,
    slice: ValueSlice,
    proven: &ProvenSlice,
) -> Result<VerifiedSlice, TreeError> {
    if proven.value_len != value_len {
        return Err(TreeError::ValueLength { claimed: proven.value_len, known: value_len });
    }
    let covering = LeafTable::covering(value_len, slice)?;
    let expected = covering.end - covering.start;
    if u32::try_from(proven.leaves.len()) != Ok(expected) {
        return Err(TreeError::LeavesLength { expected, found: proven.leaves.len() });
    }
    if proven.proof.len() != LeafTable::proof_len(value_len, slice)? {
        return Err(TreeError::ProofLength(proven.proof.len()));
    }
    if slice.len == 0 {
        return Ok(VerifiedSlice(Bytes::new()));
    }
    let mut verifier = Verifier {
        covered: covered_leaves(&covering),
        leaves: &proven.leaves,
        proof: chaining_values(&proven.proof),
    };
    if verifier.root(leaf_count(value_len))? != root {
        return Err(TreeError::Mismatch);
    }
    let start = to_len(slice.offset - covering.start);
    Ok(VerifiedSlice(proven.leaves.slice(start..start + to_len(slice.len))))
}

/// What is left to be consumed, in the order of the tree from left to right.
struct Verifier<'a> {
    covered: Range<usize>,
    leaves: &'a [u8],
    proof: &'a [ChainingValue],
}

impl Verifier<'_> {
    /// The root over `count` leaves.
    fn root(&mut self, count: usize) -> Result<Root, TreeError> {
        if count == 1 {
            return Ok(*blake3::hash(self.leaves).as_bytes());
        }
        let middle = left_leaves(count);
        let left = self.node(0..middle)?;
        let right = self.node(middle..count)?;
        Ok(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
    }

    /// The chaining value of the node over some leaves; at most 18 deep, since a value has at most 2^18 leaves.
    fn node(&mut self, leaves: Range<usize>) -> Result<ChainingValue, TreeError> {
        if are_apart(&leaves, &self.covered) {
            let (first, rest) = self.proof.split_first().ok_or(TreeError::Mismatch)?;
            self.proof = rest;
            return Ok(*first);
        }
        if leaves.len() == 1 {
            let (leaf, rest) = self.leaves.split_at(self.leaves.len().min(LEAF));
            self.leaves = rest;
            return leaf_value(leaves.start, leaf);
        }
        let middle = leaves.start + left_leaves(leaves.len());
        let left = self.node(leaves.start..middle)?;
        let right = self.node(middle..leaves.end)?;
        Ok(merge_subtrees_non_root(&left, &right, Mode::Hash))
    }
}

fn to_len(len: u32) -> usize {
    // `usize` has at least 32 bits on every platform we build for.
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// Leaves of a value of that length; the empty value is one of no bytes.
fn leaf_count(value_len: u32) -> usize {
    to_len(value_len.div_ceil(LEAF_BYTES).max(1))
}

/// The leaves of a covering range of bytes.
fn covered_leaves(bytes: &Range<u32>) -> Range<usize> {
    if bytes.is_empty() {
        return 0..0;
    }
    to_len(bytes.start / LEAF_BYTES)..to_len(bytes.end.div_ceil(LEAF_BYTES))
}

/// How many of `count` (at least 2) leaves are left of the middle: the largest power of two below `count`.
fn left_leaves(count: usize) -> usize {
    count.div_ceil(2).next_power_of_two()
}

fn are_apart(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.end <= b.start || b.end <= a.start
}

/// Bytes as chaining values; the callers have checked the length.
fn chaining_values(bytes: &[u8]) -> &[ChainingValue] {
    bytes.as_chunks().0
}

fn leaf_hasher(offset: u64) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    // A multiple of the leaf size, thus of BLAKE3's chunk size, as it demands.
    hasher.set_input_offset(offset);
    hasher
}

/// The chaining value of leaf `index`, which is not the only one of its value.
fn leaf_value(index: usize, leaf: &[u8]) -> Result<ChainingValue, TreeError> {
    if leaf.is_empty() {
        // The lengths were checked, so it has bytes; BLAKE3 panics on a subtree that has none.
        return Err(TreeError::Mismatch);
    }
    let index = u64::try_from(index).map_err(|_| TreeError::TooLong)?;
    Ok(leaf_hasher(index * u64::from(LEAF_BYTES)).update(leaf).finalize_non_root())
}

/// The root over at least two leaves.
fn merge_root(leaves: &[ChainingValue]) -> Root {
    let (left, right) = leaves.split_at(left_leaves(leaves.len()));
    *merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes()
}

/// The node over at least one leaf.
fn merge(leaves: &[ChainingValue]) -> ChainingValue {
    match leaves {
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(left_leaves(leaves.len()));
            merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// Appends the nodes beside the path from the covered leaves to the node over `leaves`, the first of which is number `first`.
fn siblings(leaves: &[ChainingValue], first: usize, covered: &Range<usize>, proof: &mut Vec<u8>) {
    if are_apart(&(first..first + leaves.len()), covered) {
        proof.extend_from_slice(&merge(leaves));
    } else if leaves.len() > 1 {
        let (left, right) = leaves.split_at(left_leaves(leaves.len()));
        siblings(left, first, covered, proof);
        siblings(right, first + left.len(), covered, proof);
    }
}

/// How many [`siblings`] there are.
fn count_siblings(leaves: Range<usize>, covered: &Range<usize>) -> usize {
    if are_apart(&leaves, covered) {
        return 1;
    }
    if covered.start <= leaves.start && leaves.end <= covered.end {
        return 0;
    }
    let middle = leaves.start + left_leaves(leaves.len());
    count_siblings(leaves.start..middle, covered) + count_siblings(middle..leaves.end, covered)
}

#[cfg(test)]
mod tests;
