//! Who is compared, and on which buffers.
//!
//! Buffers lie as ALBA has them: the data fragments are slices of one chunk, outputs are slices of one allocation at the
//! same distance from a cache line ([`Slab`]). memcpy copies the k data fragments into such a slab. Every contestant's
//! bytes are compared with the originals before it is measured.

use std::hint::black_box;

use alba_core::erasure::Apart;
use alba_core::erasure::code_on;
use alba_core::erasure::kernel::Kernel;
use alba_core::ids::FragmentIndex;
use alba_core::policy::CodeShape;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[cfg(isal)]
mod isal;

/// k and m.
pub const SHAPES: [(u8, u8); 6] = [(2, 1), (4, 2), (5, 4), (8, 4), (10, 4), (16, 4)];

/// Bytes of a fragment.
pub const FRAGMENTS: [usize; 2] = [64 << 10, 1 << 20];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// All parity.
    Encode,
    /// One lost data fragment.
    Reconstruct1,
    /// m lost data fragments.
    ReconstructM,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Encode, Self::Reconstruct1, Self::ReconstructM];

    /// Its name in bench ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::Reconstruct1 => "reconstruct1",
            Self::ReconstructM => "reconstruct_m",
        }
    }

    fn lost(self, shape: CodeShape) -> usize {
        match self {
            Self::Encode => 0,
            Self::Reconstruct1 => 1,
            Self::ReconstructM => shape.m(),
        }
    }
}

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    /// One of ours.
    Ours(Kernel),
    /// `reed-solomon-erasure` as ALBA has it.
    Crate,
    /// Its C code for Haswell.
    CrateSimd,
    /// Intel's library.
    #[cfg(isal)]
    IsaL,
}

impl Contestant {
    /// Those that this machine has.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Kernel::available().map(Self::Ours).collect();
        #[cfg(isal)]
        all.push(Self::IsaL);
        all.extend([Self::CrateSimd, Self::Crate]);
        all
    }

    /// Its name in bench ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours(kernel) => kernel.name(),
            Self::Crate => "crate",
            Self::CrateSimd => "crate-simd",
            #[cfg(isal)]
            Self::IsaL => "isa-l",
        }
    }
}

/// Buffers of one length in one allocation.
pub struct Slab {
    memory: Vec<u8>,
    places: Places,
    len: usize,
    count: usize,
}

enum Places {
    /// Back to back, as the fragments of an object are.
    Together,
    /// As the client lays out what it codes.
    Apart(Apart),
}

impl Slab {
    /// `count` buffers of `len` bytes, laid out as the client lays out what it codes from `like`.
    pub fn new(count: usize, len: usize, like: &[u8]) -> Self {
        let memory = vec![0; Apart::memory(count, len)];
        let places = Places::Apart(Apart::new(&memory, count, len, like));
        Self { memory, places, len, count }
    }

    fn random(count: usize, len: usize, seed: u64) -> Self {
        let mut memory = vec![0; count * len];
        StdRng::seed_from_u64(seed).fill_bytes(&mut memory);
        Self { memory, places: Places::Together, len, count }
    }

    /// The buffers.
    pub fn slices(&self) -> Vec<&[u8]> {
        match &self.places {
            Places::Together => self.memory.chunks_exact(self.len).collect(),
            Places::Apart(places) => (0..self.count).map(|n| &self.memory[places.range(n)]).collect(),
        }
    }

    /// The buffers.
    pub fn slices_mut(&mut self) -> Vec<&mut [u8]> {
        match &self.places {
            Places::Together => self.memory.chunks_exact_mut(self.len).collect(),
            Places::Apart(places) => places.split(&mut self.memory),
        }
    }
}

/// A shape, its fragments, and the slabs that contestants write.
pub struct Arena {
    shape: CodeShape,
    data: Slab,
    parity: Slab,
    out: Slab,
}

impl Arena {
    /// Fresh buffers: on other pages than the last ones.
    pub fn new(shape: CodeShape, len: usize) -> Self {
        let data = Slab::random(shape.k(), len, 7);
        let like = &data.memory;
        let mut parity = Slab::new(shape.m(), len, like);
        code_on(shape, Kernel::Portable).encode(&data.slices(), &mut parity.slices_mut()).expect("it fits");
        let out = Slab::new(shape.k().max(shape.m()), len, like);
        Self { shape, data, parity, out }
    }

    /// Copies the data fragments once, then hands a repetition to `measure`.
    pub fn memcpy<R>(&mut self, measure: impl FnOnce(&mut dyn FnMut()) -> R) -> R {
        let data = self.data.slices();
        let mut copies = self.out.slices_mut();
        let mut once = || {
            for (copy, source) in copies.iter_mut().zip(&data) {
                black_box(&mut **copy).copy_from_slice(black_box(source));
            }
        };
        once();
        measure(&mut once)
    }

