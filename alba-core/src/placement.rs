//! Which OSDs get the fragments of an object.
