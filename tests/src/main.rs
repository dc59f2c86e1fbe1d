//! The `alba` binary as the process tests start it.
fn main() {
    alba_tests::process::end_with_owner();
}
