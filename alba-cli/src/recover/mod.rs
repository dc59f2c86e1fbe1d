//! Recovery of metadata groups that were lost for good.
//!
//! * [`nsm`]: an NSM group, from what OSDs hold and, if there is one, its newest backup.
//!   [`scan`]: what OSDs hold of a namespace, object by object, in bounded memory. [`old`]: the objects of the backup in the same
//!   order. [`assemble`], [`judge`]: what one object is, and what is to be done with it; pure. [`place`]: how far a recovery is,
//!   and its report, on the local disk.
//! * [`abm`]: the ABM, from what groups and OSDs hold, and its newest backup. [`devices`]: what an OSD tells of its backend.
//!   [`named`]: several namespaces that groups know by one name; pure.
//!
//! It must never bring back what may have been deleted or replaced: such objects are listed apart in the group, which is not
//! served before an operator has decided. And it must never give an id again. Everything it does can be done again, by it or
//! by another one beside it.

pub(crate) mod abm;
mod assemble;
mod devices;
mod judge;
mod named;
pub(crate) mod nsm;
mod old;
mod place;
mod scan;

pub(crate) use nsm::{Task, recover};
