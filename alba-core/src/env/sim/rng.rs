//! Seeded randomness: every stream is derived from the root seed and a name, so that adding a consumer does not change
//! what the others draw.

use std::sync::Mutex;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::executor::lock;
use crate::env::Rng;

/// The generator of the stream `name` of a run.
pub(super) fn stream(seed: u64, name: &str) -> StdRng {
    let mut hasher = blake3::Hasher::new_derive_key("alba simulation random stream");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    StdRng::from_seed(*hasher.finalize().as_bytes())
}

/// One node's randomness. It goes on through crashes: a restarted process does not draw the same ids again.
pub(super) struct SimRng(Mutex<StdRng>);

impl SimRng {
    pub(super) fn new(seed: u64, node: u32) -> Self {
        Self(Mutex::new(stream(seed, &format!("node {node}"))))
    }
}

impl Rng for SimRng {
    fn fill(&self, bytes: &mut [u8]) {
        rand::Rng::fill_bytes(&mut *lock(&self.0), bytes);
    }
}
