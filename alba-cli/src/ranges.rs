//! The options of listings, and listing page after page.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use alba_core::range::{PAGE_MAX, Page, RangeQuery};
use clap::Args;

/// Which items to list. Order is bytewise.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listing options")]
pub(crate) struct RangeArgs {
    /// Lower bound, also with --reverse
    #[arg(long, value_name = "KEY")]
    first: Option<OsString>,
    /// Is the lower bound itself included?
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true")]
    finc: bool,
    /// Upper bound, also with --reverse
    #[arg(long, value_name = "KEY")]
    last: Option<OsString>,
    /// Is the upper bound itself included?
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true")]
    linc: bool,
    /// At most this many; -1: all
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    max: i64,
    /// From the upper bound down
    #[arg(long)]
    reverse: bool,
}

/// A listing under way: asks for pages until it has what was wanted.
pub(crate) struct Pager {
    query: RangeQuery,
    /// Items still wanted; none: all there are.
    left: Option<u64>,
}

impl RangeArgs {
    /// The listing it asks for.
    pub(crate) fn pager(&self) -> Pager {
        let query = RangeQuery {
            first: self.first.clone().map(OsStringExt::into_vec).unwrap_or_default(),
            first_included: self.finc,
            last: self.last.clone().map(|last| (last.into_vec(), self.linc)),
            reverse: self.reverse,
            max: -1,
        };
        Pager { query, left: u64::try_from(self.max).ok() }
    }
}

impl Pager {
    /// Everything.
    pub(crate) fn all() -> Self {
        Self { query: RangeQuery::all(), left: None }
    }

    /// The query of the next page; none when nothing more is wanted.
    pub(crate) fn next(&self) -> Option<RangeQuery> {
        let page =
            self.left.map_or(PAGE_MAX, |left| usize::try_from(left).map_or(PAGE_MAX, |l| l.min(PAGE_MAX)));
        if page == 0 || self.query.is_empty() {
            return None;
        }
        Some(RangeQuery { max: i32::try_from(page).unwrap_or(-1), ..self.query.clone() })
    }

    /// Takes a page's items; `key` is what the listing is ordered by. Says whether to ask on.
    pub(crate) fn take<T>(&mut self, page: Page<T>, into: &mut Vec<T>, key: impl Fn(&T) -> Vec<u8>) -> bool {
        let got = u64::try_from(page.items.len()).unwrap_or(u64::MAX);
        self.left = self.left.map(|left| left.saturating_sub(got));
        into.extend(page.items);
        // A full page without items would never end.
        let Some(last) = into.last().filter(|_| got > 0 && page.has_more) else { return false };
        self.query = self.query.after(&key(last));
        true
    }
}

/// Collects a listing: `ask` gets a query and gives a page.
pub(crate) async fn collect<T, E>(
    mut pager: Pager,
    key: impl Fn(&T) -> Vec<u8>,
    mut ask: impl AsyncFnMut(RangeQuery) -> Result<Page<T>, E>,
) -> Result<Vec<T>, E> {
    let mut items = Vec::new();
    while let Some(query) = pager.next() {
        let page = ask(query).await?;
        if !pager.take(page, &mut items, &key) {
            break;
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        range: RangeArgs,
        rest: Vec<String>,
    }

    fn parse(args: &[&str]) -> RangeArgs {
        Line::try_parse_from(std::iter::once(&"x").chain(args)).unwrap().range
    }

    /// What a server would give of the keys 000 to 999.
    async fn listed(args: &[&str]) -> (Vec<String>, usize) {
        let mut pages = 0;
        let keys: Vec<String> = (0..1000).map(|i| format!("{i:03}")).collect();
        let ask = async |query: RangeQuery| {
            pages += 1;
            let mut inside: Vec<String> =
                keys.iter().filter(|key| query.contains(key.as_bytes())).cloned().collect();
            if query.reverse {
                inside.reverse();
            }
            let has_more = inside.len() > query.limit();
            inside.truncate(query.limit());
            Ok::<_, ()>(Page { items: inside, has_more })
        };
        let items = collect(parse(args).pager(), |key: &String| key.clone().into_bytes(), ask).await.unwrap();
        (items, pages)
    }

    #[tokio::test]
    async fn listings_go_on_until_they_have_what_was_wanted() {
        let (items, pages) = listed(&[]).await;
        assert_eq!((items.len(), pages), (1000, 5));
        let (items, pages) = listed(&["--max", "250"]).await;
        assert_eq!((items.len(), items.last().unwrap().as_str(), pages), (250, "249", 2));
        assert_eq!(listed(&["--max", "0"]).await, (Vec::new(), 0));
        assert_eq!(listed(&["--max=-1"]).await.0.len(), 1000);
        let (items, _) = listed(&["--reverse", "--last", "500", "--first", "100"]).await;
        assert_eq!(
            (items.len(), items.first().unwrap().as_str(), items.last().unwrap().as_str()),
            (401, "500", "100")
        );
    }

    #[tokio::test]
    async fn bounds_are_included_unless_told_otherwise() {
        let between = ["--first", "100", "--last", "102"];
        assert_eq!(listed(&between).await.0, ["100", "101", "102"]);
        assert_eq!(listed(&[&between[..], &["--finc=false", "--linc=false"]].concat()).await.0, ["101"]);
        assert_eq!(listed(&[&between[..], &["--finc", "--linc"]].concat()).await.0, ["100", "101", "102"]);
        assert_eq!(listed(&["--first", "102", "--last", "100"]).await, (Vec::new(), 0));
    }
}
