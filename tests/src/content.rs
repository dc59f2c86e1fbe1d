//! Contents of test objects: made from a name, so that any byte of any object can be checked without keeping it.

use std::io::{self, Read, Write};
use std::path::Path;

/// `len` bytes that depend on `name` and look random.
pub fn bytes(name: &str, len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    stream(name).fill(&mut content);
    content
}

/// Bytes `offset..offset + len` of the content of `name`.
pub fn slice(name: &str, offset: u64, len: usize) -> Vec<u8> {
    let mut stream = stream(name);
    stream.set_position(offset);
    let mut content = vec![0; len];
    stream.fill(&mut content);
    content
}

fn stream(name: &str) -> blake3::OutputReader {
    blake3::Hasher::new_derive_key("alba test content").update(name.as_bytes()).finalize_xof()
}

/// Writes the first `len` bytes of the content of `name` to a file.
pub fn write_file(path: &Path, name: &str, len: u64) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    io::copy(&mut Read::take(Reader(stream(name)), len), &mut file)?;
    file.flush()
}

/// Whether a file holds exactly the first `len` bytes of the content of `name`; otherwise what is wrong.
pub fn check_file(path: &Path, name: &str, len: u64) -> Result<(), String> {
    let mut file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let found = file.metadata().map_err(|error| error.to_string())?.len();
    if found != len {
        return Err(format!("{name}: {found} bytes, not {len}"));
    }
    let mut expected = stream(name);
    let (mut ours, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0_u64;
    while at < len {
        let step = usize::try_from(len - at).unwrap_or(usize::MAX).min(ours.len());
        expected.fill(&mut ours[..step]);
        file.read_exact(&mut theirs[..step]).map_err(|error| error.to_string())?;
        if ours[..step] != theirs[..step] {
            return Err(format!("{name}: differs in bytes {at}..{}", at + step as u64));
        }
        at += step as u64;
    }
    Ok(())
}

struct Reader(blake3::OutputReader);

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.fill(buffer);
        Ok(buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_parts_of_the_whole() {
        let whole = bytes("a", 1000);
        assert_eq!(slice("a", 100, 200), whole[100..300]);
        assert_ne!(bytes("b", 1000), whole);
    }

    #[test]
    fn files_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_file(&path, "a", 200_000).unwrap();
        assert_eq!(check_file(&path, "a", 200_000), Ok(()));
        assert!(check_file(&path, "b", 200_000).is_err());
        assert!(check_file(&path, "a", 200_001).is_err());
        let mut content = bytes("a", 200_000);
        content[199_999] ^= 1;
        std::fs::write(&path, content).unwrap();
        assert!(check_file(&path, "a", 200_000).is_err());
    }
}
