//! Requests in the making and answers being read (wire-protocol §1).

/// A request: command and arguments.
#[derive(Clone)]
pub struct Request(pub Vec<u8>);

/// A request without arguments.
pub fn request(command: i32) -> Request {
    Request(Vec::new()).i32(command)
}

impl Request {
    /// Four bytes.
    pub fn i32(mut self, value: i32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Eight bytes.
    pub fn i64(mut self, value: i64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A double.
    pub fn f64(mut self, value: f64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// One byte.
    pub fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    /// 00 or 01.
    pub fn bool(self, value: bool) -> Self {
        self.byte(u8::from(value))
    }

    /// Length and bytes.
    pub fn str(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let mut this = self.i32(i32::try_from(value.len()).unwrap());
        this.0.extend(value);
        this
    }

    /// Count and elements, the last one first.
    pub fn list<T>(self, items: &[T], write: impl Fn(Self, &T) -> Self) -> Self {
        items.iter().rev().fold(self.i32(i32::try_from(items.len()).unwrap()), write)
    }

    /// Names.
    pub fn names(self, names: &[&str]) -> Self {
        self.list(names, |request, name| request.str(name))
    }

    /// Bounds with whether they are included, size of the page, direction ("max then reverse").
    pub fn range(self, first: (&str, bool), last: Option<(&str, bool)>, max: i32, reverse: bool) -> Self {
        let request = self.str(first.0).bool(first.1);
        let request = match last {
            None => request.byte(0),
            Some((last, included)) => request.byte(1).str(last).bool(included),
        };
        request.i32(max).bool(reverse)
    }

    /// With its length before it.
    pub fn frame(&self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap();
        [len.to_le_bytes().as_slice(), &self.0].concat()
    }
}

/// 13 or 23: slices (offset, length) of objects.
pub fn slices(command: i32, namespace: &str, entries: &[(&str, &[(i64, i32)])]) -> Request {
    request(command)
        .str(namespace)
        .list(entries, |r, (name, slices)| {
            r.str(name).list(slices, |r, (offset, length)| r.i64(*offset).i32(*length))
        })
        .bool(true)
}

/// Bytes being read.
pub struct Reply {
    bytes: Vec<u8>,
    at: usize,
}

impl Reply {
    /// From their beginning.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let taken = &self.bytes[self.at..][..len];
        self.at += len;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap()
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.array())
    }

    /// A double.
    pub fn f64(&mut self) -> f64 {
        f64::from_le_bytes(self.array())
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// 00 or 01.
    pub fn bool(&mut self) -> bool {
        match self.byte() {
            0 => false,
            1 => true,
            other => panic!("{other} is no boolean"),
        }
    }

    /// Four bytes, and eight more when they are 7fffffff.
    pub fn x_int64(&mut self) -> i64 {
        match self.i32() {
            i32::MAX => self.i64(),
            small => small.into(),
        }
    }

    /// Length and bytes.
    pub fn str(&mut self) -> Vec<u8> {
        let len = usize::try_from(self.u32()).unwrap();
        self.take(len).to_vec()
    }

    /// The same, as text.
    pub fn text(&mut self) -> String {
        String::from_utf8(self.str()).unwrap()
    }

    /// A length of 7 bits per byte, the low ones first, and bytes.
    pub fn small_bytes(&mut self) -> Vec<u8> {
        let (mut len, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            len |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return self.take(len).to_vec();
            }
        }
    }

    /// Count and elements, the last one first.
    pub fn list<T>(&mut self, read: impl Fn(&mut Self) -> T) -> Vec<T> {
        let mut items: Vec<T> = (0..self.u32()).map(|_| read(self)).collect();
        items.reverse();
        items
    }

    /// A flag, and a value if it is 01.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.bool().then(|| read(self))
    }

    /// What was not read yet.
    pub fn rest(&mut self) -> Vec<u8> {
        self.take(self.bytes.len() - self.at).to_vec()
    }

    /// Nothing may be left.
    pub fn end(mut self) {
        assert_eq!(self.rest(), b"", "bytes behind the result");
    }
}
