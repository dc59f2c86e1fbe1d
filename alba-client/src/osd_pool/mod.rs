//! The OSDs of the backend as this process sees them.

use std::sync::Arc;

use alba_core::env::Osd;
use alba_core::wire::rpc::abm::OsdInfo;

/// Makes handles on OSDs. Making one does not connect: that happens at the first call.
pub trait OsdConnector: Send + Sync + 'static {
    /// A handle on the OSD that `info` describes; its long id is checked by every connection.
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd>;
}
