//! Ranges of listings: every combination of bounds, direction and size, against a list in the test.

use crate::harness::{Harness, Raw, Request, request};

/// A range on the wire (wire-protocol §1.7, "max then reverse").
#[derive(Debug, Clone, Copy)]
struct Range<'a> {
    first: &'a str,
    finc: bool,
    last: Option<(&'a str, bool)>,
    max: i32,
    reverse: bool,
}

impl Range<'_> {
    fn written(&self, request: Request) -> Request {
        let request = request.str(self.first).bool(self.finc);
        let request = match self.last {
            None => request.byte(0),
            Some((last, linc)) => request.byte(1).str(last).bool(linc),
        };
        request.i32(self.max).bool(self.reverse)
    }

    /// What must come out, by the description.
    fn expected(&self, all: &[String]) -> (Vec<String>, bool) {
        let above = |name: &str| name > self.first || self.finc && name == self.first;
        let below = |name: &str| self.last.is_none_or(|(last, linc)| name < last || linc && name == last);
        let mut inside: Vec<String> = all.iter().filter(|name| above(name) && below(name)).cloned().collect();
        if self.reverse {
            inside.reverse();
        }
        let max = usize::try_from(self.max).map_or(200, |max| max.min(200));
        let more = inside.len() > max;
        inside.truncate(max);
        (inside, more)
    }
}

async fn check(raw: &mut Raw, command: i32, all: &[String], range: Range<'_>) {
    let begin = match command {
        5 => request(5).str("demo"),
        other => request(other),
    };
    let mut reply = raw.ok(range.written(begin)).await;
    let names = match command {
        30 => reply.list(|r| (r.text(), r.text())).into_iter().map(|(name, _)| name).collect(),
        _ => reply.list(|r| r.text()),
    };
    let found = (names, reply.bool());
    reply.end();
    assert_eq!(found, range.expected(all), "command {command}, {range:?}");
}

/// Bounds before, on, between and behind the names, also in the wrong order.
const BOUNDS: [&str; 7] = ["", "a", "b", "bb", "d", "dd", "z"];

#[tokio::test]
async fn every_combination_of_bounds_is_listed_as_described() {
    let harness = Harness::new();
    let names: Vec<String> = ["a", "b", "bb", "c", "d"].map(str::to_owned).to_vec();
    let mut raw = harness.connect().await;
    raw.ok(request(4).str("demo")).await;
    for name in &names {
        raw.ok(request(3).str(name).byte(0)).await;
    }
    let mut namespaces = names.clone();
    raw.ok(request(3).str("demo").byte(0)).await;
    namespaces.push("demo".to_owned());
    namespaces.sort();
    for name in &names {
        harness.fake.put(name, "");
    }
    let lasts: Vec<Option<(&str, bool)>> = std::iter::once(None)
        .chain(BOUNDS.iter().flat_map(|bound| [Some((*bound, false)), Some((*bound, true))]))
        .collect();
    let mut combinations = 0;
    for first in BOUNDS {
        for finc in [false, true] {
            for &last in &lasts {
                for reverse in [false, true] {
                    for max in [-1, 0, 1, 2, 5, 201] {
                        let range = Range { first, finc, last, max, reverse };
                        check(&mut raw, 5, &names, range).await;
                        // The other two share the code behind it.
                        if max == 2 {
                            check(&mut raw, 1, &namespaces, range).await;
                            check(&mut raw, 30, &namespaces, range).await;
                        }
                        combinations += 1;
                    }
                }
            }
        }
    }
    assert_eq!(combinations, 7 * 2 * 15 * 2 * 6);
}

/// More than 200 are never sent at once, whatever is asked for; paging on from the last one finds all.
#[tokio::test]
async fn pages_have_at_most_200_names_and_join_to_the_whole() {
    let harness = Harness::new();
    let names: Vec<String> = (0..401).map(|number| format!("{number:04}")).collect();
    for name in &names {
        harness.fake.put(name, "");
    }
    let mut raw = harness.connect().await;
    for max in [-1, i32::MIN, 199, 200, 201, i32::MAX] {
        for reverse in [false, true] {
            check(&mut raw, 5, &names, Range { first: "", finc: true, last: None, max, reverse }).await;
        }
    }
    for reverse in [false, true] {
        let mut found: Vec<String> = Vec::new();
        loop {
            let edge = found.last().cloned().unwrap_or_default();
            let mut range = Range { first: "", finc: true, last: None, max: -1, reverse };
            if !found.is_empty() && reverse {
                range.last = Some((&edge, false));
            } else if !found.is_empty() {
                (range.first, range.finc) = (&edge, false);
            }
            let mut reply = raw.ok(range.written(request(5).str("demo"))).await;
            found.extend(reply.list(|r| r.text()));
            if !reply.bool() {
                break;
            }
        }
        if reverse {
            found.reverse();
        }
        assert_eq!(found, names);
    }
}
