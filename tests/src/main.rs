//! The multi-call binary that the process tests start.
fn main() {}
