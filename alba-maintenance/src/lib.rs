//! alba-maintenance
