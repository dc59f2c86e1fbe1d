//! Names on the command line. Namespaces and objects may have any bytes; the shell hands on all but NUL.

use std::os::unix::ffi::OsStringExt;

use alba_core::ids::{NamespaceName, ObjectName};
use clap::builder::{OsStringValueParser, TypedValueParser};

/// Parses a namespace's name.
pub(crate) fn namespace() -> impl TypedValueParser<Value = NamespaceName> {
    OsStringValueParser::new().try_map(|text| NamespaceName::new(text.into_vec()))
}

/// Parses an object's name.
pub(crate) fn object() -> impl TypedValueParser<Value = ObjectName> {
    OsStringValueParser::new().try_map(|text| ObjectName::new(text.into_vec()))
}
