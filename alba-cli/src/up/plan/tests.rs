use super::*;

fn shape(args: ShapeArgs, last: Option<&Shape>) -> Shape {
    Shape::new(&args, last).unwrap()
}

#[test]
fn the_default_cluster_is_that_of_the_manual() {
    let shape = shape(ShapeArgs::default(), None);
    let planned = shape.processes().unwrap();
    let find = |name: &str| planned.iter().find(|p| p.name == name).unwrap();
    assert_eq!(planned.len(), 1 + 1 + 12 + 2);
    assert_eq!(find("maintenance-0").metrics.port(), 9114);
    assert_eq!(find("rebalancer-0").metrics.port(), 9115);
    assert_eq!(find("metadata-0").listen.port(), 4000);
    assert_eq!(find("proxy-0").listen.port(), 10_000);
    assert_eq!((find("asd-0").listen.port(), find("asd-0").role), (8000, Role::Asd { node: 0 }));
    assert_eq!((find("asd-11").listen.port(), find("asd-11").role), (8011, Role::Asd { node: 3 }));
    assert_eq!(shape.groups(), ["nsm-0"]);
    assert!(planned.iter().all(|p| p.listen.ip().is_loopback()));
}

#[test]
fn a_cluster_grows_without_moving_an_osd() {
    let first = shape(ShapeArgs { nodes: Some(2), osds_per_node: Some(2), ..Default::default() }, None);
    assert_eq!(first.osd_nodes, [0, 0, 1, 1]);
    let wider = shape(ShapeArgs { osds_per_node: Some(3), ..Default::default() }, Some(&first));
    assert_eq!(wider.osd_nodes, [0, 0, 1, 1, 0, 1]);
    let more = shape(ShapeArgs { nodes: Some(3), ..Default::default() }, Some(&wider));
    assert_eq!(more.osd_nodes, [0, 0, 1, 1, 0, 1, 2, 2, 2]);
    assert_eq!(shape(ShapeArgs::default(), Some(&more)), more);
}

#[test]
fn a_cluster_does_not_shrink() {
    let first = shape(ShapeArgs { nodes: Some(3), ..Default::default() }, None);
    let error = Shape::new(&ShapeArgs { nodes: Some(2), ..Default::default() }, Some(&first)).unwrap_err();
    assert!(error.contains("--nodes 2") && error.contains('3') && error.contains("shrink"), "{error}");
    let fewer = ShapeArgs { osds_per_node: Some(1), ..Default::default() };
    assert!(Shape::new(&fewer, Some(&first)).unwrap_err().contains("--osds-per-node 1"));
}

#[test]
fn metadata_servers_are_odd_in_number_and_fixed() {
    let three = ShapeArgs { metadata_nodes: Some(3), ..Default::default() };
    let first = shape(three.clone(), None);
    let planned = first.processes().unwrap();
    let ports: Vec<u16> =
        planned.iter().filter(|p| p.role == Role::Metadata).map(|p| p.listen.port()).collect();
    assert_eq!(ports, [4000, 4001, 4002]);
    assert_eq!(shape(ShapeArgs::default(), Some(&first)), first);
    let error = Shape::new(&ShapeArgs { metadata_nodes: Some(2), ..Default::default() }, None).unwrap_err();
    assert!(error.contains("--metadata-nodes 2"), "{error}");
    let one = shape(ShapeArgs::default(), None);
    let error = Shape::new(&three, Some(&one)).unwrap_err();
    assert!(error.contains("--metadata-nodes 3") && error.contains("fixed"), "{error}");
    // From before there was a choice.
    let mut old = serde_json::to_value(&one).unwrap();
    old.as_object_mut().unwrap().remove("metadata_nodes").unwrap();
    assert_eq!(serde_json::from_value::<Shape>(old).unwrap(), one);
}

#[test]
fn the_fragment_cache_stays_as_it_was_chosen() {
    let first = shape(ShapeArgs::default(), None);
    assert_eq!(first.fragment_cache(), FragmentCache::None);
    let local = ShapeArgs { fragment_cache: Some(FragmentCache::Local), ..Default::default() };
    let second = shape(local, Some(&first));
    assert_eq!(shape(ShapeArgs::default(), Some(&second)).fragment_cache(), FragmentCache::Local);
    // From before there was a choice.
    let mut old = serde_json::to_value(&first).unwrap();
    old.as_object_mut().unwrap().remove("fragment_cache").unwrap();
    assert_eq!(serde_json::from_value::<Shape>(old).unwrap(), first);
}

#[test]
fn the_shape_survives_its_file() {
    let shape = shape(ShapeArgs { osd_capacity: Some(1 << 30), ..Default::default() }, None);
    let text = serde_json::to_string(&shape).unwrap();
    assert_eq!(serde_json::from_str::<Shape>(&text).unwrap(), shape);
}

#[test]
fn ports_that_collide_or_end_are_named_with_their_options() {
    let clash = shape(ShapeArgs { proxy_port: Some(8003), ..Default::default() }, None);
    let error = clash.processes().unwrap_err();
    assert!(
        error.contains("8003") && error.contains("--proxy-port") && error.contains("--asd-base-port"),
        "{error}"
    );
    let high = shape(ShapeArgs { asd_base_port: Some(65_530), ..Default::default() }, None);
    assert!(high.processes().unwrap_err().contains("--asd-base-port"));
}
