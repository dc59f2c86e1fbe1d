//! Who may use the disk next: a pure model of two classes that share a bounded number of bytes in flight.
//!
//! It is weighted fair queueing over virtual time (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996), with two
//! classes of weights 7 and 1 and first in, first out inside a class. On top of it the low class is kept small *in
//! flight* while there is high traffic: a queue order alone cannot take back what the disk has already been given, and
//! that is what a client's read waits behind. Time is an input.

use std::collections::BTreeMap;
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::env::osd::Priority;

/// How much the high class gets for each byte of the low class when both wait: low has 1/8, above the 10 % promised.
const HIGH_PER_LOW: u64 = 7;

/// Bounds of a schedule. Bytes are those of [`super::cost`]: of values, with a constant for each operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleLimits {
    /// In flight together. One operation that is larger runs alone.
    pub in_flight: u64,
    /// In flight of the low class from which no more of it starts while there is high traffic. Where high has more than
    /// seven times this in flight, a seventh of that counts.
    pub low_in_flight: u64,
    /// Waiting, by class; beyond it callers are refused at once. What waits may hold its request in memory.
    pub high_waiting: u64,
    /// The same for the low class.
    pub low_waiting: u64,
    /// So long after the last high operation the low class has the disk for itself.
    pub quiet: Duration,
}

impl Default for ScheduleLimits {
    fn default() -> Self {
        Self {
            in_flight: 64 << 20,
            low_in_flight: 512 << 10,
            high_waiting: 1 << 30,
            low_waiting: 256 << 20,
            quiet: Duration::from_millis(50),
        }
    }
}

/// An operation, from its arrival to its end. Later ones have greater numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

/// More waits than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    /// Bytes that wait in the class.
    pub(super) waiting: u64,
}

/// Queues and bytes of one class.
#[derive(Debug, Default)]
struct Class {
    /// By arrival: the cost of each that waits.
    waiting: BTreeMap<Ticket, u64>,
    waiting_bytes: u64,
    running: BTreeMap<Ticket, u64>,
    running_bytes: u64,
    /// Virtual time at which its next operation begins.
    start: u128,
}

/// What a class has at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassLoad {
    /// Operations that wait.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Operations in flight.
    pub running: usize,
    /// Their bytes.
    pub running_bytes: u64,
}

/// The state. After each change [`Model::grant`] must be called until it gives nothing.
#[derive(Debug)]
pub(super) struct Model {
    limits: ScheduleLimits,
    high: Class,
    low: Class,
    /// Virtual time: where the operation granted last began.
    now: u128,
    last_high: Option<Moment>,
    next: u64,
}

impl Model {
    pub(super) fn new(limits: ScheduleLimits) -> Self {
        let limits = ScheduleLimits { in_flight: limits.in_flight.max(1), ..limits };
        Self { limits, high: Class::default(), low: Class::default(), now: 0, last_high: None, next: 0 }
    }

    /// Changes the bounds from now on. What is in flight stays so.
    pub(super) fn set_limits(&mut self, limits: ScheduleLimits) {
        self.limits = ScheduleLimits { in_flight: limits.in_flight.max(1), ..limits };
    }

    pub(super) fn limits(&self) -> ScheduleLimits {
        self.limits
    }

    fn class(&self, priority: Priority) -> &Class {
        match priority {
            Priority::High => &self.high,
            Priority::Low => &self.low,
        }
    }

    fn class_mut(&mut self, priority: Priority) -> &mut Class {
        match priority {
            Priority::High => &mut self.high,
            Priority::Low => &mut self.low,
        }
    }

    /// What a class has now.
    pub(super) fn load(&self, priority: Priority) -> ClassLoad {
        let class = self.class(priority);
        ClassLoad {
            waiting: class.waiting.len(),
            waiting_bytes: class.waiting_bytes,
            running: class.running.len(),
            running_bytes: class.running_bytes,
        }
    }

