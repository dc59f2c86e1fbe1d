//! Sources and sinks that are files, on the real outside.

use std::io;
use std::os::unix::fs::PermissionsExt;

use alba_core::env::real;

use crate::{BytesSource, FileSink, FileSource, ObjectSink, ObjectSource};

/// A source that only has what it must.
struct Plain<'a>(&'a mut FileSource);

#[async_trait::async_trait]
impl ObjectSource for Plain<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer).await
    }
}

#[tokio::test]
async fn a_file_is_read_where_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("source");
    alba_core::env::files::replace(&path, b"0123456789").unwrap();
    let spawn = real::env().spawn;
    let mut source = FileSource::open(spawn.clone(), &path).await.unwrap();
    assert_eq!(source.size(), 10);
    let mut buffer = [0; 4];
    source.read_at(5, &mut buffer).await.unwrap();
    assert_eq!(&buffer, b"5678");
    let beyond = source.read_at(7, &mut buffer).await.unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    for (offset, len, size, expected) in [
        (0, 10, 10, "0123456789"),
        (5, 4, 6, "5678\0\0"),
        (7, 3, 2, "789"),
        (10, 0, 2, "\0\0"),
        (3, 0, 0, ""),
    ] {
        // As every source does it that has nothing better.
        let padded = [
            source.read_padded(offset, len, size).await.unwrap(),
            BytesSource::new("0123456789").read_padded(offset, len, size).await.unwrap(),
            Plain(&mut source).read_padded(offset, len, size).await.unwrap(),
        ];
        assert!(padded.iter().all(|found| found == expected), "{padded:?}, not {expected:?}");
    }
    for (offset, len) in [(7, 4), (11, 1), (u64::MAX, 1)] {
        assert!(source.read_padded(offset, len, 16).await.is_err());
        assert!(BytesSource::new("0123456789").read_padded(offset, len, 16).await.is_err());
    }
    let missing = FileSource::open(spawn.clone(), directory.path().join("none")).await.err().unwrap();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert!(missing.to_string().contains("none"), "{missing}");
    assert!(FileSource::open(spawn, directory.path()).await.is_err(), "a directory is no source");
}

#[tokio::test]
async fn a_file_appears_with_the_first_write_and_can_start_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sink");
    let mut sink = FileSink::new(real::env().spawn, &path);
    assert!(!path.exists());
    sink.write_at(0, "a long text".into()).await.unwrap();
    sink.restart().await.unwrap();
    sink.write_at(0, "short".into()).await.unwrap();
    sink.finish().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"short");
    // Less the umask.
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o664, 0);
    let empty = directory.path().join("empty");
    FileSink::new(real::env().spawn, &empty).finish().await.unwrap();
    assert_eq!(std::fs::read(&empty).unwrap(), b"");
    let mut nowhere = FileSink::new(real::env().spawn, directory.path().join("no/such"));
    let error = nowhere.write_at(0, "x".into()).await.unwrap_err();
    assert!(error.to_string().contains("no/such"), "{error}");
}

#[tokio::test]
async fn bytes_end_where_they_end() {
    let mut source = BytesSource::new("abc");
    let mut buffer = [0; 2];
    source.read_at(1, &mut buffer).await.unwrap();
    assert_eq!(&buffer, b"bc");
    assert!(source.read_at(2, &mut buffer).await.is_err());
    assert!(source.read_at(u64::MAX, &mut buffer).await.is_err());
}
