//! Recovery info: what an OSD keeps beside a fragment so that a lost namespace can be rebuilt (wire-protocol §6.7).
