//! Format version 2, byte for byte. `docs/formats/asd.md` shows the same bytes.

use super::*;

/// Sixteen bytes per line, as the documentation prints them; lines of zeros are left out.
pub(super) fn dump(bytes: &[u8], from: usize) -> Vec<String> {
    let lines = bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0));
    let hex = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    lines.map(|(nth, line)| format!("{:05x}  {}", from + nth * 16, hex(line))).collect()
}

#[test]
fn version_2_is_these_bytes() {
    let hardware = Hardware::new(1);
    hardware.run(async |node, engine, _| {
        let small = set("key", Bytes::from_static(b"value"));
        apply(node, &engine, batch(vec![small])).await.unwrap();
        let long = set("long", Bytes::from(vec![0xaa; 4_100]));
        apply(node, &engine, batch(vec![OsdUpdate::Delete(key("key")), long])).await.unwrap();
    });
    let bytes = hardware.disk.content("segment-0000000000000000").unwrap();
    let found = dump(&bytes[..24 * 1024], 0);
    // The second value's own bytes say nothing.
    let found: Vec<String> = found.into_iter().filter(|line| !line.ends_with(&" aa".repeat(16))).collect();
    let documented: Vec<&str> = include_str!("../../../../docs/formats/asd.md")
        .lines()
        .filter(|line| {
            line.len() > 7 && line[..5].bytes().all(|b| b.is_ascii_hexdigit()) && &line[5..7] == "  "
        })
        .map(|line| line.split("  |").next().unwrap_or(line).trim_end())
        .collect();
    assert_eq!(found, documented, "\n{}", found.join("\n"));
}

#[test]
fn the_checksum_is_crc_32c_over_seed_and_bytes() {
    let crc = |bytes: &[u8]| match ChecksumAlgorithm::Crc32c.of(bytes) {
        Checksum::Crc32c(crc) => crc,
        _ => unreachable!(),
    };
    let seed = format::Seed { store: STORE, segment: 2, generation: 3 };
    let mut seeded = STORE.0.to_vec();
    for number in [2_u64, 3, 4] {
        seeded.extend(number.to_le_bytes());
    }
    seeded.extend(5_u32.to_le_bytes());
    seeded.extend(b"block");
    assert_eq!(seed.of_batch(4).block(5, b"block"), crc(&seeded));
}
