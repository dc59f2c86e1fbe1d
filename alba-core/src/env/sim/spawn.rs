//! Tasks of one node, which all end when it crashes.

use std::sync::Arc;

use super::executor::Core;
use crate::env::Spawn;
use crate::env::spawn::{BlockingWork, Task, TaskHandle};

/// Starts tasks of one life of a node: after its crash nothing starts any more.
pub(super) struct SimSpawn {
    pub(super) core: Arc<Core>,
    pub(super) node: u32,
    pub(super) life: u64,
}

impl Spawn for SimSpawn {
    fn spawn(&self, name: &'static str, task: Task) -> TaskHandle {
        let Some(id) = self.core.spawn(self.node, self.life, name, task) else {
            return TaskHandle::new(|| {});
        };
        let core = Arc::downgrade(&self.core);
        TaskHandle::new(move || {
            if let Some(core) = core.upgrade() {
                core.abort(id);
            }
        })
    }

    fn run_blocking(&self, work: BlockingWork) {
        // One thread, and time stands still while it works: nothing else could observe it running.
        work();
    }
}
