//! What a connection has agreed on (UpdateSession, command 32).

use bytes::Bytes;

use crate::wire::manifest::ManifestSer;

/// The only key there is: its value is one byte, the highest manifest version the client wants.
pub const MANIFEST_SER: &[u8] = b"manifest_ser";

/// A connection's settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Session {
    /// Form of the manifests in every later answer.
    pub manifest_ser: ManifestSer,
}

impl Session {
    /// Applies what a client asks for: the settings from now on, and the answer. Unknown keys, keys without a value
    /// and values that mean nothing are left out of it, which is no error.
    #[must_use]
    pub fn updated(self, wishes: &[(Bytes, Option<Bytes>)]) -> (Self, Vec<(Bytes, Bytes)>) {
        let mut session = self;
        let mut processed = Vec::new();
        for (key, value) in wishes {
            let wanted = match value.as_deref() {
                Some([wanted]) if key[..] == *MANIFEST_SER => *wanted,
                _ => continue,
            };
            session.manifest_ser = match wanted {
                0 => continue,
                1 => ManifestSer::V1,
                _ => ManifestSer::V2,
            };
            let agreed = Bytes::copy_from_slice(&[session.manifest_ser.number()]);
            processed.push((key.clone(), agreed));
        }
        (session, processed)
    }
}
