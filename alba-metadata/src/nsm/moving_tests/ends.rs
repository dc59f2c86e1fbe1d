//! How moves end that do not end well.

use super::*;

fn owned(ended: u64) -> MoveStatus {
    MoveStatus::Owned { ended: MoveId(ended) }
}

fn absent(ended: u64) -> MoveStatus {
    MoveStatus::Absent { ended: MoveId(ended) }
}

impl World {
    /// Until the source says so.
    fn drive_until(&self, is: impl Fn(&MoveStatus) -> bool) {
        while !is(&status(&self.source)) {
            self.act(&PLAN, self.next(&PLAN));
        }
    }
}

fn handed_over(status: &MoveStatus) -> bool {
    matches!(status, MoveStatus::Outgoing { phase: Phase::HandedOver(_), .. })
}

fn frozen(status: &MoveStatus) -> bool {
    matches!(status, MoveStatus::Outgoing { phase: Phase::Frozen, .. })
}

#[test]
fn the_source_goes_on_without_a_silent_target_until_it_has_handed_over() {
    let world = World::new();
    run(&world.source, put_one(1)).unwrap();
    world.drive_until(frozen);
    let withdraw = PLAN.unfreeze(&status(&world.source)).unwrap();
    run(&world.source, withdraw.clone()).unwrap();
    run(&world.source, withdraw.clone()).unwrap();
    run(&world.source, put_one(2)).unwrap();
    assert_eq!(PLAN.unfreeze(&status(&world.source)), None);
    // The target is back: whoever drives now finds the way.
    loop {
        match world.next(&PLAN) {
            Next::Ended => break,
            next => drop(world.act(&PLAN, next)),
        }
    }
    assert_eq!((status(&world.source), status(&world.target)), (owned(1), absent(1)));
    world.check();

    let world = World::new();
    world.drive_until(frozen);
    let late = PLAN.unfreeze(&status(&world.source)).unwrap();
    world.drive_until(handed_over);
    assert_eq!(PLAN.unfreeze(&status(&world.source)), None);
    assert!(matches!(run(&world.source, late), Err(NsmError::MoveRefused(_))), "the target may serve by now");
    world.finish(&PLAN);
    world.check();
}

#[test]
fn a_group_that_is_given_up_ends_the_move() {
    // The target, whenever: the source has everything.
    for until in [frozen, handed_over] {
        let world = World::new();
        run(&world.source, put_one(1)).unwrap();
        world.drive_until(until);
        let next = PLAN.without_target(&status(&world.source));
        world.act(&PLAN, next);
        assert_eq!(PLAN.without_target(&status(&world.source)), Next::Ended);
        run(&world.source, put_one(2)).unwrap();
    }
    // The source: the target has everything, or nothing that is of use.
    let world = World::new();
    world.drive_until(handed_over);
    world.act(&PLAN, PLAN.without_source(&status(&world.target)));
    assert_eq!(status(&world.target), absent(1));
    assert_eq!(PLAN.without_source(&status(&world.target)), Next::Ended);
    let world = World::new();
    world.drive_until(handed_over);
    world.act(&PLAN, world.next(&PLAN));
    assert_eq!(status(&world.target), owned(1));
    assert!(matches!(PLAN.without_source(&status(&world.target)), Next::Switch(_)));
}

#[test]
fn what_a_late_step_of_an_earlier_move_left_is_put_away() {
    let world = World::new();
    run(&world.source, put_one(1)).unwrap();
    run(&world.source, step(MoveStep::Prepare)).unwrap();
    run(&world.target, step(MoveStep::Receive)).unwrap();
    let plan = Plan { id: MoveId(2), ..PLAN };
    for _ in 0..100 {
        // Notes and rows that were given up are dropped meanwhile.
        for store in [&world.source, &world.target] {
            while matches!(feed(store, 5, &Input::Tidy), Output::Tidied(true)) {}
        }
        match world.next(&plan) {
            Next::Moved => break,
            next => drop(world.act(&plan, next)),
        }
    }
    assert_eq!((status(&world.source), status(&world.target)), (absent(2), owned(2)));
}

/// The ABM's message ends the source's copy as well as the step does, and keeps the number.
#[test]
fn the_message_that_drops_a_moved_copy_keeps_the_number_of_its_move() {
    let world = World::new();
    world.drive_until(handed_over);
    world.act(&PLAN, world.next(&PLAN));
    let next = MessageId::from_u32(7);
    run(&world.source, NsmCommand::Deliver(vec![(next, NsmMessage::DeleteNamespace { id: NS })])).unwrap();
    assert_eq!(status(&world.source), absent(1));
    run(&world.source, step(MoveStep::Drop)).unwrap();
    let again = vec![(MessageId::from_u32(8), NsmMessage::DeleteNamespace { id: NS })];
    run(&world.source, NsmCommand::Deliver(again)).unwrap();
    assert_eq!(status(&world.source), absent(1));
    assert!(matches!(run(&world.source, step(MoveStep::Receive)), Err(NsmError::MoveRefused(_))), "too late");
}
