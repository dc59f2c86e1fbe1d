//! Any shape, length, alignment and loss: every kernel this CPU has, against the `reed-solomon-erasure` crate.

use arbitrary::{Result, Unstructured};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::erasure::code_on;
use crate::erasure::kernel::Kernel;
use crate::ids::FragmentIndex;
use crate::policy::CodeShape;

/// What lies around every buffer; nobody may write it.
const CANARY: u8 = 0xc5;

/// The widest line boundary apart, twice: buffers begin anywhere in a cache line and end before another one.
const MARGIN: usize = 64;

/// What one input asks for.
struct Case {
    shape: CodeShape,
    len: usize,
    /// All k + m fragments, the parity by the crate.
    fragments: Vec<Vec<u8>>,
    /// Where each of the k + m buffers begins, in bytes after a line boundary or so.
    offsets: Vec<usize>,
    /// Positions given to `reconstruct`, at least k, in the order given.
    present: Vec<usize>,
    /// Positions asked for.
    wanted: Vec<usize>,
}

impl Case {
    fn read(u: &mut Unstructured<'_>) -> Result<Option<Self>> {
        // Mostly the shapes that are used; sometimes as wide as it goes.
        let (most_k, most_m) = if u.ratio(1, 16)? { (200, 55) } else { (20, 9) };
        let (k, m) = (u.int_in_range(1..=most_k)?, u.int_in_range(0..=most_m)?);
        let Ok(shape) = CodeShape::new(k, m) else { return Ok(None) };
        let longest = if shape.total() > 40 { 200 } else { 1500 };
        let len = u.int_in_range(0..=longest)?;
        let offsets = if u.arbitrary()? {
            vec![u.int_in_range(0..=MARGIN - 1)?; shape.total()]
        } else {
            (0..shape.total()).map(|_| u.int_in_range(0..=MARGIN - 1)).collect::<Result<_>>()?
        };
        let mut order: Vec<usize> = (0..shape.total()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, u.int_in_range(0..=i)?);
        }
        let given = u.int_in_range(shape.k()..=shape.total())?;
        let (present, lost) = order.split_at(given);
        let mut wanted = lost.to_vec();
        wanted.truncate(u.int_in_range(0..=lost.len())?);
        if u.ratio(1, 4)? {
            // Asking for one that is there is odd, not wrong.
            wanted.push(present[0]);
        }
        let present = present.to_vec();
        // The content: what is left of the input, then random bytes.
        let seed = u.arbitrary()?;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut fragments = vec![vec![0; len]; shape.total()];
        for fragment in &mut fragments[..shape.k()] {
            let (given, rest) = fragment.split_at_mut(u.len().min(len));
            u.fill_buffer(given)?;
            rng.fill_bytes(rest);
        }
        if len > 0 && m > 0 {
            ReedSolomon::new(shape.k(), shape.m()).unwrap().encode(&mut fragments).unwrap();
        }
        Ok(Some(Self { shape, len, fragments, offsets, present, wanted }))
    }

    /// Fragments where the case wants them, each with canaries around it.
    fn placed(&self, position: usize, content: &[u8]) -> Vec<u8> {
        let mut buffer = vec![CANARY; self.len + 2 * MARGIN];
        buffer[self.offsets[position]..][..self.len].copy_from_slice(content);
        buffer
    }

    fn slice<'a>(&self, position: usize, buffer: &'a [u8]) -> &'a [u8] {
        &buffer[self.offsets[position]..][..self.len]
    }

    fn slice_mut<'a>(&self, position: usize, buffer: &'a mut [u8]) -> &'a mut [u8] {
        &mut buffer[self.offsets[position]..][..self.len]
    }

    fn check(&self, kernel: Kernel, position: usize, buffer: &[u8], what: &str) {
        let expected = self.placed(position, &self.fragments[position]);
        assert!(buffer == expected, "{kernel} {what} fragment {position} of {:?} wrongly", self.shape);
    }
}

/// The target.
pub fn erasure(input: &[u8]) {
    if let Ok(Some(case)) = Case::read(&mut Unstructured::new(input)) {
        Kernel::available().for_each(|kernel| run(&case, kernel));
    }
}

fn run(case: &Case, kernel: Kernel) {
    let (k, total) = (case.shape.k(), case.shape.total());
    let code = code_on(case.shape, kernel);
    let originals: Vec<Vec<u8>> = (0..total).map(|i| case.placed(i, &case.fragments[i])).collect();
    let fragments: Vec<&[u8]> = originals.iter().enumerate().map(|(i, b)| case.slice(i, b)).collect();
    let dirty = vec![0x3a; case.len];

    let mut parity: Vec<Vec<u8>> = (k..total).map(|i| case.placed(i, &dirty)).collect();
    let mut targets: Vec<&mut [u8]> = (k..).zip(&mut parity).map(|(i, b)| case.slice_mut(i, b)).collect();
    code.encode(&fragments[..k], &mut targets).unwrap();
    if case.len > 0 {
        (k..).zip(&parity).for_each(|(i, buffer)| case.check(kernel, i, buffer, "encodes"));
    }

    let index = |position: usize| FragmentIndex(u32::try_from(position).unwrap());
    let present: Vec<_> = case.present.iter().map(|i| (index(*i), fragments[*i])).collect();
    let mut rebuilt: Vec<Vec<u8>> = case.wanted.iter().map(|i| case.placed(*i, &dirty)).collect();
    let mut wanted: Vec<_> =
        case.wanted.iter().zip(&mut rebuilt).map(|(i, b)| (index(*i), case.slice_mut(*i, b))).collect();
    code.reconstruct(&present, &mut wanted).unwrap();
    case.wanted.iter().zip(&rebuilt).for_each(|(i, buffer)| case.check(kernel, *i, buffer, "rebuilds"));

    assert!(code.verify(&fragments).unwrap(), "{kernel} calls good parity wrong");
    if case.len > 0 && case.shape.m() > 0 {
        let (position, at) = (case.present[0], case.offsets[0] % case.len);
        let mut damaged = case.fragments[position].clone();
        damaged[at] ^= 0x10;
        let mut fragments = fragments.clone();
        fragments[position] = &damaged;
        assert!(!code.verify(&fragments).unwrap(), "{kernel} calls wrong parity good");
    }
}
