//! alba-client
