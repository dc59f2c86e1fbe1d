//! A client that speaks bytes, made from the protocol's description alone, and a server for it to speak to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Env, real};
use alba_proxy::{ProxyConfig, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{sleep, timeout};

use crate::fake::Fake;

/// Magic and version (vector X01).
pub const PROLOGUE: &str = "1bde794401000000";

/// What one side may have on its way before it must wait for the other: little, so that short reads happen.
const PIPE: usize = 1000;

pub struct Harness {
    pub server: Server,
    pub fake: Arc<Fake>,
}

impl Harness {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut ProxyConfig)) -> Self {
        // Time may be paused in this executor, so there must be no other.
        let env = real::env();
        Self::on(Env { bulk: env.spawn.clone(), ..env }, change)
    }

    pub fn on(env: Env, change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let mut config = ProxyConfig::new(vec![([127, 0, 0, 1], 4000).into()]);
        change(&mut config);
        assert_eq!(config.check(), Ok(()));
        let fake = Fake::with_demo();
        Self { server: Server::new(env, config, fake.clone()), fake }
    }

    /// A connection without prologue.
    pub fn raw(&self) -> Raw {
        let (near, far) = tokio::io::duplex(PIPE);
        self.server.admit(Box::new(far), SocketAddr::from(([127, 0, 0, 1], 1)));
        Raw(near)
    }

    /// A connection with prologue.
    pub async fn connect(&self) -> Raw {
        let mut raw = self.raw();
        raw.send(&hex(PROLOGUE)).await;
        raw
    }
}

/// Until something is so, at most ten (possibly simulated) minutes.
pub async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(600), wait).await.expect("it never came true");
}

/// The bytes of a hex string.
pub fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect()
}

/// The client's side of a connection.
pub struct Raw(pub DuplexStream);

impl Raw {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The next answer's payload.
    pub async fn answer(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix).await.unwrap();
        let mut payload = vec![0; usize::try_from(u32::from_le_bytes(prefix)).unwrap()];
        self.0.read_exact(&mut payload).await.unwrap();
        payload
    }

    /// Sends a request and takes the answer's payload.
    pub async fn ask(&mut self, request: Request) -> Vec<u8> {
        self.send(&request.frame()).await;
        self.answer().await
    }

    /// The result of a request that must succeed.
    pub async fn ok(&mut self, request: Request) -> Reply {
        let mut reply = Reply(self.ask(request).await.into());
        let status = reply.u32();
        assert_eq!(status, 0, "{}", String::from_utf8_lossy(&reply.0));
        reply
    }

    /// Code and text of a request that must fail.
    pub async fn err(&mut self, request: Request) -> (u32, String) {
        self.send(&request.frame()).await;
        self.error().await
    }

    /// Code and text of the next answer, which must be an error.
    pub async fn error(&mut self) -> (u32, String) {
        let mut reply = Reply(self.answer().await.into());
        let code = reply.u32();
        assert_ne!(code, 0, "it succeeded");
        let text = reply.text();
        assert!(reply.0.is_empty(), "bytes behind the error's text");
        (code, text)
    }

    /// Nothing more comes: the server closed the connection.
    pub async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is as good as an end.
        drop(timeout(Duration::from_secs(600), self.0.read_to_end(&mut rest)).await.unwrap());
        assert_eq!(rest, b"", "bytes before the end");
    }

    /// The connection still answers.
    pub async fn alive(&mut self) {
        self.send(&hex("0c000000020000000400000064656d6f")).await;
        assert_eq!(self.answer().await, hex("0000000001"));
    }
}

/// A request in the making.
#[derive(Clone)]
pub struct Request(pub Vec<u8>);

pub fn request(command: i32) -> Request {
    Request(Vec::new()).i32(command)
}

impl Request {
    pub fn i32(mut self, value: i32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn i64(mut self, value: i64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn f64(mut self, value: f64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn bool(self, value: bool) -> Self {
        self.byte(u8::from(value))
    }

    pub fn str(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let mut this = self.i32(i32::try_from(value.len()).unwrap());
        this.0.extend(value);
        this
    }

    /// Last element first.
    pub fn list<T>(self, items: &[T], write: impl Fn(Self, &T) -> Self) -> Self {
        items.iter().rev().fold(self.i32(i32::try_from(items.len()).unwrap()), write)
    }

    /// Everything, from the beginning.
    pub fn whole_range(self) -> Self {
        self.str("").bool(true).bool(false).i32(-1).bool(false)
    }

    pub fn frame(&self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap();
        [len.to_le_bytes().as_slice(), &self.0].concat()
    }
}

/// 13 or 23.
pub fn slices(command: i32, namespace: &str, entries: &[(&str, &[(i64, i32)])]) -> Request {
    request(command)
        .str(namespace)
        .list(entries, |r, (name, slices)| {
            r.str(name).list(slices, |r, (offset, length)| r.i64(*offset).i32(*length))
        })
        .bool(true)
}

/// A result being read.
pub struct Reply(pub bytes::Bytes);

impl Reply {
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.0.split_to(4).as_ref().try_into().unwrap())
    }

    pub fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.0.split_to(8).as_ref().try_into().unwrap())
    }

    pub fn f64(&mut self) -> f64 {
        f64::from_le_bytes(self.0.split_to(8).as_ref().try_into().unwrap())
    }

    pub fn byte(&mut self) -> u8 {
        self.0.split_to(1)[0]
    }

    pub fn bool(&mut self) -> bool {
        match self.byte() {
            0 => false,
            1 => true,
            other => panic!("{other} is no boolean"),
        }
    }

    pub fn str(&mut self) -> Vec<u8> {
        let len = usize::try_from(self.u32()).unwrap();
        self.0.split_to(len).to_vec()
    }

    pub fn text(&mut self) -> String {
        String::from_utf8(self.str()).unwrap()
    }

    pub fn list<T>(&mut self, read: impl Fn(&mut Self) -> T) -> Vec<T> {
        let mut items: Vec<T> = (0..self.u32()).map(|_| read(self)).collect();
        items.reverse();
        items
    }

    pub fn end(self) {
        assert_eq!(self.0.as_ref(), b"", "bytes behind the result");
    }

    /// A manifest with namespace id: ser version, body, id.
    pub fn manifest(&mut self) -> (u8, Vec<u8>, u32) {
        let ser = self.byte();
        let body = snap::raw::Decoder::new().decompress_vec(&self.str()).unwrap();
        (ser, body, self.u32())
    }

    /// `object_info`: name, alba id, manifest with namespace id.
    pub fn object_info(&mut self) -> (String, String, (u8, Vec<u8>, u32)) {
        (self.text(), self.text(), self.manifest())
    }
}
