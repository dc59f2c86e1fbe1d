//! Connections: prologues, frames, clients that go away, and the socket file.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alba_tests::bytes::{Connection, PROLOGUE, Request, request, slices};
use alba_tests::{process, wait};
use rustix::process::Signal;

use crate::{World, refused, upload};

pub(crate) fn prologues(world: &World) {
    let to = world.cluster.proxy();
    let mut stranger = Connection::raw(to);
    stranger.send(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(stranger.to_the_end(), b"", "closed without a word");

    let mut newer = Connection::raw(to);
    newer.send(&[0x1b, 0xde, 0x79, 0x44, 0x9a, 2, 0, 0]);
    let text = b"protocol version: (server) 1 <> 666 (client)";
    let expected = [&[0x34, 0, 0, 0, 17, 0, 0, 0, 0x2c, 0, 0, 0], text.as_slice()].concat();
    assert_eq!(newer.to_the_end(), expected);

    // Magic and version as two writes, or one byte at a time, or with the first request.
    let question = request(2).str("demo").frame();
    for pieces in [vec![4, 4], vec![1; 8], vec![8 + question.len()]] {
        let mut connection = Connection::raw(to);
        let all = [PROLOGUE.as_slice(), &question].concat();
        let mut at = 0;
        for piece in pieces {
            connection.send(&all[at..at + piece]);
            at += piece;
        }
        connection.send(&all[at..]);
        assert_eq!(connection.answer(), [0, 0, 0, 0, 1]);
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Open files of the proxy: connections that were not closed would be among them.
fn open_files(world: &World) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", world.cluster.pid("proxy-0"))).unwrap().count()
}

pub(crate) fn pings_and_cut_off_clients(world: &World) {
    // A ping that sleeps holds up nobody, and tells the time after its sleep.
    let (mut sleeper, mut other) = (world.connect(), world.connect());
    let asked = now();
    sleeper.send(&request(20).f64(1.5).frame());
    for _ in 0..3 {
        other.ok(request(17));
        let mut time = other.ok(request(20).f64(0.0));
        assert!(time.f64() > 1e9);
        time.end();
    }
    assert!(sleeper.is_silent(), "the others were answered first");
    let mut answer = alba_tests::bytes::Reply::new(sleeper.answer());
    assert_eq!(answer.u32(), 0);
    assert!(answer.f64() >= asked + 1.4, "the time is taken after the sleep");
    answer.end();
    other.ok(request(20).f64(-1.0));
    for delay in [f64::NAN, f64::INFINITY, 1e9] {
        refused(&mut other, request(20).f64(delay), 1, "Unknown");
    }

    // Clients that go after any byte of a request leave nothing behind.
    let before = open_files(world);
    let update = |r: Request| r.byte(2).str("cut").str(b"never whole").byte(0);
    let sequence = update(request(24).str("demo").bool(false).i32(1).byte(2).str("cut").i32(1));
    for request in [sequence, slices(23, "demo", &[("o", &[(0, 1)])]), request(20).f64(3000.0)] {
        let all = [PROLOGUE.as_slice(), &request.frame()].concat();
        for length in 0..all.len() + usize::from(request.0[0] == 20) {
            let mut connection = Connection::raw(world.cluster.proxy());
            connection.send(&all[..length]);
        }
    }
    wait::until("connections of clients that went are closed", Duration::from_secs(60), || {
        match open_files(world) {
            // Room for connections to storage daemons that come and go.
            now if now <= before + 8 => Ok(()),
            now => Err(format!("{now} open files, {before} before")),
        }
    });
    let mut exists = other.ok(request(26).str("demo").names(&["cut"]));
    assert!(!exists.list(|r| r.bool())[0], "half an upload is none");
}

pub(crate) fn frames(world: &World) {
    let mut proxy = world.connect();
    // No such operation; the connection goes on.
    for command in [0, 6, 7, 12, 27, 34, -1] {
        refused(&mut proxy, request(command).str("whatever"), 13, "UnknownOperation");
    }
    // Arguments that are none.
    for wrong in
        [request(2), request(2).i32(-1), request(3).str("x").byte(2), request(13).str("demo").i32(1 << 30)]
    {
        refused(&mut proxy, wrong, 1, "Unknown");
    }
    proxy.send(&[0, 0, 0, 0]);
    assert_eq!(proxy.answer()[..4], [1, 0, 0, 0], "a frame without a command");
    // Trailing bytes.
    assert_eq!(proxy.ask(request(2).str("demo").i64(-1)), [0, 0, 0, 0, 1]);
    // A length beyond every limit: told, then closed; nothing is reserved for it.
    let before = process::memory(world.cluster.pid("proxy-0")).now;
    proxy.send(&0x7fff_ffff_u32.to_le_bytes());
    assert_eq!(proxy.answer()[..4], [1, 0, 0, 0]);
    assert_eq!(proxy.to_the_end(), b"");
    assert!(process::memory(world.cluster.pid("proxy-0")).now < before + (64 << 20));
}

pub(crate) fn socket_file(world: &mut World) {
    let path = world.directory.join("proxy.sock");
    let about = std::fs::symlink_metadata(&path).unwrap();
    assert!(about.file_type().is_socket());
    assert_eq!(about.permissions().mode() & 0o777, 0o600);

    let (mut tcp, mut unix) = (world.connect(), Connection::unix(&path).unwrap());
    for same in [request(17), request(29), request(22), request(1).range(("", true), None, -1, false)] {
        // What agents just wrote to an OSD may come to be known between the two.
        wait::until("both ways give the same answer", Duration::from_secs(60), || {
            let (over_tcp, over_unix) = (tcp.ask(same.clone()), unix.ask(same.clone()));
            if over_tcp == over_unix { Ok(()) } else { Err(format!("{over_tcp:?} and {over_unix:?}")) }
        });
    }
    // What one stores the other reads.
    unix.ok(upload("demo", &[("over-unix", b"bytes")]));
    assert_eq!(tcp.ok(slices(13, "demo", &[("over-unix", &[(0, 5)])])).str(), b"bytes");

    // A crash leaves the file; the next proxy replaces it.
    let pid = world.cluster.pid("proxy-0");
    process::signal_pid(pid, Signal::KILL);
    assert!(matches!(
        unix.try_answer().unwrap_err().kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
    ));
    let mut again = wait::until("the proxy serves its socket file again", Duration::from_secs(120), || {
        let mut connection = Connection::unix(&path).map_err(|error| error.to_string())?;
        // One that the dying process still took is reset.
        connection.try_ask(&request(17)).map_err(|error| error.to_string())?;
        Ok(connection)
    });
    assert_eq!(again.ok(slices(13, "demo", &[("over-unix", &[(0, 5)])])).str(), b"bytes");

    // An end in order removes it.
    assert!(path.exists());
    for process in world.cluster.processes() {
        if process.args.get(1).is_some_and(|arg| arg == "up") {
            process.signal(Signal::TERM);
        }
    }
    wait::until("the socket file is removed", Duration::from_secs(120), || {
        if path.exists() { Err("still there".to_owned()) } else { Ok(()) }
    });
}
