//! Asking several for what some of them can give: a few at once, another for each that fails, and another when the
//! answers take longer than usual (a hedge), so that one slow disk does not show.

use std::time::Duration;

use alba_core::env::Clock;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::hedging::Hedging;

/// One that can be asked, and how long its answer may take before it is late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<C> {
    pub(super) who: C,
    pub(super) patience: Duration,
}

/// What a race gave.
#[derive(Debug)]
pub(super) struct Raced<T, E> {
    /// In the order of arrival; as many as were needed, unless the candidates ran out.
    pub(super) won: Vec<T>,
    /// Why others failed.
    pub(super) lost: Vec<E>,
    /// How many were asked because others were late.
    pub(super) hedges: u64,
    /// How many of those are among `won`.
    pub(super) hedges_won: u64,
}

/// Asks the first `needed` candidates, and further ones as the module says, until `needed` have answered well or
/// that has become impossible. Those that are still busy then are given up (dropped). The first hedge comes when the
/// most patient of the first is late, or after `longest` when there is no budget for it, the next at doubling intervals.
pub(super) async fn race<C, T, E, F>(
    clock: &dyn Clock,
    hedging: &Hedging,
    longest: Duration,
    candidates: Vec<Candidate<C>>,
    needed: usize,
    ask: impl Fn(C) -> F,
) -> Raced<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut raced = Raced { won: Vec::with_capacity(needed), lost: Vec::new(), hedges: 0, hedges_won: 0 };
    let started = clock.now();
    let mut pause =
        candidates.iter().take(needed).map(|candidate| candidate.patience).max().unwrap_or(longest);
    let mut waiting = candidates.into_iter().map(|candidate| candidate.who);
    let start = |who: C, is_hedge: bool| {
        let answer = ask(who);
        async move { (is_hedge, answer.await) }
    };
    let mut asked: FuturesUnordered<_> = waiting.by_ref().take(needed).map(|who| start(who, false)).collect();
    let mut hedge_at = started.plus(pause);
    while raced.won.len() < needed && raced.won.len() + asked.len() + waiting.len() >= needed {
        tokio::select! {
            biased;
            Some((is_hedge, answer)) = asked.next() => match answer {
                Ok(answer) => {
                    raced.hedges_won += u64::from(is_hedge);
                    raced.won.push(answer);
                }
                Err(error) => {
                    raced.lost.push(error);
                    asked.extend(waiting.next().map(|who| start(who, false)));
                }
            },
            () = clock.sleep_until(hedge_at), if hedging.is_enabled() && waiting.len() > 0 => {
                let spent = clock.now().since(started) < longest && !hedging.take(1);
                if spent {
                    hedge_at = started.plus(longest);
                    continue;
                }
                raced.hedges += 1;
                asked.extend(waiting.next().map(|who| start(who, true)));
                pause *= 2;
                hedge_at = clock.now().plus(pause);
            }
        }
    }
    raced
}

#[cfg(test)]
mod tests {
    use alba_core::env::sim::Simulation;

    use super::*;

    const LONGEST: Duration = Duration::from_millis(500);

    /// Each candidate answers well or not after so many milliseconds; all are late after ten.
    fn run(hedging: &Hedging, needed: usize, answers: &[(u64, bool)]) -> (Raced<usize, usize>, Duration) {
        let simulation = Simulation::new(1);
        let clock = simulation.node(1).env().clock;
        let patience = Duration::from_millis(10);
        let candidates = (0..answers.len()).map(|who| Candidate { who, patience }).collect();
        let ask = async |who: usize| {
            let (millis, well) = answers[who];
            clock.sleep_until(clock.now().plus(Duration::from_millis(millis))).await;
            if well { Ok(who) } else { Err(who) }
        };
        let work = race(&*clock, hedging, LONGEST, candidates, needed, ask);
        let raced = simulation.run(Duration::from_secs(60), work).unwrap();
        (raced, simulation.now().since(alba_core::env::Moment::default()))
    }

    #[test]
    fn only_as_many_as_needed_are_asked_while_all_is_well() {
        let (raced, took) = run(&Hedging::new(true), 2, &[(3, true), (5, true), (1, true)]);
        assert_eq!((raced.won, raced.hedges, took), (vec![0, 1], 0, Duration::from_millis(5)));
    }

    #[test]
    fn one_that_fails_is_replaced_and_that_is_no_hedge() {
        let (raced, took) = run(&Hedging::new(true), 2, &[(3, false), (5, true), (4, true)]);
        assert_eq!((raced.won, raced.lost), (vec![1, 2], vec![0]));
        assert_eq!((raced.hedges, took), (0, Duration::from_millis(7)));
        let (raced, took) = run(&Hedging::new(true), 2, &[(3, false), (50, true), (1, false)]);
        assert_eq!((raced.won, raced.lost, took), (vec![], vec![0, 2], Duration::from_millis(4)));
    }

    #[test]
    fn others_are_asked_when_one_is_late_sooner_with_a_budget_than_without() {
        let answers = [(100_000, true), (5, true), (5, true)];
        let hedging = Hedging::new(true);
        let (raced, took) = run(&hedging, 2, &answers);
        assert_eq!((raced.won, raced.hedges, raced.hedges_won), (vec![1, 2], 1, 1));
        assert_eq!(took, Duration::from_millis(15));
        while hedging.take(1) {}
        let (raced, took) = run(&hedging, 2, &answers);
        assert_eq!((raced.won, raced.hedges, took), (vec![1, 2], 1, Duration::from_millis(505)));
        let (raced, took) = run(&Hedging::new(false), 2, &[(1000, true), (5, true), (5, true)]);
        assert_eq!((raced.won, raced.hedges, took), (vec![1, 0], 0, Duration::from_millis(1000)));
    }
}