    /// An operation arrives at `at` and waits.
    pub(super) fn arrive(&mut self, priority: Priority, cost: u64, at: Moment) -> Result<Ticket, Refused> {
        let limits = self.limits;
        let cost = cost.clamp(1, limits.in_flight);
        let max = match priority {
            Priority::High => limits.high_waiting,
            Priority::Low => limits.low_waiting,
        };
        let (now, ticket) = (self.now, Ticket(self.next));
        let class = self.class_mut(priority);
        let waiting = class.waiting_bytes.saturating_add(cost);
        // The first is always taken, so that a large one is not refused for ever.
        if waiting > max && !class.waiting.is_empty() {
            return Err(Refused { waiting: class.waiting_bytes });
        }
        if class.waiting.is_empty() {
            // Time in which it asked for nothing gives it no claim.
            class.start = class.start.max(now);
        }
        class.waiting.insert(ticket, cost);
        class.waiting_bytes = waiting;
        self.next += 1;
        if priority == Priority::High {
            self.last_high = Some(at);
        }
        Ok(ticket)
    }

    /// An operation leaves: it is done, or its caller has gone while it waited.
    pub(super) fn leave(&mut self, priority: Priority, ticket: Ticket, at: Moment) {
        let class = self.class_mut(priority);
        if let Some(cost) = class.waiting.remove(&ticket) {
            class.waiting_bytes -= cost;
        }
        if let Some(cost) = class.running.remove(&ticket) {
            class.running_bytes -= cost;
            if priority == Priority::High {
                self.last_high = Some(at);
            }
        }
    }

    /// Has the high class used the disk lately?
    fn is_high_around(&self, at: Moment) -> bool {
        !self.high.waiting.is_empty()
            || !self.high.running.is_empty()
            || self.last_high.is_some_and(|last| at.since(last) < self.limits.quiet)
    }

    /// May the low class start one more? When not, some of it is in flight, so an end of it will ask again.
    fn is_low_free(&self, at: Moment) -> bool {
        let cap = if self.is_high_around(at) {
            // As much in flight as its part, or it would not get its part. Where clients wait, they fill the disk.
            let filled = if self.high.waiting.is_empty() {
                self.high.running_bytes
            } else {
                self.limits.in_flight / (HIGH_PER_LOW + 1) * HIGH_PER_LOW
            };
            self.limits.low_in_flight.max(filled / HIGH_PER_LOW)
        } else {
            // Room for the client that comes next.
            self.limits.in_flight - self.limits.in_flight / 4
        };
        self.low.running.is_empty() || self.low.running_bytes < cap
    }

    /// The class whose turn it is.
    fn turn(&self, at: Moment) -> Option<Priority> {
        let high = (!self.high.waiting.is_empty()).then_some(self.high.start);
        let low = (!self.low.waiting.is_empty() && self.is_low_free(at)).then_some(self.low.start);
        match (high, low) {
            (Some(high), Some(low)) if low < high => Some(Priority::Low),
            (Some(_), _) => Some(Priority::High),
            (None, Some(_)) => Some(Priority::Low),
            (None, None) => None,
        }
    }

    /// The next operation that may start at `at`; it is in flight from then on. Whose turn it is waits for its room:
    /// a smaller one of the other class does not overtake it, or large ones would starve.
    pub(super) fn grant(&mut self, at: Moment) -> Option<Ticket> {
        let priority = self.turn(at)?;
        let running = self.high.running_bytes + self.low.running_bytes;
        let room = self.limits.in_flight.saturating_sub(running);
        let class = self.class_mut(priority);
        let (ticket, cost) = class.waiting.first_key_value().map(|(ticket, cost)| (*ticket, *cost))?;
        // One from before the bound was lowered may be larger than it: alone it may run.
        if cost > room && running > 0 {
            return None;
        }
        class.waiting.remove(&ticket);
        class.waiting_bytes -= cost;
        class.running.insert(ticket, cost);
        class.running_bytes += cost;
        let begun = class.start;
        let weighed = match priority {
            Priority::High => cost,
            Priority::Low => cost.saturating_mul(HIGH_PER_LOW),
        };
        class.start += u128::from(weighed);
        self.now = self.now.max(begun);
        Some(ticket)
    }
}
