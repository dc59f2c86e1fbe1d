//! A simulated disk: what programs see now (the live image), and what a power cut would leave (the durable image and
//! any part of what came after).
//!
//! A crash decides, by the disk's seed, for every unsynced write whether it stays, is lost, or is torn at 512-byte
//! sectors; and for every unsynced creation, removal and rename whether it happened. It must never keep less than what a
//! successful sync promised. After a *failed* sync nothing is promised, and a later successful one does not mend it, as
//! on Linux.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::image::Image;
use crate::env::{Clock, Disk, DiskFile};

/// What a disk writes in one piece.
pub const SECTOR: u64 = 512;

/// A kind of operation, to inject failures into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskOperation {
    /// Reading a file.
    Read,
    /// Writing a file. A failed write leaves any part of it.
    Write,
    /// Syncing a file.
    Sync,
    /// Creating, removing, renaming, listing, and syncing the directory.
    Directory,
}

#[derive(Debug)]
struct Injection {
    operation: DiskOperation,
    /// Operations of the kind that still succeed before.
    after: u64,
    /// How many fail then.
    times: u64,
    error: io::ErrorKind,
}

#[derive(Debug, Default)]
struct SimFile {
    live: Image,
    durable: Image,
    pending: Vec<(u64, Bytes)>,
}

#[derive(Debug, Clone)]
enum DirectoryChange {
    Link { name: String, file: u64 },
    Unlink { name: String },
    Rename { from: String, to: String },
}

impl DirectoryChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Link { name, file } => {
                names.insert(name.clone(), *file);
            }
            Self::Unlink { name } => {
                names.remove(name);
            }
            Self::Rename { from, to } => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

#[derive(Debug)]
struct Device {
    rng: StdRng,
    capacity: u64,
    files: BTreeMap<u64, SimFile>,
    next_file: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    directory_changes: Vec<DirectoryChange>,
    injections: Vec<Injection>,
    crashes: u64,
    /// Operations that change something, counted to crash at each.
    changes: u64,
    power_cut_at: Option<u64>,
    syncs: u64,
}

/// The simulated device: it stays when the processes that use it go.
#[derive(Debug, Clone)]
pub struct SimDiskDevice(Arc<Mutex<Device>>);

impl SimDiskDevice {
    /// An empty disk of `capacity` bytes whose accidents are decided by `seed`.
    pub fn new(seed: u64, capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(Device {
            rng: StdRng::seed_from_u64(seed),
            capacity,
            files: BTreeMap::new(),
            next_file: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            directory_changes: Vec::new(),
            injections: Vec::new(),
            crashes: 0,
            changes: 0,
            power_cut_at: None,
            syncs: 0,
        })))
    }

    /// Opens it. What was opened before a crash only gives errors.
    pub fn open(&self) -> SimDisk {
        SimDisk { device: self.clone(), opened_at: self.lock().crashes, latency: None }
    }

    /// Opens it; every operation takes `latency` on `clock`.
    pub fn open_slow(&self, clock: Arc<dyn Clock>, latency: Duration) -> SimDisk {
        SimDisk { device: self.clone(), opened_at: self.lock().crashes, latency: Some((clock, latency)) }
    }

    /// Cuts the power: keeps what was synced and any part of the rest, and makes all open handles useless.
    pub fn crash(&self) {
        let mut device = self.lock();
        let Device { rng, files, directory_changes, durable_names, .. } = &mut *device;
        for change in std::mem::take(directory_changes) {
            if rng.random_bool(0.5) {
                change.apply(durable_names);
            }
        }
        for file in files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.pending) {
                keep_some(rng, &mut file.durable, offset, &bytes);
            }
            if file.live.len() > file.durable.len() && rng.random_bool(0.5) {
                file.durable.set_len(file.live.len());
            }
            file.live = file.durable.clone();
        }
        let names = device.durable_names.clone();
        device.files.retain(|file, _| names.values().any(|named| named == file));
        device.names = names;
        device.crashes += 1;
        device.power_cut_at = None;
        device.injections.clear();
    }

    /// From the `nth` changing operation on (counted from now, the first is 0) nothing happens any more and everything
    /// fails, until [`SimDiskDevice::crash`].
    pub fn cut_power_after(&self, nth: u64) {
        let mut device = self.lock();
        device.power_cut_at = Some(device.changes + nth);
    }

    /// Has the moment set by [`SimDiskDevice::cut_power_after`] come?
    pub fn power_is_cut(&self) -> bool {
        let device = self.lock();
        device.power_cut_at.is_some_and(|at| device.changes > at)
    }

    /// Changing operations so far.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Successful file syncs so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Lets `after` operations of that kind succeed and the next `times` fail with `error`.
    pub fn inject(&self, operation: DiskOperation, after: u64, times: u64, error: io::ErrorKind) {
        self.lock().injections.push(Injection { operation, after, times, error });
    }

    /// Ends all injected failures.
    pub fn clear_injections(&self) {
        self.lock().injections.clear();
    }

    /// Changes the capacity.
    pub fn set_capacity(&self, capacity: u64) {
        self.lock().capacity = capacity;
    }

    /// Inverts the bits of `mask` in one byte of a file, in both images, as rot does. Gives false when it is not there.
    pub fn rot(&self, name: &str, offset: u64, mask: u8) -> bool {
        let mut device = self.lock();
        let Some(id) = device.names.get(name).copied() else { return false };
        let Some(file) = device.files.get_mut(&id) else { return false };
        let Some(byte) = file.live.read(offset, 1).and_then(|bytes| bytes.first().copied()) else {
            return false;
        };
        file.live.write(offset, &[byte ^ mask]);
        file.durable.write(offset, &[byte ^ mask]);
        true
    }

    /// Cuts a file off, in both images, as an accident. Gives false when it is not there.
    pub fn truncate(&self, name: &str, len: u64) -> bool {
        let mut device = self.lock();
        let Some(id) = device.names.get(name).copied() else { return false };
        let Some(file) = device.files.get_mut(&id) else { return false };
        file.live.truncate(len);
        file.durable.truncate(len);
        true
    }

    /// Removes a file at once, as an accident.
    pub fn lose(&self, name: &str) -> bool {
        let mut device = self.lock();
        device.durable_names.remove(name);
        device.names.remove(name).is_some()
    }

    /// The live names.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// The live content of a file.
    pub fn content(&self, name: &str) -> Option<Bytes> {
        let device = self.lock();
        let file = device.files.get(device.names.get(name)?)?;
        file.live.read(0, usize::try_from(file.live.len()).ok()?)
    }

    /// No code panics while it holds the lock, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, Device> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One unsynced write after a power cut: all of it, nothing, its beginning, its end, or any of its sectors.
