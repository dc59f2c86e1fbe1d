//! A group of several replicas: Raft (openraft) under a model. It decides nothing about metadata, only in which order
//! inputs happen and that a majority has them on disk.

pub mod log;
pub mod types;
