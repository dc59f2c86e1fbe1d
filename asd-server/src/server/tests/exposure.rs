//! What a plain port serves to strangers.

use alba_core::wire::asd::Request;

use super::*;

#[test]
fn a_port_for_direct_reads_serves_those_and_keeps_the_connection() {
    run(ServerLimits::default(), async |asd| {
        asd.osd().apply(put("k", 10), Priority::High, asd.deadline()).await.unwrap();
        let strangers = asd.direct_reads().await;
        let version = strangers.version(asd.deadline()).await.unwrap();
        assert!(version.major >= 0);
        let slice = vec![ValueSlice { offset: 2, len: 3 }];
        let key = OsdKey::from_static(b"k");
        let found = strangers.partial_get(key.clone(), slice, Priority::High, asd.deadline()).await.unwrap();
        assert_eq!(found.unwrap(), [vec![1; 3]]);

        let (mut stream, mut reader) = asd.talk_at(DIRECT_READS).await;
        let keys = vec![key];
        for request in [
            Request::MultiGet { keys: keys.clone(), priority: Priority::High },
            Request::MultiGet2 { keys: keys.clone(), priority: Priority::High },
            Request::MultiExists { keys, priority: Priority::High },
            Request::Apply { batch: put("other", 1), priority: Priority::High },
            Request::Range { query: alba_core::range::RangeQuery::all(), priority: Priority::High },
            Request::Statistics { clear: true },
            Request::SetFull(true),
            Request::Slowness(Some(Slowness { fixed: 1.0, variable: 0.0 })),
            Request::GetDiskUsage,
            Request::SetPeers(Vec::new()),
            Request::Health,
        ] {
            let frame = request.encode().unwrap();
            write_message(&mut stream, &frame).await.unwrap();
            let answer = reader.frame(&mut stream, 1 << 20).await.unwrap();
            assert_eq!(answer[..4], [105, 0, 0, 0], "{request:?}");
            assert!(String::from_utf8_lossy(&answer).contains("insecure_listen"), "{answer:?}");
        }
        assert_eq!(status(&mut stream, &mut reader, &12_u32.to_le_bytes()).await, 0, "Capabilities");
        assert_eq!(status(&mut stream, &mut reader, &99_u32.to_le_bytes()).await, 4, "unknown is unknown");
        assert!(!asd.engine.is_full(), "nothing happened");
    });
}
