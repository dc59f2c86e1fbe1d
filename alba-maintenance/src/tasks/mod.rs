//! The tasks that there are.

pub mod claims;
pub mod gc;
pub mod obsolete;
pub mod presets;
pub mod repair;
pub mod scrub;
pub mod trash;
mod unheard;
pub mod work;

use std::sync::Arc;

use crate::config::MaintenanceConfig;
use crate::task::Task;

/// All tasks, in the order in which they are listed.
pub fn all(config: &MaintenanceConfig) -> Vec<Arc<dyn Task>> {
    let surgery = Arc::new(repair::Surgery::default());
    let mut handlers = work::handlers();
    handlers.push(Arc::new(repair::damage::Damage::new(surgery.clone())));
    handlers.push(Arc::new(repair::jobs::Jobs::new(surgery.clone())));
    vec![
        Arc::new(repair::Repair::new(surgery.clone())),
        Arc::new(scrub::Scrub::new(surgery, config.scrub_period().unwrap_or_default())),
        Arc::new(obsolete::Obsolete::default()),
        Arc::new(gc::Gc::new(config.grace().unwrap_or_default())),
        Arc::new(work::WorkQueue::new(handlers)),
        Arc::new(trash::Trash),
        Arc::new(claims::Claims),
        Arc::new(presets::Presets),
    ]
}
