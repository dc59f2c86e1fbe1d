//! Steps at which a test can have the agent die as if by SIGKILL: so that "a crash anywhere is harmless" is shown step by step.

use std::sync::OnceLock;

/// Names the step; only with debug assertions.
const SWITCH: &str = "ALBA_TEST_MAINTENANCE_DIES_AT";

/// Says that a run is at a step. Does nothing, unless a test asked this process to die there.
pub fn reach(step: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    static STEP: OnceLock<Option<String>> = OnceLock::new();
    if STEP.get_or_init(|| std::env::var(SWITCH).ok()).as_deref() == Some(step) {
        tracing::warn!(step, "dies here, as a test asked");
        std::process::abort();
    }
}
