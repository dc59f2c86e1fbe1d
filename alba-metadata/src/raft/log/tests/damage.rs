//! Rot is named, a torn tail is cut, and nothing else.

use super::super::segments::file_name;
use super::*;

/// Writes four entries of one block each, one after the other. Gives the newest segment's file, and where the entries
/// begin.
fn written(disk: &SimDiskDevice, mark: bool) -> (String, u64) {
    let place = run(disk, small(), async |node, mut store, _| {
        for index in 0..4 {
            store.blocking_append([entry(1, index, 2_000)]).await.unwrap();
        }
        store.save_vote(&vote(2, 1)).await.unwrap();
        store.blocking_append([entry(2, 4, 2_000)]).await.unwrap();
        if mark {
            let clock = node.env().clock;
            clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
        }
        let state = store.open.shared.state();
        state.entries.get(0).unwrap().location.unwrap()
    });
    (file_name(place.segment), place.offset)
}

fn reopened(disk: &SimDiskDevice) -> Result<Recovered, LogError> {
    let simulation = Simulation::new(2);
    let node = simulation.node(1);
    simulation.run(LIMIT, async { open(&node, disk, small()).await.map(|(_, found)| found) }).unwrap()
}

#[test]
fn rot_before_the_last_write_is_named_and_never_cut() {
    // Entries 0 to 3, then the vote, a block each; then entry 4, the last write.
    for block in 0..5 {
        for within in [0, 5, 20, 30, 47, 60] {
            let disk = SimDiskDevice::new(1, 1 << 30);
            let (name, start) = written(&disk, false);
            assert!(disk.rot(&name, start + block * 4096 + within, 0x10));
            let offset = match reopened(&disk) {
                Err(LogError::Rot { segment, offset, .. }) if segment == name => offset,
                other => panic!("block {block} byte {within}: {other:?}"),
            };
            let expected = start + block * 4096;
            assert!(offset == expected || offset + 4096 > expected && offset <= expected, "{offset}");
        }
    }
}

#[test]
fn damage_to_the_last_write_is_a_torn_tail_until_a_mark_proves_it() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    let (name, start) = written(&disk, false);
    assert!(disk.rot(&name, start + 5 * 4096 + 100, 1));
    let found = reopened(&disk).unwrap();
    assert_eq!((found.entries, found.vote), (4, Some(vote(2, 1))));
    assert_eq!(found.cut.map(|cut| cut.segment), Some(name));

    let disk = SimDiskDevice::new(1, 1 << 30);
    let (name, start) = written(&disk, true);
    assert!(disk.rot(&name, start + 5 * 4096 + 100, 1));
    assert!(matches!(reopened(&disk), Err(LogError::Rot { segment, .. }) if segment == name));
}

#[test]
fn damaged_headers_are_rot() {
    for at in [0, 8, 20, 40, 511, 4096, 4096 + 30, 4096 + 130] {
        let disk = SimDiskDevice::new(1, 1 << 30);
        let (name, _) = written(&disk, true);
        assert!(disk.rot(&name, at, 4));
        assert!(
            matches!(reopened(&disk), Err(LogError::Rot { segment, .. }) if segment == name),
            "byte {at}"
        );
    }
}

/// A log of several segments.
fn long(disk: &SimDiskDevice) -> Vec<String> {
    run(disk, small(), async |_, mut store, _| {
        for index in 0..60 {
            store.blocking_append([entry(1, index, 3_000)]).await.unwrap();
        }
        let state = store.open.shared.state();
        state.files.keys().map(|number| file_name(*number)).collect()
    })
}

#[test]
fn a_lost_segment_is_missed() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    let files = long(&disk);
    assert!(files.len() > 4, "{files:?}");
    for name in &files[..files.len() - 1] {
        let disk = SimDiskDevice::new(1, 1 << 30);
        assert_eq!(long(&disk), files);
        assert!(disk.lose(name));
        assert!(matches!(reopened(&disk), Err(LogError::Missing { .. })), "{name}");
    }
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    let files = long(&disk);
    let identity =
        format::Identity { store: format::StoreId([9; 16]), number: 999, generation: 1, len: 12 * 4096 };
    let simulation = Simulation::new(2);
    simulation
        .run(LIMIT, async {
            let file = alba_core::env::Disk::create(&disk.open(), &file_name(999), 12 * 4096).await.unwrap();
            file.write_at(0, vec![identity.encode()]).await.unwrap();
        })
        .unwrap();
    assert_eq!(reopened(&disk), Err(LogError::Foreign { segment: file_name(999) }), "{files:?}");
}

#[test]
fn a_damaged_entry_is_not_handed_out() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    run(&disk, small(), async |_, mut store, _| {
        for index in 0..20 {
            store.blocking_append([entry(1, index, 3_000)]).await.unwrap();
        }
        let place = store.open.shared.state().entries.get(2).unwrap().location.unwrap();
        assert!(disk.rot(&file_name(place.segment), place.offset + 1_000, 1));
        assert!(store.try_get_log_entries(2..3).await.is_err());
        assert_eq!(store.try_get_log_entries(0..2).await.unwrap().len(), 2);
        assert_eq!(store.try_get_log_entries(3..).await.unwrap().len(), 17);
    });
}
