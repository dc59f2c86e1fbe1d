//! Progress bars: on a terminal only, on standard error.

use std::io;

use alba_client::{ObjectSink, ObjectSource};
use async_trait::async_trait;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar for `bytes` bytes. Hidden where standard error is no terminal.
pub(crate) fn bytes(bytes: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message(what.to_owned());
    // The template is a constant of ours; without it the bar has its default look.
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar
}

/// A spinner with a text.
pub(crate) fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}

/// A source that moves a bar.
pub(crate) struct CountedSource<S> {
    /// The bytes.
    pub(crate) source: S,
    /// Its bar.
    pub(crate) bar: ProgressBar,
}

#[async_trait]
impl<S: ObjectSource> ObjectSource for CountedSource<S> {
    fn size(&self) -> u64 {
        self.source.size()
    }

    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.source.read_at(offset, buffer).await?;
        let len = u64::try_from(buffer.len()).unwrap_or(0);
        self.bar.set_position(offset.saturating_add(len));
        Ok(())
    }

    async fn read_padded(&mut self, offset: u64, len: usize, size: usize) -> io::Result<Bytes> {
        let bytes = self.source.read_padded(offset, len, size).await?;
        self.bar.set_position(offset.saturating_add(u64::try_from(len).unwrap_or(0)));
        Ok(bytes)
    }
}

/// A sink that moves a bar.
pub(crate) struct CountedSink<S> {
    /// Where the bytes go.
    pub(crate) sink: S,
    /// Its bar.
    pub(crate) bar: ProgressBar,
}

#[async_trait]
impl<S: ObjectSink> ObjectSink for CountedSink<S> {
    async fn write_at(&mut self, offset: u64, data: Bytes) -> io::Result<()> {
        let len = u64::try_from(data.len()).unwrap_or(0);
        self.sink.write_at(offset, data).await?;
        self.bar.set_position(offset.saturating_add(len));
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.sink.finish().await
    }

    async fn restart(&mut self) -> io::Result<()> {
        self.bar.set_position(0);
        self.sink.restart().await
    }
}
