//! Messages of the ALBA proxy protocol (wire-protocol §2).
