use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::*;
use crate::env::{Deadline, Env, Stream, real};
use crate::ids::GroupId;
use crate::wire::rpc::watch::{Seen, WatchReply, WatchRequest};
use crate::wire::rpc::{Consistency, FORMAT, MAX_REPLY, MAX_REQUEST, Refusal, Reply, Request, SessionId};

/// Answers `OpenSession` with the first byte of its nonce; a nonce of 255 waits until let go.
struct Echo {
    gate: Arc<Semaphore>,
}

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, request: Request, _: Option<Duration>) -> Answer {
        let reply = match request {
            Request::OpenSession { nonce: [first, ..], .. } => {
                if first == 255 {
                    self.gate.acquire().await.unwrap().forget();
                }
                if first == 254 {
                    return Reply::Session(SessionId(crate::request::trace())).into();
                }
                Reply::Session(SessionId(u64::from(first)))
            }
            Request::Watch(_) => {
                self.gate.acquire().await.unwrap().forget();
                Reply::Watch(WatchReply::Quiet)
            }
            _ => Reply::Refused(Refusal::UnknownGroup),
        };
        Answer { reply, index: 3 }
    }
}

fn ask(first: u8) -> Request {
    let mut nonce = [0; 16];
    nonce[0] = first;
    Request::OpenSession { group: GroupId::new("g").unwrap(), nonce }
}

fn answer(first: u8) -> Answer {
    Answer { reply: Reply::Session(SessionId(u64::from(first))), index: 3 }
}

struct Fixture {
    env: Env,
    at: SocketAddr,
    gate: Arc<Semaphore>,
    _server: crate::env::spawn::AbortOnDrop,
}

async fn fixture(limits: ServerLimits) -> Fixture {
    let env = real::env();
    let gate = Arc::new(Semaphore::new(0));
    let listener = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let handler = Arc::new(Echo { gate: gate.clone() });
    let serving = serve(env.clone(), listener, handler, limits);
    let server = env.spawn.spawn(
        "server",
        Box::pin(async move {
            serving.await;
        }),
    );
    Fixture { env, at, gate, _server: server.abort_on_drop() }
}

impl Fixture {
    fn soon(&self) -> Deadline {
        self.env.deadline_in(Duration::from_secs(20))
    }

    async fn connection(&self) -> RpcConnection {
        RpcConnection::open(&self.env, self.at, self.soon()).await.unwrap()
    }

    async fn raw(&self) -> Stream {
        self.env.net.connect(self.at, self.soon()).await.unwrap()
    }

    /// What the server says before it closes a connection to which `bytes` were sent.
    async fn last_words(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.raw().await;
        stream.write_all(bytes).await.unwrap();
        let mut reader = FrameReader::new(&mut stream, MAX_REPLY);
        let frame = reader.next().await.unwrap().expect("a last word");
        assert_eq!(frame.correlation, ABOUT_CONNECTION);
        let words = frame.decode().unwrap();
        let mut rest = Vec::new();
        // Closed, or reset because bytes of ours were never read.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        words
    }
}

#[test]
fn frames_have_golden_bytes() {
    let frame = encode_frame(0x0102, 0x0304, &ask(7), MAX_REQUEST).unwrap();
    // length | format | correlation | variant 1 | group "g" | 16 bytes of nonce
    let mut golden = vec![36, 0, 0, 0, FORMAT, 2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, 1, 1, b'g', 7];
    golden.extend([0; 15]);
    assert_eq!(frame, golden);
}

#[tokio::test]
async fn a_traced_frame_has_the_id_behind_the_note() {
    let frame = encode_traced(0x0102, 0x0304, 0xabcd, &ask(7), MAX_REQUEST).unwrap();
    let mut golden =
        vec![44, 0, 0, 0, crate::wire::rpc::TRACED, 2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0];
    golden.extend([0xcd, 0xab, 0, 0, 0, 0, 0, 0, 1, 1, b'g', 7]);
    golden.extend([0; 15]);
    assert_eq!(frame, golden);
    let read = FrameReader::new(&frame[..], MAX_REQUEST).next().await.unwrap().unwrap();
    assert_eq!((read.correlation, read.note, read.trace, read.len()), (0x0102, 0x0304, 0xabcd, 36));
    assert_eq!(read.decode::<Request>().unwrap(), ask(7));
    // The id costs a message none of the bytes that it may have.
    assert!(encode_traced(1, 0, 1, &ask(7), 36).is_ok());
    assert!(encode_traced(1, 0, 1, &ask(7), 35).is_err());
    let half = [20, 0, 0, 0, crate::wire::rpc::TRACED].into_iter().chain([0; 19]).collect::<Vec<u8>>();
    assert!(FrameReader::new(&half[..], MAX_REQUEST).next().await.is_err());
}

