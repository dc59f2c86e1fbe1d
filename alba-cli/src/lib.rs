//! alba-cli
