//! ReadObjects: objects whole, in memory.

use alba_client::{ClientError, Consistency};
use alba_core::ids::ObjectName;

use crate::harness::{Harness, Raw, Reply, Request, request};

fn read(namespace: &str, names: &[&str], consistent: bool) -> Request {
    request(25).str(namespace).list(names, |r, name| r.str(name)).bool(consistent).bool(true)
}

/// An object: the form and the name of its manifest, and its bytes.
type Object = (u8, String, Vec<u8>);

/// Namespace id, and the objects.
fn parsed(mut reply: Reply) -> (u32, Vec<Option<Object>>) {
    let id = reply.u32();
    let objects = reply.list(|r| {
        r.bool().then(|| {
            let ser = r.byte();
            let mut body = Reply(snap::raw::Decoder::new().decompress_vec(&r.str()).unwrap().into());
            // No namespace id between the manifest and the data.
            (ser, body.text(), r.str())
        })
    });
    reply.end();
    (id, objects)
}

async fn data(raw: &mut Raw, names: &[&str]) -> Vec<Option<String>> {
    let (_, objects) = parsed(raw.ok(read("demo", names, true)).await);
    objects.into_iter().map(|object| Some(String::from_utf8(object?.2).unwrap())).collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn objects_come_in_the_order_asked_and_missing_ones_are_none() {
    let harness = Harness::new();
    for (name, data) in [("a", "aaa"), ("b", ""), ("c", "c")] {
        harness.fake.put(name, data);
    }
    let mut raw = harness.connect().await;
    let (id, objects) = parsed(raw.ok(read("demo", &["c", "no", "b", "a", "c"], true)).await);
    let object = |name: &str, data: &str| Some((1, name.to_owned(), data.as_bytes().to_vec()));
    assert_eq!(id, 7);
    let expected = vec![object("c", "c"), None, object("b", ""), object("a", "aaa"), object("c", "c")];
    assert_eq!(objects, expected);
    assert_eq!(parsed(raw.ok(read("demo", &[], true)).await), (7, Vec::new()));
    assert_eq!(raw.err(read("nowhere", &["a"], true)).await.0, 5);
    assert_eq!(raw.err(read("nowhere", &[], true)).await.0, 5);
    // The form of the session.
    raw.ok(request(32).i32(1).str("manifest_ser").byte(1).str([2])).await;
    assert_eq!(parsed(raw.ok(read("demo", &["a"], false)).await).1[0].as_ref().unwrap().0, 2);
    assert_eq!(*harness.fake.last_consistency.lock().unwrap(), Some(Consistency::Cached));
}

#[tokio::test]
async fn an_object_that_is_replaced_meanwhile_is_read_again() {
    let harness = Harness::new();
    harness.fake.put("a", "short");
    let mut raw = harness.connect().await;
    let replace = |with: &[&'static str]| {
        let with = with.iter().rev().map(|data| ("a".to_owned(), (*data).into())).collect();
        *harness.fake.replace.lock().unwrap() = with;
    };
    // Longer, shorter, of the same size: in all cases bytes and manifest belong together.
    for other in ["much longer", "s", "SHORT"] {
        harness.fake.put("a", "short");
        replace(&[other]);
        assert_eq!(data(&mut raw, &["a"]).await, [some(other)]);
    }
    // Again and again.
    replace(&["1", "22", "333", "4444", "55555", "666666", "7777777", "88888888"]);
    let (code, text) = raw.err(read("demo", &["a"], true)).await;
    assert!(code == 1 && text.contains("replaced"), "{text}");
    replace(&[]);
    // Deleted between the look and the read.
    *harness.fake.trouble_in_slices.lock().unwrap() =
        Some(ClientError::ObjectUnknown(ObjectName::new("a").unwrap()));
    assert_eq!(data(&mut raw, &["a", "no"]).await, [some("88888888"), None]);
    // Other troubles are told.
    *harness.fake.trouble_in_slices.lock().unwrap() = Some(ClientError::Busy("full".to_owned()));
    assert_eq!(raw.err(read("demo", &["a"], true)).await.0, 1);
    raw.alive().await;
}

#[tokio::test]
async fn what_does_not_fit_in_one_answer_is_refused() {
    let harness = Harness::with(|config| config.max_frame_bytes = 1 << 20);
    harness.fake.put("a", vec![1; 600_000]);
    let mut raw = harness.connect().await;
    raw.ok(read("demo", &["a"], true)).await;
    let (code, text) = raw.err(read("demo", &["a", "a"], true)).await;
    assert!(code == 1 && text.contains("1048576"), "{text}");
    let many = vec!["no"; 4097];
    assert_eq!(raw.err(read("demo", &many, true)).await.0, 1);
    raw.ok(read("demo", &many[1..], true)).await;
}
