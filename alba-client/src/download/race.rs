//! Asking several for what some of them can give: a few at once, another for each that fails, and another when the
//! answers take longer than usual (a hedge), so that one slow disk does not show.

use std::time::Duration;

use alba_core::env::Clock;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// What a race gave.
#[derive(Debug)]
pub(super) struct Raced<T, E> {
    /// In the order of arrival; as many as were needed, unless the candidates ran out.
    pub(super) won: Vec<T>,
    /// Why others failed.
    pub(super) lost: Vec<E>,
}

/// Asks the first `needed` candidates, and further ones as the module says, until `needed` have answered well or
/// that has become impossible. Those that are still busy then are given up (dropped). Hedges come after `pause`, then at
/// doubling intervals.
pub(super) async fn race<C, T, E, F>(
    clock: &dyn Clock,
    candidates: Vec<C>,
    needed: usize,
    pause: Duration,
    ask: impl Fn(C) -> F,
) -> Raced<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut raced = Raced { won: Vec::with_capacity(needed), lost: Vec::new() };
    let mut waiting = candidates.into_iter();
    let mut asked: FuturesUnordered<F> = waiting.by_ref().take(needed).map(&ask).collect();
    let mut pause = pause;
    let mut hedge_at = clock.now().plus(pause);
    while raced.won.len() < needed && raced.won.len() + asked.len() + waiting.len() >= needed {
        tokio::select! {
            biased;
            Some(answer) = asked.next() => match answer {
                Ok(answer) => raced.won.push(answer),
                Err(error) => {
                    raced.lost.push(error);
                    asked.extend(waiting.next().map(&ask));
                }
            },
            () = clock.sleep_until(hedge_at), if waiting.len() > 0 => {
                asked.extend(waiting.next().map(&ask));
                pause *= 2;
                hedge_at = clock.now().plus(pause);
            }
        }
    }
    raced
}
