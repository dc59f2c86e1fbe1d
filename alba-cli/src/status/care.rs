//! What the agent that repairs counted, and what is away on purpose.
//!
//! It goes through the groups' indexes, and so is exact where this command would have to look at too many objects; but it counts
//! every so often, while this command looks now. So the two are put together: nothing that either of them sees is left out.

use std::collections::BTreeMap;
use std::time::Duration;

use alba_core::ids::NamespaceId;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmQuery, CARE_PAGE, OsdRecord, SurveyCounts, SurveyRecord, WindowRecord,
};
use serde_json::{Value, json};

use crate::commands::backend::{Backend, mismatch};
use crate::commands::windows;
use crate::error::CliError;

/// A survey is of now when it is no older: they are made every 20 s, and one may take a while.
const FRESH: Duration = Duration::from_secs(90);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Care {
    /// The ABM's time.
    now: u64,
    windows: Vec<WindowRecord>,
    surveys: BTreeMap<NamespaceId, SurveyRecord>,
    /// Objects whose repair failed, as far as they are counted.
    failed: u64,
    /// There are more.
    more: bool,
}

/// Asks the ABM.
pub(super) async fn ask(backend: &Backend<'_>) -> Result<Care, CliError> {
    let max = u32::try_from(CARE_PAGE).unwrap_or(u32::MAX);
    let (mut now, windows) = windows::open(backend).await?;
    let mut surveys = BTreeMap::new();
    let mut after = None;
    loop {
        let AbmAnswer::Surveys { now: then, page } = backend.ask(AbmQuery::Surveys { after, max }).await?
        else {
            return Err(mismatch("Surveys"));
        };
        now = now.max(then);
        after = page.items.last().map(|record| record.namespace).or(after);
        surveys.extend(page.items.into_iter().map(|record| (record.namespace, record)));
        if !page.has_more {
            break;
        }
    }
    let AbmAnswer::Unrepaired { page, .. } = backend.ask(AbmQuery::Unrepaired { after: None, max }).await?
    else {
        return Err(mismatch("Unrepaired"));
    };
    let failed = u64::try_from(page.items.len()).unwrap_or(u64::MAX);
    Ok(Care { now, windows, surveys, failed, more: page.has_more })
}

impl Care {
    /// What was counted of a namespace, unless that is long ago.
    pub(super) fn fresh(&self, namespace: NamespaceId) -> Option<SurveyCounts> {
        let record = self.surveys.get(&namespace)?;
        let age = Duration::from_micros(self.now.saturating_sub(record.at));
        (age <= FRESH).then_some(record.counts)
    }

    /// Why nothing is repaired for the sake of an OSD.
    pub(super) fn excuse(&self, osd: &OsdRecord) -> Option<String> {
        let covers = |window: &&WindowRecord| window.covers(&osd.info.long_id, osd.info.place.node());
        let window = self.windows.iter().filter(covers).max_by_key(|window| window.until)?;
        Some(format!("maintenance window: {}", windows::line(window, self.now)))
    }

    /// Of the whole backend.
    pub(super) fn finding(&self) -> Option<String> {
        let at_least = if self.more { "more than " } else { "" };
        (self.failed > 0).then(|| {
            format!(
                "the repair of {at_least}{} objects failed and is tried again; alba list-unrepairable says why",
                self.failed
            )
        })
    }

    /// One line for people; none when no window is open.
    pub(super) fn line(&self) -> Option<String> {
        let lines: Vec<String> = self.windows.iter().map(|window| windows::line(window, self.now)).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    pub(super) fn windows_json(&self) -> Value {
        self.windows.iter().map(|window| windows::shown(window, self.now)).collect()
    }

    /// What agents counted of a namespace, and how long ago.
    pub(super) fn json(&self, namespace: NamespaceId) -> Value {
        let Some(SurveyRecord { at, counts, .. }) = self.surveys.get(&namespace) else { return Value::Null };
        json!({
            "below_policy": counts.below_policy,
            "repairable": counts.repairable,
            "unrepairable": counts.unrepairable,
            "left_alone": counts.left_alone,
            "safety": counts.least.map(|(least, _)| least),
            "seconds_ago": crate::json::seconds(self.now.saturating_sub(*at)),
        })
    }
}

#[cfg(test)]
mod tests {
    use alba_core::ids::NodeId;
    use alba_core::wire::rpc::abm::WindowTarget;

    use super::super::judge::Safety;
    use super::super::observe::Counted;
    use super::*;

    fn care() -> Care {
        let namespace = NamespaceId::from_u32(3);
        let counts = SurveyCounts { below_policy: 5, unrepairable: 2, ..SurveyCounts::default() };
        let window = WindowRecord {
            target: WindowTarget::Node(NodeId::new("node-1").unwrap()),
            reason: String::new(),
            since: 0,
            until: 7_300_000_000,
        };
        Care {
            now: 100_000_000,
            windows: vec![window],
            surveys: BTreeMap::from([(namespace, SurveyRecord { namespace, at: 40_000_000, counts })]),
            failed: 200,
            more: true,
        }
    }

    #[test]
    fn a_survey_counts_while_it_is_fresh() {
        let mut care = care();
        let namespace = NamespaceId::from_u32(3);
        assert_eq!(care.fresh(namespace).unwrap().unrepairable, 2);
        assert_eq!(care.json(namespace)["seconds_ago"], json!(60.0));
        care.now = 131_000_000;
        assert_eq!((care.fresh(namespace), care.fresh(NamespaceId::from_u32(4))), (None, None));
    }

    #[test]
    fn what_agents_counted_fills_in_and_never_makes_less_of_what_is_seen() {
        let counted = |below, all_examined| Counted {
            objects: 9,
            logical: 0,
            storage: 0,
            wanted: None,
            safety: Safety { below, ..Safety::default() },
            all_examined,
        };
        let surveyed = care().fresh(NamespaceId::from_u32(3));
        assert_eq!(counted(2, false).below(surveyed), (5, true));
        assert_eq!(counted(7, false).below(surveyed), (7, true));
        assert_eq!(counted(2, false).below(None), (2, false));
        // This command has looked at each itself, later than the agents.
        assert_eq!(counted(2, true).below(surveyed), (2, true));
    }

    #[test]
    fn what_fails_and_what_is_away_is_told() {
        let care = care();
        assert!(care.finding().unwrap().contains("more than 200 objects"));
        assert_eq!(Care::default().finding(), None);
        assert_eq!(care.line().unwrap(), "node node-1 for 2h");
        assert_eq!(Care::default().line(), None);
    }
}
