//! Pages of a daemon's own, as JSON, beside health and metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

type Page = Arc<dyn Fn() -> Value + Send + Sync>;

/// The pages, by path. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pages(Arc<Mutex<BTreeMap<&'static str, Page>>>);

impl Pages {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Page>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what `show` gives under `path`, such as `/tasks`. It is called for each request and must not block.
    pub fn add(&self, path: &'static str, show: impl Fn() -> Value + Send + Sync + 'static) {
        self.lock().insert(path, Arc::new(show));
    }

    /// The page as it is now; none when there is none.
    pub fn show(&self, path: &str) -> Option<Value> {
        let page = self.lock().get(path).cloned();
        page.map(|page| page())
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().keys()).finish()
    }
}
