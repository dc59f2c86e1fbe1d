//! Randomness. Decisions take a seeded generator made from here, so that a run can be repeated.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// A source of random bytes.
pub trait Rng: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

impl dyn Rng {
    /// 32 random bytes.
    pub fn bytes32(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.fill(&mut bytes);
        bytes
    }

    /// A random number.
    pub fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A generator of its own for one decision.
    pub fn generator(&self) -> StdRng {
        StdRng::from_seed(self.bytes32())
    }
}
