use alba_core::wire::rpc::abm::DeadLetter;

use super::lifecycle::LinkState;
use super::*;

impl World {
    fn letters(&self, destination: &Destination) -> Vec<DeadLetter> {
        let query = AbmQuery::DeadLetters { destination: destination.clone(), after: None, max: 100 };
        match self.ask(query) {
            AbmAnswer::DeadLetters(page) => page.items,
            other => panic!("{other:?}"),
        }
    }

    fn refuse(&self, destination: &Destination, id: MessageId) {
        let reason = "no".to_owned();
        self.run(AbmCommand::MarkRefused { destination: destination.clone(), id, reason }).unwrap();
    }

    /// Does what a deliverer does.
    fn next(&self, destination: &Destination) -> Vec<Message> {
        let outgoing = outgoing(&self.0, destination, 100).unwrap();
        if outgoing.free == 0 && !outgoing.messages.is_empty() {
            self.refuse(destination, outgoing.messages[0].0);
            return Vec::new();
        }
        let sent = &outgoing.messages[..outgoing.free];
        if let Some((upto, _)) = sent.last() {
            self.run(AbmCommand::MarkDelivered { destination: destination.clone(), upto: *upto }).unwrap();
        }
        sent.iter().map(|(_, message)| message.clone()).collect()
    }
}

/// A message that is refused does not hold up the others, and what belongs behind it stays behind it.
#[test]
fn a_refused_message_steps_aside_with_its_namespace() {
    let world = World::new();
    let id = world.claim(0);
    let to_osd = Destination::Osd(id);
    let (a, b) = (world.create("a"), world.create("b"));
    world.deliver(&to_group("nsm-0"));
    // Identify, AddNamespace(a), AddNamespace(b): the device refuses the second.
    world
        .run(AbmCommand::MarkDelivered { destination: to_osd.clone(), upto: MessageId::from_u32(0) })
        .unwrap();
    let refused = world.queued(&to_osd)[0].clone();
    world.refuse(&to_osd, refused.0);
    world.refuse(&to_osd, refused.0);
    let letters = world.letters(&to_osd);
    assert_eq!((letters.len(), letters[0].id, letters[0].reason.as_str()), (1, refused.0, "no"));
    assert_eq!(letters[0].message, refused.1);
    world.check();
    world.run(AbmCommand::DeleteNamespace { name: namespace("a") }).unwrap();
    world.deliver(&to_group("nsm-0"));
    assert_eq!(world.queued(&to_osd).len(), 3, "Skip, AddNamespace(b), RemoveNamespace(a)");
    let sent = world.next(&to_osd);
    assert!(
        matches!(&sent[..], [Message::Skip, Message::Osd(OsdMessage::AddNamespace { id, .. })] if *id == b.id)
    );
    assert_eq!(world.link(b.id, id), Some(LinkState::OnDevice), "the other namespace goes on");
    assert_eq!(world.next(&to_osd), [], "RemoveNamespace(a) must not overtake AddNamespace(a)");
    assert_eq!(world.next(&to_osd), [Message::Skip]);
    let letters = world.letters(&to_osd);
    assert_eq!(letters.len(), 2);
    let counts = world.ask(AbmQuery::DeadLetterCounts);
    assert_eq!(counts, AbmAnswer::Queues(vec![(to_osd.clone(), 2)]));
    world.check();
    // Retrying either brings both back, in order, under new numbers.
    let retry = |id| world.run(AbmCommand::RetryDeadLetter { destination: to_osd.clone(), id });
    retry(letters[1].id).unwrap();
    assert!(matches!(retry(letters[1].id), Err(AbmError::BadArgument(_))));
    let sent = world.next(&to_osd);
    assert!(matches!(
        &sent[..],
        [Message::Osd(OsdMessage::AddNamespace { id, .. }), Message::Osd(OsdMessage::RemoveNamespace { .. })]
            if *id == a.id
    ));
    assert_eq!(world.letters(&to_osd), []);
    world.check();
}

#[test]
fn a_dropped_letter_counts_as_delivered_when_asked() {
    let world = World::new();
    let record = world.create("a");
    let group = to_group("nsm-0");
    let first = world.queued(&group)[0].0;
    world.refuse(&group, first);
    world.next(&group);
    assert_eq!(world.find("a").unwrap().state, NamespaceState::Creating, "nothing follows from a refusal");
    let drop_it =
        |as_delivered| AbmCommand::DropDeadLetter { destination: group.clone(), id: first, as_delivered };
    world.run(drop_it(true)).unwrap();
    assert_eq!(world.find("a").unwrap(), NamespaceRecord { state: NamespaceState::Active, ..record });
    assert!(matches!(world.run(drop_it(false)), Err(AbmError::BadArgument(_))));
    world.check();
}

#[test]
fn a_retried_unlink_is_waited_for_under_its_new_number() {
    let world = World::new();
    let id = world.claim(0);
    let record = world.create("a");
    world.settle();
    world.run(AbmCommand::DecommissionOsd { long_id: osd(0).long_id }).unwrap();
    let group = to_group("nsm-0");
    let (unlink, _) = world.queued(&group)[0].clone();
    world.refuse(&group, unlink);
    world.settle();
    assert!(matches!(world.link(record.id, id), Some(LinkState::Decommissioning { .. })));
    world.run(AbmCommand::RetryDeadLetter { destination: group, id: unlink }).unwrap();
    world.settle();
    assert_eq!(world.link(record.id, id), Some(LinkState::Repairing));
    world.check();
}

#[test]
fn a_forgotten_osd_leaves_no_letters() {
    let world = World::new();
    let id = world.claim(0);
    let destination = Destination::Osd(id);
    world.create("a");
    for (message, _) in world.queued(&destination) {
        world.refuse(&destination, message);
    }
    world.run(AbmCommand::PurgeOsd { long_id: osd(0).long_id }).unwrap();
    assert!(outgoing(&world.0, &destination, 10).unwrap().gone || world.queued(&destination).is_empty());
    world.settle();
    world.complete(|_| true).unwrap();
    assert_eq!((world.osd(0), world.letters(&destination)), (None, vec![]));
    assert_eq!(world.ask(AbmQuery::DeadLetterCounts), AbmAnswer::Queues(vec![]));
    world.check();
}

/// The original read the numbers of batches as 32 bits.
#[test]
fn message_numbers_have_64_bits() {
    let world = World::new();
    let id = world.claim(0);
    let destination = Destination::Osd(id);
    world.deliver(&destination);
    let far = MessageId::new((1 << 40) + 7).unwrap();
    let mut txn = KvTxn::new(&world.0);
    save(&mut txn, keys::next_message(&destination), &far).unwrap();
    txn.accept();
    world.0.commit(txn.into_batch(), Durability::Sync).unwrap();
    let record = world.create("a");
    assert_eq!(world.queued(&destination)[0].0, far);
    let low = MessageId::from_u32(7);
    world.run(AbmCommand::MarkDelivered { destination: destination.clone(), upto: low }).unwrap();
    assert_eq!(world.queued(&destination).len(), 1, "the low half says nothing");
    world.run(AbmCommand::MarkDelivered { destination, upto: far }).unwrap();
    assert_eq!(world.link(record.id, id), Some(LinkState::OnDevice));
    world.check();
}
