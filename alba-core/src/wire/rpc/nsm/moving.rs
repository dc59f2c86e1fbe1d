//! Moving a namespace between groups: the steps, and what each group says of them.
//!
//! | source | target | clients |
//! |---|---|---|
//! | `Prepare`, then `Cover` | `Receive`, then `Import` | served by the source |
//! | `Freeze` | `Import` of what changed | reads served, writes refused with `NamespaceFrozen` |
//! | `HandOver` | `Activate` | refused by both with `NamespaceMoved`, for two commands |
//! | `Drop` | | served by the target |
//!
//! At no time do both serve: the source stops before the target starts. A move that must not go on is ended at the target
//! first (`Reject`), and only then at the source (`Resume`).

use serde::{Deserialize, Serialize};

use crate::ids::NamespaceName;
use crate::manifest::Timestamp;
use crate::preset::Preset;

/// Names a move. Of one namespace the later move has the higher number; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MoveId(pub u64);

/// Most bytes of keys and values in a page.
pub const MAX_PAGE_BYTES: usize = 512 << 10;

/// Whole tables of a namespace as a number: for every row a hash of key and value, added up. Equal tables have equal
/// digests whatever the order in which rows came; different ones differ but by chance (2⁻¹²⁸), or by intent, which this
/// does not defend against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Rows.
    pub rows: u64,
    /// Sum of the hashes, modulo 2¹²⁸.
    pub sum: u128,
}

/// How far a copy has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cursor {
    /// All rows up to this key are copied, as they were some time after they were covered. Empty: none.
    Rows(Vec<u8>),
    /// All rows are copied, and the changes up to this number.
    Changes(u64),
}

/// Rows of a namespace, keys without the part that names it; none: the row is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovePage {
    /// At most [`MAX_PAGE_BYTES`], but at least one row when there is one.
    pub rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// How far the copy has come with them.
    pub next: Cursor,
}

/// What clients may do in a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifecycle {
    /// All.
    #[default]
    Active,
    /// Nothing yet: its objects are being put together from what OSDs hold.
    Recovering,
}

/// What the source hands over beside the tables; it does not change any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The namespace's name.
    pub name: NamespaceName,
    /// Its preset.
    pub preset: Preset,
    /// Of the preset.
    pub preset_version: u32,
    /// Its life.
    pub lifecycle: Lifecycle,
    /// Is it in the trash?
    pub trashed: bool,
    /// Time stamps given at the target are later than this.
    pub floor: Timestamp,
    /// Of the tables at the source.
    pub digest: Digest,
}

/// A step of a move. Each is idempotent: repeated after it had its effect, it does nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveStep {
    /// Source: begin to note changes.
    Prepare,
    /// Source: rows up to a further key may be copied; from now on their changes are noted.
    Cover,
    /// Source: refuse writes.
    Freeze,
    /// Source: refuse all. Only when everything is copied.
    HandOver {
        /// The last change that the target has.
        copied: u64,
    },
    /// Source: serve again as if nothing had been. **After `HandOver` only when the target has rejected the move.**
    Resume,
    /// Source, after `HandOver`: forget the namespace.
    Drop,
    /// Target: be ready for pages.
    Receive,
    /// Target: take a page. Pages count from 0; one that was taken before has no effect.
    Import {
        /// Its number.
        number: u64,
        /// The page.
        page: MovePage,
    },
    /// Target: serve. Refused unless the tables are those of the source.
    Activate(Box<Sealed>),
    /// Target: take nothing of this move, now or later. Refused once it has been activated.
    Reject,
    /// Source: as `Resume`, but refused once it has handed over. So it needs no word of the target: what was not handed over
    /// cannot be activated.
    Withdraw,
}

/// How far the source is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Serves reads and writes.
    Prepared,
    /// Serves reads.
    Frozen,
    /// Serves nothing.
    HandedOver(Box<Sealed>),
}

/// What a group says of a namespace and its moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveStatus {
    /// Not here.
    Absent {
        /// The last move that ended here, in whatever way.
        ended: MoveId,
    },
    /// Here, and no move under way.
    Owned {
        /// The last move that ended here, in whatever way.
        ended: MoveId,
    },
    /// Being moved away.
    Outgoing {
        /// Which move.
        id: MoveId,
        /// How far.
        phase: Phase,
        /// Rows up to this key may be copied; none: all.
        covered: Option<Vec<u8>>,
        /// Number of the last change.
        last_change: u64,
        /// More changed than the group keeps note of: the move must be ended and begun again.
        overflowed: bool,
        /// Something that is done in steps is under way and must end before the namespace can be handed over.
        busy: bool,
    },
    /// Being copied here.
    Incoming {
        /// Which move.
        id: MoveId,
        /// Number of the page expected next.
        next_page: u64,
        /// How far the copy has come.
        cursor: Cursor,
    },
}
