//! When maintenance takes turns at the device with other daemons.

use std::sync::atomic::Ordering;

use alba_core::env::Direction;
use alba_core::range::RangeQuery;

use super::*;
use crate::beside::doubles::Late;

const LARGE: usize = 1 << 20;

#[test]
fn maintenance_takes_turns_at_the_device_beside_clients_and_only_for_what_is_felt() {
    let simulation = Simulation::new(5);
    let scenario = async {
        let turns = Late::new(simulation.node(1).env().clock, Duration::ZERO, false);
        let asd = serve_beside(&simulation, 1, LONG_ID, ServerLimits::default(), turns.clone()).await;
        let (osd, clock) = (asd.osd(), asd.client.env().clock);
        let taken = || {
            assert_eq!(turns.held.load(Ordering::Relaxed), 0, "given back before the answer");
            std::mem::take(&mut *turns.taken.lock().unwrap())
        };
        let get = async |key: &'static str, priority| {
            let found = osd.multi_get(vec![key.into()], priority, asd.deadline()).await.unwrap();
            assert!(found[0].is_some());
            taken()
        };
        let set = async |name, len, priority| {
            osd.apply(put(name, len), priority, asd.deadline()).await.unwrap();
            taken()
        };
        assert_eq!(set("large", LARGE, Priority::Low).await, [], "no client has ever been there");
        assert_eq!(get("large", Priority::Low).await, []);
        assert_eq!(set("small", 1 << 10, Priority::High).await, [], "a client waits for nobody");
        assert_eq!(get("large", Priority::High).await, []);
        assert_eq!(set("large", LARGE, Priority::Low).await, [Direction::Write]);
        assert_eq!(set("tag", 8, Priority::Low).await, [], "several share one flush");
        assert_eq!(get("large", Priority::Low).await, [Direction::Read]);
        assert_eq!(get("small", Priority::Low).await, []);
        let slice = |len| vec![ValueSlice { offset: 0, len }];
        for (len, expected) in [(4096, vec![]), (100_000, vec![Direction::Read])] {
            osd.partial_get("large".into(), slice(len), Priority::Low, asd.deadline()).await.unwrap();
            assert_eq!(taken(), expected);
        }
        for verify in [false, true] {
            let (query, priority) = (RangeQuery::all(), Priority::Low);
            let request = if verify {
                Request::RangeValidate { query, verify_checksum: true, show_all: true, priority }
            } else {
                Request::RangeEntries { query, priority }
            };
            assert!(asd.service.answer(request, asd.deadline()).await.is_ok());
            assert_eq!(taken(), [Direction::Read], "of three values one is large");
        }
        clock.sleep_until(clock.now().plus(Duration::from_secs(2))).await;
        assert_eq!(get("large", Priority::Low).await, [], "the client has gone");
        assert_eq!(set("large", LARGE, Priority::Low).await, []);
    };
    simulation.run(LIMIT, scenario).unwrap();
}

#[test]
fn what_the_engine_does_by_itself_takes_turns_beside_clients_too() {
    let simulation = Simulation::new(5);
    let scenario = async {
        let turns = Late::new(simulation.node(1).env().clock, Duration::ZERO, false);
        let asd = serve_beside(&simulation, 1, LONG_ID, ServerLimits::default(), turns.clone()).await;
        let taken = || {
            assert_eq!(turns.held.load(Ordering::Relaxed), 0, "given back");
            std::mem::take(&mut *turns.taken.lock().unwrap())
        };
        asd.osd().apply(put("large", LARGE), Priority::Low, asd.deadline()).await.unwrap();
        asd.engine.prepare(1, |_| {}).await.unwrap();
        assert_eq!(taken(), [], "no client has ever been there");
        asd.osd().apply(put("small", 1), Priority::High, asd.deadline()).await.unwrap();
        asd.engine.prepare(1, |_| {}).await.unwrap();
        assert_eq!(taken(), [Direction::Write; 16], "a segment of 16 MiB, one by one");
        asd.osd().apply(put("small", 2), Priority::High, asd.deadline()).await.unwrap();
        let rounds = asd.engine.scrub_status().rounds;
        asd.engine.scrub_now();
        let clock = asd.client.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
        assert_eq!(asd.engine.scrub_status().rounds, rounds + 1);
        assert_eq!(taken(), [Direction::Read], "of two values one is large");
    };
    simulation.run(LIMIT, scenario).unwrap();
}
