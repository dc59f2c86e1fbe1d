use proptest::prelude::*;

use super::*;

fn shape(k: u8, m: u8) -> CodeShape {
    CodeShape::new(k, m).unwrap()
}

fn layout(size: u64, fragment_size: u32, k: u8) -> ObjectLayout {
    ObjectLayout::new(size, fragment_size, shape(k, 1)).unwrap()
}

#[test]
fn the_table_of_the_specification() {
    for (fragment_size, size, k, chunk) in [
        (160, 1600, 2, 320),
        (160, 165, 2, 192),
        (160, 305, 2, 320),
        (160, 32, 2, 32),
        (160, 288, 2, 288),
        (160, 1, 2, 32),
        (160, 289, 2, 320),
        (160, 0, 2, 0),
    ] {
        assert_eq!(layout(size, fragment_size, k).chunk_size(), chunk, "S {fragment_size} L {size} k {k}");
    }
}

#[test]
fn fragment_sizes_are_rounded_down_and_the_last_chunk_is_padded() {
    let layout = layout(400, 175, 2);
    let chunks: Vec<_> = layout.chunks().map(|c| (c.offset, c.len, c.size, c.padding())).collect();
    assert_eq!(chunks, [(0, 320, 320, 0), (320, 80, 96, 16)]);
    assert_eq!(layout.chunk(ChunkIndex(2)), None);
}

#[test]
fn replicas_are_neither_rounded_nor_padded() {
    let sizes = |size| -> Vec<_> { layout(size, 100, 1).chunks().map(|c| (c.len, c.size)).collect() };
    assert_eq!(sizes(250), [(100, 100), (100, 100), (50, 50)]);
    assert_eq!(sizes(7), [(7, 7)]);
    assert_eq!(sizes(0), [(0, 0)]);
}

#[test]
fn an_empty_object_is_one_empty_chunk() {
    let chunks: Vec<_> = layout(0, 1 << 20, 5).chunks().collect();
    assert_eq!(chunks, [ChunkExtent { index: ChunkIndex(0), offset: 0, len: 0, size: 0 }]);
}

#[test]
fn what_the_formats_cannot_carry_is_refused() {
    let new = |size, fragment_size, k| ObjectLayout::new(size, fragment_size, shape(k, 0));
    assert_eq!(new(1, 15, 2), Err(LayoutError::FragmentTooSmall(15)));
    assert_eq!(new(u64::MAX, 16, 1), Err(LayoutError::TooManyChunks { size: u64::MAX, chunk_size: 16 }));
    let huge = 1 << 30;
    assert_eq!(new(u64::MAX, huge, 2), Err(LayoutError::ChunkTooLarge { fragment_size: huge, k: 2 }));
    // Only chunks that would be that large are refused.
    assert_eq!(new(1 << 20, huge, 2).unwrap().chunk_size(), 1 << 20);
    let largest = new(u64::MAX, u32::MAX, 200).unwrap_err();
    assert_eq!(largest, LayoutError::ChunkTooLarge { fragment_size: u32::MAX, k: 200 });
    // The largest objects that have chunk positions.
    let size = (1 << 62) - (1 << 30) - 1;
    let layout = new(size, 1 << 30, 1).unwrap();
    let last = layout.chunk(ChunkIndex(layout.chunk_count() - 1)).unwrap();
    assert_eq!(last.offset + u64::from(last.len), size);
    assert_eq!(ChunkMap::new([33], shape(2, 0)), Err(LayoutError::NotDivisible { size: 33, k: 2 }));
}

#[test]
fn a_slice_across_fragments_and_chunks() {
    let map = ChunkMap::new([32, 32], shape(2, 1)).unwrap();
    let pieces: Vec<_> = map
        .pieces(10, 30, 5)
        .unwrap()
        .map(|p| (p.chunk.0, p.fragment.0, p.offset, p.len, p.target))
        .collect();
    assert_eq!(pieces, [(0, 0, 10, 6, 5), (0, 1, 0, 16, 11), (1, 0, 0, 8, 27)]);
    assert_eq!(map.pieces(64, 0, 0).unwrap().count(), 0);
    assert_eq!(map.pieces(u64::MAX, 0, 0).unwrap().count(), 0);
    assert!(map.pieces(60, 5, 0).is_err());
    assert!(map.pieces(u64::MAX, 1, 0).is_err());
    assert_eq!(map.chunk_offset(ChunkIndex(1)), Some(32));
    assert_eq!(map.chunk_offset(ChunkIndex(2)), None);
}

