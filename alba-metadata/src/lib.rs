//! alba-metadata
