//! The ALBA ASD protocol, client side.
