//! Whole groups outside of their servers: backup files, what is restored from them, checks, and lines for people.
//!
//! * [`format`]: the bytes of a backup file. [`make`] makes them of a view of a store.
//! * [`file`]: files on a disk: written whole or not at all, and verified wholly before anything is made of them.
//! * [`restore`]: a group's directory of a backup. [`inspect`]: checks and exports of any state.
//! * [`scheduled`]: backups that a server makes by itself. [`OldGroup`]: a backup, to be asked like a group.
//! * [`remake_abm`]: a backup of an ABM that was put together anew.
//!
//! It must never write over a group that is there, and never use a backup that is not sound from its first byte to its last.

pub mod file;
pub mod format;
pub(crate) mod inspect;
pub(crate) mod make;
pub(crate) mod old;
mod remade;
pub(crate) mod restore;
pub(crate) mod scheduled;
#[cfg(test)]
mod tests;

pub use format::{BackupError, Description, ModelKind};
pub use inspect::{check, export};
pub use old::OldGroup;
pub use remade::{RemakeError, remake_abm};
