//! A simulated disk: what programs see now (the live image), and what a power cut would leave (the durable image and
//! any part of what came after).
//!
//! A crash decides, by the disk's seed, for every unsynced write whether it stays, is lost, or is torn at 512-byte
//! sectors; and for every unsynced creation, removal and rename whether it happened. It must never keep less than what a
//! successful sync promised. After a *failed* sync nothing is promised, and a later successful one does not mend it, as
//! on Linux. A punched hole is an unsynced write of zeros that gives its space back; space is counted as allocated, not
//! by length.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::image::Image;
use crate::env::disk::check_punch;
use crate::env::{Clock, Disk, DiskFile};

/// What a disk writes in one piece.
pub const SECTOR: u64 = 512;

/// What an operation is about, to find failures injected into it.
#[derive(Clone, Copy)]
enum Subject<'a> {
    Name(&'a str),
    File(u64),
    Directory,
}

/// A kind of operation, to inject failures into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskOperation {
    /// Reading a file.
    Read,
    /// Writing a file. A failed write leaves any part of it.
    Write,
    /// Syncing a file.
    Sync,
    /// Punching a hole. A failed one leaves any part of it.
    Punch,
    /// Putting space behind holes.
    Allocate,
    /// Creating, removing, renaming, listing, and syncing the directory.
    Directory,
}

#[derive(Debug)]
struct Injection {
    operation: DiskOperation,
    /// Only on the file of that name.
    name: Option<String>,
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
    pending: Vec<Pending>,
}

/// A change that is not synced yet.
#[derive(Debug)]
enum Pending {
    Write { offset: u64, bytes: Bytes },
    Punch { start: u64, end: u64 },
    Allocate { end: u64 },
}

impl Pending {
    fn apply(&self, image: &mut Image) {
        match self {
            Self::Write { offset, bytes } => image.write(*offset, bytes),
            Self::Punch { start, end } => image.punch(*start, *end),
            Self::Allocate { end } => image.allocate(0, *end),
        }
    }

