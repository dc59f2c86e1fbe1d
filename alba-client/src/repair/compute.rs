//! Computing lost fragments from others of their chunk.
//!
//! It must never give bytes that are not certainly right: either each source had its checksum, or each result has.

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::failpoint::{self, reach};
use alba_core::fragment::{Cipher, Packed, pack, regenerate, regenerate_proven};
use alba_core::ids::FragmentIndex;
use alba_core::manifest::{Fragment, Timestamp, VerifiedFragment};
use alba_core::preset::Compression;

use super::plan::ChunkWork;
use super::read::Sources;
use super::update::{Attempt, Findings, counter};
use crate::ClientError;

/// What came of computing without looking at the sources.
enum Proven {
    /// These are right.
    Made(Vec<Packed>),
    /// Fewer than k fragments could be read.
    TooFew,
    /// Only the sources' checksums can tell, or something was wrong and they can tell what.
    Unknown,
}

impl Attempt<'_> {
    /// The wanted fragments from any k others, packed as the object is, each with a counter block of its own. None when there are
    /// too few others.
    pub(super) async fn compute(
        &self,
        work: &ChunkWork,
        wanted: &[FragmentIndex],
        findings: &mut Findings,
    ) -> Result<Option<Vec<Packed>>, ClientError> {
        match self.compute_proven(work, wanted, findings).await? {
            Proven::Made(made) => return Ok(Some(made)),
            Proven::TooFew => return Ok(None),
            Proven::Unknown => {}
        }
        let (shape, compression) = (self.manifest.scheme.shape, self.manifest.scheme.compression);
        let sources = self.chunk(work.chunk).any_k(&work.sources).await;
        if !self.learn(work, &sources, findings) {
            return Ok(None);
        }
        let algorithm = self.info.preset.fragment_checksum;
        let now = Timestamp(self.engine.env.clock.wall_micros());
        let counters: Vec<_> = wanted.iter().map(|_| counter(self.engine)).collect();
        let (key, wanted) = (self.key.clone(), wanted.to_vec());
        let bytes = sources.present.iter().map(|(_, plain)| u64::try_from(plain.len()).unwrap_or(0)).sum();
        let made = self
            .engine
            .compute(bytes, move || {
                let plain =
                    regenerate(shape, &sources.present, &wanted).map_err(|error| error.to_string())?;
                let cipher = |counter| key.as_ref().map(|key| Cipher { key, counter });
                plain
                    .iter()
                    .zip(counters)
                    .map(|(plain, counter)| pack(plain, compression, cipher(counter), algorithm, now))
                    .collect::<Result<Vec<Packed>, _>>()
                    .map_err(|error| error.to_string())
            })
            .await?;
        made.map(Some)
            .map_err(|reason| ClientError::Undecodable { object: self.manifest.name.clone(), reason })
    }

    /// The same without looking at what was read, where what comes out shows whether all of it was right: the sources are k times
    /// as many bytes to hash.
    async fn compute_proven(
        &self,
        work: &ChunkWork,
        wanted: &[FragmentIndex],
        findings: &mut Findings,
    ) -> Result<Proven, ClientError> {
        let scheme = &self.manifest.scheme;
        let as_is = scheme.compression == Compression::None && self.key.is_none();
        // Of another kind than new ones are to have, it is made anew.
        if !as_is || self.info.preset.fragment_checksum != ChecksumAlgorithm::Blake3 {
            return Ok(Proven::Unknown);
        }
        let entry = |fragment: &FragmentIndex| {
            let entry = self.manifest.fragment(work.chunk, *fragment)?;
            let proves = entry.checksum.algorithm() == ChecksumAlgorithm::Blake3;
            proves.then(|| (*fragment, entry.clone()))
        };
        let Some(wanted) = wanted.iter().map(entry).collect::<Option<Vec<_>>>() else {
            return Ok(Proven::Unknown);
        };
        let shape = scheme.shape;
        let sources = self.chunk(work.chunk).any_k_unverified(&work.sources).await;
        if !self.learn(work, &sources, findings) {
            return Ok(Proven::TooFew);
        }
        let made = self.engine.compute(sources.bytes, move || {
            let proven = regenerate_proven(shape, sources.present, &wanted)?;
            let packed = |(bytes, (_, entry)): (VerifiedFragment, (_, Fragment))| Packed {
                bytes: bytes.bytes().clone(),
                len: entry.packed_len,
                checksum: entry.checksum,
                ctr: None,
            };
            Some(proven.into_iter().zip(wanted).map(packed).collect())
        });
        Ok(made.await?.map_or(Proven::Unknown, Proven::Made))
    }

    /// Takes note of what was read and what could not be. Is there enough of it?
    fn learn<T>(&self, work: &ChunkWork, sources: &Sources<T>, findings: &mut Findings) -> bool {
        reach(failpoint::Step::UpdateRead);
        self.counters.bytes_read.add(sources.bytes);
        for fragment in &sources.lost {
            findings.bad.extend(self.bad(work.chunk, *fragment));
        }
        let (found, needed) = (sources.present.len(), self.manifest.scheme.shape.k());
        if found < needed {
            let detail = sources.detail.join("; ");
            findings.reasons.push(format!(
                "chunk {}: {found} of {needed} fragments could be read ({detail})",
                work.chunk
            ));
        }
        found >= needed
    }
}
