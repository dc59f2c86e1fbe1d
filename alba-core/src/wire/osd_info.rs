//! OSD records in the original's forms (wire-protocol §7).