    /// Any part of it.
    fn apply_some(&self, rng: &mut StdRng, image: &mut Image) {
        match self {
            Self::Write { offset, bytes } => keep_some(rng, *offset, bytes.len(), |at, piece| {
                image.write(at, &bytes[piece]);
            }),
            Self::Punch { start, end } => {
                // What the file does not reach holds space only.
                let reached = (*end).min(image.len()).saturating_sub(*start);
                let len = usize::try_from(reached).unwrap_or(0);
                keep_some(rng, *start, len, |at, piece| {
                    image.punch(at, at.saturating_add(u64::try_from(piece.len()).unwrap_or(0)));
                });
            }
            Self::Allocate { end } => {
                if rng.random_bool(0.5) {
                    image.allocate(0, *end);
                }
            }
        }
    }
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
    /// Nothing can be changed.
    read_only: bool,
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
            read_only: false,
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
            for change in std::mem::take(&mut file.pending) {
                change.apply_some(rng, &mut file.durable);
            }
            if file.live.len() > file.durable.len() && rng.random_bool(0.5) {
                file.durable.grow_as(&file.live);
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

    /// Counts as a changing operation of a neighbour on the same power supply (an index, say): fails when the power is
    /// cut there.
    pub fn step(&self) -> io::Result<()> {
        self.lock().admit(DiskOperation::Directory, Subject::Directory, true)
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
        self.lock().injections.push(Injection { operation, name: None, after, times, error });
    }

    /// The same, counting and failing only operations on the file of that name, whether it exists yet or not.
    pub fn inject_on(
        &self,
        name: &str,
        operation: DiskOperation,
        after: u64,
        times: u64,
        error: io::ErrorKind,
    ) {
        let name = Some(name.to_owned());
        self.lock().injections.push(Injection { operation, name, after, times, error });
    }

    /// Makes every change fail with `ReadOnlyFilesystem`, as after an error the kernel could not live with, until it is
    /// set back. A crash does not end it.
    pub fn set_read_only(&self, read_only: bool) {
        self.lock().read_only = read_only;
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

    /// Exchanges `len` bytes of two places, of two files or one, in both images, as a disk does that mixes its sectors
    /// up. Gives false, and does nothing, when one is not there or they overlap.
    pub fn swap_sectors(&self, name_a: &str, off_a: u64, name_b: &str, off_b: u64, len: usize) -> bool {
        let mut device = self.lock();
        let size = u64::try_from(len).unwrap_or(u64::MAX);
        let (Some(a), Some(b)) = (device.names.get(name_a).copied(), device.names.get(name_b).copied())
        else {
            return false;
        };
        if a == b && off_a.abs_diff(off_b) < size {
            return false;
        }
        let image = |device: &Device, file: u64, offset: u64, durable: bool| {
            let file = device.files.get(&file)?;
            if durable { &file.durable } else { &file.live }.read(offset, len)
        };
        let live = (image(&device, a, off_a, false), image(&device, b, off_b, false));
        let durable = (image(&device, a, off_a, true), image(&device, b, off_b, true));
        let (Some(live_a), Some(live_b)) = live else { return false };
        for (file, offset, bytes) in [(a, off_a, &live_b), (b, off_b, &live_a)] {
            if let Some(file) = device.files.get_mut(&file) {
                file.live.write(offset, bytes);
            }
        }
        // What the durable image does not hold yet is still on its way and gets where it should.
        if let (Some(durable_a), Some(durable_b)) = durable {
            for (file, offset, bytes) in [(a, off_a, &durable_b), (b, off_b, &durable_a)] {
                if let Some(file) = device.files.get_mut(&file) {
                    file.durable.write(offset, bytes);
                }
            }
        }
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

/// One unsynced change of `len` bytes at `offset` after a power cut: all of it, nothing, its beginning, its end, or any
/// of its sectors. `keep` is told where in the file and which bytes of the change.
fn keep_some(rng: &mut StdRng, offset: u64, len: usize, mut keep: impl FnMut(u64, Range<usize>)) {
    let sectors = len / usize::try_from(SECTOR).unwrap_or(1) + 1;
    let cut = rng.random_range(0..=sectors);
    let kind = rng.random_range(0..5);
    let mut at = offset;
    let mut done = 0;
    let mut sector = 0;
    while done < len {
        let to_boundary = usize::try_from(SECTOR - at % SECTOR).unwrap_or(len);
        let piece = to_boundary.min(len - done);
        let kept = match kind {
            0 => false,
            1 => true,
            2 => sector < cut,
            3 => sector >= cut,
            _ => rng.random_bool(0.5),
        };
        if kept {
            keep(at, done..done + piece);
        }
        at += u64::try_from(piece).unwrap_or(SECTOR);
        done += piece;
        sector += 1;
    }
}

fn gone() -> io::Error {
    io::Error::other("the simulated disk lost its power")
}

impl Device {
    /// Is the operation allowed to happen? `changes` says whether it counts as a point to crash at.
    fn admit(&mut self, operation: DiskOperation, subject: Subject<'_>, changes: bool) -> io::Result<()> {
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
        if changes && self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let Self { injections, names, .. } = self;
        let is_about = |name: &String| match subject {
            Subject::Name(subject) => name == subject,
            Subject::File(file) => names.get(name) == Some(&file),
            Subject::Directory => false,
        };
        for injection in injections
            .iter_mut()
            .filter(|i| i.operation == operation && i.times > 0 && i.name.as_ref().is_none_or(is_about))
        {
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
        self.names.values().filter_map(|id| self.files.get(id)).map(|file| file.live.allocated()).sum()
    }

    /// Is there space for what `start..end` of the file lacks?
    fn check_space(&self, file: u64, start: u64, end: u64) -> io::Result<()> {
        let file = self.files.get(&file).ok_or_else(gone)?;
        let missing = file.live.missing(start, end);
        // What is rewritten in place needs none.
        let fits = missing == 0 || self.used().saturating_add(missing) <= self.capacity;
        if fits { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
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
    /// The device, for an operation on the directory.
    async fn device(&self, subject: Subject<'_>, changes: bool) -> io::Result<MutexGuard<'_, Device>> {
        let operation = DiskOperation::Directory;
        enter(&self.device, self.opened_at, self.latency.as_ref(), operation, subject, changes).await
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
    subject: Subject<'_>,
    changes: bool,
) -> io::Result<MutexGuard<'a, Device>> {
    if let Some((clock, latency)) = latency {
        clock.sleep_until(clock.now().plus(*latency)).await;
    }
    let mut device = device.lock();
    if device.crashes != opened_at {
        return Err(gone());
    }
    device.admit(operation, subject, changes)?;
    Ok(device)
}

#[async_trait]
impl Disk for SimDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.device(Subject::Directory, false).await?.names.keys().cloned().collect())
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let id = {
            let mut device = self.device(Subject::Name(name), true).await?;
            if device.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if device.used().saturating_add(len) > device.capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let id = device.next_file;
            device.next_file += 1;
            let mut file = SimFile::default();
            file.live.allocate(0, len);
            file.live.set_len(len);
            device.files.insert(id, file);
            device.change_directory(DirectoryChange::Link { name: name.to_owned(), file: id });
            id
        };
        Ok(self.handle(id))
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = {
            let device = self.device(Subject::Name(name), false).await?;
            device.names.get(name).copied().ok_or(io::ErrorKind::NotFound)?
        };
        Ok(self.handle(id))
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let mut device = self.device(Subject::Name(name), true).await?;
        if !device.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        device.change_directory(DirectoryChange::Unlink { name: name.to_owned() });
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut device = self.device(Subject::Name(from), true).await?;
        if !device.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        device.change_directory(DirectoryChange::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let mut device = self.device(Subject::Directory, true).await?;
        device.durable_names = device.names.clone();
        device.directory_changes.clear();
        // A new file's size is part of what was made safe, its content is not.
        for file in device.files.values_mut() {
            file.durable.grow_as(&file.live);
        }
        Ok(())
    }

    async fn space(&self) -> io::Result<(u64, u64)> {
        let device = self.device(Subject::Directory, false).await?;
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
        let subject = Subject::File(self.file);
        enter(&self.device, self.opened_at, self.latency.as_ref(), operation, subject, changes).await
    }

    /// A change that failed: whatever of it reached the disk before.
    fn fail(&self, change: Pending) {
        let mut device = self.device.lock();
        if device.crashes == self.opened_at && !device.read_only {
            let Device { rng, files, .. } = &mut *device;
            if let Some(file) = files.get_mut(&self.file) {
                change.apply_some(rng, &mut file.live);
                file.pending.push(change);
            }
        }
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
                self.fail(Pending::Write { offset, bytes: all });
                return Err(error);
            }
        };
        device.check_space(self.file, offset, end)?;
        let file = device.file(self.file)?;
        file.live.write(offset, &all);
        file.pending.push(Pending::Write { offset, bytes: all });
        Ok(())
    }

    async fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        check_punch(offset, len)?;
        let change = Pending::Punch { start: offset, end: offset + len };
        let mut device = match self.device(DiskOperation::Punch, true).await {
            Ok(device) => device,
            Err(error) => {
                self.fail(change);
                return Err(error);
            }
        };
        let file = device.file(self.file)?;
        change.apply(&mut file.live);
        file.pending.push(change);
        Ok(())
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let mut device = self.device(DiskOperation::Allocate, true).await?;
        device.check_space(self.file, 0, len)?;
        let file = device.file(self.file)?;
        let change = Pending::Allocate { end: len };
        change.apply(&mut file.live);
        file.pending.push(change);
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        match self.device(DiskOperation::Sync, true).await {
            Ok(mut device) => {
                device.syncs += 1;
                let file = device.file(self.file)?;
                for change in std::mem::take(&mut file.pending) {
                    change.apply(&mut file.durable);
                }
                file.durable.grow_as(&file.live);
                Ok(())
            }
            Err(error) => {
                // The kernel drops what it could not write: part of it is safe, the rest never will be, and reads show
                // the cache until it is evicted.
                let mut device = self.device.lock();
                if device.crashes == self.opened_at && device.power_cut_at.is_none() {
                    let Device { rng, files, .. } = &mut *device;
                    if let Some(file) = files.get_mut(&self.file) {
                        for change in std::mem::take(&mut file.pending) {
                            change.apply_some(rng, &mut file.durable);
                        }
                    }
                }
                Err(error)
            }
        }
    }
}
