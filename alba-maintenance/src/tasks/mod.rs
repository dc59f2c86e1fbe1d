//! The tasks that there are.

pub mod claims;
pub mod gc;
pub mod obsolete;
pub mod presets;
pub mod trash;
pub mod work;

use std::sync::Arc;

use crate::config::MaintenanceConfig;
use crate::task::Task;

/// All tasks, in the order in which they are listed.
pub fn all(config: &MaintenanceConfig) -> Vec<Arc<dyn Task>> {
    vec![
        Arc::new(obsolete::Obsolete::default()),
        Arc::new(gc::Gc::new(config.grace().unwrap_or_default())),
        Arc::new(work::WorkQueue::new(work::handlers())),
        Arc::new(trash::Trash),
        Arc::new(claims::Claims),
        Arc::new(presets::Presets),
    ]
}