fn keep_some(rng: &mut StdRng, image: &mut Image, offset: u64, bytes: &[u8]) {
    let sectors = bytes.len() / usize::try_from(SECTOR).unwrap_or(1) + 1;
    let cut = rng.random_range(0..=sectors);
    let kind = rng.random_range(0..5);
    let mut at = offset;
    let mut rest = bytes;
    let mut sector = 0;
    while !rest.is_empty() {
        let to_boundary = usize::try_from(SECTOR - at % SECTOR).unwrap_or(rest.len());
        let (piece, tail) = rest.split_at(to_boundary.min(rest.len()));
        let kept = match kind {
            0 => false,
            1 => true,
            2 => sector < cut,
            3 => sector >= cut,
            _ => rng.random_bool(0.5),
        };
        if kept {
            image.write(at, piece);
        }
        at += u64::try_from(piece.len()).unwrap_or(SECTOR);
        rest = tail;
        sector += 1;
    }
}

fn gone() -> io::Error {
    io::Error::other("the simulated disk lost its power")
}

impl Device {
    /// Is the operation allowed to happen? `changes` says whether it counts as a point to crash at.
    fn admit(&mut self, operation: DiskOperation, changes: bool) -> io::Result<()> {
        if let Some(at) = self.power_cut_at {
            // Once cut it stays cut: the counter is past the moment for good.
            if self.changes > at {
                return Err(gone());
            }
            if changes && self.changes == at {
                self.changes += 1;
                return Err(gone());
            }
        }
        if changes {
            self.changes += 1;
        }
        for injection in self.injections.iter_mut().filter(|i| i.operation == operation && i.times > 0) {
            if injection.after > 0 {
                injection.after -= 1;
            } else {
                injection.times -= 1;
                return Err(injection.error.into());
            }
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|id| self.files.get(id)).map(|file| file.live.len()).sum()
    }

    fn change_directory(&mut self, change: DirectoryChange) {
        change.apply(&mut self.names);
        self.directory_changes.push(change);
    }

    fn file(&mut self, id: u64) -> io::Result<&mut SimFile> {
        self.files.get_mut(&id).ok_or_else(gone)
    }
}

/// The open disk.
pub struct SimDisk {
    device: SimDiskDevice,
    opened_at: u64,
    latency: Option<(Arc<dyn Clock>, Duration)>,
}

