//! Manifests in the original's forms, ser 1 and 2 (wire-protocol §3).
