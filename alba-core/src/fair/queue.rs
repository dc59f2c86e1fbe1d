//! Whose turn it is: start-time fair queueing (Goyal, Vin, Cheng 1996) on two levels, first among namespaces, then among
//! the clients of one.
//!
//! Each namespace and each client has a virtual time: the cost (in bytes, or whatever is shared) that it was served so
//! far. The one that is furthest behind is next. One that was away starts at the time of the one served last, so nobody
//! saves up; and one that has just been served is remembered until the others have caught up, so that asking anew
//! for each piece gives no advantage. Of two that always wait, what one was served exceeds the other by at most the
//! largest single cost of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::NamespaceName;

/// Those remembered although they wait for nothing. Beyond it the one that has least to make up for is forgotten, and
/// the clock moves on to where it would have started.
pub(super) const MOST_REMEMBERED: usize = 256;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// For which namespace; none: for none, or not known.
    pub namespace: Option<NamespaceName>,
    /// Which client of this process (a connection); none: the process itself.
    pub client: Option<u64>,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Who is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// Who.
    pub flow: Flow,
    /// Its place.
    pub ticket: Ticket,
    /// Its cost.
    pub cost: u64,
}

/// One level: who is how far.
#[derive(Debug)]
struct Turns<K> {
    /// Where the one served last began.
    now: u64,
    /// Where each begins next.
    starts: BTreeMap<K, u64>,
    waiting: BTreeSet<(u64, K)>,
    /// Ordered by what they have to make up for.
    idle: BTreeSet<(u64, K)>,
}

impl<K: Clone + Ord> Turns<K> {
    fn new() -> Self {
        Self { now: 0, starts: BTreeMap::new(), waiting: BTreeSet::new(), idle: BTreeSet::new() }
    }

    /// `key` waits for something from now on.
    fn arrive(&mut self, key: &K) {
        let before = self.starts.get(key).copied().unwrap_or(0);
        if self.waiting.contains(&(before, key.clone())) {
            // It waited already: its place stays.
            return;
        }
        self.idle.remove(&(before, key.clone()));
        let start = before.max(self.now);
        self.starts.insert(key.clone(), start);
        self.waiting.insert((start, key.clone()));
    }

    /// `key` was served `cost`; does more of it wait?
    fn served(&mut self, key: &K, cost: u64, more: bool) {
        let start = self.starts.get(key).copied().unwrap_or(0);
        self.leave(key);
        self.now = self.now.max(start);
        let start = start.max(self.now).saturating_add(cost);
        self.settle(key, start, more);
    }

    /// Nothing of `key` waits any more, although nothing was served.
    fn gone(&mut self, key: &K) {
        let start = self.starts.get(key).copied().unwrap_or(0);
        self.leave(key);
        self.settle(key, start, false);
    }

    fn leave(&mut self, key: &K) {
        if let Some(start) = self.starts.remove(key) {
            self.waiting.remove(&(start, key.clone()));
            self.idle.remove(&(start, key.clone()));
        }
    }

    fn settle(&mut self, key: &K, start: u64, more: bool) {
        self.starts.insert(key.clone(), start);
        if more { &mut self.waiting } else { &mut self.idle }.insert((start, key.clone()));
        while let Some((start, _)) = self.idle.first() {
            if *start > self.now && self.idle.len() <= MOST_REMEMBERED {
                break;
            }
            if let Some((start, key)) = self.idle.pop_first() {
                self.starts.remove(&key);
                self.now = self.now.max(start);
            }
        }
    }
}

#[derive(Debug)]
struct Item<T> {
    ticket: Ticket,
    cost: u64,
    value: T,
}

#[derive(Debug)]
struct Space<T> {
    turns: Turns<Option<u64>>,
    items: BTreeMap<Option<u64>, VecDeque<Item<T>>>,
}

/// What waits, in fair order. One client's own items are served in the order they came.
#[derive(Debug)]
pub struct Queue<T> {
    turns: Turns<Option<NamespaceName>>,
    /// As long as `turns` knows the namespace.
    spaces: BTreeMap<Option<NamespaceName>, Space<T>>,
    /// Where each ticket waits.
    places: BTreeMap<Ticket, Flow>,
    next: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { turns: Turns::new(), spaces: BTreeMap::new(), places: BTreeMap::new(), next: 0 }
    }
}

