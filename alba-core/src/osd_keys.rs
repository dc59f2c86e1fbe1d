//! Keys on the OSDs. Their byte order is a contract.