impl SimDisk {
    async fn device(&self, operation: DiskOperation, changes: bool) -> io::Result<MutexGuard<'_, Device>> {
        enter(&self.device, self.opened_at, self.latency.as_ref(), operation, changes).await
    }

    fn handle(&self, file: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimDiskFile {
            device: self.device.clone(),
            opened_at: self.opened_at,
            latency: self.latency.clone(),
            file,
        })
    }
}

async fn enter<'a>(
    device: &'a SimDiskDevice,
    opened_at: u64,
    latency: Option<&(Arc<dyn Clock>, Duration)>,
    operation: DiskOperation,
    changes: bool,
) -> io::Result<MutexGuard<'a, Device>> {
    if let Some((clock, latency)) = latency {
        clock.sleep_until(clock.now().plus(*latency)).await;
    }
    let mut device = device.lock();
    if device.crashes != opened_at {
        return Err(gone());
    }
    device.admit(operation, changes)?;
    Ok(device)
}

#[async_trait]
impl Disk for SimDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.device(DiskOperation::Directory, false).await?.names.keys().cloned().collect())
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let id = {
            let mut device = self.device(DiskOperation::Directory, true).await?;
            if device.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if device.used().saturating_add(len) > device.capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let id = device.next_file;
            device.next_file += 1;
            let mut file = SimFile::default();
            file.live.set_len(len);
            device.files.insert(id, file);
            device.change_directory(DirectoryChange::Link { name: name.to_owned(), file: id });
            id
        };
        Ok(self.handle(id))
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = {
            let device = self.device(DiskOperation::Directory, false).await?;
            device.names.get(name).copied().ok_or(io::ErrorKind::NotFound)?
        };
        Ok(self.handle(id))
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let mut device = self.device(DiskOperation::Directory, true).await?;
        if !device.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        device.change_directory(DirectoryChange::Unlink { name: name.to_owned() });
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut device = self.device(DiskOperation::Directory, true).await?;
        if !device.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        device.change_directory(DirectoryChange::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let mut device = self.device(DiskOperation::Directory, true).await?;
        device.durable_names = device.names.clone();
        device.directory_changes.clear();
        // A new file's size is part of what was made safe, its content is not.
        for file in device.files.values_mut() {
            if file.live.len() > file.durable.len() {
                file.durable.set_len(file.live.len());
            }
        }
        Ok(())
    }

    async fn space(&self) -> io::Result<(u64, u64)> {
        let device = self.device(DiskOperation::Directory, false).await?;
        Ok((device.capacity.saturating_sub(device.used()), device.capacity))
    }
}

struct SimDiskFile {
    device: SimDiskDevice,
    opened_at: u64,
    latency: Option<(Arc<dyn Clock>, Duration)>,
    file: u64,
}

impl SimDiskFile {
    async fn device(&self, operation: DiskOperation, changes: bool) -> io::Result<MutexGuard<'_, Device>> {
        enter(&self.device, self.opened_at, self.latency.as_ref(), operation, changes).await
    }
}