#[tokio::test]
async fn the_id_of_a_clients_request_comes_with_it_to_the_server() {
    let fixture = fixture(ServerLimits::default()).await;
    let connection = fixture.connection().await;
    let asked = async || match connection.call(&ask(254), fixture.soon()).await.unwrap().reply {
        Reply::Session(SessionId(id)) => id,
        other => panic!("{other:?}"),
    };
    assert_eq!(asked().await, 0);
    let request = crate::request::Request::new(crate::request::TraceId::new(0x1234), Some(1));
    assert_eq!(request.scope(asked()).await, 0x1234);
    assert_eq!(asked().await, 0);
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let fixture = fixture(ServerLimits::default()).await;
    let connection = Arc::new(fixture.connection().await);
    let held = ask(255);
    let slow = connection.call(&held, fixture.soon());
    tokio::pin!(slow);
    // The slow one is sent first, the others overtake it.
    tokio::select! {
        biased;
        _ = &mut slow => panic!("answered before it was let go"),
        () = async {
            for n in 0..200 {
                assert_eq!(connection.call(&ask(n), fixture.soon()).await, Ok(answer(n)));
            }
        } => {}
    }
    fixture.gate.add_permits(1);
    assert_eq!(slow.await, Ok(answer(255)));
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_others_go_on() {
    let fixture = fixture(ServerLimits::default()).await;
    let connection = fixture.connection().await;
    let short = fixture.env.deadline_in(Duration::from_millis(100));
    let held = ask(255);
    let (late, early) = tokio::join!(connection.call(&held, short), async {
        // Heard of the peer after the slow call began: it is slow, not silent.
        connection.call(&ask(1), fixture.soon()).await
    });
    assert_eq!((late, early), (Err(RpcError::Timeout), Ok(answer(1))));
    assert!(!connection.is_broken());
    fixture.gate.add_permits(1);
    assert_eq!(connection.call(&ask(2), fixture.soon()).await, Ok(answer(2)));

    // Silent for the whole of a call: given up.
    let short = fixture.env.deadline_in(Duration::from_millis(50));
    assert_eq!(connection.call(&ask(255), short).await, Err(RpcError::Timeout));
    assert!(connection.is_broken());
}

#[tokio::test]
async fn a_cancelled_call_leaves_the_connection_whole() {
    let fixture = fixture(ServerLimits::default()).await;
    let connection = fixture.connection().await;
    for _ in 0..20 {
        let held = ask(255);
        let call = connection.call(&held, fixture.soon());
        tokio::select! {
            biased;
            _ = call => panic!("held"),
            () = tokio::task::yield_now() => {}
        }
    }
    fixture.gate.add_permits(20);
    assert_eq!(connection.call(&ask(9), fixture.soon()).await, Ok(answer(9)));
}

#[tokio::test]
async fn bad_frames_get_a_clear_error_and_close_only_their_connection() {
    let fixture = fixture(ServerLimits::default()).await;
    let good = fixture.connection().await;
    let refused = |words: Reply| match words {
        Reply::Refused(Refusal::BadRequest(why)) => why,
        other => panic!("{other:?}"),
    };
    let mut two_gib = (2_u32 << 30).to_le_bytes().to_vec();
    two_gib.extend([0; 64]);
    assert!(refused(fixture.last_words(&two_gib).await).contains("2147483648"));
    assert!(refused(fixture.last_words(&[3, 0, 0, 0, 1, 1, 1]).await).contains("too short"));
    assert!(refused(fixture.last_words(b"\x18\0\0\0GET / HTTP/1.1\r\n").await).contains("format 71"));
    assert_eq!(good.call(&ask(3), fixture.soon()).await, Ok(answer(3)));
}

#[tokio::test]
async fn a_whole_frame_that_does_not_decode_is_answered_and_the_connection_goes_on() {
    let fixture = fixture(ServerLimits::default()).await;
    let mut stream = fixture.raw().await;
    let garbage = encode_frame(7, 0, &vec![0xff_u8; 40], MAX_REQUEST).unwrap();
    let mut long = encode_frame(8, 0, &ask(1), MAX_REQUEST).unwrap();
    long.push(0);
    long[0] += 1;
    for frame in [garbage, long, encode_frame(9, 0, &ask(4), MAX_REQUEST).unwrap()] {
        stream.write_all(&frame).await.unwrap();
    }
    let mut answers = std::collections::BTreeMap::new();
    let mut reader = FrameReader::new(&mut stream, MAX_REPLY);
    for _ in 0..3 {
        let frame = reader.next().await.unwrap().unwrap();
        answers.insert(frame.correlation, frame.decode::<Reply>().unwrap());
    }
    assert!(matches!(&answers[&7], Reply::Refused(Refusal::BadRequest(why)) if why.contains("decode")));
    assert!(matches!(&answers[&8], Reply::Refused(Refusal::BadRequest(why)) if why.contains("too many")));
    assert_eq!(answers[&9], answer(4).reply);
}

#[tokio::test]
async fn half_a_frame_is_given_up_after_its_time() {
    let limits = ServerLimits { frame_time: Duration::from_millis(100), ..ServerLimits::default() };
    let fixture = fixture(limits).await;
    let frame = encode_frame(1, 0, &ask(1), MAX_REQUEST).unwrap();
    for cut in [5, 12, frame.len() - 1] {
        let mut stream = fixture.raw().await;
        stream.write_all(&frame[..cut]).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "no answer to half a request");
    }
}

