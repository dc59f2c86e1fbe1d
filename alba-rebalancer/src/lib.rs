//! alba-rebalancer