fn check(slices: &[(i64, i32)], size: u64) -> Result<Vec<(u64, u32)>, SliceError> {
    let requests: Vec<_> =
        slices.iter().map(|(offset, len)| SliceRequest { offset: *offset, len: *len }).collect();
    check_slices(&requests, size).map(|checked| checked.iter().map(|s| (s.offset, s.len)).collect())
}

#[test]
fn slice_checks_have_the_order_and_corners_of_the_original() {
    // The answer keeps the order asked.
    assert_eq!(check(&[(8, 2), (0, 3)], 10), Ok(vec![(8, 2), (0, 3)]));
    assert_eq!(check(&[(0, -1)], 10), Err(SliceError::BadLength { offset: 0, len: -1 }));
    // In offset order, whichever comes first; length before overlap.
    assert_eq!(check(&[(5, -1), (0, 3), (2, 3)], 10), Err(SliceError::Overlap { offset: 2, previous: 0 }));
    assert_eq!(check(&[(2, -1), (0, 3)], 10), Err(SliceError::BadLength { offset: 2, len: -1 }));
    assert_eq!(check(&[(3, 3), (3, 3)], 10), Err(SliceError::Overlap { offset: 3, previous: 3 }));
    // Touching is not overlapping; an empty slice strictly inside another one is.
    assert_eq!(check(&[(0, 3), (3, 3)], 10), Ok(vec![(0, 3), (3, 3)]));
    assert_eq!(check(&[(0, 3), (1, 0)], 10), Err(SliceError::Overlap { offset: 1, previous: 0 }));
    assert_eq!(check(&[(0, 3), (0, 0), (3, 0)], 10), Ok(vec![(0, 3)]));
    // Nothing asked for is fine anywhere.
    assert_eq!(check(&[], 0), Ok(vec![]));
    assert_eq!(check(&[(100, 0), (-7, 0)], 10), Ok(vec![]));
    // Else the last slice counts, also an empty one.
    let outside = |offset, len| Err(SliceError::OutsideObject { offset, len, size: 10 });
    assert_eq!(check(&[(0, 1), (100, 0)], 10), outside(100, 0));
    assert_eq!(check(&[(9, 2)], 10), outside(9, 2));
    assert_eq!(check(&[(9, 1), (10, 0)], 10), Ok(vec![(9, 1)]));
    assert_eq!(check(&[(i64::MAX, i32::MAX)], 10), outside(i64::MAX, i32::MAX));
    // The predecessor of the first is (-1, 0).
    assert_eq!(check(&[(-5, 10)], 10), Err(SliceError::Overlap { offset: -5, previous: -1 }));
    assert_eq!(check(&[(-5, 3)], 10), outside(-5, 3));
    assert_eq!(check(&[(-1, 5)], 10), outside(-1, 5));
    // Hidden from the size check by an empty slice at the same offset.
    assert_eq!(check(&[(5, 10), (5, 0)], 10), outside(5, 10));
}

#[test]
fn slices_together_stay_below_4_gib() {
    let size = 1_u64 << 40;
    let gib = 1_i64 << 30;
    let slices: Vec<_> = (0..4).map(|i| (i * gib, 1 << 30)).collect();
    assert_eq!(check(&slices, size), Err(SliceError::TooMuch { total: 1 << 32 }));
    let mut fewer = slices.clone();
    fewer[3].1 -= 1;
    assert_eq!(check(&fewer, size).unwrap().len(), 4);
    // The size is looked at first.
    assert!(matches!(check(&slices, 5), Err(SliceError::OutsideObject { .. })));
}

/// Where every byte of an object is, cut by hand: (chunk, fragment, offset in the fragment).
fn byte_map(layout: &ObjectLayout) -> Vec<(u32, u32, u32)> {
    let k = layout.shape().as_u8().0;
    let mut map = Vec::new();
    for chunk in layout.chunks() {
        let per_fragment = chunk.size / u32::from(k);
        for byte in 0..chunk.len {
            map.push((chunk.index.0, byte / per_fragment, byte % per_fragment));
        }
    }
    map
}

/// The original's rule again, pair by pair on sets of positions rather than on ends.
fn positions(slice: &SliceRequest) -> std::ops::Range<i128> {
    i128::from(slice.offset)..i128::from(slice.offset) + i128::from(slice.len)
}