#[async_trait]
impl DiskFile for SimDiskFile {
    async fn len(&self) -> io::Result<u64> {
        let mut device = self.device(DiskOperation::Read, false).await?;
        Ok(device.file(self.file)?.live.len())
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut device = self.device(DiskOperation::Read, false).await?;
        let file = device.file(self.file)?;
        file.live.read(offset, len).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let mut all = BytesMut::new();
        parts.iter().for_each(|part| all.extend_from_slice(part));
        let all = all.freeze();
        let end = offset.saturating_add(u64::try_from(all.len()).map_err(io::Error::other)?);
        let mut device = match self.device(DiskOperation::Write, true).await {
            Ok(device) => device,
            Err(error) => {
                // Whatever of it reached the disk before it failed.
                let mut device = self.device.lock();
                if device.crashes == self.opened_at {
                    let Device { rng, files, .. } = &mut *device;
                    if let Some(file) = files.get_mut(&self.file) {
                        keep_some(rng, &mut file.live, offset, &all);
                        file.pending.push((offset, all));
                    }
                }
                return Err(error);
            }
        };
        let grows = end.saturating_sub(device.file(self.file)?.live.len());
        if device.used().saturating_add(grows) > device.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = device.file(self.file)?;
        file.live.write(offset, &all);
        file.pending.push((offset, all));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        match self.device(DiskOperation::Sync, true).await {
            Ok(mut device) => {
                device.syncs += 1;
                let file = device.file(self.file)?;
                for (offset, bytes) in std::mem::take(&mut file.pending) {
                    file.durable.write(offset, &bytes);
                }
                if file.live.len() > file.durable.len() {
                    file.durable.set_len(file.live.len());
                }
                Ok(())
            }
            Err(error) => {
                // The kernel drops what it could not write: part of it is safe, the rest never will be, and reads show
                // the cache until it is evicted.
                let mut device = self.device.lock();
                if device.crashes == self.opened_at && device.power_cut_at.is_none() {
                    let Device { rng, files, .. } = &mut *device;
                    if let Some(file) = files.get_mut(&self.file) {
                        for (offset, bytes) in std::mem::take(&mut file.pending) {
                            keep_some(rng, &mut file.durable, offset, &bytes);
                        }
                    }
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CAPACITY: u64 = 1 << 30;

    #[tokio::test]
    async fn conforms() {
        crate::env::disk_conformance::run(&SimDiskDevice::new(1, CAPACITY).open()).await;
    }

    /// Two sectors synced, two written after; which of the latter survive?
    async fn survivors(seed: u64) -> Vec<u8> {
        let device = SimDiskDevice::new(seed, CAPACITY);
        let disk = device.open();
        let file = disk.create("f", 4 * SECTOR).await.unwrap();
        disk.sync_directory().await.unwrap();
        file.write_at(0, vec![Bytes::from(vec![1; 1024])]).await.unwrap();
        file.sync().await.unwrap();
        file.write_at(1024, vec![Bytes::from(vec![2; 1024])]).await.unwrap();
        device.crash();
        assert!(file.read_at(0, 1).await.is_err(), "handles die with the power");
        let content = device.content("f").unwrap();
        assert!(content[..1024].iter().all(|byte| *byte == 1), "synced bytes stay");
        content[1024..]
            .chunks(512)
            .map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "torn at sectors only");
                sector[0]
            })
            .collect()
    }

    #[tokio::test]
    async fn a_crash_keeps_drops_or_tears_what_was_not_synced() {
        let mut seen = BTreeSet::new();
        for seed in 0..60 {
            let outcome = survivors(seed).await;
            assert_eq!(outcome, survivors(seed).await, "the seed decides");
            seen.insert(outcome);
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }

    #[tokio::test]
    async fn an_unsynced_name_may_be_lost_with_its_synced_content() {
        let mut seen = BTreeSet::new();
        for seed in 0..40 {
            let device = SimDiskDevice::new(seed, CAPACITY);
            let disk = device.open();
            disk.create("old", 0).await.unwrap();
            disk.sync_directory().await.unwrap();
            disk.create("new", 0).await.unwrap().sync().await.unwrap();
            disk.remove("old").await.unwrap();
            device.crash();
            seen.insert(device.names().concat());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["", "new", "newold", "old"]);
    }

    #[tokio::test]
    async fn a_failed_sync_is_not_mended_by_the_next_one() {
        let lost = async |seed| {
            let device = SimDiskDevice::new(seed, CAPACITY);
            let disk = device.open();
            let file = disk.create("f", SECTOR).await.unwrap();
            disk.sync_directory().await.unwrap();
            device.inject(DiskOperation::Sync, 0, 1, io::ErrorKind::Other);
            file.write_at(0, vec![Bytes::from_static(b"x")]).await.unwrap();
            file.sync().await.unwrap_err();
            file.sync().await.unwrap();
            assert_eq!(file.read_at(0, 1).await.unwrap(), &b"x"[..]);
            device.crash();
            device.content("f").unwrap()[0] == 0
        };
        let mut outcomes = BTreeSet::new();
        for seed in 0..20 {
            outcomes.insert(lost(seed).await);
        }
        assert_eq!(outcomes.len(), 2, "sometimes it was written, sometimes not");
    }

    #[tokio::test]
    async fn the_power_stays_off_until_the_crash() {
        let device = SimDiskDevice::new(1, CAPACITY);
        let disk = device.open();
        device.cut_power_after(1);
        let file = disk.create("f", SECTOR).await.unwrap();
        assert!(!device.power_is_cut());
        file.sync().await.unwrap_err();
        assert!(device.power_is_cut());
        file.sync().await.unwrap_err();
        disk.list().await.unwrap_err();
        device.crash();
        device.open().list().await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_says_so() {
        let device = SimDiskDevice::new(1, 1000);
        let disk = device.open();
        let file = disk.create("f", 600).await.unwrap();
        assert_eq!(disk.create("g", 600).await.err().unwrap().kind(), io::ErrorKind::StorageFull);
        let big = vec![Bytes::from(vec![0; 500])];
        assert_eq!(file.write_at(600, big).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.space().await.unwrap(), (400, 1000));
    }
}
