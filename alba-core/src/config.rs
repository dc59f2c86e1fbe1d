//! Configuration files: parsed and checked once, before anything starts.
