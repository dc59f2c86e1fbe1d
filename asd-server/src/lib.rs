//! asd-server