#[tokio::test]
async fn one_connection_too_many_is_refused() {
    let limits = ServerLimits { connections: 2, ..ServerLimits::default() };
    let fixture = fixture(limits).await;
    let (a, b) = (fixture.connection().await, fixture.connection().await);
    for connection in [&a, &b] {
        assert_eq!(connection.call(&ask(1), fixture.soon()).await, Ok(answer(1)));
    }
    let c = fixture.connection().await;
    match c.call(&ask(1), fixture.soon()).await {
        Err(RpcError::Lost(why)) => assert!(why.contains("Overloaded") || why.contains("reset"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(a.call(&ask(2), fixture.soon()).await, Ok(answer(2)));
}

#[tokio::test]
async fn only_so_many_watches_wait_on_a_connection_and_nothing_waits_for_them() {
    // All slots but one could be taken by watches if they were not bounded.
    let limits =
        ServerLimits { requests_per_connection: 4, watches_per_connection: 3, ..ServerLimits::default() };
    let fixture = fixture(limits).await;
    let connection = fixture.connection().await;
    let watch = Request::Watch(WatchRequest { known: Seen::default(), wait_ms: 20_000 });
    let waiting = async {
        let call = || connection.call(&watch, fixture.soon());
        tokio::join!(call(), call(), call())
    };
    tokio::pin!(waiting);
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("nothing has changed"),
        () = async {
            let reply = |answer: Result<Answer, RpcError>| answer.unwrap().reply;
            let one_more = reply(connection.call(&watch, fixture.soon()).await);
            assert_eq!(one_more, Reply::Watch(WatchReply::TooMany));
            for n in 0..20 {
                assert_eq!(connection.call(&ask(n), fixture.soon()).await, Ok(answer(n)));
            }
        } => {}
    }
    fixture.gate.add_permits(4);
    let (a, b, c) = waiting.await;
    for answer in [a, b, c, connection.call(&watch, fixture.soon()).await] {
        assert_eq!(answer.unwrap().reply, Reply::Watch(WatchReply::Quiet));
    }
}

#[tokio::test]
async fn a_request_too_long_is_not_sent() {
    let fixture = fixture(ServerLimits::default()).await;
    let connection = fixture.connection().await;
    let request = Request::AbmQuery(
        Consistency::Any,
        crate::wire::rpc::abm::AbmQuery::Namespaces(crate::range::RangeQuery {
            first: vec![0; MAX_REQUEST],
            ..crate::range::RangeQuery::all()
        }),
    );
    assert!(matches!(connection.call(&request, fixture.soon()).await, Err(RpcError::TooLarge { .. })));
    assert_eq!(connection.call(&ask(2), fixture.soon()).await, Ok(answer(2)));
}
