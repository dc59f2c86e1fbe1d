//! Primitive encodings of the original protocols (wire-protocol §1).