proptest! {
    #[test]
    fn chunks_cover_the_object_exactly(size in 0_u64..5_000, fragment_size in 16_u32..200, k in 1_u8..8) {
        let layout = layout(size, fragment_size, k);
        let chunks: Vec<_> = layout.chunks().collect();
        prop_assert_eq!(chunks.len(), usize::try_from(layout.chunk_count()).unwrap());
        let mut end = 0;
        for (position, chunk) in chunks.iter().enumerate() {
            prop_assert_eq!(chunk.offset, end);
            end += u64::from(chunk.len);
            let last = position + 1 == chunks.len();
            prop_assert!(last || chunk.size == layout.chunk_size());
            prop_assert!(last || chunk.padding() == 0);
            prop_assert!(chunk.len > 0 || size == 0);
            prop_assert!(chunk.size / u32::from(k) <= fragment_size);
            if k > 1 {
                prop_assert_eq!(chunk.size % (16 * u32::from(k)), 0);
                prop_assert!(chunk.padding() < 16 * u32::from(k));
            } else {
                prop_assert_eq!(chunk.padding(), 0);
            }
        }
        prop_assert_eq!(end, size);
    }

    #[test]
    fn pieces_are_where_the_bytes_are(
        size in 0_u64..3_000, fragment_size in 16_u32..100, k in 1_u8..6, from in 0_u64..3_000, len in 0_u64..3_000
    ) {
        let layout = layout(size, fragment_size, k);
        let map = ChunkMap::new(layout.chunks().map(|c| c.size), layout.shape()).unwrap();
        let from = from.min(size);
        let len = len.min(size - from);
        let bytes = byte_map(&layout);
        let mut got = Vec::new();
        let mut target = 1000;
        for piece in map.pieces(from, len, target).unwrap() {
            prop_assert!(piece.len > 0);
            prop_assert_eq!(piece.target, target);
            target += u64::from(piece.len);
            for byte in piece.offset..piece.offset + piece.len {
                got.push((piece.chunk.0, piece.fragment.0, byte));
            }
        }
        let range = usize::try_from(from).unwrap()..usize::try_from(from + len).unwrap();
        prop_assert_eq!(got.as_slice(), &bytes[range]);
    }

    #[test]
    fn checked_slices_are_readable_and_refused_ones_are_not(
        slices in proptest::collection::vec((-3_i64..40, -1_i32..8), 0..6), size in 0_u64..40
    ) {
        let requests: Vec<_> = slices.iter().map(|(offset, len)| SliceRequest { offset: *offset, len: *len }).collect();
        let clean = requests.iter().all(|r| r.len >= 0)
            && requests.iter().enumerate().all(|(i, a)| {
                requests[i + 1..].iter().all(|b| positions(a).all(|p| !positions(b).contains(&p)))
            });
        let inside = requests.iter().all(|r| r.len <= 0 || (r.offset >= 0 && positions(r).end <= i128::from(size)));
        match check_slices(&requests, size) {
            Ok(checked) => {
                prop_assert!(requests.iter().all(|r| r.len >= 0));
                prop_assert!(inside || checked.is_empty());
                let total: u32 = checked.iter().map(|s| s.len).sum();
                prop_assert_eq!(total, checked.total());
                let asked: Vec<_> = slices.iter().filter(|(_, len)| *len > 0).copied().collect();
                let got: Vec<_> = checked
                    .iter()
                    .map(|s| (i64::try_from(s.offset).unwrap(), i32::try_from(s.len).unwrap()))
                    .collect();
                prop_assert_eq!(got, asked);
                let map = ChunkMap::new([u32::try_from(size).unwrap()], shape(1, 0)).unwrap();
                prop_assert_eq!(map.plan(&checked).unwrap().len(), checked.iter().count());
            }
            Err(SliceError::BadLength { len, .. }) => prop_assert!(len < 0),
            Err(SliceError::Overlap { .. }) => prop_assert!(!clean || requests.iter().any(|r| r.len == 0 || r.offset < 0)),
            Err(SliceError::OutsideObject { .. }) => {
                prop_assert!(!inside || requests.iter().any(|r| r.len == 0));
            }
            Err(SliceError::TooMuch { .. }) => prop_assert!(false, "small slices"),
        }
    }
}
