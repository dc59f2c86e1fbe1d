use proptest::prelude::*;

use super::*;

fn written(write: impl FnOnce(&mut Writer)) -> Bytes {
    let mut w = Writer::new();
    write(&mut w);
    w.finish().unwrap()
}

#[test]
fn lists_are_written_from_the_end() {
    let bytes = written(|w| w.list([1, 2, 3], Writer::int32));
    assert_eq!(&bytes[..], [3, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(Reader::new(bytes).list(4, Reader::int32).unwrap(), [1, 2, 3]);
}

#[test]
fn a_false_count_is_refused_before_anything_is_allocated() {
    for count in [4_u32, 1 << 20, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut message = count.to_le_bytes().to_vec();
        message.extend([0; 3]);
        let error = Reader::new(message).list(1, Reader::int8).unwrap_err();
        assert_eq!(error, WireError::Count { count, left: 3 });
    }
}

#[test]
fn a_list_that_is_too_long_is_refused_though_it_fits() {
    let list = |count: u32| {
        let mut message = count.to_le_bytes().to_vec();
        message.resize(4 + usize::try_from(count).unwrap(), 0);
        Reader::new(message)
    };
    let limit = u32::try_from(LIST_MAX).unwrap();
    assert_eq!(list(limit).list(1, Reader::int8).unwrap().len(), LIST_MAX);
    let error = WireError::TooMany { count: limit + 1, max: LIST_MAX };
    assert_eq!(list(limit + 1).list(1, Reader::int8), Err(error));
    assert!(list(3).list_up_to(2, 1, Reader::int8).is_err());
}

#[test]
fn a_length_beyond_the_end_is_refused() {
    for len in [4_u32, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut message = len.to_le_bytes().to_vec();
        message.extend(*b"abc");
        let needed = usize::try_from(len).unwrap();
        assert_eq!(Reader::new(message).bytes(), Err(WireError::Truncated { needed, left: 3 }));
    }
}

#[test]
fn negative_x_int64_is_refused() {
    assert!(Reader::new(vec![0xff; 4]).x_int64().is_err());
    assert!(Reader::new([vec![0xff, 0xff, 0xff, 0x7f], vec![0xff; 8]].concat()).x_int64().is_err());
    let mut w = Writer::new();
    w.x_int64(1 << 63);
    assert!(w.finish().is_err());
}

#[test]
fn a_varint_has_at_most_64_bits() {
    assert_eq!(Reader::new(written(|w| w.varint(u64::MAX))).varint().unwrap(), u64::MAX);
    assert!(Reader::new(vec![0xff; 20]).varint().is_err());
    assert!(Reader::new([vec![0xff; 9], vec![2]].concat()).varint().is_err());
}

#[test]
fn a_bool_is_00_or_01() {
    assert_eq!(Reader::new(vec![2]).bool(), Err(WireError::Tag { what: "bool", tag: 2 }));
}

#[test]
fn large_values_are_shared_and_counted_in_the_frame() {
    let value = Bytes::from(vec![7; SHARE_FROM]);
    let message = Writer::frame(|w| {
        w.int8(1);
        w.value(&value);
        w.value(&value);
        w.int8(2);
    })
    .unwrap();
    assert_eq!(message.parts().iter().filter(|part| part.as_ptr() == value.as_ptr()).count(), 2);
    let whole = message.to_bytes();
    assert_eq!(whole.len(), message.len());
    let mut r = Reader::new(whole);
    assert_eq!(usize::try_from(r.uint32().unwrap()).unwrap(), r.left());
    assert_eq!((r.int8().unwrap(), r.bytes().unwrap()), (1, value.clone()));
    assert_eq!((r.bytes().unwrap(), r.int8().unwrap(), r.left()), (value, 2, 0));
}

proptest! {
    #[test]
    fn numbers_read_back(a: i32, b: i64, c: f64, d in 0..=i64::MAX.unsigned_abs(), e: u64) {
        let bytes = written(|w| {
            w.int32(a);
            w.int64(b);
            w.float(c);
            w.x_int64(d);
            w.x_int64_be(d);
            w.varint(e);
        });
        let mut r = Reader::new(bytes);
        prop_assert_eq!(r.int32().unwrap(), a);
        prop_assert_eq!(r.int64().unwrap(), b);
        prop_assert_eq!(r.float().unwrap().to_bits(), c.to_bits());
        prop_assert_eq!(r.x_int64().unwrap(), d);
        prop_assert_eq!(r.x_int64_be().unwrap(), d);
        prop_assert_eq!(r.varint().unwrap(), e);
        prop_assert_eq!(r.left(), 0);
    }

    #[test]
    fn big_endian_order_is_numeric_order(a in 0..=i64::MAX.unsigned_abs(), b in 0..=i64::MAX.unsigned_abs()) {
        let key = |value| written(|w| w.x_int64_be(value));
        prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
    }
}
