//! Object → chunk → fragment arithmetic, and which parts of which fragments a slice touches.