    /// Does the operation once and checks its bytes, then hands a repetition to `measure`.
    pub fn run<R>(
        &mut self,
        operation: Operation,
        contestant: Contestant,
        measure: impl FnOnce(&mut dyn FnMut()) -> R,
    ) -> R {
        let (shape, lost) = (self.shape, operation.lost(self.shape));
        let (data, parity) = (self.data.slices(), self.parity.slices());
        let expected: Vec<&[u8]> = if lost == 0 { parity.clone() } else { data[..lost].to_vec() };
        // k of those that are left: data in order, then parity for what is missing.
        let present: Vec<(FragmentIndex, &[u8])> =
            (0..).map(FragmentIndex).zip(data.iter().chain(&parity).copied()).skip(lost).collect();
        self.out.memory.fill(0x5a);
        let mut out: Vec<&mut [u8]> = self.out.slices_mut();
        out.truncate(expected.len());
        let check = |out: &[&mut [u8]]| {
            assert!(out.iter().zip(&expected).all(|(a, b)| **a == **b), "{contestant:?}: wrong bytes");
        };
        match contestant {
            Contestant::Ours(kernel) => {
                let code = code_on(shape, kernel);
                if lost == 0 {
                    let mut once = || code.encode(black_box(&data), black_box(&mut out)).expect("it fits");
                    once();
                    let result = measure(&mut once);
                    check(&out);
                    return result;
                }
                let mut wanted: Vec<(FragmentIndex, &mut [u8])> = (0..).map(FragmentIndex).zip(out).collect();
                let mut once = || {
                    code.reconstruct(black_box(&present), black_box(&mut wanted)).expect("enough are left")
                };
                once();
                let result = measure(&mut once);
                check(&wanted.into_iter().map(|(_, buffer)| buffer).collect::<Vec<_>>());
                result
            }
            #[cfg(isal)]
            Contestant::IsaL => {
                let sources: Vec<&[u8]> = if lost == 0 {
                    data.clone()
                } else {
                    // The order in which the matrix below has them: each spare where a data fragment is missing.
                    parity[..lost].iter().chain(&data[lost..]).copied().collect()
                };
                let mut tables = isal::Tables::new(&matrix(shape, lost));
                let mut once = || tables.multiply(black_box(&sources), black_box(&mut out));
                once();
                let result = measure(&mut once);
                check(&out);
                result
            }
            Contestant::Crate => {
                let code =
                    reed_solomon_erasure::galois_8::ReedSolomon::new(shape.k(), shape.m()).expect("a shape");
                // The crate rebuilds in place: its shards are the fragments, with the missing ones in `out`. It never
                // writes those that are there, but wants them mutable.
                let mut copy = (data.concat(), parity.concat());
                let mut once: Box<dyn FnMut()> = if lost == 0 {
                    Box::new(|| code.encode_sep(black_box(&data), black_box(&mut out)).expect("it fits"))
                } else {
                    let mut shards = shards(&mut copy, &mut out, lost, data[0].len());
                    let code = &code;
                    Box::new(move || {
                        shards.iter_mut().take(lost).for_each(|shard| shard.1 = false);
                        code.reconstruct_data(black_box(&mut shards)).expect("enough are left");
                    })
                };
                once();
                let result = measure(&mut *once);
                drop(once);
                check(&out);
                result
            }
            Contestant::CrateSimd => {
                let code = crate_simd::galois_8::ReedSolomon::new(shape.k(), shape.m()).expect("a shape");
                let mut copy = (data.concat(), parity.concat());
                let mut once: Box<dyn FnMut()> = if lost == 0 {
                    Box::new(|| code.encode_sep(black_box(&data), black_box(&mut out)).expect("it fits"))
                } else {
                    let mut shards = shards(&mut copy, &mut out, lost, data[0].len());
                    let code = &code;
                    Box::new(move || {
                        shards.iter_mut().take(lost).for_each(|shard| shard.1 = false);
                        code.reconstruct_data(black_box(&mut shards)).expect("enough are left");
                    })
                };
                once();
                let result = measure(&mut *once);
                drop(once);
                check(&out);
                result
            }
        }
    }
}

/// What the crate takes: a buffer for each of the k + m, and whether it is filled.
fn shards<'a>(
    copy: &'a mut (Vec<u8>, Vec<u8>),
    out: &'a mut [&mut [u8]],
    lost: usize,
    len: usize,
) -> Vec<(&'a mut [u8], bool)> {
    let missing = out.iter_mut().map(|buffer| (&mut **buffer, false));
    let data = copy.0.chunks_exact_mut(len).skip(lost).map(|buffer| (buffer, true));
    let parity = copy.1.chunks_exact_mut(len).map(|buffer| (buffer, true));
    missing.chain(data).chain(parity).collect()
}

/// The rows that make the parity (nothing lost) or the first `lost` data fragments, by coding unit vectors.
#[cfg(isal)]
fn matrix(shape: CodeShape, lost: usize) -> Vec<Vec<u8>> {
    let code = code_on(shape, Kernel::Portable);
    let rows = if lost == 0 { shape.m() } else { lost };
    let mut matrix = vec![vec![0; shape.k()]; rows];
    for column in 0..shape.k() {
        let unit: Vec<[u8; 1]> = (0..shape.k()).map(|i| [u8::from(i == column)]).collect();
        let mut out = vec![[0]; rows];
        if lost == 0 {
            let sources: Vec<&[u8]> = unit.iter().map(|byte| &byte[..]).collect();
            let mut targets: Vec<&mut [u8]> = out.iter_mut().map(|byte| &mut byte[..]).collect();
            code.encode(&sources, &mut targets).expect("it fits");
        } else {
            let index = |i: usize| FragmentIndex(u32::try_from(i).expect("small"));
            let sources: Vec<(FragmentIndex, &[u8])> = unit
                .iter()
                .enumerate()
                .map(|(i, byte)| (index(if i < lost { shape.k() + i } else { i }), &byte[..]))
                .collect();
            let mut targets: Vec<(FragmentIndex, &mut [u8])> =
                out.iter_mut().enumerate().map(|(i, byte)| (index(i), &mut byte[..])).collect();
            code.reconstruct(&sources, &mut targets).expect("enough are left");
        }
        for (row, [coefficient]) in matrix.iter_mut().zip(out) {
            row[column] = coefficient;
        }
    }
    matrix
}
