//! A part of one data fragment: from where it is stored, or from the other fragments when that OSD fails, is late, or is
//! known to be slow.

use std::collections::BTreeSet;

use alba_core::ids::FragmentIndex;
use bytes::Bytes;
use futures_util::future::{BoxFuture, Fuse, FusedFuture, FutureExt};

use super::chunk::{ChunkReader, Failure, Had, LEAF, as_stated};
use super::fetch::{Lost, Part, Why, fetch};

impl ChunkReader<'_> {
    /// Plain bytes of one data fragment. `has_room`: the caller has room for the whole chunk.
    pub(super) async fn run(
        &self,
        fragment: FragmentIndex,
        part: Part,
        has_room: bool,
    ) -> Result<Had<Bytes>, Failure> {
        self.engine.counters.fragments_needed.add(1);
        self.engine.hedging.needed(1);
        if self.is_replicated() {
            self.any_copy(part).await
        } else {
            self.direct_or_computed(fragment, part, has_room).await
        }
    }

    async fn any_copy(&self, part: Part) -> Result<Had<Bytes>, Failure> {
        let raced = self.any(part, 1, &BTreeSet::new()).await;
        match raced.won.into_iter().next() {
            Some((_, bytes)) => Ok((bytes, as_stated(&raced.lost))),
            None => Err(self.not_enough(1, 0, &raced.lost)),
        }
    }

    async fn direct_or_computed(
        &self,
        fragment: FragmentIndex,
        part: Part,
        has_room: bool,
    ) -> Result<Had<Bytes>, Failure> {
        let engine = self.engine;
        let clock = &*engine.env.clock;
        let pace = self.pace(part);
        let started = clock.now();
        let mut direct: Fuse<BoxFuture<'_, Result<Bytes, Lost>>> = Fuse::terminated();
        let mut others: Fuse<BoxFuture<'_, Result<Had<Bytes>, Failure>>> = Fuse::terminated();
        let mut others_failed = None;
        let mut had_all = true;
        let mut hedged = false;
        // The others, when they are not asked yet.
        let mut unasked = Some(|| self.by_others(fragment, part, has_room).boxed().fuse());
        if self.answers_well(fragment, &pace) {
            direct = fetch(self, fragment, part).boxed().fuse();
        } else if let Some(ask) = unasked.take() {
            others = ask();
        }
        let member = self.chunk.fragments.get(fragment.index()).and_then(|entry| entry.location);
        let member = member.and_then(|osd| engine.pool.known(osd));
        let mut hedge_at = started.plus(pace.patience(member.as_deref()));
        // One of the two is always under way: where either ends, this returns or the other one goes on.
        loop {
            tokio::select! {
                biased;
                read = &mut direct => match read {
                    Ok(bytes) => return Ok((bytes, had_all)),
                    Err(lost) if lost.why == Why::Unproven => return Err(Failure::Unproven),
                    Err(lost) => {
                        tracing::debug!(object = %self.manifest.name, chunk = %self.index, %fragment,
                            reason = lost.reason, "fragment cannot be read directly");
                        had_all &= lost.why != Why::Bad;
                        if let Some(ask) = unasked.take() {
                            others = ask();
                        }
                        if let Some(error) = others_failed.take() {
                            return Err(error);
                        }
                    }
                },
                computed = &mut others => match computed {
                    Ok((bytes, as_stated)) => {
                        engine.counters.hedges_won.add(u64::from(hedged));
                        return Ok((bytes, had_all && as_stated));
                    }
                    Err(error) if direct.is_terminated() => return Err(error),
                    Err(error) => others_failed = Some(error),
                },
                () = clock.sleep_until(hedge_at), if unasked.is_some() && engine.hedging.is_enabled() => {
                    if clock.now().since(started) < pace.longest() && !engine.hedging.take(self.k()) {
                        hedge_at = started.plus(pace.longest());
                        continue;
                    }
                    hedged = true;
                    engine.counters.hedges.add(1);
                    if let Some(ask) = unasked.take() {
                        others = ask();
                    }
                }
            }
        }
    }

    async fn by_others(
        &self,
        fragment: FragmentIndex,
        part: Part,
        has_room: bool,
    ) -> Result<Had<Bytes>, Failure> {
        let engine = self.engine;
        engine.counters.chunks_rescued.add(1);
        // Nothing else is held meanwhile: what is read directly is in the answer's room.
        let _room = if has_room {
            Default::default()
        } else {
            let (part, each) = match part {
                Part::Whole => (u64::from(self.fragment_len), u64::from(self.fragment_len)),
                Part::Range { len, .. } => (u64::from(len), u64::from(len) + 2 * u64::from(LEAF)),
            };
            let fragments = u64::try_from(self.k() + 1).unwrap_or(u64::MAX);
            engine.buffers.around(part, each.saturating_mul(fragments), self.deadline).await?
        };
        self.computed(fragment, part, &BTreeSet::from([fragment])).await
    }
}
