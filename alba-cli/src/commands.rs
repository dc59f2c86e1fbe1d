//! The commands, one file per group.

pub(crate) mod backend;
pub(crate) mod backups;
pub(crate) mod ca;
pub(crate) mod drain;
pub(crate) mod fsck;
pub(crate) mod groups;
pub(crate) mod maintenance;
pub(crate) mod metadata;
pub(crate) mod moves;
pub(crate) mod namespaces;
pub(crate) mod objects;
pub(crate) mod osds;
pub(crate) mod presets;
pub(crate) mod proxy;
pub(crate) mod proxy_state;
pub(crate) mod recovery;
pub(crate) mod safety;
pub(crate) mod tasks;
pub(crate) mod windows;
