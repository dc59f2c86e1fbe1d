use alba_core::policy::Policy;
use alba_core::wire::rpc::abm::PresetPropagation;

use super::lifecycle::LinkState;
use super::*;

fn preset(text: &str) -> PresetName {
    PresetName::new(text).unwrap()
}

fn update(name: &str, fragment_size: u32) -> AbmCommand {
    AbmCommand::UpdatePreset { name: preset(name), policies: None, fragment_size: Some(fragment_size) }
}

impl World {
    fn preset(&self, name: &str) -> Option<alba_core::wire::rpc::abm::PresetRecord> {
        match self.ask(AbmQuery::Preset(preset(name))) {
            AbmAnswer::Preset(found) => found,
            other => panic!("{other:?}"),
        }
    }

    fn explicit(&self, name: &str, osds: Vec<OsdId>) {
        let built_in = self.preset("default").unwrap().preset;
        let made = Box::new(Preset { osds: OsdSet::Explicit(osds), ..built_in });
        self.run(AbmCommand::CreatePreset { name: preset(name), preset: made }).unwrap();
    }

    fn propagation(&self) -> Vec<PresetPropagation> {
        match self.ask(AbmQuery::PresetsPropagation) {
            AbmAnswer::PresetsPropagation(found) => found,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_update_reaches_the_group_of_each_namespace_with_its_version() {
    let world = World::new();
    world.create("a");
    world.create("b");
    world.settle();
    world.run(update("default", 4096)).unwrap();
    let policies = vec![Policy::new(1, 2, 1, 3).unwrap()];
    let command = AbmCommand::UpdatePreset {
        name: preset("default"),
        policies: Some(policies.clone()),
        fragment_size: None,
    };
    world.run(command).unwrap();
    let record = world.preset("default").unwrap();
    assert_eq!((record.version, record.preset.fragment_size, record.preset.policies), (2, 4096, policies));
    for group in ["nsm-0", "nsm-1"] {
        let versions: Vec<u32> = world
            .deliver(&to_group(group))
            .iter()
            .map(|message| match message {
                Message::Nsm(NsmMessage::UpdatePreset { version, .. }) => *version,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(versions, [1, 2]);
    }
    // A namespace made later begins with it.
    world.create("c");
    let messages = world.queued(&to_group("nsm-0"));
    assert!(matches!(&messages[0].1, Message::Nsm(NsmMessage::CreateNamespace { preset_version: 2, .. })));
    assert!(matches!(world.run(update("default", 1)), Err(AbmError::PresetInvalid(_))));
    assert_eq!(world.run(update("none", 4096)), Err(AbmError::PresetUnknown(preset("none"))));
    assert_eq!(world.preset("default").unwrap().version, 2, "a refused update is none");
    world.check();
}

/// The original raised the version and told nobody: later namespaces could not be made.
#[test]
fn osds_added_to_a_preset_are_linked_and_its_version_is_told() {
    let world = World::new();
    let ids = [world.claim(0), world.claim(1), world.claim(2)];
    world.explicit("some", vec![ids[0]]);
    let create = |text: &str| {
        let name = namespace(text);
        let command = AbmCommand::CreateNamespace { name, preset: Some(preset("some")), group: None };
        match world.run(command).unwrap() {
            AbmOutcome::Namespace(record) => record,
            other => panic!("{other:?}"),
        }
    };
    let record = create("a");
    world.settle();
    assert_eq!(world.link(record.id, ids[1]), None);
    let add = |name: &str, osds: &[OsdId]| {
        world.run(AbmCommand::AddOsdsToPreset { name: preset(name), osds: osds.to_vec() })
    };
    add("some", &[ids[1], ids[1], ids[0]]).unwrap();
    assert_eq!(world.preset("some").unwrap().version, 1);
    assert_eq!(world.link(record.id, ids[1]), Some(LinkState::Adding));
    let told = world.deliver(&to_group(record.group.as_str()));
    assert!(matches!(&told[..], [Message::Nsm(NsmMessage::UpdatePreset { version: 1, .. })]), "{told:?}");
    world.settle();
    assert_eq!(world.link(record.id, ids[1]), Some(LinkState::Active));
    assert_eq!(world.link(record.id, ids[2]), None);
    add("some", &[ids[1]]).unwrap();
    assert_eq!(world.preset("some").unwrap().version, 1, "nothing new");
    assert_eq!(world.link(create("b").id, ids[1]), Some(LinkState::Adding));
    let messages = world.queued(&to_group("nsm-1"));
    assert!(matches!(&messages[0].1, Message::Nsm(NsmMessage::CreateNamespace { preset_version: 1, .. })));
    assert!(matches!(add("some", &[OsdId::from_u32(9)]), Err(AbmError::PresetInvalid(_))));
    assert!(matches!(add("default", &[ids[2]]), Err(AbmError::PresetInvalid(_))));
    assert_eq!(add("none", &[ids[2]]), Err(AbmError::PresetUnknown(preset("none"))));
    world.check();
}

#[test]
fn a_preset_in_use_stays() {
    let world = World::new();
    world.create("a");
    let delete = |name: &str| world.run(AbmCommand::DeletePreset { name: preset(name) });
    assert_eq!(delete("default"), Err(AbmError::PresetInUse(preset("default"))));
    assert_eq!(delete("none"), Err(AbmError::PresetUnknown(preset("none"))));
    world.settle();
    world.run(AbmCommand::DeleteNamespace { name: namespace("a") }).unwrap();
    assert_eq!(delete("default"), Err(AbmError::PresetInUse(preset("default"))), "not gone yet");
    world.settle();
    delete("default").unwrap();
    assert_eq!(world.preset("default"), None);
    let create = AbmCommand::CreateNamespace { name: namespace("b"), preset: None, group: None };
    assert!(matches!(world.run(create), Err(AbmError::BadArgument(_))), "there is no default any more");
    world.check();
}

#[test]
fn thousands_of_namespaces_hear_of_a_preset_in_steps() {
    let world = World::new();
    for n in 0..450 {
        world.create(&format!("ns-{n:04}"));
    }
    world.settle();
    world.run(update("default", 4096)).unwrap();
    let first = vec![PresetPropagation { preset: preset("default"), version: 1, pending: 350 }];
    assert_eq!(world.propagation(), first);
    // A second update starts it over, and there is one walk, not two.
    world.run(update("default", 8192)).unwrap();
    assert_eq!(world.propagation()[0], PresetPropagation { version: 2, ..first[0].clone() });
    assert_eq!(world.tidy(), 4);
    assert_eq!(world.propagation(), []);
    let versions = |n: usize| {
        let messages = ["nsm-0", "nsm-1"].map(|group| world.queued(&to_group(group)).len());
        assert!(messages.iter().all(|len| *len == n), "{messages:?}");
    };
    // 450 of the second version, and 100 of the first.
    versions(200);
    let AbmAnswer::Queues(queues) = world.ask(AbmQuery::Queues) else { panic!() };
    assert_eq!(queues.iter().map(|(_, waiting)| waiting).sum::<u64>(), 550);
    world.check();
}
