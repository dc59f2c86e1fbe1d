//! Many objects: listing them, and opening the store again.

use std::path::Path;
use std::time::Instant;

use alba_core::kv::Kv;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use alba_metadata::machine::Input;
use alba_metadata::model::Model;
use alba_metadata::nsm::Nsm;

use crate::{Bench, group, limits, objects, print};

/// Objects committed together while filling.
const BATCH: u64 = 1000;

fn page(kv: &dyn Kv, range: RangeQuery) -> (Vec<alba_core::ids::ObjectName>, bool) {
    let snapshot = kv.snapshot().unwrap();
    let query = NsmQuery::Objects { namespace: objects::NAMESPACE, range };
    match Nsm::query(snapshot.as_ref(), &query) {
        Ok(NsmAnswer::Objects(page)) => (page.items, page.has_more),
        other => panic!("{:?}", other.map(drop)),
    }
}

/// Bytes of the files below a directory.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { size(&entry.path()) } else { meta.len() }
        })
        .sum()
}

/// Fills a store, lists it, closes it and opens it.
pub(crate) fn measure(bench: &Bench) {
    let directory = bench.directory();
    let kv = group::open(directory.path()).unwrap();
    limits::apply(&kv, 1, [Input::Internal(objects::namespace())]);
    let began = Instant::now();
    for first in (0..bench.objects).step_by(usize::try_from(BATCH).unwrap()) {
        let inputs = (first..first + BATCH).map(|number| Input::Internal(objects::put(number)));
        limits::apply(&kv, first + 2, inputs);
    }
    kv.sync().unwrap();
    let objects = bench.objects;
    let rate = f64::from(u32::try_from(objects).unwrap()) / began.elapsed().as_secs_f64();
    print(&format!("metadata/fill/{objects}"), rate, "objects/s", None);

    let mut times = Vec::new();
    let mut range = RangeQuery { max: 200, ..RangeQuery::all() };
    let mut found = 0_u64;
    loop {
        let started = Instant::now();
        let (names, more) = page(&kv, range.clone());
        times.push(started.elapsed());
        found += u64::try_from(names.len()).unwrap();
        match names.last() {
            Some(last) if more => range = range.after(last.as_bytes()),
            _ => break,
        }
    }
    assert_eq!(found, objects);
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    print(&format!("metadata/list/{objects}/p50"), at(50), "ms per 200 names", Some(("1 ms", 1.0)));
    print(&format!("metadata/list/{objects}/p99"), at(99), "ms per 200 names", Some(("1 ms", 1.0)));

    drop(kv);
    let started = Instant::now();
    let kv = group::open(directory.path()).unwrap();
    assert!(!page(&kv, RangeQuery { max: 1, ..RangeQuery::all() }).0.is_empty());
    let took = started.elapsed().as_secs_f64();
    print(&format!("metadata/restart/{objects}"), took, "s", Some(("5 s", 5.0)));
    let bytes = size(directory.path());
    let mib = |bytes: u64| f64::from(u32::try_from(bytes >> 20).unwrap());
    print(&format!("metadata/size/{objects}"), mib(bytes), "MiB", None);
    print(&format!("metadata/memory/{objects}"), mib(crate::peak_memory()), "MiB at most", None);
}