impl<T> Queue<T> {
    /// How many items wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Namespaces and clients that something is kept of, waiting or not.
    pub fn remembered(&self) -> usize {
        self.spaces.values().map(|space| 1 + space.turns.starts.len()).sum()
    }

    /// Adds an item.
    pub fn push(&mut self, flow: Flow, cost: u64, value: T) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.turns.arrive(&flow.namespace);
        let space = self.space(&flow.namespace);
        space.turns.arrive(&flow.client);
        space.items.entry(flow.client).or_default().push_back(Item { ticket, cost, value });
        self.places.insert(ticket, flow);
        ticket
    }

    fn space(&mut self, namespace: &Option<NamespaceName>) -> &mut Space<T> {
        let new = || Space { turns: Turns::new(), items: BTreeMap::new() };
        self.spaces.entry(namespace.clone()).or_insert_with(new)
    }

    /// Who is next among the clients that `may` be served that item, and the item.
    pub fn next(&self, may: impl Fn(Option<u64>, &T) -> bool) -> Option<(Next, &T)> {
        for (_, namespace) in &self.turns.waiting {
            let Some(space) = self.spaces.get(namespace) else { continue };
            for (_, client) in &space.turns.waiting {
                let Some(item) = space.items.get(client).and_then(VecDeque::front) else { continue };
                if may(*client, &item.value) {
                    let flow = Flow { namespace: namespace.clone(), client: *client };
                    return Some((Next { flow, ticket: item.ticket, cost: item.cost }, &item.value));
                }
            }
        }
        None
    }

    /// Takes an item out because it is served.
    pub fn serve(&mut self, ticket: Ticket) -> Option<T> {
        let (flow, item, (more_of_client, more_of_space)) = self.take_out(ticket)?;
        self.space(&flow.namespace).turns.served(&flow.client, item.cost, more_of_client);
        self.turns.served(&flow.namespace, item.cost, more_of_space);
        self.forget_spaces();
        Some(item.value)
    }

    /// Takes an item out because nobody waits for it any more. It costs its flow nothing.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<T> {
        let (flow, item, (more_of_client, more_of_space)) = self.take_out(ticket)?;
        if !more_of_client {
            self.space(&flow.namespace).turns.gone(&flow.client);
        }
        if !more_of_space {
            self.turns.gone(&flow.namespace);
        }
        self.forget_spaces();
        Some(item.value)
    }

    /// Counts what was served without waiting.
    pub fn charge(&mut self, flow: &Flow, cost: u64) {
        let more_of_client = {
            let space = self.space(&flow.namespace);
            let more = space.items.contains_key(&flow.client);
            space.turns.arrive(&flow.client);
            space.turns.served(&flow.client, cost, more);
            !space.items.is_empty()
        };
        self.turns.arrive(&flow.namespace);
        self.turns.served(&flow.namespace, cost, more_of_client);
        self.forget_spaces();
    }

    /// The item, and whether its client and its namespace wait for more.
    fn take_out(&mut self, ticket: Ticket) -> Option<(Flow, Item<T>, (bool, bool))> {
        let flow = self.places.remove(&ticket)?;
        let space = self.spaces.get_mut(&flow.namespace)?;
        let items = space.items.get_mut(&flow.client)?;
        // Tickets of one client ascend.
        let at = items.binary_search_by_key(&ticket, |item| item.ticket).ok()?;
        let item = items.remove(at)?;
        let more_of_client = !items.is_empty();
        if !more_of_client {
            space.items.remove(&flow.client);
        }
        let more_of_space = !space.items.is_empty();
        Some((flow, item, (more_of_client, more_of_space)))
    }

    /// Drops the clients of namespaces that are not remembered.
    fn forget_spaces(&mut self) {
        if self.spaces.len() > self.turns.starts.len() {
            let known = &self.turns.starts;
            self.spaces.retain(|namespace, _| known.contains_key(namespace));
        }
    }
}
