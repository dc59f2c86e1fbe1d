//! Checksums of uploaded objects (wire-protocol §2.5): the preset says which ones clients may give, and whether those are
//! compared with the data.

use alba_core::checksum::{Checksum, Hasher};
use alba_core::ids::ObjectName;
use alba_core::preset::ObjectChecksums;

use crate::ClientError;

/// The checksum that an upload computes, expects and stores.
pub(super) struct ChecksumRule {
    hasher: Option<Hasher>,
    expected: Option<Checksum>,
}

impl ChecksumRule {
    pub(super) fn new(rules: &ObjectChecksums, given: Option<Checksum>) -> Result<Self, ClientError> {
        match given {
            None => Ok(Self { hasher: Some(rules.default.hasher()), expected: None }),
            Some(checksum) if !rules.allowed.contains(&checksum.algorithm()) => {
                Err(ClientError::ChecksumNotAllowed(checksum.algorithm()))
            }
            Some(checksum) => Ok(Self {
                hasher: rules.verify_upload.then(|| checksum.algorithm().hasher()),
                expected: Some(checksum),
            }),
        }
    }

    /// The hasher, to be used where it may take long; to be given back.
    pub(super) fn take_hasher(&mut self) -> Option<Hasher> {
        self.hasher.take()
    }

    /// See [`Self::take_hasher`].
    pub(super) fn give_back(&mut self, hasher: Option<Hasher>) {
        self.hasher = hasher;
    }

    /// Takes all of the data at once.
    pub(super) fn add(&mut self, data: &[u8]) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(data);
        }
    }

    /// What the manifest shall say, once all data went through the hasher.
    pub(super) fn finish(&mut self, name: &ObjectName) -> Result<Checksum, ClientError> {
        let found = self.hasher.take().map(Hasher::finish);
        match (self.expected, found) {
            (Some(expected), Some(found)) if expected != found => {
                Err(ClientError::ChecksumMismatch { object: name.clone(), expected, found })
            }
            (Some(checksum), _) | (None, Some(checksum)) => Ok(checksum),
            (None, None) => Ok(Checksum::None),
        }
    }
}

#[cfg(test)]
mod tests {
    use alba_core::checksum::ChecksumAlgorithm;

    use super::*;

    const ALL: [ChecksumAlgorithm; 4] = [
        ChecksumAlgorithm::None,
        ChecksumAlgorithm::Sha1,
        ChecksumAlgorithm::Crc32c,
        ChecksumAlgorithm::Blake3,
    ];

    fn stored(rules: &ObjectChecksums, given: Option<Checksum>) -> Result<Checksum, ClientError> {
        let mut rule = ChecksumRule::new(rules, given)?;
        let mut hasher = rule.take_hasher();
        if let Some(hasher) = &mut hasher {
            hasher.update(b"da");
        }
        rule.give_back(hasher);
        rule.add(b"ta");
        rule.finish(&ObjectName::new("o").unwrap())
    }

    /// Every set of allowed algorithms, default, and kind of given checksum.
    #[test]
    fn every_combination_does_what_the_protocol_says() {
        let mut seen = 0;
        for set in 1..16_u8 {
            let allowed: Vec<_> = (0..4).filter(|bit| set >> bit & 1 == 1).map(|bit| ALL[bit]).collect();
            for (default, verify_upload) in allowed.iter().flat_map(|a| [(*a, true), (*a, false)]) {
                let rules = ObjectChecksums { allowed: allowed.clone(), default, verify_upload };
                assert_eq!(stored(&rules, None), Ok(default.of(b"data")));
                for algorithm in ALL {
                    let (right, wrong) = (algorithm.of(b"data"), algorithm.of(b"other"));
                    if !allowed.contains(&algorithm) {
                        let refused = Err(ClientError::ChecksumNotAllowed(algorithm));
                        assert_eq!(stored(&rules, Some(right)), refused);
                        assert_eq!(stored(&rules, Some(wrong)), refused);
                        continue;
                    }
                    assert_eq!(stored(&rules, Some(right)), Ok(right));
                    if verify_upload && algorithm != ChecksumAlgorithm::None {
                        let error = stored(&rules, Some(wrong)).unwrap_err();
                        let ClientError::ChecksumMismatch { expected, found, .. } = error else {
                            panic!("{error}")
                        };
                        assert_eq!((expected, found), (wrong, right));
                    } else {
                        assert_eq!(stored(&rules, Some(wrong)), Ok(wrong));
                    }
                    seen += 1;
                }
            }
        }
        // Each set, once per default in it and per way of verifying, with each algorithm in it: 2 × Σ n².
        assert_eq!(seen, 2 * (4 + 6 * 4 + 4 * 9 + 16));
    }
}
