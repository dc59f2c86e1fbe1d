//! Messages of the ALBA ASD protocol (wire-protocol §4).
