//! alba-proxy
